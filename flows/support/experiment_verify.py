"""The verdict of an experiment, computed again from its stored blocks and the outcomes and decisions behind them."""

from dataclasses import dataclass
from math import isclose

from flows.support.experiment_blocks import mean_gains
from flows.support.experiment_guardrails import decided_units, misassigned
from flows.support.experiments import evidence_of, progress_on
from flows.support.installation import Installation
from pipelines.compiled import cpu_type
from pipelines.contracts import utc

OTHER_CPU = 1e-12  # relative; math libraries of two CPU types differ in the last bit


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Hold a verdict computed again from the stored scores of blocks.

    state      that the scores give: running, won, stopped or expired; `recorded` is the last one that they decided
    same       whether they agree; differs: names of figures that are not the recorded ones
    blocks     that count; outcomes_gone: of those, the ones whose outcomes were pruned; wrong: numbers of the blocks
               whose mean is another one than their outcomes give
    misassigned  units of (symbol, block), whole before it ended, that another arm decided than the assigned one; such a
               split is stopped
    cpu        type that recorded the verdict; figures are compared to the last bit on the same, else to OTHER_CPU
    """

    state: str
    recorded: str
    differs: tuple[str, ...]
    blocks: int
    outcomes_gone: int
    wrong: tuple[int, ...]
    misassigned: int
    cpu: str

    @property
    def same(self) -> bool:
        """Return whether the verdict, its figures and the means of the blocks are those recorded."""
        return self.state == self.recorded and not self.differs and not self.wrong


def recompute(installation: Installation, number: int) -> Recomputed:
    """Compute the verdict of an experiment again, and the means of its blocks where their outcomes are still stored.

    Raises  UnknownName
    """
    store = installation.store
    experiment, blocks, transitions = store.experiment(number), store.block_scores(number), store.transitions(number)
    decided = [t for t in transitions if "decided_at" in t.evidence]
    found = progress_on(experiment, blocks)
    figures, recorded = evidence_of(experiment, blocks, found), "running"
    cpu = str(experiment.evidence.get("cpu", cpu_type()))
    differs: list[str] = []
    if decided:
        recorded, cpu = str(decided[-1].evidence["verdict"]), str(decided[-1].evidence["cpu"])
        figures |= {"decided_at": found.decided_at}
        stored = decided[-1].evidence
        differs = [name for name in figures if not _equal(figures[name], stored.get(name), cpu == cpu_type())]
    gone, wrong = 0, []
    counting = [block for block in blocks if block.mean is not None]
    if counting:
        end_s = counting[-1].start_s + (experiment.horizons + 1) * experiment.horizon_s
        means = mean_gains(installation, experiment, experiment.begun, utc(end_s), end_s)
        for block in counting:
            mean, n = means.get(block.number, (None, 0))
            if n < block.n:
                gone += 1
            elif (n, mean) != (block.n, block.mean) and not _equal(mean, block.mean, cpu == cpu_type()):
                wrong.append(block.number)
    others = 0
    if any("stage" in t.evidence for t in transitions):
        assignment = experiment.assignment(transitions)
        units = decided_units(installation, experiment.family, assignment, transitions[-1])
        others = len(misassigned(units, assignment))
    return Recomputed(found.state, recorded, tuple(differs), len(counting), gone, tuple(wrong), others, cpu)


def _equal(one: object, other: object, to_the_last_bit: bool) -> bool:
    """Return whether two figures are the same, on another CPU type within OTHER_CPU."""
    if to_the_last_bit or not (isinstance(one, float) and isinstance(other, float)):
        return one == other
    return isclose(one, other, rel_tol=OTHER_CPU)
