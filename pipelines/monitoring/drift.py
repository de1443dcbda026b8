"""Detect drift: does the live market differ from the market the champion was trained on?

Live rows are judged block by block against the reference in the champion's bundle (`models/reference.py`): the values
of each column, and the share of it that is missing, each with its own tail of the history's own blocks.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import DAY_S, Floats
from pipelines.models.reference import (
    LEAST_SHARE,
    DriftReference,
    block_effects,
    check_rows,
    missing_shares,
)
from pipelines.params import FalseAlarms

PERSISTS = 1 / 3  # share of a block's effect that each half must show; it costs no detection on the simulator
DAYS_A_MONTH = 30.0


@dataclass(frozen=True, slots=True)
class AlarmRates:
    """Hold the probability that one stationary block alarms, for values and for the share missing."""

    values: float
    missing: float


def alarm_rates(budget: FalseAlarms, block_bars: int, bar_s: float, watches: int) -> AlarmRates:
    """Return the rates that spend the monthly budget evenly on every block of `watches` watches side by side.

    bar_s  seconds of a decision bar
    """
    blocks = DAYS_A_MONTH * DAY_S / (block_bars * bar_s) * max(1, watches)
    return AlarmRates(min(0.5, budget.values / blocks), min(0.5, budget.missing / blocks))


@dataclass(frozen=True, slots=True)
class BlockDrift:
    """Hold the drift of one block of n rows from row `start` on.

    score, threshold  largest effect over its usual size, and the level from which it alarms
    effects     of every judged column, in the reference's standard deviations; rows: number of values of each
    drifted     columns whose effect reaches its threshold, strongest first; persistent: those with it in both halves
    unjudged    watched columns with too few values here
    missing     share of missing values of every watched column
    vanished    columns whose share missing moved, up or down, in both halves, the strongest first
    missing_score, missing_threshold  of the share missing, as score and threshold
    """

    start: int
    n: int
    score: float
    threshold: float
    effects: dict[str, float]
    rows: dict[str, int]
    drifted: tuple[str, ...]
    persistent: tuple[str, ...]
    unjudged: tuple[str, ...]
    missing: dict[str, float]
    vanished: tuple[str, ...]
    missing_score: float
    missing_threshold: float

    @property
    def alarm(self) -> bool:
        """Return whether the values of a column drifted."""
        return bool(self.persistent)

    @property
    def missing_alarm(self) -> bool:
        """Return whether the share missing of a column changed."""
        return bool(self.vanished)

    @property
    def share_drifted(self) -> float:
        """Return the share of watched columns whose values or share missing are over their threshold; NaN of none."""
        watched = {*self.effects, *self.missing}
        return len({*self.drifted, *self.vanished}) / len(watched) if watched else float("nan")


@dataclass(frozen=True, slots=True)
class DriftResult:
    """Hold the drift of n live rows; blocks is empty before the first whole block.

    alarm          whether the values drift now: in the newest block that alarms and every one after it that could be
                   judged; None with a `reason` if no block could be judged
    missing_alarm  the same of the share missing; `missing_reason` for operators
    onset, missing_onset  first row of the run of alarming blocks that is still going on; None without one
    """

    alarm: bool | None
    reason: str
    n: int
    blocks: tuple[BlockDrift, ...]
    missing_alarm: bool | None = None
    missing_reason: str = ""
    onset: int | None = None
    missing_onset: int | None = None


def detect(reference: DriftReference, values: Floats, rates: AlarmRates) -> DriftResult:
    """Judge live rows block by block from the first row on; rows after the last complete block wait.

    values   (n, k) feature rows in time order, columns as in the reference; NaN = missing
    A block alarms if a column's effect reaches its threshold and each half of the block shows at least a third of that
    effect: a burst of an hour is no drift. `rates` are those of one block.
    Raises   BadShape, BadValues
    """
    check_rows(values, reference.columns)
    length, n = reference.block_bars, len(values)
    if n < length:
        reason = f"{n} rows, {length} needed for the first block"
        return DriftResult(None, reason, n, (), None, reason)
    starts, half = np.arange(n // length) * length, length // 2
    effects, rows = block_effects(reference.sample, values, starts, length)
    first, _ = block_effects(reference.sample, values, starts, half)
    second, _ = block_effects(reference.sample, values, starts + half, length - half)
    effects[rows < LEAST_SHARE * reference.usual_rows] = np.nan
    shares = missing_shares(values, starts, length)
    halves = (missing_shares(values, starts, half), missing_shares(values, starts + half, length - half))
    moves = [np.abs(each - reference.missing_share) for each in (shares, *halves)]
    blocks = tuple(
        _judge(
            reference, rates, int(start), effects[i], np.fmin(first[i], second[i]), rows[i], shares[i], moves[0][i],
            np.fmin(moves[1][i], moves[2][i]),
        )
        for i, start in enumerate(starts)
    )  # fmt: skip
    judged = any(block.effects for block in blocks)
    onset = _onset([(block.start, block.alarm if block.effects else None) for block in blocks])
    missing_onset = _onset([(block.start, block.missing_alarm) for block in blocks])
    nothing = f"no watched column has enough values in {n} rows; fill the missing inputs"
    return DriftResult(
        alarm=onset is not None if judged else None,
        reason=_reason(reference, blocks, n, onset) if judged else nothing,
        n=n,
        blocks=blocks,
        missing_alarm=missing_onset is not None,
        missing_reason=_missing_reason(reference, blocks, missing_onset),
        onset=onset,
        missing_onset=missing_onset,
    )


def _onset(alarms: list[tuple[int, bool | None]]) -> int | None:
    """Return the first row of the run of alarms that the newest judged block belongs to; None if that one is quiet.

    alarms  (first row, alarm) of each block; None = not judged, which neither ends nor begins a run
    """
    onset = None
    for start, alarm in reversed(alarms):
        if alarm is False:
            break
        if alarm:
            onset = start
    return onset


def _judge(
    reference: DriftReference, rates: AlarmRates, start: int, effects: Floats, least_half: Floats, rows: Floats,
    shares: Floats, moved: Floats, least_moved: Floats,
) -> BlockDrift:  # fmt: skip
    """Return the drift of one block from its effects and changes (k,) and the smaller ones of its halves."""
    level, missing_level = reference.values.level(rates.values), reference.missing.level(rates.missing)
    over = _over(effects, reference.scale, level)
    gone = _over(moved, reference.missing_scale, missing_level)
    judged = np.flatnonzero(np.isfinite(effects) & np.isfinite(reference.scale))
    counted = np.flatnonzero(np.isfinite(moved))
    names = reference.columns
    return BlockDrift(
        start=start,
        n=reference.block_bars,
        score=float((effects / reference.scale)[judged].max()) if len(judged) else float("nan"),
        threshold=level,
        effects={names[c]: float(effects[c]) for c in judged},
        rows={names[c]: int(rows[c]) for c in judged},
        drifted=tuple(names[c] for c in over),
        persistent=tuple(names[c] for c in over if least_half[c] >= PERSISTS * effects[c]),
        unjudged=tuple(name for name in reference.watched if name not in {names[c] for c in judged}),
        missing={names[c]: float(shares[c]) for c in counted},
        vanished=tuple(names[c] for c in gone if least_moved[c] >= PERSISTS * moved[c]),
        missing_score=float((moved / reference.missing_scale)[counted].max()) if len(counted) else float("nan"),
        missing_threshold=missing_level,
    )


def _over(effects: Floats, scale: Floats, level: float) -> list[int]:
    """Return the columns whose effect (k,) over its usual size reaches the level, the strongest first."""
    scores = np.where(np.isfinite(effects / scale), effects / scale, -np.inf)
    return [int(c) for c in np.argsort(-scores, kind="stable") if scores[c] >= level]


def _reason(reference: DriftReference, blocks: tuple[BlockDrift, ...], n: int, onset: int | None) -> str:
    """Return the text for operators: the deciding block, its numbers, and what was left out."""
    alarms = [block for block in blocks if block.alarm]
    judged = [block for block in blocks if block.effects]
    block = next((b for b in alarms if b.start == onset), None) or max(judged, key=lambda b: b.score)
    scale = dict(zip(reference.columns, reference.scale, strict=True))
    strongest = block.persistent[0] if block.alarm else max(block.effects, key=lambda c: block.effects[c] / scale[c])
    text = (
        f"{'no drift' if onset is None else 'drift'}: {len(alarms)} of {len(blocks)} blocks of {block.n} rows alarm; "
        f"rows {block.start}-{block.start + block.n - 1} score {block.score:.2f}, threshold {block.threshold:.2f}; "
        f"{strongest} moved {block.effects[strongest]:.2f} sd on {block.rows[strongest]} rows"
    )
    if alarms and onset is None:
        text += f"; over by row {alarms[-1].start + alarms[-1].n}"
    if block.alarm:
        text += f"; over their threshold in both halves: {', '.join(block.persistent)}"
    if unjudged := sorted({name for each in blocks for name in each.unjudged}):
        text += f"; too few values to judge: {', '.join(unjudged)}"
    if n % reference.block_bars:
        text += f"; {n % reference.block_bars} rows wait for their block"
    return text


def _missing_reason(reference: DriftReference, blocks: tuple[BlockDrift, ...], onset: int | None) -> str:
    """Return the text for operators on the share missing: columns, shares before and now, score and threshold."""
    block = next((b for b in blocks if b.start == onset), blocks[-1])
    if onset is None:
        return (
            f"no column's share missing moved; score {block.missing_score:.2f}, threshold {block.missing_threshold:.2f}"
        )
    usual = dict(zip(reference.columns, reference.missing_share, strict=True))
    columns = ", ".join(f"{name} {usual[name]:.0%} → {block.missing[name]:.0%}" for name in block.vanished)
    return (
        f"share missing moved in rows {block.start}-{block.start + block.n - 1}: {columns}; score "
        f"{block.missing_score:.1f}, threshold {block.missing_threshold:.1f}"
    )
