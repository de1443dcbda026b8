"""Replay a portfolio through recorded crises.

The windows are whole calendar months, so their limits were not chosen by the prices.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Estimate, Floats, Ints, utc
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate

RESTING = "loss if stops rest at the venue and fill at their price unless the market opens beyond it"
COVERED = 0.95  # least share of a window's bars; exchanges had outages in all of the windows
WORST = "replayed from every bar's open to the end of the window; the worst entry counts, marked at the bars' extremes"


class Window(NamedTuple):
    """Hold a period in UTC; `until` is exclusive."""

    since: datetime
    until: datetime
    description: str


def _month(year: int, month: int, description: str) -> Window:
    """Return the window of one calendar month."""
    return Window(datetime(year, month, 1, tzinfo=UTC), datetime(year, month + 1, 1, tzinfo=UTC), description)


CRISES: dict[str, Window] = {
    "2020-03": _month(2020, 3, "pandemic"),
    "2021-05": _month(2021, 5, "deleveraging after the mining ban"),
    "2022-05": _month(2022, 5, "Terra and Luna fail"),
    "2022-11": _month(2022, 11, "FTX fails"),
}


class CrisisReplay(NamedTuple):
    """Hold the equity of a portfolio through m bars, opened with the first, as a fraction of equity before entry.

    worst    (m,) at each bar's worst prices; close (m,) at its close; both after the costs paid until then
    stopped  (k,) bar in which a position's stop was reached, -1 where none was
    slippage  (k,) how far beyond the stop it was filled, as a fraction of the entry price; NaN where none was
    """

    worst: Floats
    close: Floats
    stopped: Ints
    slippage: Floats


def replay_crisis(bars: Floats, portfolio: Portfolio, resting: bool = False) -> CrisisReplay:
    """Return the equity path of a portfolio through bars (m, k, 9), m >= 1.

    A bar that opens beyond a stop fills it at that open. One that reaches the stop inside fills it at the stop or at
    the next bar's open, whichever is worse (in the last bar: at its close): never better than the stop, up to a bar
    late. A `resting` order at the venue is filled at the stop in such a bar, the best possible price. Positions are
    marked together at the worst price each had in the bar, which is pessimistic if they did not fall at once.
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
    """Return (m,) falls of each bar's worst equity below the highest close before it, entry included, as fractions."""
    peak = np.maximum.accumulate(np.concatenate([[1.0], found.close[:-1]]))
    return np.maximum(1.0 - found.worst / peak, 0.0)


def moves(bars: Floats) -> dict[str, float]:
    """Return the largest fall and rise of bars (m, 9) as fractions of their start, and their durations in hours.

    Measured from an earlier bar's extreme, or the same bar's open, to a bar's other extreme: bars do not record which
    of their own extremes came first.
    """
    found: dict[str, float] = {}
    for name, side, near, far in (("fall", 1.0, HIGH, LOW), ("rise", -1.0, LOW, HIGH)):
        before = np.concatenate([[-np.inf], np.maximum.accumulate(side * bars[:-1, near])])
        start = np.abs(np.maximum(before, side * bars[:, OPEN]))
        move = bars[:, far] / start - 1.0
        end = int(np.argmin(side * move))
        first = np.flatnonzero((bars[: end + 1, [OPEN, near]] == start[end]).any(axis=1))[-1]
        found[name] = float(move[end])
        found[f"{name}_hours"] = float((bars[end, OPEN_TIME] - bars[first, OPEN_TIME]) / 3600.0)
    return found


def bars_in_window(recorded: MarketHistory, window: Window) -> Floats | str:
    """Return (m, k, 9) bars of a window, or the reason why there are none."""
    if recorded.crises is None:
        return "no bars of it: pass hourly bars that cover it with --crises FILE"
    time = recorded.crises[:, 0, OPEN_TIME]
    since, until = window.since.timestamp(), window.until.timestamp()
    bars = recorded.crises[(time >= since) & (time < until)]
    expected = round((until - since) / recorded.crises_step_s)
    if len(bars) < COVERED * expected:
        period = f"from {utc(time[0]):%F} to {utc(time[-1]):%F}" if len(time) else "empty"
        return f"the bars given hold {len(bars):,} of its {expected:,}; they are {period}"
    return bars


def crisis(name: str, portfolio: Portfolio, recorded: MarketHistory) -> StressResult:
    """Return the result of `CRISES[name]` for the entry with the largest loss.

    `figures`: the loss of an entry with the window's first bar; the market's own largest fall and rise; and with stops
    the share of entries stopped, the worst fill beyond a stop, and the loss if stops rest at the venue.
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
        market = recorded.crises_market or symbol
        figures |= {f"{name} of {market}": exact_estimate(value, n) for name, value in moves(bars[:, i]).items()}
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
        detail=(
            f"{window.since:%F} to {window.until:%F} UTC ({window.description}), {n:,} bars; "
            f"worst entry {entry:%F %H:%M}"
        ),
        figures=figures,
        at=bars[worst:, 0, OPEN_TIME],
        path=drawdowns(replays[worst]),
    )


def _stops(replays: list[CrisisReplay]) -> dict[str, Estimate]:
    """Return the share of entries stopped and, if any was, the worst fill beyond a stop as a fraction of price."""
    slippage = np.array([found.slippage for found in replays])
    known = slippage[np.isfinite(slippage)]
    figures = {"share of entries stopped": exact_estimate(np.isfinite(slippage).any(axis=1).mean(), len(replays))}
    if len(known):
        figures["furthest filled beyond a stop, of price"] = exact_estimate(known.max(), len(known))
    return figures
