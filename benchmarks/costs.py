"""`python -m benchmarks.costs --write`: what costs decide, and what a stop is filled at. Writes docs/results/costs.md.

For the simulated year and three recorded markets the whole way of a model is walked: features, labels, a validator out
of fold, the backtest with the live policy. Counted are events, those whose target pays for its cost, emissions, and
refusals by reason. The column before was measured by the same walk on release 0.7.0, where every market paid a
flat 5 bps of a round trip. Six minutes on two slow cores.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import contextlib
import json
import math
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.fixture import FAMILY, listed, recording
from flows.support.backtest import backtest_policy, missed
from flows.support.data_writer import write_snapshot
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Estimate, Floats, JsonObject
from pipelines.costs import costs_of, funding_payments, funding_rates, funding_received_bps, venue_of
from pipelines.data.quality import assess
from pipelines.data.readers.context import read_context
from pipelines.data.schemas import epoch_seconds, to_matrix
from pipelines.data.sessions import infer_grid
from pipelines.data.sources import make_source
from pipelines.data.timeframes import Grid, resample
from pipelines.evaluation.signals import format_estimate
from pipelines.features import technical
from pipelines.features.fold import StreamingFold
from pipelines.labels.barriers import STOP, levels, triple_barrier
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.events import events
from pipelines.stage_outputs import grids_of
from pipelines.training import stages
from pipelines.training.labelling import read_funding
from serving.risk.codes import MODEL_ABSTAINED, REFUSALS, TARGET_UNDER_COST

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PAGE = ROOT / "docs" / "results" / "costs.md"
BEFORE = ROOT / "docs" / "results" / "costs_before.json"  # measured on 0.7.0, which paid 5 bps everywhere
BTC, FUNDING = "binance_spot_btcusdt_1m_2024.parquet", "../alternative/binance_usdm_btcusdt_funding_8h.parquet"
MARKETS = {  # name → symbol, recorded file (None: the simulated year)
    "SIM": ("SIM/USDT", None),
    "BTC": ("BTC/USDT", BTC),
    "ETH": ("ETH/USDT", "binance_spot_ethusdt_5m_to_2025h1.parquet"),
    "gold": ("XAU/USD", "../forex/oanda_xauusd_1h_to_2015h1.parquet"),
}
BOOKS = (
    "binance_spot_btcusdt_20230405", "binance_usdm_btcusdt_20230404", "binance_usdm_btcusdt_20240718",
    "binance_usdm_ethusdt_20240718",
)  # fmt: skip
LATENCIES_S = (0.0, 0.1, 1.0)  # from the trade that touches a stop to its market order at the book
STATED_S = 0.1  # the one whose mean, rounded up to a tenth, is `costs.stop_slippage_bps`; set before it was measured
DISTANCES_BPS = (1.0, 2.0, 5.0, 10.0)  # of a stop from the mid at which it is placed, once a second, on both sides


# ---- what costs decide ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """Hold what the policy made of one market's events.

    round_trip_bps  mean over the eligible events of what a trade cost; costs: which row, and where the spread is from
    events          raised; eligible: whose target pays for its cost, and resolved; scored: out of fold, in the backtest
    refusals        reason → events it refused in the time of the backtest, as `primary`
    """

    costs: str
    round_trip_bps: float
    events: int
    eligible: int
    scored: int
    emissions: int
    per_week: float
    net_bps: Estimate
    refusals: dict[str, int]


def walk(name: str, params: Params) -> Counted:
    """Ingest one market, label it, fit the validator out of fold, and run the backtest of the policy."""
    symbol, file = MARKETS[name]
    now = datetime.now(UTC)
    if file is None:
        source, until = make_source("simulator", spec=params.simulator), params.simulator.start
        until += timedelta(days=params.simulator.history_days)
    else:
        venue, market = listed(file)
        source, until = make_source("files", path=recording(file), venue=venue, market=market), now
    frame, known = source.fetch(symbol, until, now), source.records(symbol, until)
    grid = infer_grid(to_matrix(frame)[:, OPEN_TIME])
    with tempfile.TemporaryDirectory(prefix="bellwether-costs-") as scratch, contextlib.chdir(scratch):
        with contextlib.redirect_stdout(sys.stderr):
            write_snapshot(Path("data"), symbol, assess(frame, grid, until), source.describe(), known)
            Path("data.dvc").write_text(json.dumps({"outs": [{"md5": "0" * 32}]}))  # the stages name the data by it
            stages.build_features(params)
            stages.build_labels(params)
            stages.fit_family(FAMILY, params)
        return counted(Path("artifacts"), params)


def counted(artifacts: Path, params: Params) -> Counted:
    """Return what the backtest made of the events in these stage outputs."""
    names = ("base", "decision", "features", "signals")
    arrays = {name: np.load(artifacts / "features" / f"{name}.npy") for name in names}
    meta = json.loads((artifacts / "features" / "meta.json").read_text())
    funding = read_funding(artifacts / "features", meta)
    costs = costs_of(params.costs, *venue_of(meta))
    with np.load(artifacts / "labels" / "events.npz") as labels, np.load(artifacts / FAMILY / "oof.npz") as oof:
        eligible, cost, executed = len(labels["y"]), float(labels["cost_bps"].mean()), labels["spread_known"]
        bars = labels["index"][oof["row"]]
        result = backtest_policy(
            **arrays, funding=funding, bars=bars, p=oof["p"], p_low=oof["p_low"], miss_atr=missed(oof),
            grid=grids_of(meta)[0], base_grid=grids_of(meta)[1], params=params, costs=costs,
        )  # fmt: skip
    raised = events(arrays["features"], arrays["signals"])
    codes = result.codes[np.isin(np.arange(int(bars[0]), len(arrays["decision"])), raised.index)]
    first = {mask: text.partition(":")[0] for mask, text in REFUSALS.items()}
    reasons = [first[primary(int(code))] for code in codes if code]
    return Counted(
        costs.describe(executed, len(funding) > 0), cost, len(raised), eligible, len(bars),
        int((result.codes == 0).sum()), result.emissions_per_week.value, result.net_bps,
        {name: reasons.count(name) for name in first.values() if name in reasons},
    )  # fmt: skip


def primary(code: int) -> int:
    """Return the first refusal in the bits of `code`.

    An event whose target is under its cost is in no fold, so the backtest knows no p of it: the cost is what refused
    it, as it is live, where a model answers.
    """
    if code & MODEL_ABSTAINED and code & TARGET_UNDER_COST:
        code &= ~MODEL_ABSTAINED
    return code & -code


# ---- what a stop is filled at ---------------------------------------------------------------------------------------


def book_slippage(folder: Path) -> dict[float, Floats]:
    """Return latency → (n,) bps by which stops of a recorded book were filled beyond their level.

    A stop of every distance is placed on both sides once a second. It is touched by the first market trade at or beyond
    its level, and filled at the best price of the other side that the recorder knew `latency` later; a stop that the
    recording ends before is left out. The size is one that the best level holds.
    """
    trades = pd.read_parquet(folder / "trades.parquet")
    if "order_type" in trades:  # a liquidation fund trades away from the book
        trades = trades[trades["order_type"] == "MARKET"]
    quotes = pd.read_parquet(folder / "book_ticker.parquet")
    traded, price = epoch_seconds(trades["receive_time"]), trades["price"].to_numpy()
    quoted = epoch_seconds(quotes["receive_time"])
    bid, ask = (quotes[f"{side}_price"].to_numpy() for side in ("bid", "ask"))
    placed = np.arange(math.ceil(quoted[0]), quoted[-1] - max(LATENCIES_S))
    at = np.searchsorted(quoted, placed, "right") - 1
    mid, found = (bid[at] + ask[at]) / 2.0, {latency: list[float]() for latency in LATENCIES_S}
    for side, distance in ((side, distance) for side in (1.0, -1.0) for distance in DISTANCES_BPS):
        for moment, level in zip(placed, mid * (1.0 - side * distance * 1e-4), strict=True):
            begin = np.searchsorted(traded, moment, "right")
            touched = np.flatnonzero(side * (price[begin:] - level) <= 0.0)
            if len(touched) == 0 or traded[begin + touched[0]] + max(LATENCIES_S) > quoted[-1]:
                continue
            for latency, slipped in found.items():
                i = np.searchsorted(quoted, traded[begin + touched[0]] + latency, "right") - 1
                slipped.append(side * (level - (bid[i] if side > 0 else ask[i])) / level * 1e4)
    return {latency: np.array(slipped) for latency, slipped in found.items()}


def minute_slippage(params: Params) -> tuple[int, float, float, float]:
    """Return (stops touched, share opened beyond, mean bps beyond at the open, mean bps at the minute's close).

    Of stops of the labels at every 15-minute close of BTC/USDT 2024, long and short. A minute that opens beyond a stop
    fills it at its open, which the labels' gross returns have in them already. The last one is what an order sent
    when the minute is known would get: what it costs to keep the stop here instead of at the venue.
    """
    now = datetime.now(UTC)
    frame = make_source("files", path=recording(BTC)).fetch("BTC/USDT", now, now)
    base = to_matrix(assess(frame, MINUTES, now).clean)
    decision = resample(base, MINUTES, QUARTERS)
    family = StreamingFold("technical", (technical.GROUP,))
    atr = family.run(decision)[:, family.index["atr_14"]]
    at = np.flatnonzero(np.isfinite(atr))
    known = QUARTERS.closes(decision[at, OPEN_TIME])
    opens, closes, labels = [], [], params.labels
    for side in (1, -1):
        direction = np.full(len(at), side)
        found = triple_barrier(
            base, known, decision[at, CLOSE], direction, atr[at], labels.target_atr, labels.stop_atr,
            QUARTERS.deadline(known, labels.horizon_bars),
        )  # fmt: skip
        stopped = found.barrier == STOP
        level = levels(decision[at, CLOSE], direction, atr[at], labels.target_atr, labels.stop_atr)[1][stopped]
        bar = base[found.exit[stopped]]
        opens.append(np.maximum(side * (level - bar[:, OPEN]) / level, 0.0) * 1e4)
        closes.append(side * (level - bar[:, CLOSE]) / level * 1e4)
        assert ((bar[:, LOW] <= level) if side > 0 else (bar[:, HIGH] >= level)).all()
    gap, late = np.concatenate(opens), np.concatenate(closes)
    return len(gap), float((gap > 0).mean()), float(gap.mean()), float(late.mean())


def funding_an_hour(params: Params) -> float:
    """Return what a long of BTC/USDT perpetual paid an hour in 2024, in bps."""
    costs = costs_of(params.costs, "binance", "perpetual")
    payments = funding_payments(funding_rates(read_context(recording(FUNDING))), costs)
    start, end = (pd.Timestamp(day, tz="UTC").timestamp() - 60.0 for day in ("2024-01-01", "2025-01-01"))
    received = funding_received_bps(payments, np.array([1.0]), np.array([start]), np.array([end]))
    return float(-received[0] / ((end - start) / 3600.0))


# ---- the page -------------------------------------------------------------------------------------------------------


def page(params: Params) -> str:
    """Measure and return the whole page."""
    before, after = json.loads(BEFORE.read_text()), {name: walk(name, params) for name in MARKETS}
    return "\n".join([
        "# Costs: what a trade pays, and what that decides",
        "",
        "Written by `python -m benchmarks.costs --write`; nothing here was typed or chosen by hand.",
        "",
        "## What costs decide",
        "",
        _prose(f"""*Before*: measured by the same walk at {before["measured_at"]}, where every market paid 5 bps a
        round trip. *Eligible*: events with a target of at least {params.labels.min_target_to_cost:g} times their cost,
        and an outcome. *Emissions*: of the backtest with the live policy, on out-of-fold probabilities; refusals are
        counted by the first reason. *A trade*: mean cost of the eligible events; a recorded spread is in their returns
        and not in it. Other changes of this release are in the rows *after* as well."""),
        "",
        *decided(before["markets"], after),
        "",
        "## What a stop is filled at",
        "",
        *slippage_lines(params),
        "",
        "## Funding",
        "",
        _prose(f"""A long of BTC/USDT perpetual at Binance paid {funding_an_hour(params):.3f} bps an hour in 2024. A
        position pays at the funding times it is held over, as recorded in the context; what it paid is in the cost of
        its trade. Spot pays none."""),
        "",
    ])  # fmt: skip


def _prose(text: str) -> str:
    """Return one paragraph, wrapped for a page."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def decided(before: JsonObject, after: dict[str, Counted]) -> list[str]:
    """Return the tables of counts and of refusals."""
    lines = [
        "| market | costs | a trade, bps | events | eligible | scored | emissions | a week | net bps a trade |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, now in after.items():
        was = before[name]
        net = Estimate(**{key: math.nan if value is None else value for key, value in was["net_bps"].items()})
        lines += [
            f"| {name}, before | flat 5 bps | 5 | {was['events']:,} | {was['eligible']:,} | {was['scored']:,} | "
            f"{was['emissions']:,} | {was['per_week']:.2f} | {format_estimate(net)} |",
            f"| {name}, after | {now.costs} | {now.round_trip_bps:.1f} | {now.events:,} | {now.eligible:,} | "
            f"{now.scored:,} | {now.emissions:,} | {now.per_week:.2f} | {format_estimate(now.net_bps)} |",
        ]
    names = sorted({reason for now in after.values() for reason in now.refusals}
                   | {reason for was in before.values() for reason in was["refusals"]})  # fmt: skip
    columns = [(name, when) for name in after for when in ("before", "after")]
    lines += ["", f"| first reason | {' | '.join(f'{name}, {when}' for name, when in columns)} |"]
    lines.append(f"|---|{'--:|' * len(columns)}")
    for reason in names:
        cells = [
            (before[name]["refusals"] if when == "before" else after[name].refusals).get(reason, 0)
            for name, when in columns
        ]
        lines.append(f"| `{reason}` | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return lines


def slippage_lines(params: Params) -> list[str]:
    """Return the lines on the slippage of stops: on recorded books, and on minutes."""
    found = {name: book_slippage(recording(f"../orderbook/{name}")) for name in BOOKS}
    found["all"] = {latency: np.concatenate([one[latency] for one in found.values()]) for latency in LATENCIES_S}
    touched, beyond, gap, late = minute_slippage(params)
    mean = float(found["all"][STATED_S].mean())
    lines = [
        _prose(f"""Stops {", ".join(f"{d:g}" for d in DISTANCES_BPS)} bps from the mid, placed once a second on both
        sides of four recorded books of seven to nine minutes; neighbours share their path. Bps beyond the level, to the
        best price of the other side: mean, and 95th percentile. At 0 s it is near or below zero, as the quotes of a
        recording lag its trades. After a first look the one trade of a liquidation fund was left out, 11 bps away from
        the book of 2023-04-04."""),
        "",
        f"| book | touched | {' | '.join(f'{latency:g} s' for latency in LATENCIES_S)} |",
        f"|---|--:|{'--:|' * len(LATENCIES_S)}",
    ]
    for name, one in found.items():
        cells = [f"{values.mean():.2f}, {np.quantile(values, 0.95):.2f}" for values in one.values()]
        lines.append(f"| {name} | {len(one[0.0]):,} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        _prose(f"""The rule, set beforehand: the mean at {STATED_S:g} s, rounded up to a tenth, which is
        {math.ceil(10 * mean) / 10:.1f} bps. `costs.stop_slippage_bps` is {params.costs.stop_slippage_bps:g}."""),
        "",
        _prose(f"""On BTC/USDT 2024, {touched:,} stops of the labels were touched: {beyond:.2%} of the minutes opened
        beyond them, {gap:.3f} bps on average over all, which gross returns have in them. An order sent when the minute
        is known would be filled {late:.1f} bps beyond the stop: stops belong at the venue."""),
    ]


def main() -> None:
    """Parse the command line; print the page, or write it with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/costs.md instead of printing it")
    options = parser.parse_args()
    made = page(load_params())
    if options.write:
        PAGE.write_text(made)
    print(f"wrote {PAGE}" if options.write else made)


if __name__ == "__main__":
    main()
