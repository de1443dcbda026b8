"""Hold the live state of one symbol: base bars in, closed decision bars out, each with its features and signals.

It starts from the warm start of a data version and continues with the bars observed since, so its rows equal those of a
batch run over the whole history (L2). A missing decision bar is skipped as in training, and whatever reads a window
that the gap has broken is WARMING_UP until it has left it (`pipelines.models.gaps`). While the market is closed by its
calendar, on a holiday, and where no bar means no trade, no bar is missing.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from zlib import crc32

import numpy as np

from pipelines.clock import Clock
from pipelines.context_layout import NO_CONTEXT
from pipelines.contracts import (
    BAR_FIELDS,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    NO_BOOK,
    OPEN_TIME,
    Books,
    ContextFeed,
    Floats,
    History,
    Ints,
    utc,
)
from pipelines.costs import Costs, costs_of, target_cost_at
from pipelines.data import admission, collar
from pipelines.data.admission import CLOCK_SKEW
from pipelines.data.alignment import align, known_between, merge_records, prune_records
from pipelines.data.bar_clock import clocked_bar
from pipelines.data.series import ages_of
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadTimes, BadValues, UnknownName
from pipelines.features.catalog import FEATURES
from pipelines.market_params import CostParams, QualityParams
from pipelines.models.gaps import DECISIONS, memory, waits
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import Events, events
from pipelines.store import HeldBar, packed, unpacked
from pipelines.warm_start import WarmStart
from serving.state.recent_bars import SPARE_BARS, OpenBars, RecentBars


@dataclass(frozen=True, slots=True)
class ClosedBar:
    """Hold a closed decision bar and its rows, known at `close_time` (epoch s).

    bar (9,) · features (kf,) · signals (ks,) · levels (2, levels, 3) of the newest book · context (CONTEXT_WIDTH,)
    """

    bar: Floats
    features: Floats
    signals: Floats
    levels: Floats
    context: Floats
    close_time: float


class Symbol:
    """Hold the state of one symbol. Not thread-safe: the caller serialises `validate_new`, storing, and `advance`."""

    def __init__(
        self,
        warm: WarmStart,
        clock: Clock | None = None,
        reading: str = "",
        withheld: Mapping[float, str] | None = None,
    ) -> None:
        """Start from the warm start, on its own clock where `clock` is None.

        reading   moment of the newest correction that the bars to come were read with, ISO 8601; "" = none was made
        withheld  open time → why, of bars that are in quarantine or were taken out: they are never folded
        """
        self.warm = warm
        self.clock = clock or clock_of(warm)
        self.name = warm.symbol
        self.base_grid, self.grid = warm.base_grid, warm.grid
        self.last_open_time = warm.last_open_time
        self._open, self._ages = OpenBars(warm.tail), ages_of(warm.series)
        self._features, self._signals = warm.feature_state.copy(), warm.signal_state.copy()
        self._recent = RecentBars(warm.history, spare=1 + crc32(warm.symbol.encode()) % SPARE_BARS)
        self.history = warm.history  # the newest closed bars, input of models over many bars; the last is `closed`
        self.books, self.feed = warm.books, warm.feed
        self.closed = _newest(warm.history, self.grid)
        self._missing = _missing_before(warm)  # (memory(),) bars missing before each of the newest decision bars
        self._is_broken = bool(self._missing.any())
        self.waiting = waits(self._missing)  # reader (a family, or DECISIONS) → decision bars until it may be read
        self._gap = "missing bars in its history"
        self.reading, self.withheld = reading, dict(withheld or {})
        self._scale = (0.0, 0), float("nan")  # (close, bars) it is of, and the robust deviation of a base bar's move
        self._costs: tuple[CostParams, Costs] | None = None  # parameters, and the costs of this market by them
        self._events: tuple[ClosedBar, Events] | None = None  # a close, and its ICT events
        # (family, arm) → (digest, unseen), and what `predictions.market_mismatch` found of that model
        self.mismatches: dict[tuple[str, str], tuple[tuple[str, str], str | None]] = {}
        self._opens = deque([self.last_open_time], maxlen=admission.OPENS_BEFORE)  # of the newest base bars

    def costs(self, params: CostParams) -> Costs:
        """Return the costs of this market, by the venue its data version names; found once for these parameters."""
        if self._costs is None or self._costs[0] is not params:
            self._costs = params, costs_of(params, self.warm.venue, self.warm.market)
        return self._costs[1]

    def target_cost_bps(self, params: CostParams) -> float:
        """Return what a trade decided at the newest close pays if it reaches its target, in bps."""
        bar = self.closed.bar
        return target_cost_at(self.costs(params), bar.item(HALF_SPREAD), bar.item(CLOSE))

    def stop_cost_bps(self, params: CostParams) -> float:
        """Return what a trade decided at the newest close pays if it ends at its stop, in bps."""
        return self.target_cost_bps(params) + self.costs(params).stop_slippage_bps

    @property
    def ict_events(self) -> Events:
        """Return the ICT events of the newest close, found once: models, policy and records read the same."""
        if self._events is None or self._events[0] is not self.closed:
            features, signals = self.closed.features[np.newaxis], self.closed.signals[np.newaxis]
            self._events = self.closed, events(features, signals)
        return self._events[1]

    @property
    def last_bar_close(self) -> datetime:
        """Return the close of the newest base bar, observed or of the warm start: the time of a `market` clock."""
        return utc(self.base_grid.next_close(self.last_open_time))

    @property
    def closes(self) -> Floats:
        """Return (n,) the closing prices of the newest decision bars, the newest last; n <= RETAINED_BARS."""
        return self.history.bars[:, CLOSE]

    @property
    def reason(self) -> str | None:
        """Return why decisions on this symbol must wait; None if they need not."""
        return self.waits_of(DECISIONS)

    def waits_of(self, reader: str) -> str | None:
        """Return why a family, or DECISIONS, must not be read at this close; None if it may."""
        if reader not in self.waiting:
            return None
        return f"WARMING_UP: {self.waiting[reader]} bars to go after {self._gap}"

    def validate_new(self, rows: Floats, now: datetime, stored: Callable[[float, float], Floats]) -> Floats:
        """Check bars before anything is stored; return those that are new (the others are stored already, identical).

        rows     (n, 9) as received, of which any number may be known; NaN only from volume on
        stored   (after, until) → stored bars with after < open_time <= until, epoch seconds, in every reading
        Raises   BadTimes, BadValues, BadShape naming bar and field
        Bars that are withheld are left out; `withheld_of` names them.
        """
        if len(rows) == 0:  # records alone
            return rows
        self.require(rows, now)
        if self.withheld:
            rows = rows[[opened not in self.withheld for opened in rows[:, OPEN_TIME].tolist()]]
        known = rows[:, OPEN_TIME] <= self.last_open_time
        if not known.any():
            return rows
        again = rows[known]
        self._check_same(again, stored(again[0, OPEN_TIME] - 1.0, again[-1, OPEN_TIME]))
        return np.ascontiguousarray(rows[~known])

    def require(self, rows: Floats, now: datetime) -> None:
        """Raise BadTimes, BadValues or BadShape unless every one of these bars (n, 9) is taken, known or new."""
        first = rows[0, OPEN_TIME] if rows.ndim == 2 and len(rows) else np.inf
        opens = [opened for opened in self._opens if opened < first]
        admission.require(rows, self.base_grid, now, self.name, tuple(opens))

    def withheld_of(self, rows: Floats) -> list[tuple[float, str]]:
        """Return (open time, why) of the bars among these (n, 9) that are in quarantine or were taken out."""
        return [(at, self.withheld[at]) for at in rows[:, OPEN_TIME].tolist() if at in self.withheld]

    def hold_back(self, rows: Floats, rules: QualityParams) -> tuple[Floats, list[HeldBar]]:
        """Return new bars (n, 9) without those far outside the range before them, and those, to be quarantined."""
        if len(rows) == 0:
            return rows, []
        before = self._open.rows if len(self._open.rows) else self.history.bars
        if collar.is_near(before[-1], rows, rules):
            return rows, []
        found = collar.outside(rows, self._range_before(rules.collar_bars), rules)
        held = [
            HeldBar(rows[i].copy(), float(self.base_grid.next_close(rows[i, OPEN_TIME])), admission.COLLAR,
                    f"high {rows[i, HIGH]:g}, low {rows[i, LOW]:g}: more than {rules.collar_factor:g} times outside of "
                    f"{found.lowest[i]:g} to {found.highest[i]:g}, the range of the newest {rules.collar_bars} bars")
            for i in np.flatnonzero(found.found)
        ]  # fmt: skip
        return np.ascontiguousarray(rows[~found.found]), held

    def _range_before(self, bars: int) -> collar.Recent:
        """Return what came before the next base bar: decision bars that stand for so many base bars, and the open one.

        They reach back at least as far as the base bars would, so the range is never narrower than that in a file.
        """
        ratio = self.base_grid.bars_of(self.grid.step_s)
        closed = self.history.bars[-max(1, -(-bars // ratio)) :]
        open_ones = self._open.rows
        if self._scale[0] != (self.closed.close_time, bars):
            found = collar.robust_scale(self.closes[-bars:]) / float(np.sqrt(ratio))
            self._scale = (self.closed.close_time, bars), found
        scale = self._scale[1]
        return collar.Recent(np.concatenate([closed, open_ones]), len(closed) * ratio + len(open_ones), scale)

    def validate_new_records(
        self,
        books: Books | None,
        feed: ContextFeed | None,
        now: datetime,
        stored: Callable[[float, float], tuple[Books | None, ContextFeed | None]],
    ) -> tuple[Books | None, ContextFeed | None]:
        """Check records before anything is stored; return those that are new (the others are known, identical).

        stored   (after, until) → (books, feed) stored with after < known <= until, epoch seconds
        Raises   BadTimes for a record from the future or older than the last closed decision bar; BadValues for one
                 that differs from a known record of the same kind and time
        """
        sent: dict[tuple[str, float], bytes] = {}
        for (kind, at), payload in packed(books, feed):
            if sent.setdefault((kind, at), payload) != payload:
                raise BadValues(
                    f"{self.name}: two different {kind} records known at {_moment(at)} in one request. Send one; "
                    "nothing of this request was stored."
                )
        if not sent:
            return None, None
        moments = [at for _, at in sent]
        span = min(moments) - 1.0, max(moments)
        # the data version that live state started from may hold records that were never observed here
        before = dict(packed(*stored(*span))) | dict(packed(*known_between(self.books, self.feed, *span)))
        fresh: dict[tuple[str, float], bytes] = {}
        for (kind, at), payload in sent.items():
            when = f"{self.name}: {kind} known at {_moment(at)}"
            if (kind, at) in before:
                if before[kind, at] != payload:
                    raise BadValues(f"{when} is stored with another content. The first one stands.")
                continue
            if at > (now + CLOCK_SKEW).timestamp():
                raise BadTimes(f"{when} lies in the future; it is {now:%F %T} UTC. Send what is known.")
            if at <= self.closed.close_time:
                raise BadTimes(
                    f"{when} comes late: the bar that closed at {utc(self.closed.close_time):%F %T} UTC was folded "
                    "without it. Send records with or before the bar that closes; the past is not rewritten."
                )
            fresh[kind, at] = payload
        return unpacked((kind, at, payload) for (kind, at), payload in sorted(fresh.items(), key=lambda kv: kv[0][1]))

    def ingest_records(self, books: Books | None, feed: ContextFeed | None) -> None:
        """Add validated records, which the following closes read.

        Books are used only where the data version holds books: elsewhere no model reads them, and rows stay as in
        training. They are stored all the same, and are part of the next data version.
        """
        if self.books is not None:
            self.books = merge_records(self.books, books)
        self.feed = merge_records(self.feed, feed)

    def advance(self, rows: Floats) -> list[ClosedBar]:
        """Process new base bars (n, 9), ascending and after all earlier ones; return the decision bars they closed."""
        return [self.on_bar(bar) for bar in self._take_base_bars(rows)] if len(rows) else []

    def on_bar(self, bar: Floats) -> ClosedBar:
        """Process one closed decision bar (9,) and return it with its rows."""
        self._count_missing(float(bar[OPEN_TIME]))
        levels, context = self._known_at_close(bar)
        clocked = clocked_bar(bar, self.grid)
        features = FEATURES.step(self._features, clocked, levels, context)
        signals = SIGNALS.step(self._signals, clocked, levels, context)
        self.history = self._recent.with_bar(bar, features, signals, levels, context)
        self.closed = _newest(self.history, self.grid)
        return self.closed

    def _known_at_close(self, bar: Floats) -> tuple[Floats, Floats]:
        """Return levels (2, levels, 3) and context (CONTEXT_WIDTH,) known at a bar's close; let go of older records."""
        if self.books is None and self.feed is None:
            return NO_BOOK, NO_CONTEXT
        (levels,), (context,) = align(bar[:1], self.grid, self.books, self.feed, self._ages)
        close = self.grid.next_close(bar[OPEN_TIME])
        self.books, self.feed = prune_records(close, self.grid.step_s, self.books, self.feed, self._ages)
        return levels, context

    def _take_base_bars(self, rows: Floats) -> Floats:
        """Hold new base bars (n, 9); return the decision bars (m, 9) they close."""
        newest = float(rows[-1, OPEN_TIME])
        oldest = self._open.rows if len(self._open.rows) else rows
        if self.base_grid.next_close(newest) < self.grid.around(float(oldest[0, OPEN_TIME]))[1]:
            self._open.extend(rows)
            bars = rows[:0]
        else:
            waiting = np.concatenate([self._open.rows, rows])
            bars = resample(waiting, self.base_grid, self.grid)
            closed_until = self.grid.next_close(bars[-1, OPEN_TIME])
            self._open.restart(waiting[waiting[:, OPEN_TIME].searchsorted(closed_until) :])
        self.last_open_time = newest
        self._opens.extend(rows[-admission.OPENS_BEFORE :, OPEN_TIME].tolist())
        return bars

    def _count_missing(self, opened: float) -> None:
        """Count the bars missing before the decision bar that opened then, and what waits for them."""
        missing = self.grid.missing_between(self.closed.bar[OPEN_TIME], opened)
        if missing:
            self._gap = f"{missing} missing bar(s) before {utc(opened):%F %H:%M} UTC"
        elif not self._is_broken:
            return
        self._missing = np.append(self._missing[1:], missing)
        self._is_broken = bool(self._missing.any())
        self.waiting = waits(self._missing)

    def _check_same(self, again: Floats, stored: Floats) -> None:
        """Raise BadTimes for a bar that was never stored, BadValues for one stored with another value.

        A half spread where none was stored is no other value: a sender that began to record it may send a bar again.
        The bar was folded without it, and stays as it is stored.
        """
        readings: dict[float, list[Floats]] = {}
        for row in stored:
            readings.setdefault(row[OPEN_TIME], []).append(row)
        for row in again:
            known = readings.get(row[OPEN_TIME])
            when = f"{self.name}: bar {utc(row[OPEN_TIME]):%F %T} UTC"
            if known is None:
                raise BadTimes(
                    f"{when} comes late: open_time is not after {utc(self.last_open_time):%F %T} UTC, the last one "
                    "stored. Send bars in order; the past is not rewritten."
                )
            if any(_is_same(row, before) for before in known):
                continue
            for name, old, new in zip(BAR_FIELDS, known[-1], row, strict=True):
                if not (old == new or (np.isnan(old) and np.isnan(new))):  # a spread that came later is the last field
                    raise BadValues(
                        f"{when} is stored with {name}={old:g}, now {name}={new:g}. The first one stands; a person "
                        "replaces it with `bellwether data correct`."
                    )


def _is_same(row: Floats, before: Floats) -> bool:
    """Return whether a bar (9,) is one that is stored, but for a half spread that was not recorded then."""
    came_later = np.isnan(before) & (np.arange(len(before)) == HALF_SPREAD)
    return bool(((row == before) | (np.isnan(row) & np.isnan(before)) | came_later).all())


def _moment(at: float) -> str:
    """Return epoch seconds as text with microseconds."""
    return f"{utc(at):%F %T.%f} UTC"


def _newest(history: History, grid: Grid) -> ClosedBar:
    """Return the last bar of the history."""
    h = history
    close = grid.next_close(h.bars[-1, OPEN_TIME])
    return ClosedBar(h.bars[-1], h.features[-1], h.signals[-1], h.levels[-1], h.context[-1], close)


def _missing_before(warm: WarmStart) -> Ints:
    """Return (memory(),) bars missing just before each of the newest decision bars, the newest last."""
    opens = warm.grid.opens(warm.grid.closed_by(warm.closes[-memory() :, 0]) - 1)
    missing = warm.grid.missing(opens)
    return np.concatenate([np.zeros(memory() - len(missing), dtype=np.int64), missing])


def clock_of(warm: WarmStart) -> Clock:
    """Return the clock that the data version names; `wall`, the stricter one on old data, where it names none."""
    if warm.clock is not None:
        return Clock(warm.clock)
    return Clock("wall", "the warm start is of an earlier release and names no clock; the time of day is used")


def restore_symbol(
    warm: WarmStart,
    bars: Floats,
    books: Books | None = None,
    feed: ContextFeed | None = None,
    clock: Clock | None = None,
    reading: str = "",
    withheld: Mapping[float, str] | None = None,
) -> Symbol:
    """Return a live symbol: the warm start, then the observed base bars (n, 9) and records since.

    reading, withheld  as of `Symbol`, of these bars
    """
    symbol = Symbol(warm, clock, reading, withheld)
    symbol.ingest_records(books, feed)  # some may be in the warm start already
    symbol.advance(bars[bars[:, OPEN_TIME] > warm.last_open_time])
    return symbol


class Symbols(dict[str, Symbol]):
    """Hold the live symbols by name."""

    def __missing__(self, name: str) -> Symbol:
        """Raise UnknownName with the known symbols."""
        known = ", ".join(self) or "none yet: run `bellwether run` to train and promote on a data version"
        raise UnknownName(f"symbol: no live state for {name!r}; known: {known}")
