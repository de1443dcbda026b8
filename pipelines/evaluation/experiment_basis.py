"""What an experiment fixes before it begins, from the gate's rows: how far block means may lie, and what must be found.

No live score is read here: bound and least gain are known when the challenger is judged, and stored with its verdict.
"""

from dataclasses import asdict, dataclass

import numpy as np

from pipelines.contracts import Floats, JsonObject
from pipelines.errors import BadValues
from pipelines.evaluation.gates import Evidence, family_skill
from pipelines.evaluation.report import SIMPLEST
from pipelines.experiments.eprocess import LEAST_BLOCKS, block_means
from pipelines.experiments.verdict import clip_bound, round_up
from pipelines.params import Params


@dataclass(frozen=True, slots=True)
class ExperimentBasis:
    """Hold the basis of an experiment, in the family's unit of loss.

    bound       of block means; rows: which differences it was measured on, in how many blocks
    skill       of the family, its gain over the simplest baseline; least_gain: the share of it that must be found
    trade_bound_bps  of block means of what trades return, net; None for a family that decides no trade, or where the
                blocks are too few
    """

    unit: str
    bound: float
    rows: str
    blocks: int
    skill: float
    least_gain: float
    trade_bound_bps: float | None

    def to_dict(self) -> JsonObject:
        """Return the basis as plain JSON."""
        return asdict(self)


def experiment_basis(e: Evidence, at_s: Floats, horizon_s: float, params: Params) -> ExperimentBasis | None:
    """Return the basis of an experiment with this candidate; None if its rows make too few blocks to measure one.

    at_s       (n,) epoch seconds at which the gate's rows were known
    horizon_s  longest time from a row to its outcome
    The differences are those of champion and candidate on the rows that neither was trained on; with too few of them
    those of candidate and simplest baseline, which lie further apart, so that fewer live blocks are clipped.
    """
    p = params.experiment
    baseline = SIMPLEST[e.family]
    candidates = [(f"candidate and {baseline}", e.baseline_losses[baseline] - e.loss)]
    if e.champion_loss is not None:
        challenger = e.loss if e.paired_loss is None else e.paired_loss
        candidates.insert(0, ("champion and candidate", e.champion_loss - challenger))
    for rows, gain in candidates:
        means = _means(at_s, gain, horizon_s, params)
        if (spread := _bound(means, p.bound_deviations)) is None:
            continue
        skill = family_skill(e)
        least = params.gate.min_improvement_share * skill
        bound = max(spread, round_up(2.0 * least) if least > 0.0 else 0.0)
        return ExperimentBasis(
            e.loss_name, bound, rows, len(means), skill, least, _trade_bound(e, at_s, horizon_s, params)
        )
    return None


def _trade_bound(e: Evidence, at_s: Floats, horizon_s: float, params: Params) -> float | None:
    """Return the bound of block means of what every event returns, net, in bps."""
    if e.gross_bps is None or e.cost_bps is None:
        return None
    return _bound(_means(at_s, e.gross_bps - e.cost_bps, horizon_s, params), params.experiment.bound_deviations)


def _bound(means: Floats, deviations: float) -> float | None:
    """Return the bound of block means; None of too few, or of arms that answer the same."""
    try:
        return clip_bound(means, deviations) if len(means) >= LEAST_BLOCKS else None
    except BadValues:
        return None


def _means(at_s: Floats, values: Floats, horizon_s: float, params: Params) -> Floats:
    """Return the means of the whole blocks of the values that are known."""
    known = np.isfinite(values)
    if not known.any():
        return np.empty(0)
    at_s, values = at_s[known], values[known]
    return block_means(
        at_s, values, origin_s=float(at_s.min()), until_s=float(at_s.max()) + horizon_s, horizon_s=horizon_s,
        horizons=params.experiment.block_horizons,
    ).mean  # fmt: skip
