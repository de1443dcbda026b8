"""Show who reads each column of the catalogues, and test those that no decision reads; writes docs/results/columns.md.

Run: python -m benchmarks.columns [--to FILE]

The rule has two steps, each set before its own results were seen (the second after the first had found one candidate).
A column that no decision reads is a candidate where its association with the outcome of an event, Holm-corrected over
the columns of a market, holds at 5 % on two of the three recorded markets with the same sign. A candidate is wired
where the validator with it has less log loss out of fold, the whole interval above zero, on two of the three markets,
and on none more.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from bellwether.reports.chart import detail_columns
from benchmarks.fixture import recorded_market, recording
from benchmarks.pages import write
from pipelines.context_layout import CONTEXT_FIELDS
from pipelines.contracts import CLOSE, OPEN_TIME, Books, ContextFeed, Estimate, Floats
from pipelines.data.alignment import align
from pipelines.data.readers.context import merge_feeds, read_context
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadShape, NotEnoughData
from pipelines.family_labels import Sources, event_labels
from pipelines.features.catalog import CORE_COLUMNS, FEATURES, WATCHED_COLUMNS
from pipelines.models import pattern_view
from pipelines.models.base import Dataset
from pipelines.models.regime import inputs as regime_inputs
from pipelines.models.validator import VALIDATOR
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.columns import SIGNAL_PARTS
from pipelines.signals.setups import SETUPS
from pipelines.signals.stars import STARS, STRUCTURE, STRUCTURE_PARTS
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.training.stages import embargo_seconds
from pipelines.training.walk import out_of_fold

PAGE = ROOT / "docs" / "results" / "columns.md"
BLOCKS = 20  # of consecutive events; each gives one value of the association
SHOWN = 5  # of the columns that hold on a market
SIZE = 0.05  # of all tests of a market together
BTC = ("binance_spot_btcusdt_1m_2024.parquet", "1m", "15m")
ETH = ("binance_spot_ethusdt_5m_to_2025h1.parquet", "5m", "15m")
GOLD = ("../forex/oanda_xauusd_1h_to_2015h1.parquet", "1h", "1h")
CONTEXT = {
    "BTC/USDT": (ETH[0], "../alternative/binance_usdm_btcusdt_funding_8h.parquet"),
    "ETH/USDT": (BTC[0], "binance_spot_btcusdt_1m_2025h1.parquet"),
}
RECORDED = {"BTC/USDT": BTC, "ETH/USDT": ETH, "XAU/USD": GOLD}

F3 = "row F3 requires the set; the fallback tier's consensus computes the five rules of S16 itself"
PEOPLE = ("chart",)  # readers that decide nothing
# Columns that no one reads, each with the reason why it is computed. An unread column outside this list fails a test.
UNREAD: Mapping[str, str] = {column.name: F3 for column in FEATURES.catalogue if column.category == "traditional"}


def measured_copies(values: Floats, columns: tuple[str, ...] = FEATURES.columns) -> dict[str, tuple[str, ...]]:
    """Return the columns that add no rank: linear combinations (with a constant) of columns before them.

    values   (n, k) float64; columns wholly missing are left out, then rows with any missing value
    Returns  {copy: the earlier columns it is made of}; a constant column is made of none, so its tuple is empty
    Raises   BadShape if widths disagree, NotEnoughData if fewer than ten rows a column are complete
    """
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise BadShape(f"values have shape {values.shape}, wanted (n, {len(columns)})")
    present = np.flatnonzero(~np.isnan(values).all(axis=0))
    rows = values[:, present]
    rows = rows[~np.isnan(rows).any(axis=1)]
    if len(rows) < 10 * len(present):
        raise NotEnoughData(
            f"{len(rows)} complete rows for {len(present)} columns, ten a column are needed. Bring a longer history."
        )
    scale = np.abs(rows).max(axis=0)
    rows = rows / np.where(scale > 0, scale, 1.0)
    basis = np.full((len(rows), 1), 1.0 / np.sqrt(len(rows)))  # orthonormal: the constant, then independent columns
    independent: list[int] = []
    copies: dict[str, tuple[str, ...]] = {}
    for j in range(len(present)):
        rest = rows[:, j] - basis @ (basis.T @ rows[:, j])
        if np.abs(rest).max() < 1e-9:
            earlier = np.column_stack([np.ones(len(rows)), rows[:, independent]])
            weights = np.linalg.lstsq(earlier, rows[:, j], rcond=None)[0][1:]
            made_of = np.flatnonzero(np.abs(weights) > 1e-6)
            copies[columns[present[j]]] = tuple(columns[present[independent[i]]] for i in made_of)
        else:
            rest = rest - basis @ (basis.T @ rest)  # once more: rounding left by the first pass
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
            independent.append(j)
    return copies


# Recorded inputs that no column needs, each with the reason why it is recorded.
UNREAD_INPUTS: Mapping[str, str] = {
    "open_interest": "row D2 requires it; it is kept with its dates for columns to come",
    "wall_bid_size": "row S9 measures walls; the signal reads their distance alone",
    "wall_ask_size": "row S9 measures walls; the signal reads their distance alone",
}


def unread_inputs() -> list[str]:
    """Return the fields of context and tape that no column of either catalogue needs."""
    needed = {
        part for c in (*FEATURES.catalogue, *SIGNALS.catalogue) for part in re.findall(r"context:(\w+)", c.needs or "")
    }
    return [field for field in CONTEXT_FIELDS if field not in needed]


def readers() -> dict[str, tuple[str, ...]]:
    """Return column → who reads it, in both catalogues' order; decisions first, then what people see."""
    signals = [name for names in PRODUCERS.values() for name in names]
    scored = [f"{name}.{part}" for name in signals for part in ("direction", "strength")]
    stars = [name for star in STARS for name in star.reads if name in SIGNALS.index]
    stars += [f"{name}.{part}" for name in STRUCTURE for part in STRUCTURE_PARTS]
    found: dict[str, Sequence[str]] = {
        "validator": VALIDATOR_COLUMNS,
        "pattern": (*pattern_view.EVEN, *pattern_view.ODD, *(f"{name}.direction" for name in SETUPS.values())),
        "regime": [name for name in regime_inputs.COLUMNS if name in FEATURES.index],
        "predictor": CORE_COLUMNS,
        "category scores": scored,
        "events": ["atr_14", *(f"{name}.direction" for name in (*PRODUCERS["ict"], "consensus"))],
        "stars": stars,
        "regime by rule": ["volatility_regime", "adx_14", "ma_cross.direction"],
        "decision": ["unicorn_rating_score", "volatility_20", "atr_14"],
        "breakers": ["atr_14", "spread"],
        "drift watch": WATCHED_COLUMNS,
        "chart": [
            *(f"{name}.{part}" for name in signals for part in SIGNAL_PARTS),
            *(column for name in signals for column in detail_columns(name)),
        ],
    }
    return {
        column: tuple(reader for reader, columns in found.items() if column in columns)
        for column in (*FEATURES.columns, *SIGNALS.columns)
    }


def undecided() -> list[str]:
    """Return the columns that no decision and no watch reads."""
    return [column for column, by in readers().items() if set(by) <= set(PEOPLE)]


@dataclass(frozen=True, slots=True)
class Association:
    """Hold the association of a column with an event's outcome: its t over blocks of events and Holm's p.

    sided  True if the column was read in the event's direction; n rows where it had a value; t, p NaN if too few
    """

    column: str
    sided: bool
    n: int
    t: float
    p: float


def association(values: Floats, y: Floats) -> tuple[float, float, int]:
    """Return t, its two-sided p and n of the covariance of the ranks of values (n,) with y (n,), over BLOCKS blocks.

    NaN values are left out; t and p are NaN with fewer than ten rows a block or a column that does not vary.
    """
    there = np.isfinite(values)
    n = int(there.sum())
    if n < 10 * BLOCKS or np.ptp(values[there]) == 0.0:
        return math.nan, math.nan, n
    ranks = rankdata(values[there]) / n
    products = (ranks - ranks.mean()) * (y[there] - y[there].mean())
    means = np.array([block.mean() for block in np.array_split(products, BLOCKS)])
    spread = means.std(ddof=1) / math.sqrt(BLOCKS)
    if spread == 0.0:
        return math.nan, math.nan, n
    t = float(means.mean() / spread)
    return t, float(2.0 * student.sf(abs(t), BLOCKS - 1)), n


def holm(p: Sequence[float]) -> list[float]:
    """Return p adjusted for their number (Holm 1979); NaN stays NaN and is no test."""
    known = [i for i, value in enumerate(p) if value == value]
    adjusted, worst = [math.nan] * len(p), 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p[i])):
        worst = max(worst, min(1.0, p[i] * (len(known) - rank)))
        adjusted[i] = worst
    return adjusted


def associations(sources: Sources, params: Params, columns: Sequence[str]) -> list[Association]:
    """Return the association of each column with the outcomes of a market's events, as it is and in their direction.

    A price is read as its distance from the close in ATR: prices themselves only tell the date.
    """
    labels = event_labels(sources, params)
    at, y, side = labels["index"], labels["y"], labels["direction"].astype(float)
    rows = np.hstack([sources.features, sources.signals])[at]
    catalogue = (*FEATURES.catalogue, *SIGNALS.catalogue)
    place = {column.name: j for j, column in enumerate(catalogue)}
    close = sources.decision[at, CLOSE]
    found = []
    for name in columns:
        values = rows[:, place[name]]
        if catalogue[place[name]].unit == "price":
            values = (values / close - 1.0) / labels["atr"]
        middle = np.nanmedian(values) if np.isfinite(values).any() else 0.0
        found += [(name, False, association(values, y)), (name, True, association(side * (values - middle), y))]
    p = holm([result[1] for _, _, result in found])
    return [Association(name, sided, n, t, p_holm) for (name, sided, (t, _, n)), p_holm in zip(found, p, strict=True)]


def folded(base: Floats, base_grid: Grid, timeframe: str, books: Books | None, feed: ContextFeed | None) -> Sources:
    """Return a market's bars, decisions on those of a timeframe, with features and signals."""
    grid = base_grid.at(timeframe)
    decision = base if grid == base_grid else resample(base, base_grid, grid)
    levels, context = align(decision[:, OPEN_TIME], grid, books, feed)
    features, signals = FEATURES.run(decision, levels, context), SIGNALS.run(decision, levels, context)
    return Sources(base, decision, features, signals, context, grid, base_grid)


def recorded(symbol: str) -> Sources:
    """Return a recorded market, folded with the context known next to it."""
    file, timeframe, decided_on = RECORDED[symbol]
    base, base_grid = recorded_market(recording(file), timeframe)
    context = CONTEXT.get(symbol, ())
    feed = merge_feeds([read_context(recording(name)) for name in context]) if context else None
    return folded(base, base_grid, decided_on, None, feed)


def simulated(params: Params) -> Sources:
    """Return the simulated year of params.yaml, without its drift."""
    market = simulate(params.simulator.model_copy(update={"live_days": 0, "drift_after_live_days": None}))
    return folded(market.bars, Grid("1m"), "15m", market.books, market.feed)


def gain_of(sources: Sources, column: str, sided: bool, params: Params) -> Estimate:
    """Return what a column adds to the validator, nats a row: log loss without it less log loss with it, out of fold.

    Both are walked forward on the same rows, those with every column; a t interval over BLOCKS blocks of them.
    """
    labels = event_labels(sources, params)
    at = labels["index"]
    values = np.hstack([sources.features, sources.signals])[at, (*FEATURES.columns, *SIGNALS.columns).index(column)]
    low, high = next((c.low, c.high) for c in (*FEATURES.catalogue, *SIGNALS.catalogue) if c.name == column)
    middle = 0.5 * (low + high) if math.isfinite(low + high) else 0.0
    extra = labels["direction"] * (values - middle) if sided else values
    rows = np.column_stack([labels["rows"], extra])
    present = np.isfinite(rows).any(axis=0)
    usable = np.isfinite(rows[:, present]).all(axis=1)
    rows = rows[usable][:, present]
    whole = Dataset(
        columns=tuple(np.array([*VALIDATOR_COLUMNS, column])[present]),
        inputs=lambda chosen: rows[chosen],
        at=np.arange(len(rows)),
        **{name: labels[name][usable] for name in ("y", "weight", "uniqueness", "known", "ended")},
        extras={name: labels[name][usable] for name in ("gross_bps", "direction", "atr", "volatility", "regime")},
    )
    embargo = embargo_seconds(params, sources.grid)
    without = whole.select_columns(np.array(whole.columns) != column)
    losses = [out_of_fold(VALIDATOR, data, params, embargo, lambda _: None).loss for data in (without, whole)]
    means = np.array([block.mean() for block in np.array_split(losses[0] - losses[1], BLOCKS)])
    half = float(student.ppf(0.975, BLOCKS - 1) * means.std(ddof=1) / math.sqrt(BLOCKS))
    return Estimate(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, len(losses[0]))


def candidates(found: Mapping[str, Sequence[Association]]) -> list[tuple[str, bool]]:
    """Return (column, whether sided) of those that pass the first step, from symbol → associations."""
    signs: dict[tuple[str, bool], list[float]] = {}
    for symbol in RECORDED:
        for each in found[symbol]:
            if each.p < SIZE:
                signs.setdefault((each.column, each.sided), []).append(math.copysign(1.0, each.t))
    return sorted(key for key, kinds in signs.items() if abs(sum(kinds)) >= 2.0)


def wired(gains: Mapping[tuple[str, bool], Mapping[str, Estimate]]) -> list[str]:
    """Return the columns that pass the second step, from (column, sided) → symbol → gain."""
    return [
        column
        for (column, _), by in gains.items()
        if sum(by[symbol].low > 0.0 for symbol in RECORDED) >= 2 and all(by[symbol].high >= 0.0 for symbol in RECORDED)
    ]


def copies_text(features: Floats) -> str:
    """Return the copies among a market's features (n, k) in words."""
    found = measured_copies(features)
    return ", ".join(f"{name} of {' and '.join(of)}" if of else f"{name} is constant" for name, of in found.items())


def page(
    found: Mapping[str, Sequence[Association]],
    gains: Mapping[tuple[str, bool], Mapping[str, Estimate]],
    copies: Mapping[str, str],
) -> str:
    """Return the page in Markdown, from symbol → associations, (column, sided) → symbol → gain, symbol → copies."""
    everyone, unread = readers(), undecided()
    lines = [
        "# Who reads each column",
        "",
        f"{len(everyone)} columns: {len(FEATURES.columns)} features, {len(SIGNALS.columns)} signals. "
        f"{len(everyone) - len(unread)} are read by a decision or a watch. Of the other {len(unread)}, "
        f"{len(unread) - len(set(UNREAD) & set(unread))} are drawn with their signal's mark on the chart, and "
        f"{len(set(UNREAD) & set(unread))} are read by no one: {F3}.",
        "",
        "Written by `python -m benchmarks.columns`. `tests/test_columns.py` fails for a column that is neither read "
        "nor listed there with its reason.",
        "",
        "## Would reading one of them pay?",
        "",
        f"Each of the {len(unread)} columns was compared with the outcome of the validator's events (target touched "
        f"before the stop), as it is and in the event's direction: the covariance of its rank with the outcome over "
        f"{BLOCKS} blocks of events, a t test, and Holm's correction over all tests of a market. A column is a "
        "candidate where this holds at 5 % on two of the three recorded markets with the same sign; a candidate is "
        "wired where the validator with it has less log loss out of fold, the whole interval above zero, on two of "
        "the three, and on none more. Each step was set before its own results were seen, the second after the first "
        "had found one candidate.",
        "",
        "| market | events | tests | p under .05 uncorrected by luck | after Holm at 5 % |",
        "|---|--:|--:|--:|---|",
    ]
    for symbol, results in found.items():
        tests = [each for each in results if each.p == each.p]
        held = ", ".join(
            f"{each.column}{' with the side' if each.sided else ''} (t {each.t:+.1f}, p {each.p:.3f})"
            for each in sorted(tests, key=lambda each: each.p)[:SHOWN]
            if each.p < SIZE
        )
        more = sum(each.p < SIZE for each in tests) - SHOWN
        held += f" and {more} more" if more > 0 else ""
        lines.append(
            f"| {symbol} | {max((each.n for each in results), default=0):,} | {len(tests)} | "
            f"{SIZE * len(tests):.1f} | {held or 'none'} |"
        )
    chosen = wired(gains)
    lines += [
        "",
        f"Candidates: {', '.join(column for column, _ in gains) or 'none'}. "
        "What each adds to the validator, log loss out of fold without it less with it, both on the same rows, nats:",
        "",
        "| column | " + " | ".join(found) + " |",
        "|---|" + "--:|" * len(found),
    ]
    for (column, sided), by in gains.items():
        cells = " | ".join(f"{e.value:+.5f} [{e.low:+.5f}, {e.high:+.5f}], n = {e.n:,}" for e in by.values())
        lines.append(f"| {column}{' with the side' if sided else ''} | {cells} |")
    lines += [
        "",
        f"By the rule **{', '.join(chosen) if chosen else 'none'}** is wired.",
        "",
        "## Recorded inputs that no column needs",
        "",
        *(f"- {field}: {UNREAD_INPUTS[field]}" for field in unread_inputs()),
        "",
        "## Copies",
        "",
        "Columns that add no rank to those before them, measured on each market's complete rows (`measured_copies`); "
        "the catalogue marks them as `copy_of`, models drop them, and a test holds the mark on the simulated year.",
        "",
        *(f"- {market}: {text}" for market, text in copies.items()),
        "",
        "## Strongest association of each unread column",
        "",
        "t over blocks; the larger of the two readings of a column. “few” = too few values at events.",
        "",
        "| column | why it is there | " + " | ".join(found) + " |",
        "|---|---|" + "--:|" * len(found),
    ]
    for column in unread:
        cells = []
        for results in found.values():
            known = [each for each in results if each.column == column and each.t == each.t]
            best = max(known, key=lambda each: abs(each.t), default=None)
            cells.append("few" if best is None else f"{best.t:+.1f}{' s' if best.sided else ''}")
        why = "F3" if column in UNREAD else ", ".join(everyone[column])
        lines.append(f"| {column} | {why} | " + " | ".join(cells) + " |")
    lines += ["", "s = read in the event's direction.", "", "## Every column", "", "| column | read by |", "|---|---|"]
    lines += [f"| {column} | {', '.join(by) or 'no one'} |" for column, by in everyone.items()]
    return "\n".join([*lines, ""])


def _whole() -> str:
    """Measure every market and return the page."""
    params = load_params()
    columns = undecided()
    name = f"simulator, {params.simulator.history_days} days, edge {params.simulator.edge:g}"
    markets = {name: simulated(params)} | {symbol: recorded(symbol) for symbol in RECORDED}
    found = {market: associations(sources, params, columns) for market, sources in markets.items()}
    gains = {
        (column, sided): {market: gain_of(sources, column, sided, params) for market, sources in markets.items()}
        for column, sided in candidates(found)
    }
    copies = {market: copies_text(sources.features) for market, sources in markets.items()}
    return page(found, gains, copies)


if __name__ == "__main__":
    files = [file for file, *_ in RECORDED.values()] + [file for files in CONTEXT.values() for file in files]
    write(PAGE, __doc__, files, _whole)
