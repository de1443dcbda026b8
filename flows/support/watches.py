"""The watch of a served version: its inputs in each market of its training, and its edge over all of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from flows.support.alarms import end_alarm, open_alarms
from flows.support.installation import Installation, now
from flows.support.live_outcomes import decision_grid
from flows.support.watched import WatchedModel, watched_model
from pipelines.contracts import Floats, utc
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import DriftReference
from pipelines.monitoring.drift import AlarmRates, BlockDrift, DriftResult, alarm_rates, detect
from pipelines.monitoring.loss import LossDrift, loss_drift, pooled_until, unwatched

log = logging.getLogger("bellwether.watch")
WATCHED = np.array([FEATURES.index[name] for name in WATCHED_COLUMNS])  # their columns in a row of features
UNSCORED = "no outcome scores it"
MARKET_FAULT = "market_fault"


@dataclass(frozen=True, slots=True)
class ServedRows:
    """Hold what the service used: (n,) epoch seconds of decision bars, ascending; (n, k) rows of WATCHED_COLUMNS."""

    at_s: Floats
    values: Floats

    def after(self, moment_s: float) -> "ServedRows":
        """Return the rows of decision bars that closed after `moment_s`, epoch seconds."""
        first = int(np.searchsorted(self.at_s, moment_s, side="right"))
        return ServedRows(self.at_s[first:], self.values[first:])


@dataclass(frozen=True, slots=True)
class MarketWatch:
    """Hold one run of the watch of a version's inputs in one market; `rates` are those of one block.

    reference  of the version's training there, or why there is none
    """

    symbol: str
    reference: DriftReference | str
    rates: AlarmRates
    served: ServedRows
    drift: DriftResult


@dataclass(frozen=True, slots=True)
class FamilyWatch:
    """Hold one run of the watch of one family.

    markets   those of its training that were watched now
    left_out  symbol → why it was not: the model does not know the market, or its watch has a fault
    loss      of all of them together; abstains where none is known
    """

    model: WatchedModel
    markets: tuple[MarketWatch, ...]
    loss: LossDrift
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the markets that were watched."""
        return tuple(market.symbol for market in self.markets)

    @property
    def worst(self) -> MarketWatch | None:
        """Return the market that decided: the first that alarms, else the one with the highest score; None of none."""
        return max(self.markets, key=_severity, default=None)


def _severity(market: MarketWatch) -> tuple[bool, float]:
    """Return whether a market alarms, and the highest score over its threshold of the block that decided."""
    block = worst_block(market.drift)
    if block is None:
        return False, -np.inf
    alarm = bool(market.drift.alarm or market.drift.missing_alarm)
    scores = np.array([block.score, block.missing_score]) / np.array([block.threshold, block.missing_threshold])
    return alarm, float(np.nan_to_num(scores, nan=-np.inf).max())


class ServedReader:
    """Read what the service used in each market, once for all families."""

    def __init__(self, installation: Installation, since: datetime) -> None:
        """Read rows of decision bars after `since`, the earliest end of a training."""
        self._installation, self._since = installation, since
        self._read: dict[str, ServedRows] = {}

    def rows(self, symbol: str, since: datetime) -> ServedRows:
        """Return the rows of a market after `since`, not before the reader's own."""
        if symbol not in self._read:
            self._read[symbol] = served_rows(self._installation, symbol, self._since)
        return self._read[symbol].after(since.timestamp())


def watched_families(installation: Installation) -> list[str]:
    """Return the families with a champion: only what serves can be hurt.

    Without one, the deciding family, once it was judged: before that its first training is still running, and a second
    one at the same time is of no use.
    """
    serving = [family for family in FAMILIES if installation.store.slots(family).champion is not None]
    judged = installation.store.slots(DECISION_FAMILY).challenger is not None
    return serving or ([DECISION_FAMILY] if judged else [])


def model_under_watch(installation: Installation, family: str) -> WatchedModel:
    """Return what the watch needs of a family's champion, without one of its challenger.

    Raises  BundleError for a bundle that is not as it was registered
    """
    slots = installation.store.slots(family)
    line = slots.champion or slots.challenger
    assert line is not None, f"{family} has neither champion nor challenger, so it is not watched"
    return watched_model(installation, line)


def family_watch(
    installation: Installation, model: WatchedModel, symbols: Sequence[str], served: ServedReader | None = None
) -> FamilyWatch:
    """Return the watch of one version in these markets, and of its edge in all that it was trained on.

    A market with a fault is left out by name: it is alarmed and logged, and the others go on.
    """
    reader = served or ServedReader(installation, model.trained_through)
    watched, left_out = [], {}
    for symbol in symbols:
        if symbol not in model.references:
            left_out[symbol] = f"not in the training of version {model.line.to_version}"
            continue
        left_out[symbol] = f"a fault, which the alarm {MARKET_FAULT} names"
        with isolate_market(installation, f"{model.family} {symbol}"):
            watched.append(market_watch(installation, model, symbol, reader))
            del left_out[symbol]
    loss = unwatched(UNSCORED)
    if model.family == DECISION_FAMILY:
        loss = compare_loss(installation, model, known_markets(installation, model))
    return FamilyWatch(model, tuple(watched), loss, left_out)


def market_watch(
    installation: Installation, model: WatchedModel, symbol: str, served: ServedReader
) -> MarketWatch:  # fmt: skip
    """Return the watch of a version's inputs in one market; the budget of false alarms is that of the universe."""
    reference, params = model.references[symbol], installation.params
    # the blocks that are judged are the reference's: params.yaml may have another length since that training
    block_bars = params.drift.block_bars if isinstance(reference, str) else reference.block_bars
    bar_s = decision_grid(installation, installation.base_grid(symbol)).mean_s
    watches = len(watched_families(installation)) * len(installation.symbols)
    rates = alarm_rates(params.drift.false_alarms_a_month, block_bars, bar_s, watches)
    rows = served.rows(symbol, model.trained_through)
    if isinstance(reference, str):
        drift = DriftResult(None, reference, len(rows.at_s), (), None, reference)
    else:
        drift = detect(reference, rows.values, rates)
    return MarketWatch(symbol, reference, rates, rows, drift)


def compare_loss(installation: Installation, model: WatchedModel, symbols: Sequence[str]) -> LossDrift:
    """Test the edge of the served version on the outcomes of all it predicted since its training, in all markets.

    Markets move together, so a block is one of time, with the outcomes of all of them.
    """
    if not symbols:
        return unwatched("none of its markets is watched")
    digest, family = model.line.digest, model.family
    scored = [
        (record.decision.as_of.timestamp(), chance, float(outcome.label))
        for record, outcome in installation.store.resolved(model.trained_through)
        if record.decision.symbol in symbols
        and (answer := record.decision.models.get(family, {}).get("champion")) is not None
        and answer.digest == digest
        and (chance := answer.chance[0]) is not None
    ]
    at_s, p, y = np.array(scored, dtype=np.float64).reshape(-1, 3).T
    return loss_drift(
        at_s, p, y, model.edge, installation.params,
        origin_s=model.trained_through.timestamp(), until_s=outcomes_until_s(installation, model, symbols),
    )  # fmt: skip


def outcomes_until_s(installation: Installation, model: WatchedModel, symbols: Sequence[str]) -> float:
    """Return up to when the outcomes of these markets are known together, epoch seconds; one or more markets."""
    horizon_s = np.inf if model.edge is None else model.edge.horizon_s
    return pooled_until([market_time(installation, s, model).timestamp() for s in symbols], horizon_s)


def market_time(installation: Installation, symbol: str, model: WatchedModel) -> datetime:
    """Return the newest moment of the market that the service knows, at least the end of the model's training."""
    newest = installation.store.newest_bar(symbol)
    if newest is None:
        return model.trained_through
    return max(utc(installation.base_grid(symbol).next_close(newest)), model.trained_through)


@contextmanager
def isolate_market(installation: Installation, subject: str) -> Iterator[None]:
    """Log and alarm a fault of one market once, and go on with the others; clear the alarm when the fault is gone.

    subject  what failed and where: `outcomes BTC/USDT`, `validator BTC/USDT`
    """
    store = installation.store
    try:
        yield
    except Exception as fault:
        if not open_alarms(store, MARKET_FAULT, subject):
            log.exception("%s", subject)
            detail = f"{subject}: {type(fault).__name__}: {' '.join(str(fault).split())}"[:400]
            store.raise_alarm(MARKET_FAULT, "high", detail, now())
    else:
        end_alarm(store, MARKET_FAULT, subject, now())


def served_rows(installation: Installation, symbol: str, since: datetime) -> ServedRows:
    """Return what the service used at every decision bar after `since`, oldest first; NaN = a feature was missing."""
    by_bar: dict[datetime, bytes] = {}
    begin, newest = since, installation.store.decisions(symbol, last=1)
    while newest and begin <= newest[0].decision.as_of:  # whole records of a long life would fill memory
        end = begin + timedelta(days=7)
        found = installation.store.decisions(symbol, since=begin, until=end)
        by_bar |= {r.decision.as_of: r.features for r in found if r.decision.as_of > since}
        begin = end
    order = sorted(by_bar)
    rows = [np.frombuffer(by_bar[at], dtype=np.float64)[WATCHED] for at in order]
    return ServedRows(
        np.array([at.timestamp() for at in order]), np.array(rows, dtype=np.float64).reshape(-1, len(WATCHED))
    )


def known_markets(installation: Installation, model: WatchedModel) -> tuple[str, ...]:
    """Return the markets of the universe that a version was trained on: its edge is that of all of them."""
    return tuple(symbol for symbol in installation.symbols if symbol in model.references)


def worst_block(result: DriftResult) -> BlockDrift | None:
    """Return the block that decided: the first of the alarms that last, else the highest score; None before any."""
    onsets = [start for start in (result.onset, result.missing_onset) if start is not None]
    if onsets:
        return next(block for block in result.blocks if block.start == min(onsets))
    return max(result.blocks, key=lambda b: -np.inf if np.isnan(b.score) else b.score, default=None)
