"""Measure every signal; writes docs/results/signals.md.

Run: python -m benchmarks.signals [--to FILE]

Two parts. On recorded markets: every signal of the catalogue over a year of 15-minute bars, after costs, with intervals
and the number tried. On the simulator: patterns that were planted, so that precision and recall can be counted, against
what the same number of answers would find by chance.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from bellwether.reports.signals import missing_inputs
from benchmarks.fixture import SIMULATED, costs_of_file, recording
from benchmarks.pages import write
from pipelines.contracts import (
    CONTEXT_FIELDS,
    CONTEXT_INDEX,
    OPEN_TIME,
    TAKER_BUY,
    VOLUME,
    Books,
    Bools,
    ContextFeed,
    Estimate,
    Floats,
    utc,
)
from pipelines.costs import Costs, costs_of
from pipelines.data import schemas
from pipelines.data.alignment import align
from pipelines.data.quality import assess
from pipelines.data.readers.context import merge_feeds, read_context
from pipelines.data.readers.files import read
from pipelines.data.simulator.book_design import FAKE, ICEBERG, LOOKBACK, SWEEP
from pipelines.data.simulator.market import Market, Planted, simulate
from pipelines.data.timeframes import resample
from pipelines.evaluation.signals import Scores, format_estimate, score_signals
from pipelines.features import technical
from pipelines.features.catalog import absent_columns
from pipelines.features.fold import StreamingFold
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.signal_registry import SIGNAL_REGISTRY, direction, signal_names
from pipelines.warm_start import hit_rate

PAGE = ROOT / "docs" / "results" / "signals.md"
STEP_S = 900
PLANTED_DAYS = 60
AFTER_BARS = 3  # bars after the one a pattern ends in during which an answer still counts
SHIFTS = 200  # by which answers are moved along the history to see what chance finds


@dataclass(frozen=True)
class Recorded:
    """Describe a recorded market: its file and timeframe, and the files of its context."""

    title: str
    file: str
    timeframe: str
    context: tuple[str, ...]


FEAR_GREED = "../alternative/fear_greed_index_1d.parquet"
# no file of ETH with taker volume begins before the end of 2024; its 5-minute closes begin in May 2024
MARKETS = (
    Recorded(
        "BTC/USDT",
        "binance_spot_btcusdt_1m_2024.parquet",
        "1m",
        (
            "binance_spot_ethusdt_5m_to_2025h1.parquet",
            "../alternative/binance_usdm_btcusdt_funding_8h.parquet",
            FEAR_GREED,
        ),
    ),
    Recorded(
        "ETH/USDT",
        "binance_spot_ethusdt_15m_to_2025h1.parquet",
        "15m",
        ("binance_spot_btcusdt_1m_2024.parquet", "binance_spot_btcusdt_1m_2025h1.parquet", FEAR_GREED),
    ),
)


# ---- their contribution ------------------------------------------------------------------------------------------


def score_market(market: Recorded, params: Params) -> tuple[str, Scores, dict[str, str]]:
    """Return first and last day, scores on 15-minute bars, and the signals without input with what they wait for."""
    path, now = recording(market.file), datetime.now(UTC)
    base = schemas.to_matrix(assess(read(path, now).frame, market.timeframe, now).clean)
    decision = base if market.timeframe == "15m" else resample(base, 60, STEP_S)
    feed = merge_feeds([read_context(recording(name)) for name in market.context])
    return score_bars(base, decision, None, feed, params, costs_of_file(market.file, params))


def score_bars(
    base: Floats, decision: Floats, books: Books | None, feed: ContextFeed | None, params: Params, costs: Costs
) -> tuple[str, Scores, dict[str, str]]:
    """Return the same for any bars and their books and context."""
    levels, context = align(decision[:, OPEN_TIME] + STEP_S, STEP_S, books, feed)
    signals = SIGNALS.run(decision, levels, context)
    family = StreamingFold("technical", (technical.GROUP,))
    atr = family.run(decision)[:, family.index["atr_14"]]
    given = {"volume": decision[:, VOLUME], "taker": decision[:, TAKER_BUY]}
    given |= {f"context:{name}": values for name, values in zip(CONTEXT_FIELDS, context.T, strict=True)}
    there = {name for name, values in given.items() if not np.isnan(values).all()} | ({"book"} if books else set())
    lacking = absent_columns(SIGNALS.catalogue, there)
    without_input = {
        name: missing_inputs(lacking[f"{name}.direction"], there)
        for name in signal_names()
        if f"{name}.direction" in lacking
    }
    days = " to ".join(f"{utc(decision[i, OPEN_TIME]):%F}" for i in (0, -1))
    return days, score_signals(signals, decision, base, atr, STEP_S, params, costs), without_input


def score_table(scores: Scores, without_input: dict[str, str]) -> list[str]:
    """Return the lines of the table of signals."""
    row_of = {name: row for row, about in SIGNAL_REGISTRY.items() for name in about.signals}
    lines = [
        "| row | signal | n | a week | share of bars | long | bars open | hit rate | gross bps | net bps |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    places = list(SIGNAL_REGISTRY)
    for s in sorted(scores.scores, key=lambda s: places.index(row_of[s.signal])):
        if s.signal in without_input:
            continue
        counts = (f"{s.gross_bps.n:,}", f"{s.per_week:.1f}", f"{s.share:.3f}", _plain(s.long))
        results = (
            format_estimate(s.hold_bars),
            format_estimate(s.hit_rate, 3),
            format_estimate(s.gross_bps),
            format_estimate(s.net_bps),
        )
        lines.append(_line((row_of[s.signal], s.signal, *counts, *results)))
    above = ", ".join(scores.above()) or "none"
    lines += [
        "",
        _prose(f"""{scores.bars:,} bars. Signals tested: **{scores.tested}**. With the whole net interval above zero:
        {above}; by luck alone {scores.tested * 0.025:.1f} of {scores.tested} would be. Buying at every bar returned
        {format_estimate(scores.market_bps)} bps gross over the same horizon."""),
    ]
    if without_input:
        waits = "; ".join(f"{name} ({needs})" for name, needs in without_input.items())
        lines += ["", _prose(f"Not scored, as their input was not recorded here: {waits}.")]
    return lines


# ---- their detection ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """Hold the share of the planted patterns that was found, and of the answers that met one; Wilson intervals.

    by_chance_*  the same of the same answers, moved along the history: means over `SHIFTS` moves
    """

    recall: Estimate
    precision: Estimate
    by_chance_recall: float
    by_chance_precision: float


def detection(answers: Bools, opens: Floats, planted: Planted, kind: int, after: int) -> Detection | None:
    """Measure how well answers find planted patterns of a kind. None where there are no patterns or no answers.

    answers  (n, 2) answers long and short at the close of the bars that opened at `opens` (n,)
    after    a pattern counts as found by an answer of its direction from the bar it began in to so many bars after the
             one it ended in; an answer is right if such a pattern is there
    """
    chosen = (planted.kind == kind) & (planted.start >= opens[0]) & (planted.end < opens[-1])
    first = np.searchsorted(opens, planted.start[chosen], "right") - 1
    last = np.minimum(np.searchsorted(opens, planted.end[chosen], "right") - 1 + after, len(opens) - 1)
    side = np.where(planted.direction[chosen] > 0, 0, 1)
    if not len(first) or not answers.any():
        return None
    windows = np.zeros_like(answers)
    for begin, end, s in zip(first, last, side, strict=True):
        windows[begin : end + 1, s] = True

    def counted(shifted: Bools) -> tuple[int, int]:
        """Return the patterns met, and the answers that met one."""
        total = np.vstack([[0, 0], np.cumsum(shifted, axis=0)])
        return int((total[last + 1, side] > total[first, side]).sum()), int((shifted & windows).sum())

    found, right = counted(answers)
    moves = np.linspace(0, len(opens), SHIFTS + 2)[1:-1].astype(int)
    luck = np.array([counted(np.roll(answers, move, axis=0)) for move in moves]).mean(axis=0)
    total_answers = int(answers.sum())
    recall, precision = hit_rate(found, len(first)), hit_rate(right, total_answers)
    return Detection(recall, precision, luck[0] / len(first), luck[1] / total_answers)


def planted_table(market: Market, params: Params) -> list[str]:
    """Return the lines of the table of planted patterns."""
    lines = [
        "| pattern | read by | bars | planted | found | by chance | answers | of them right | by chance |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    every = params.simulator.book_every_minutes
    for minutes in (1, 5, 15):
        bars = market.bars if minutes == 1 else resample(market.bars, 60, 60 * minutes)
        side = direction(SIGNALS.run(bars), "sweep")
        answers = np.column_stack([side > 0, side < 0])
        detected = detection(answers, bars[:, OPEN_TIME], market.truth.planted, int(SWEEP), AFTER_BARS)
        lines.append(_detection_line("stop run", "`sweep`", minutes, detected))
    bars = resample(market.bars, 60, 60 * every)
    context = align(bars[:, OPEN_TIME] + 60.0 * every, 60.0 * every, market.books, market.feed)[1]
    missing = []
    for pattern, kind, field in (("iceberg", int(ICEBERG), "iceberg"), ("fake order", int(FAKE), "spoof")):
        values = context[:, [CONTEXT_INDEX[f"{field}_{name}"] for name in ("bid", "ask")]]
        if np.isnan(values).all():
            missing.append(f"{field}_bid, {field}_ask")
            continue
        detected = detection(values > 0, bars[:, OPEN_TIME], market.truth.planted, kind, 0)
        lines.append(_detection_line(pattern, f"tape `{field}_bid`, `{field}_ask`", every, detected))
    if missing:
        lines += ["", f"The simulated books carry no tape yet ({'; '.join(missing)}): these patterns are not scored."]
    return lines


def _detection_line(pattern: str, reader: str, minutes: int, detected: Detection | None) -> str:
    """Return one line of that table."""
    if detected is None:
        return _line((pattern, reader, f"{minutes} m", *["–"] * 6))
    found = (f"{detected.recall.n:,}", format_estimate(detected.recall, 3), f"{detected.by_chance_recall:.3f}")
    right = (f"{detected.precision.n:,}", format_estimate(detected.precision, 3), f"{detected.by_chance_precision:.3f}")
    return _line((pattern, reader, f"{minutes} m", *found, *right))


def _line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _prose(text: str) -> str:
    """Return text as one paragraph wrapped at 118 columns."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def _plain(value: float) -> str:
    """Format a figure with two decimals; a dash for NaN."""
    return f"{value:.2f}" if np.isfinite(value) else "–"


# ---- the page ---------------------------------------------------------------------------------------------------


def page(params: Params, markets: Sequence[Recorded] = MARKETS) -> str:
    """Return the whole page."""
    wanted = params.labels
    lines = [
        "# Signals: contribution and detection",
        "",
        _prose("""Written by `python -m benchmarks.signals`; nothing here was typed or chosen by hand. No threshold of
        any signal was set on these figures."""),
        "",
        _prose(f"""An event is the onset of a signal: it takes a side that it did not take at the bar before. It is
        filled at the open of the first bar after that. *Bars open* and *hit rate*: until the target
        ({wanted.target_atr:g} ATR), the stop ({wanted.stop_atr:g} ATR) or {wanted.horizon_bars} bars, whichever came
        first; a bar that touches both counts as the stop. *Gross*: return in the signal's direction after
        {wanted.horizon_bars} bars; *net*: less the costs of a round trip, named with each market. *Long*: the share of
        events in the direction of a rise. In brackets 95 % intervals, t on long averages over the events;
        `too few`: under sixty events none is given."""),
        "",
    ]
    for market in markets:
        finest = "1-minute" if market.timeframe == "1m" else "15-minute"
        days, scores, without_input = score_market(market, params)
        lines += [f"## {market.title}, {days}, 15-minute bars, barriers walked on {finest} bars", ""]
        lines += [f"Costs: {scores.costs}; {scores.cost_bps:.3g} bps a round trip on average.", ""]
        lines += [*score_table(scores, without_input), ""]
    spec = params.simulator.model_copy(
        update={"history_days": PLANTED_DAYS, "live_days": 0, "drift_after_live_days": None}
    )
    simulated = simulate(spec)
    decision = resample(simulated.bars, 60, STEP_S)
    costs = costs_of(params.costs, *SIMULATED)
    _, scores, without_input = score_bars(simulated.bars, decision, simulated.books, simulated.feed, params, costs)
    lines += [
        f"## The simulator, {PLANTED_DAYS} days, edge {spec.edge:g}, seed {spec.seed}",
        "",
        _prose("""No book was recorded with its trades for long enough, so the signals that read one are scored where it
        is simulated: that shows that they give signals and how often, not their contribution on a real market."""),
        "",
        f"Costs: {scores.costs}; {scores.cost_bps:.3g} bps a round trip on average.",
        "",
        *score_table(scores, without_input),
        "",
        f"## Planted patterns of the simulator, {PLANTED_DAYS} days, seed {spec.seed}",
        "",
        _prose(f"""The simulator plants stop runs, icebergs and fake orders and records the truth. *Found*: the share of
        planted patterns that an answer of the same direction met: a stop run within {AFTER_BARS} bars after the bar it
        ended in, the others in a bar they lived in. *Right*: the share of answers that met one. Every bar with a signal
        is an answer. *By chance*: the same answers moved along the history, mean of {SHIFTS} moves. Brackets: 95 %
        Wilson. An answer that meets no planted pattern is no error of the rule: prices also sweep swings by themselves.
        The simulator runs for the extreme of the last {LOOKBACK / 60:g} hours, which the rule need not remember as a
        swing."""),
        "",
        *planted_table(simulated, params),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    needed = [name for market in MARKETS for name in (market.file, *market.context)]
    write(PAGE, __doc__, needed, lambda: page(load_params()))


if __name__ == "__main__":
    main()
