"""An experiment as its stored rows have it, for pages and commands."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contracts import JsonObject, utc
from pipelines.experiments.verdict import Progress
from pipelines.store import BlockScore, Experiment, Transition


@dataclass(frozen=True, slots=True)
class ExperimentView:
    """Hold an experiment as its stored rows have it, with its test after each block that counts.

    figures     of the newest block, JSON-ready; alpha_left: of the present market year
    guardrails  a row for each, as `guardrail_rows`; those that act inside the service have no value here
    trades      of each arm since it began: number and mean net bps; empty where nobody asked for them
    """

    experiment: Experiment
    transitions: Sequence[Transition]
    blocks: Sequence[BlockScore]
    progress: Progress
    figures: JsonObject
    alpha_left: float
    guardrails: Sequence[JsonObject]
    trades: Sequence[JsonObject] = ()

    @property
    def stages(self) -> list[JsonObject]:
        """Return the stages of its ramp that have begun, in their order: from_block, until_block, weight."""
        return [t.evidence["stage"] for t in self.transitions if "stage" in t.evidence]

    @property
    def state(self) -> str:
        """Return the present state."""
        return self.transitions[-1].state

    def next_step(self) -> str:
        """Return what happens next, in a sentence."""
        e, state = self.experiment, self.state
        if e.alpha <= 0.0:
            return "A standing arm: it is compared for as long as this home lives, spends nothing and wins nothing."
        if state == "probation":
            left = e.max_blocks - len(self.blocks)
            return (
                f"Version {e.challenger} is served again if the e-value reaches {1 / e.alpha:.3g}, or if a guardrail "
                f"trips and it lost less on the same blocks. The probation ends after {left} more blocks."
            )
        if state in ("canary", "split"):
            stage = self.stages[-1]
            return (
                f"It has won in shadow. From block {stage['from_block']} to {stage['until_block'] - 1} version "
                f"{e.challenger} decides {stage['weight']:.0%} of symbols and blocks; the next stage follows, or its "
                "promotion. A guardrail that trips gives every close back to the champion."
            )
        if state == "shadow":
            left = e.max_blocks - len(self.blocks)
            return (
                f"It wins when the e-value reaches {1 / e.alpha:.3g}, stops when a gain of {e.least_gain:.2g} is ruled "
                f"out, and expires after {left} more blocks. Until then both arms score every decision and the "
                "champion decides."
            )
        if e.is_probation:
            return f"Version {e.champion} is off probation." if state == "expired" else "The probation is over."
        return {
            "won": f"Version {e.challenger} is promoted, by itself or by a person, as retrain.approval says.",
            "stopped": f"Version {e.challenger} serves on in shadow until another candidate takes its place.",
            "expired": f"Version {e.challenger} serves on in shadow until another candidate takes its place.",
            "refused": f"Version {e.challenger} won and was refused when it was promoted: see the reason.",
            "overridden": "The champion changed without this experiment: nothing of it counts for another one.",
        }[state]

    def summary(self) -> JsonObject:
        """Return the experiment in a row, JSON-ready."""
        e, last = self.experiment, self.transitions[-1]
        return {
            "id": e.number, "family": e.family, "champion": e.champion, "challenger": e.challenger,
            "state": self.state, "since": utc(last.as_of_s).isoformat(), "by": last.actor, "reason": last.reason,
            "begun": e.begun.isoformat(), "unit": e.unit, **self.figures, "alpha": e.alpha, "bound": e.bound,
            "least_gain": e.least_gain, "futility_alpha": e.futility_alpha, "max_blocks": e.max_blocks,
            "next": self.next_step(),
        }  # fmt: skip
