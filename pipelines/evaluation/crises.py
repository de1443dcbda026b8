"""Crises as they were recorded, with a portfolio in them.

The windows are whole calendar months, so that nobody chose where they begin by looking at the prices.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Estimate, Floats, Ints, utc
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate

RESTING = "loss if stops rest at the venue and fill at their price unless the market opens beyond it"
COVERED = 0.95  # share of a window's bars that must be there; exchanges had outages in all of them
WORST = "replayed from every bar's open to the end of the window; the worst entry counts, marked at the bars' extremes"


class Window(NamedTuple):
    """UTC; `until` is exclusive."""

    since: datetime
    until: datetime
    description: str


def _month(year: int, month: int, description: str) -> Window:
    return Window(datetime(year, month, 1, tzinfo=UTC), datetime(year, month + 1, 1, tzinfo=UTC), description)


CRISES: dict[str, Window] = {
    "2020-03": _month(2020, 3, "pandemic"),
    "2021-05": _month(2021, 5, "deleveraging after the mining ban"),
    "2022-05": _month(2022, 5, "Terra and Luna fail"),
    "2022-11": _month(2022, 11, "FTX fails"),
}


class CrisisReplay(NamedTuple):
    """A portfolio from the open of the first of m bars on; equity as a fraction of what it was before entry.

    worst    (m,) at each bar's worst prices; close (m,) at its close; both after the costs paid until then
    stopped  (k,) bar in which a position's stop was reached, -1 where none was
    slippage  (k,) how far beyond the stop it was filled, as a fraction of the entry price; NaN where none was
    """

    worst: Floats
    close: Floats
    stopped: Ints
    slippage: Floats


def replay_crisis(bars: Floats, portfolio: Portfolio, resting: bool = False) -> CrisisReplay:
    """Hold a portfolio through bars (m, k, 8), m >= 1.

    A bar that opens beyond a stop fills it at that open. One that reaches it inside fills it at the stop or at the next
    bar's open, whichever is worse (in the last bar: at its close): never better than the stop, up to a bar late. A
    `resting` order at the venue is filled at the stop in such a bar, which is the best that could be hoped for.
    Positions are marked together at the worst price each had in the bar: too bad, if they did not fall at once.
    """
    m, k = bars.shape[:2]
    stopped, slippage = np.full(k, -1, dtype=np.int64), np.full(k, np.nan)
    worst = np.full(m, 1.0 - portfolio.cost * portfolio.gross)
    close = worst.copy()
    for i, weight in enumerate(portfolio.weights):
        if weight == 0.0:
            continue
        side, entry = np.sign(weight), bars[0, i, OPEN]
        # side times price, so that less is worse for either side
        opened, at_close = side * bars[:, i, OPEN], side * bars[:, i, CLOSE]
        adverse = side * bars[:, i, LOW if side > 0 else HIGH]
        level = side * entry * (1.0 - side * portfolio.stops[i])
        reached = np.flatnonzero(adverse <= level)  # none where there is no stop: NaN
        if len(reached):
            t = int(reached[0])
            after = level if resting else opened[t + 1] if t + 1 < m else at_close[t]
            fill = opened[t] if opened[t] <= level else min(level, after)
            adverse, at_close = adverse.copy(), at_close.copy()
            adverse[t:] = at_close[t:] = fill
            stopped[i], slippage[i] = t, (level - fill) / entry
            paid = portfolio.cost * abs(weight) * abs(fill) / entry
            worst[t:] -= paid
            close[t:] -= paid
        worst += abs(weight) * (adverse / entry - side)
        close += abs(weight) * (at_close / entry - side)
    return CrisisReplay(worst, close, stopped, slippage)


def drawdowns(found: CrisisReplay) -> Floats:
    """(m,) how far each bar's worst stands under the highest equity that was closed with before it, entry included."""
    peak = np.maximum.accumulate(np.concatenate([[1.0], found.close[:-1]]))
    return np.maximum(1.0 - found.worst / peak, 0.0)


def moves(bars: Floats) -> dict[str, float]:
    """Largest fall and rise of bars (m, 8), as fractions of where they began, and how long each took in hours.

    From an earlier bar's extreme, or the same bar's open, to a bar's other extreme: which of a bar's own extremes came
    first is not recorded.
    """
    found: dict[str, float] = {}
    for name, side, near, far in (("fall", 1.0, HIGH, LOW), ("rise", -1.0, LOW, HIGH)):
        before = np.concatenate([[-np.inf], np.maximum.accumulate(side * bars[:-1, near])])
        start = np.abs(np.maximum(before, side * bars[:, OPEN]))
        move = bars[:, far] / start - 1.0
        end = int(np.argmin(side * move))
        begun = np.flatnonzero((bars[: end + 1, [OPEN, near]] == start[end]).any(axis=1))[-1]
        found[name] = float(move[end])
        found[f"{name}_hours"] = float((bars[end, OPEN_TIME] - bars[begun, OPEN_TIME]) / 3600.0)
    return found


def bars_in_window(recorded: MarketHistory, window: Window) -> Floats | str:
    """(m, k, 8) bars of a window, or why they cannot be had."""
    if recorded.crises is None:
        return "no bars of it were given: --crises FILE with hourly bars that hold it"
    time = recorded.crises[:, 0, OPEN_TIME]
    since, until = window.since.timestamp(), window.until.timestamp()
    bars = recorded.crises[(time >= since) & (time < until)]
    wanted = round((until - since) / recorded.crises_step_s)
    if len(bars) < COVERED * wanted:
        where = f"{utc(time[0]):%F} to {utc(time[-1]):%F}" if len(time) else "nothing"
        return f"the bars given hold {len(bars):,} of its {wanted:,}; they are of {where}"
    return bars


def crisis(name: str, portfolio: Portfolio, recorded: MarketHistory) -> StressResult:
    """The path of `CRISES[name]` as it was recorded, for the entry at which it hurt the portfolio most.

    `figures`: the loss of who opened with the window's first bar; the market's own largest fall and rise; and with
    stops the share of entries stopped, how far beyond it the worst was filled, and the loss if stops rest at the venue.
    """
    scenario, window = f"crisis:{name}", CRISES[name]
    bars = bars_in_window(recorded, window)
    if isinstance(bars, str):
        return StressResult(scenario, WORST, absent=bars)
    n = len(bars)
    replays = [replay_crisis(bars[first:], portfolio) for first in range(n)]
    losses = np.array([max(1.0 - found.worst.min(), 0.0) for found in replays])
    falls = np.array([drawdowns(found).max() for found in replays])
    worst = int(np.argmax(losses))
    figures = {"loss of the first entry": exact_estimate(losses[0], n)}
    for i, symbol in enumerate(recorded.symbols):
        of = recorded.crises_market or symbol
        figures |= {f"{what} of {of}": exact_estimate(value, n) for what, value in moves(bars[:, i]).items()}
    if np.isfinite(portfolio.stops).any():
        figures |= _stops(replays)
        lows = [replay_crisis(bars[first:], portfolio, resting=True).worst.min() for first in range(n)]
        figures[RESTING] = exact_estimate(max(1.0 - min(lows), 0.0), n)
    entry = utc(bars[worst, 0, OPEN_TIME])
    return StressResult(
        scenario,
        WORST,
        loss=exact_estimate(losses[worst], n),
        drawdown=exact_estimate(falls.max(), n),
        n=n,
        detail=f"{window.since:%F} to {window.until:%F} UTC ({window.description}), {n:,} bars; worst entry {entry:%F %H:%M}",
        figures=figures,
        at=bars[worst:, 0, OPEN_TIME],
        path=drawdowns(replays[worst]),
    )


def _stops(replays: list[CrisisReplay]) -> dict[str, Estimate]:
    slippage = np.array([found.slippage for found in replays])
    known = slippage[np.isfinite(slippage)]
    told = {"share of entries stopped": exact_estimate(np.isfinite(slippage).any(axis=1).mean(), len(replays))}
    if len(known):
        told["furthest filled beyond a stop, of price"] = exact_estimate(known.max(), len(known))
    return told
