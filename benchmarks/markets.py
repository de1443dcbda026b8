"""Figures of pooled universes: `python -m benchmarks.markets [--days N] [--write]`; writes docs/results/markets.md.

Of a universe and a family: the pooled gain over the simplest baseline and that of every market; what a model gains on a
market it never saw (leave-one-out); what it would gain with the union of all columns; and the smallest effect its rows
could show. `panel_figures` works on any artifacts folder with the outputs of the stages features and labels.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fixture import listed, recorded_market, recording, universe
from benchmarks.results import table
from pipelines.contracts import DAY_S, OPEN_TIME, Bools, Floats, Ints, JsonObject, json_ready, utc
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import NotEnoughData
from pipelines.evaluation.detectable import ONE_BP, detectable
from pipelines.evaluation.intervals import mean_of
from pipelines.evaluation.metrics import chosen, lift_of
from pipelines.evaluation.report import SIMPLEST
from pipelines.labels.splits import walk_forward
from pipelines.models.base import Dataset, ModelFamily, present_columns
from pipelines.models.catalog import model_family
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.stage_outputs import read_meta
from pipelines.training import stages
from pipelines.training.fit import complete_rows, prepare
from pipelines.training.walk import fit_window, out_of_fold, predict_in_batches

PAGE = ROOT / "docs" / "results" / "markets.md"
NEVER_SEEN = ("never seen: over its baseline", "never seen: over the pooled model")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """Name a market of a recorded universe: symbol, file, its timeframe, and that of the bars it is used on."""

    symbol: str
    file: str
    timeframe: str
    base: str


@dataclass(frozen=True)
class Universe:
    """Hold the markets of a recorded universe and the decision timeframe; bars before `since` are left out."""

    markets: tuple[Recorded, ...]
    decision: str
    since: str = ""


UNIVERSES = {
    "crypto": Universe(
        (
            Recorded("BTC/USDT", "binance_spot_btcusdt_1m_2024.parquet", "1m", "15m"),
            Recorded("BTC/USDT", "binance_spot_btcusdt_1m_2025h1.parquet", "1m", "15m"),
            Recorded("ETH/USDT", "binance_spot_ethusdt_5m_to_2025h1.parquet", "5m", "15m"),
        ),
        "15m", since="2024-05-30",
    ),
    "fx": Universe(
        (
            Recorded("EUR/USD", "../forex/oanda_eurusd_1h_to_2015h1.parquet", "1h", "1h"),
            Recorded("XAU/USD", "../forex/oanda_xauusd_1h_to_2015h1.parquet", "1h", "1h"),
        ),
        "1h", since="2007-01-01",
    ),
}  # fmt: skip


def panel_figures(artifacts: Path, family: str, params: Params, log: Log = lambda line: None) -> JsonObject:
    """Return the figures of a family on the pooled rows of a universe, JSON-ready.

    artifacts  with the outputs of the stages features and labels
    Returns    n, dropped (column → why), pooled and by_symbol (gain over the simplest baseline), leave_one_out (symbol
               → gain of a model that never saw it over a baseline that never did, and over the pooled model there),
               union (as pooled, with every column any market has; None where all have the same or windows are read),
               and detectable. Every gain with n and interval, in the family's unit of loss
    Raises     NotEnoughData as a fit does
    """
    chosen_family, meta = model_family(family), read_meta(artifacts)
    data = chosen_family.dataset(artifacts, params)
    embargo = stages.embargo_seconds(params, *stages.decision_grids(meta))
    _, unshared = stages.pooled_series(meta)
    left_out = chosen_family.left_out(params)
    prepared = prepare(family, data, left_out, unshared)
    rows = prepared.data
    log(f"{family}: pooled, {len(rows):,} rows")
    scored = _walked(chosen_family, rows, params, embargo, log)
    own = _gains(scored, rows)
    found: JsonObject = {
        "family": family, "loss_name": chosen_family.loss_name, "baseline": SIMPLEST[family], "n": len(scored.row),
        "dropped": prepared.dropped, "pooled": _figure(scored.gain, scored.known), "by_symbol": own,
        "leave_one_out": {
            name: _unseen(chosen_family, rows, code, scored, params, embargo, log)
            for code, name in enumerate(rows.symbols) if len(rows.symbols) > 1
        },
        "union": _union(chosen_family, data, left_out, params, embargo, log),
        "detectable": _detectable(scored, chosen_family, params),
    }  # fmt: skip
    return dict(json_ready(found))


@dataclass(frozen=True)
class Walked:
    """Hold rows scored out of fold: numbers (n,), loss, gain over the simplest baseline, known, market, trades."""

    row: Ints
    loss: Floats
    gain: Floats
    known: Floats
    symbol: Ints
    taken: Bools | None
    gross_bps: Floats | None


def _walked(family: ModelFamily, rows: Dataset, params: Params, embargo_s: float, log: Log) -> Walked:
    """Return the out-of-fold rows of a family."""
    found = out_of_fold(family, rows, params, embargo_s, log)
    scored, gross = rows.select_rows(found.row), None
    if "gross_bps" in scored.extras and found.p.ndim == 1:
        gross = scored.extras["gross_bps"]
    taken = chosen(found.rank, params.gate.coverage) if gross is not None and found.rank is not None else None
    gain = found.baselines[SIMPLEST[family.family]].loss - found.loss
    return Walked(found.row, found.loss, gain, scored.known, scored.symbol, taken, gross)


def _gains(scored: Walked, rows: Dataset) -> JsonObject:
    """Return market → its gain over the simplest baseline."""
    of = {name: scored.symbol == code for code, name in enumerate(rows.symbols)}
    return {name: _figure(scored.gain[rows_of], None) for name, rows_of in of.items() if rows_of.any()}


def _unseen(
    family: ModelFamily, rows: Dataset, code: int, pooled: Walked, params: Params, embargo_s: float, log: Log
) -> JsonObject:
    """Return what models gain on a market that none of them was trained on, fold by fold as the pooled ones.

    over_baseline  over the simplest baseline, which never saw the market either; over_pooled: against the pooled model
    """
    name = rows.symbols[code]
    loss_of, gains, known, over = dict(zip(pooled.row.tolist(), pooled.loss, strict=True)), [], [], []
    splits = walk_forward(rows.known, rows.ended, family.folds(params), params.splits.min_train_fraction, embargo_s)
    for number, split in enumerate(splits, start=1):
        log(f"{family.family}: without {name}, fold {number} of {len(splits)}")
        train = rows.select_rows(split.train[rows.symbol[split.train] != code])
        at = split.test[rows.symbol[split.test] == code]
        if not len(at):
            continue
        test = rows.select_rows(at)
        try:
            window = fit_window(family, train, params, embargo_s, lambda line: None)
        except NotEnoughData as fault:
            return {"why": str(fault)}
        loss = family.loss(predict_in_batches(window.fitted, test).p, test, window.fitted.loss_params)
        baseline = family.baselines[SIMPLEST[family.family]](window.rows, test, params)
        gains.append(baseline.loss - loss)
        over.append(np.array([loss_of[int(row)] for row in at]) - loss)
        known.append(test.known)
    if not gains:
        return {"why": "no row of this market in a test fold"}
    when = np.concatenate(known)
    return {
        "over_baseline": _figure(np.concatenate(gains), when), "over_pooled": _figure(np.concatenate(over), when)
    }  # fmt: skip


def _union(
    family: ModelFamily, data: Dataset, left_out: tuple[str, ...], params: Params, embargo_s: float, log: Log
) -> JsonObject | None:
    """Return the pooled gain with every column that any market has: 0 where a market lacks it, and an indicator.

    None where every market has the same columns, or the family reads windows
    """
    newest = data.inputs(np.arange(min(1, len(data))))
    markets = dict(data.by_market())
    values = data.newest()
    lacking = {
        name: [market for market, at in markets.items() if not np.isfinite(values[at, j]).any()]
        for j, name in enumerate(data.columns)
    }
    partly = [name for name, of in lacking.items() if 0 < len(of) < len(markets) and name not in left_out]
    if newest.ndim != 2 or not partly:
        return None
    places = [data.columns.index(name) for name in partly]
    absent = np.zeros((len(data), len(partly)), dtype=bool)
    for k, name in enumerate(partly):
        for market in lacking[name]:
            absent[markets[market], k] = True
    values[:, places] = np.where(absent, 0.0, values[:, places])
    filled = np.column_stack([values, absent.astype(np.float64)])
    whole = replace(
        data,
        columns=(*data.columns, *(f"{name}.absent" for name in partly)),
        inputs=lambda rows: filled[rows],
        newest_of=None,
    )
    mask, dropped = present_columns(filled, whole.columns, markets)
    mask &= np.array([name not in left_out and name not in dropped for name in whole.columns])
    whole = whole.select_columns(mask)
    whole = whole.select_rows(complete_rows(whole))
    log(f"{family.family}: union, {len(whole):,} rows, {len(partly)} columns that not every market has")
    scored = _walked(family, whole, params, embargo_s, log)
    return {"columns": partly, "pooled": _figure(scored.gain, scored.known), "by_symbol": _gains(scored, whole)}


def _detectable(scored: Walked, family: ModelFamily, params: Params) -> JsonObject:
    """Return what the pooled rows could show: in the family's unit of loss, and in bps where it decides trades."""
    n, least = len(scored.row), params.gate.least_gain[family.family]
    found = {"loss": detectable(mean_of(scored.gain, scored.known), least, n, family.loss_name).to_dict()}
    if scored.taken is not None and scored.gross_bps is not None:
        lift = lift_of(scored.taken, scored.gross_bps, scored.known)
        found["bps"] = detectable(lift, ONE_BP, n, "bps").to_dict()
    return found


def _figure(values: Floats, known: Floats | None) -> JsonObject:
    """Return a mean with its interval and n."""
    return {key: value for key, value in asdict(mean_of(values, known).estimate()).items() if key != "cost_bps"}


def bars_of(universe_of: Universe, days: float | None) -> dict[str, tuple[Floats, Grid]]:
    """Return symbol → bars (n, 9) and grid of a recorded universe; of the newest `days` alone, None = all.

    Raises  FileNotFoundError where a file is not there
    """
    parts: dict[str, list[tuple[Floats, Grid]]] = {}
    for each in universe_of.markets:
        bars, grid = recorded_market(recording(each.file), each.timeframe)
        coarse = grid.at(each.base)
        parts.setdefault(each.symbol, []).append((resample(bars, grid, coarse), coarse))
    since = np.datetime64(universe_of.since or "1970-01-01", "s").astype(np.int64).astype(np.float64)
    found = {}
    for symbol, pieces in parts.items():
        bars = np.concatenate([piece for piece, _ in pieces])
        first = max(float(since), bars[-1, OPEN_TIME] - DAY_S * days) if days else float(since)
        found[symbol] = bars[bars[:, OPEN_TIME] >= first], pieces[0][1]
    return found


def measured(name: str, families: list[str], params: Params, days: float | None, log: Log) -> JsonObject:
    """Return family → figures of a recorded universe, with the span of its bars; families with too few rows say so."""
    of = UNIVERSES[name]
    data = params.data.model_copy(update={"decision_timeframe": of.decision})
    params = params.model_copy(update={"data": data})
    where = {each.symbol: listed(Path(each.file).name) for each in of.markets}
    with tempfile.TemporaryDirectory() as scratch:
        workspace = universe(Path(scratch) / name, bars := bars_of(of, days), where)
        with contextlib.chdir(workspace), contextlib.redirect_stdout(sys.stderr):
            stages.build_features(params)
            stages.build_labels(params)
            found: JsonObject = {}
            for family in families:
                try:
                    found[family] = panel_figures(workspace / "artifacts", family, params, log)
                except NotEnoughData as fault:
                    found[family] = {"why": str(fault)}
    spans = {
        symbol: [utc(float(at)).date().isoformat() for at in each[[0, -1], OPEN_TIME]]
        for symbol, (each, _) in bars.items()
    }
    return {"spans": spans, "decision": of.decision, "families": found}


def page(found: Mapping[str, Any]) -> str:
    """Return the page of universe → `measured`."""
    text = [
        "# Pooled universes on recorded data\n",
        "Made by `python -m benchmarks.markets --write`. Gains are over the family's simplest baseline, out of fold, "
        "in its own unit of loss; intervals are 95 %, by moments (decision 0074). *Never seen*: by models that were "
        "not trained on the market, against a baseline that was not either (which may do worse than one that was), and "
        "against the pooled model on the same rows.",
    ]
    for name, each in found.items():
        spans = "; ".join(f"{symbol} {first} to {last}" for symbol, (first, last) in each["spans"].items())
        text += [f"\n## {name}: {spans}, {each['decision']} bars\n"]
        for family, figures in each["families"].items():
            if "why" in figures:
                text.append(f"{family}: {figures['why']}\n")
                continue
            union = figures["union"]
            unseen = figures["leave_one_out"]
            lines = [["pooled", *_cells(figures["pooled"]), "–", "–"]]
            lines += [
                [s, *_cells(e), *(_interval(unseen.get(s, {}), over) for over in ("over_baseline", "over_pooled"))]
                for s, e in figures["by_symbol"].items()
            ]
            if union is not None:
                lines.append(
                    [f"pooled, union of columns ({len(union['columns'])} more)", *_cells(union["pooled"]), "–", "–"]
                )
            effects = "; ".join(effect["line"] for effect in figures["detectable"].values())
            text += [f"**{family}**, {figures['loss_name']}, over {figures['baseline']}: {effects}.\n",
                     table(["rows of", "gain", "interval", "n", *NEVER_SEEN], lines), ""]  # fmt: skip
    return "\n".join(text) + "\n"


def _cells(e: Mapping[str, Any]) -> list[str]:
    """Return the gain, its interval and n of a figure."""
    known = e["low"] is not None and e["high"] is not None
    return [f"{e['value']:.5f}", f"[{e['low']:.5f}, {e['high']:.5f}]" if known else "too few rows", f"{e['n']:,}"]


def _interval(unseen: Mapping[str, Any], over: str) -> str:
    """Return the gain on a market that the model never saw."""
    if over not in unseen:
        return str(unseen.get("why", "–"))
    value, bounds, _ = _cells(unseen[over])
    return f"{value} {bounds}"


def main() -> None:
    """Measure the universes and families requested and print their figures as JSON; write the page with --write."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--universe", action="append", choices=list(UNIVERSES))
    asked.add_argument("--family", action="append", choices=list(SIMPLEST))
    asked.add_argument("--days", type=float, default=None, help="newest days alone")
    asked.add_argument("--write", action="store_true")
    words = asked.parse_args()

    def log(line: str) -> None:
        """Print a line of progress."""
        print(line, file=sys.stderr, flush=True)

    families = words.family or list(SIMPLEST)
    found = {
        name: measured(name, families, load_params(), words.days, log) for name in words.universe or list(UNIVERSES)
    }
    print(json.dumps(found, indent=1))
    if words.write:
        PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
