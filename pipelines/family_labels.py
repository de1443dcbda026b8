"""The labels of the model families: one door over `pipelines.labels` for training, service and flows.

`LABELS` labels every row of a history, as the labels stage does; `labels_at` labels the bars that decisions were made
on, from the rows stored with these decisions and the bars since: the same functions, hence the same bytes.

Cost decides only which events are eligible, never a label (row M1 of docs/specification.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

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
)
from pipelines.data.embargo import Window, inside
from pipelines.data.timeframes import Grid
from pipelines.families import FAMILIES
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.horizon import horizon_labels
from pipelines.labels.patterns import pattern_labels
from pipelines.labels.returns import return_labels
from pipelines.labels.weights import average_uniqueness
from pipelines.models.gaps import broken
from pipelines.params import Params
from pipelines.signals.events import Events, event_rows, events
from pipelines.signals.regimes import market_state
from pipelines.signals.setups import setups
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS

Labels = Arrays  # always with `known` and `ended`, epoch seconds


@dataclass(frozen=True, slots=True)
class Sources:
    """Hold base (n, 9) and decision (m, 9) bars, features (m, kf), signals (m, ks) and context of one market."""

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


def event_labels(sources: Sources, params: Params) -> Labels:
    """Return the validator's labels: eligible ICT events, and whether the target came before the stop.

    None may be eligible and resolved: the families that read no events are trained all the same.
    """
    found = events(sources.features, sources.signals)
    rows = event_rows(sources.features, sources.signals, found)
    outcome = event_outcomes(sources, found, params)
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


# ---- labels of the bars that decisions were made on ------------------------------------------------------------------

_BEFORE = 16  # base bars kept before the first label's path: `barriers.first_touch` reads the spacing of eight


@dataclass(frozen=True, slots=True)
class DecidedBars:
    """Hold k decision bars of one market with the rows that were stored with the decisions on them.

    closes    (k,) epoch seconds, ascending and unique
    features  (k, kf), signals (k, ks), columns of the catalogues; NaN = missing
    """

    closes: Floats
    features: Floats
    signals: Floats

    def __len__(self) -> int:
        """Return the number of bars, k."""
        return len(self.closes)


def horizon_bars(family: str, grid: Grid, params: Params) -> int:
    """Return the decision bars after which the label of a family is known, or never will be."""
    return {
        "validator": params.labels.horizon_bars,
        "pattern": params.pattern.horizon_bars,
        "predictor": params.predictor.horizon_bars,
        "regime": grid.bars_of(params.regime.horizon_minutes * 60.0),
    }[family]


def longest_horizon(grid: Grid, params: Params) -> int:
    """Return the decision bars after which the label of every family is known, or never will be."""
    return max(horizon_bars(family, grid, params) for family in FAMILIES)


def settled(closes: Floats, until: float, grid: Grid, params: Params) -> Bools:
    """Return (k,) whether all labels of the decision bars that closed then are final: a later bar changes none.

    until   close of the newest base bar, epoch seconds
    """
    return np.asarray(grid.deadline(closes, longest_horizon(grid, params)) <= until)


def labels_at(market: Sources, decided: DecidedBars, params: Params) -> dict[str, Labels]:
    """Return family → the labels of the decision bars that have one, as the labels stage computes them on these bars.

    market   base and decision bars, grids, costs, funding and windows; its features and signals are not read
    decided  the bars to label; those that are not among the decision bars any more, after a correction, are left out
    A bar has no row where its family has no label: no eligible event or pattern, a move in the dead zone, a gap, or not
    known yet (`settled`). `index` is the place among `decided`; `uniqueness`, which all labels of a history share, is
    left out.
    """
    place = np.searchsorted(market.closes, decided.closes)
    there = place < len(market.decision)
    there[there] &= market.closes[place[there]] == decided.closes[there]
    if not there.any():
        return {}
    begin = int(place[there][0])
    recent = _with_rows(market, decided, place, there, begin)
    found = {}
    for name, label in LABELS.items():
        family = READ_BY.get(name, name)
        # the volatility of the returns reads the whole history, and no features
        labels = label(market if name == "returns" else recent, params)
        at = np.searchsorted(decided.closes, labels["known"])
        chosen = at < len(decided)
        chosen[chosen] &= decided.closes[at[chosen]] == labels["known"][chosen]
        chosen[chosen] &= ~broken(market.missing, family)[place[at[chosen]]]
        kept = {part: values[chosen] for part, values in labels.items() if part not in ("columns", "uniqueness")}
        found[family] = kept | {"index": at[chosen]}
    return found


def _with_rows(market: Sources, decided: DecidedBars, place: Ints, there: Bools, begin: int) -> Sources:
    """Return the market from decision bar `begin` on, with the stored rows; NaN where no decision was made."""
    decision = market.decision[begin:]
    features = np.full((len(decision), decided.features.shape[1]), np.nan)
    signals = np.full((len(decision), decided.signals.shape[1]), np.nan)
    features[place[there] - begin], signals[place[there] - begin] = decided.features[there], decided.signals[there]
    first = int(np.searchsorted(market.base[:, OPEN_TIME], market.closes[begin]))
    return replace(
        market, base=market.base[max(0, first - _BEFORE) :], decision=decision, features=features, signals=signals,
    )  # fmt: skip


# ---- outcomes of events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventOutcomes:
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


def event_outcomes(sources: Sources, found: Events, params: Params) -> EventOutcomes:
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
    return EventOutcomes(
        labelled, outcome.label, outcome.gross_bps, cost, expected, outcome.spread_known, close_time, outcome.exit_time,
        uniqueness,
    )  # fmt: skip
