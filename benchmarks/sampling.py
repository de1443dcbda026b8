"""Measure how many evaluations event sampling saves, and how much of the planted edge it retains.

A decision bar is evaluated if a sample became known in it. Its edge is the drift the simulator planted in the bars a
label lasts. Two questions of each sampler: is there more edge at an evaluation than at any bar, and what is left of
the edge for a trader who knows the current drift and no later one, takes its side only at evaluations, and holds it
until the next or for a label's life?
Thresholds are set before the measured days: one sample every four bars is wanted, CUSUM's are the stated 0.5 and 0.7.

Run: python -m benchmarks sampling
"""

import numpy as np

from benchmarks.measured import Row, Spread
from pipelines.contracts import OPEN_TIME, Bools, Floats
from pipelines.data.sampling import (
    Samples,
    cusum,
    dollar_bars,
    imbalance_bars,
    mean_amount,
    sampled_closes,
    volume_bars,
)
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import seconds
from pipelines.evaluation.metrics import block_starts
from pipelines.settings import load_params

SEED, EDGE = 8, 1.3
BARS_A_SAMPLE = 4  # wanted of the samplers with a threshold of their own: three evaluations of four saved
DRAWS = 1_000
BOOTSTRAP_SEED = 1


def samplers(minutes: Floats, past: int) -> dict[str, Samples]:
    """Return every sampler's samples over all minutes.

    Usual volume and value are measured on the first `past` alone.
    """
    rows = 15 * BARS_A_SAMPLE
    return {
        "CUSUM": cusum(minutes, 60.0),
        "volume bars": volume_bars(minutes, 60.0, mean_amount(minutes[:past], "volume", rows)),
        "dollar bars": dollar_bars(minutes, 60.0, mean_amount(minutes[:past], "dollar", rows)),
        "tick imbalance": imbalance_bars(minutes, 60.0, "tick", rows),
        "volume imbalance": imbalance_bars(minutes, 60.0, "volume", rows),
    }


def earned(now: Floats, bar: Floats, sampled: Bools, life: int) -> Floats:
    """Return (m,) drift earned in each following bar by the side of `now` at the newest sampled bar, none after `life`
    bars.
    """
    m = len(now)
    newest = np.maximum.accumulate(np.where(sampled, np.arange(m), -life))
    active = (newest >= 0) & (np.arange(m) - newest < life)
    return np.where(active, np.sign(now[np.maximum(newest, 0)]), 0.0) * bar


def redrawn(values: Floats, block: int) -> Floats:
    """Return (DRAWS, k) sums of (m, k) values over moving blocks of whole days."""
    m = len(values)
    starts = block_starts(m, block, DRAWS, BOOTSTRAP_SEED)[:, : m // block]
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    return np.asarray((total[starts + block] - total[starts]).sum(axis=1))


def figure(draws: Floats, n: int) -> Spread:
    """Return median and quartiles over the draws of a figure that depends on n bars."""
    low, median, high = (float(x) for x in np.quantile(draws, [0.25, 0.5, 0.75]))
    return Spread(median, low, high, n)


def interval(draws: Floats) -> str:
    """Return the 95 % interval of draws in words."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"[{low:.3g}, {high:.3g}]"


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    params = load_params()
    days, past_days = (30, 10) if tiny else (90, 10)
    wanted = {"seed": SEED, "edge": EDGE, "history_days": days, "live_days": 0, "drift_after_live_days": None}
    market = simulate(params.simulator.model_copy(update=wanted), tape=False)
    life, step_s = params.labels.horizon_bars, seconds(params.data.decision_timeframe)
    width, past = step_s // 60, past_days * MINUTES_A_DAY
    so_far = np.concatenate([[0.0], np.cumsum(market.truth.drift)]) * 1e4  # bps
    first = np.arange(past, len(market.bars) - life * width, width)  # minute that follows each measured close
    closes, now = market.bars[first, OPEN_TIME], market.truth.drift[first]
    edge, bar = so_far[first + life * width] - so_far[first], so_far[first + width] - so_far[first]
    every = np.ones(len(first), dtype=bool)
    m, day = len(first), MINUTES_A_DAY // width
    rows = []
    for name, samples in samplers(market.bars, past).items():
        sampled = sampled_closes(samples, closes)
        even = np.zeros(m, dtype=bool)
        even[np.linspace(0, m - 1, int(sampled.sum())).astype(int)] = True
        size = np.abs(edge)
        parts = np.column_stack(
            [size * sampled, sampled, size, every, *(earned(now, bar, at, life) for at in (sampled, even, every))]
        )
        draws, n = redrawn(parts, day), int(sampled.sum())
        at_sampled, at_every = draws[:, 0] / draws[:, 1], draws[:, 2] / draws[:, 3]
        retained, spaced = 100 * draws[:, 4] / draws[:, 6], 100 * draws[:, 5] / draws[:, 6]
        inside, covered = int((samples.known > closes[0]).sum()), 100 * size[sampled].sum() / size.sum()
        rows += [
            Row(
                f"{name}: evaluations saved", "% of bars", figure(100 * (1 - draws[:, 1] / draws[:, 3]), m),
                note=f"{inside:,} samples on {len(market.bars) - past:,} minutes; {covered:.0f} % of all bars' |edge| "
                "stands on the evaluated ones",
            ),
            Row(
                f"{name}: true edge at an evaluation", f"bps in {life} bars", figure(at_sampled, n),
                "every bar", figure(at_every, m), figure(at_every / at_sampled, m),
                f"ours over theirs, 95 %: {interval(at_sampled / at_every)}",
            ),
            Row(
                f"{name}: edge retained, side taken only then", "% of every bar", figure(retained, n),
                "as many, evenly spaced", figure(spaced, n), figure(spaced / retained, m),
                f"ours, 95 %: {interval(retained)}",
            ),
        ]  # fmt: skip
    return rows
