"""The labels stage: one file per entry of LABELS, each with the outcomes of a family's rows.

Cost decides only which events are eligible, never a label (row M1 of docs/specification.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import CLOSE, OPEN_TIME, Arrays, Bools, Floats, Ints
from pipelines.costs import (
    NO_FUNDING,
    Costs,
    costs_of,
    forward_cost_bps,
    funding_payments,
    funding_received_bps,
    left_at,
    target_cost_bps,
    trade_cost_bps,
    venue_of,
)
from pipelines.data.embargo import Window, inside, windows_in
from pipelines.data.sessions import grids_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape, StateError
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.horizon import horizon_labels
from pipelines.labels.misses import miss_atr
from pipelines.labels.patterns import pattern_labels
from pipelines.labels.returns import return_labels
from pipelines.labels.weights import average_uniqueness
from pipelines.models.gaps import DECISIONS, broken
from pipelines.params import Params
from pipelines.signals.events import Events, event_rows, events, traditional_events
from pipelines.signals.regimes import market_state
from pipelines.signals.setups import setups
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.stage_outputs import facts_of, features_of, read_meta

Labels = Arrays  # always with `known` and `ended`, epoch seconds


@dataclass(frozen=True, slots=True)
class Sources:
    """Hold base (n, 9) and decision (m, 9) bars, features (m, kf), signals (m, ks) and context of the snapshot."""

    base: Floats
    decision: Floats
    features: Floats
    signals: Floats
    context: Floats
    grid: Grid  # of the decision bars
    base_grid: Grid
    venue: str | None = None
    market: str | None = None
    funding: Floats = field(default_factory=lambda: NO_FUNDING)  # (r, 2) of costs.funding_rates
    windows: tuple[Window, ...] = ()  # of the calendar of events: no event of a bar that closed in one is labelled

    def costs(self, params: Params) -> Costs:
        """Return the costs of this market."""
        return costs_of(params.costs, self.venue, self.market)

    @property
    def closes(self) -> Floats:
        """Return (m,) epoch seconds of the decision bars' closes."""
        return self.grid.closes(self.decision[:, OPEN_TIME])

    @property
    def missing(self) -> Ints:
        """Return (m,) decision bars missing just before each."""
        return np.concatenate([[0], self.grid.missing(self.decision[:, OPEN_TIME])])


def read_sources(artifacts: Path, symbol: str | None = None) -> Sources:
    """Return the output of the features stage of one market; None = the first."""
    meta = facts_of(read_meta(artifacts), symbol)
    folder = features_of(artifacts, meta["symbol"])
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("base", "decision", "features", "signals", "context")}
    venue, market = venue_of(meta)
    grid, base_grid = grids_of(meta)
    return Sources(
        **arrays, grid=grid, base_grid=base_grid, venue=venue, market=market, funding=read_funding(folder, meta),
        windows=windows_in(meta),
    )  # fmt: skip


def read_funding(folder: Path, meta: Mapping[str, Any]) -> Floats:
    """Return (r, 2) the funding rates in a market's `folder` of the features stage, as `costs.funding_rates`.

    meta    its facts in meta.json. A release before 0.8.0 wrote neither rates nor `has_funding`: none, as figures say
    Raises  StateError if the rates that meta names are not there, BadShape if the file holds something else
    """
    file, named = folder / "funding.npy", meta.get("has_funding")
    again = "`bellwether run --once` computes the features again"
    if not file.is_file():
        if named:
            raise StateError(f"{file} is missing, but the data version has funding rates; {again}")
        return NO_FUNDING
    rates = np.load(file, allow_pickle=False)
    if rates.ndim != 2 or rates.shape[1] != 2 or (named is not None and named != (len(rates) > 0)):
        wanted = {True: "1 or more", False: "0", None: "r"}[named]
        raise BadShape(f"{file} has shape {rates.shape}, wanted ({wanted}, 2): when known, and the rate; {again}")
    return np.asarray(rates, dtype=np.float64)


def event_labels(sources: Sources, params: Params) -> Labels:
    """Return the validator's labels: eligible ICT events, and whether the target came before the stop.

    None may be eligible and resolved: the families that read no events are trained all the same.
    """
    found = events(sources.features, sources.signals)
    rows = event_rows(sources.features, sources.signals, found)
    outcome = _resolve(sources, found, params)
    labelled = outcome.labelled
    volatility = VALIDATOR_COLUMNS.index("volatility_regime")
    return {
        "columns": np.array(VALIDATOR_COLUMNS),
        "rows": rows[labelled],
        "y": outcome.label[labelled],
        "uniqueness": outcome.uniqueness[labelled],
        "known": outcome.known[labelled],
        "ended": outcome.ended[labelled],
        "gross_bps": outcome.gross_bps[labelled],
        "cost_bps": outcome.cost_bps[labelled],
        "target_cost_bps": outcome.target_cost_bps[labelled],
        "spread_known": outcome.spread_known[labelled],
        "direction": found.direction[labelled],
        "atr": found.atr[labelled],
        "index": found.index[labelled],
        "regime": market_state(sources.features, sources.signals)[0][found.index[labelled]],
        "volatility": np.column_stack([rows[labelled, volatility], np.log(found.atr[labelled])]),
    }


def predictor_labels(sources: Sources, params: Params) -> Labels:
    """Return the predictor's labels: direction of the bars whose move left the dead zone."""
    cost_of = partial(forward_cost_bps, sources.costs(params))
    return horizon_labels(sources.decision, sources.base, sources.grid, sources.base_grid, params, cost_of)


def setup_labels(sources: Sources, params: Params) -> Labels:
    """Return the pattern recogniser's labels: whether each present pattern played out."""
    reach = sources.features[:, FEATURES.index["atr_14"]] * sources.decision[:, CLOSE]
    return pattern_labels(
        sources.decision, sources.base, setups(sources.signals), reach, sources.grid, sources.base_grid, params
    )


def hour_labels(sources: Sources, params: Params) -> Labels:
    """Return the regime detector's labels: the return over the next hour, basis points."""
    return return_labels(sources.decision, sources.base, sources.grid, sources.base_grid, params)


LABELS: dict[str, Callable[[Sources, Params], Labels]] = {
    "events": event_labels,
    "pattern": setup_labels,
    "predictor": predictor_labels,
    "returns": hour_labels,
}


READ_BY = {"events": "validator", "returns": "regime"}  # labels that do not have the name of the family they are of


def without_broken_rows(labels: Labels, name: str, sources: Sources) -> tuple[Labels, int]:
    """Return labels without the rows that the live service would not read, and how many these are.

    name   of LABELS; a row is left out while missing bars break a window of its family (models.gaps)
    """
    keep = ~broken(sources.missing, READ_BY.get(name, name))[np.searchsorted(sources.closes, labels["known"])]
    rows = {each: values[keep] for each, values in labels.items() if each != "columns"}
    return {each: rows.get(each, values) for each, values in labels.items()}, int((~keep).sum())


def traditional_record(sources: Sources, params: Params) -> dict[str, float | None]:
    """Return what tier 3 judges the traditional consensus by.

    hits, n    events whose target was touched first, and resolved events
    effective  independent events these count as: n times their mean uniqueness, as they overlap
    miss_atr   what the others returned, see labels.misses.miss_atr; None where no event missed its target
    """
    found = traditional_events(sources.features, sources.signals)
    whole = ~broken(sources.missing, DECISIONS)[found.index]
    found = Events(found.index[whole], found.direction[whole], found.kind[whole], found.atr[whole])
    outcome = _resolve(sources, found, params)
    of = outcome.labelled
    gross_bps = outcome.gross_bps + outcome.target_cost_bps - outcome.cost_bps  # as `models.validator.expected_miss`
    return {
        "hits": int(outcome.label[of].sum()),
        "n": int(of.sum()),
        "effective": float(outcome.uniqueness[of].sum()),
        "miss_atr": miss_atr(outcome.label[of], gross_bps[of], found.atr[of], outcome.uniqueness[of]),
    }


@dataclass(frozen=True, slots=True)
class _EventOutcomes:
    """Hold the outcomes of n events: (n,) each; `labelled` = eligible by cost, and resolved."""

    labelled: Bools
    label: Floats
    gross_bps: Floats
    cost_bps: Floats
    target_cost_bps: Floats
    spread_known: Bools  # gross_bps is of executed prices; else of mids, see labels.barriers.Barriers
    known: Floats
    ended: Floats
    uniqueness: Floats


def _resolve(sources: Sources, found: Events, params: Params) -> _EventOutcomes:
    """Return the outcome of each event by the triple barrier; uniqueness is NaN where it is not labelled."""
    base, close_time = sources.base, sources.closes[found.index]
    labels = params.labels
    outcome = triple_barrier(
        base, close_time, sources.decision[found.index, CLOSE], found.direction, found.atr,
        labels.target_atr, labels.stop_atr, sources.grid.deadline(close_time, labels.horizon_bars),
    )  # fmt: skip
    costs = sources.costs(params)
    expected = target_cost_bps(costs, sources.decision[found.index])
    eligible = labels.target_atr * found.atr * 1e4 >= labels.min_target_to_cost * expected
    labelled = eligible & (outcome.barrier != UNRESOLVED) & ~inside(close_time, sources.windows)
    uniqueness = np.full(len(found.index), np.nan)
    if labelled.any():
        uniqueness[labelled] = average_uniqueness(outcome.start[labelled], outcome.exit[labelled], len(base))
    payments = funding_payments(sources.funding, costs)
    held_to = left_at(outcome.exit_time, sources.base_grid.closes(outcome.exit_time), outcome.barrier)
    funding = funding_received_bps(payments, found.direction, outcome.start_time, held_to)
    cost = trade_cost_bps(costs, outcome.barrier, outcome.spread_known, funding)
    return _EventOutcomes(
        labelled, outcome.label, outcome.gross_bps, cost, expected, outcome.spread_known, close_time, outcome.exit_time,
        uniqueness,
    )  # fmt: skip
