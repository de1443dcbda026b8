"""Scores of each rule-based signal on a history: hit rate and return with intervals, n, and the number of tests.

An event is the onset of a signal: it takes a side that it did not take at the bar before. Each event is followed to the
barrier of the labels (hold time, hit rate) and to the labels' horizon (return in the signal's direction). Fills are as
in the labels: the open of the first base bar after the decision bar. Nothing here is fitted or chosen.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipelines.contracts import CLOSE, DAY_S, OPEN_TIME, Estimate, Floats, Ints, JsonObject, json_ready
from pipelines.costs import Costs, forward_cost_bps
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape
from pipelines.evaluation.figures import write_figure
from pipelines.evaluation.metrics import mean_estimate
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.horizon import forward_returns
from pipelines.params import Params
from pipelines.signals.catalog import PRODUCERS
from pipelines.signals.signal_registry import direction, onsets, signal_names

WEEK_S = 7 * DAY_S
Grids = tuple[Grid, Grid]  # of decision bars, of the base bars they were made of


@dataclass(frozen=True, slots=True)
class Score:
    """Hold one signal's score. NaN without events; bounds are NaN with too few events.

    onsets     number of events: bars on which it took a new side, with an ATR to set barriers by
    per_week   events a calendar week of the history
    share      of all bars, those on which it takes a side
    long       share of the events on the long side; NaN without events
    hold_bars  decision bars from the fill until target, stop or time
    hit_rate   share of events whose target came before stop and time
    gross_bps  return over the horizon in the signal's direction; net_bps after the cost of a round trip
    """

    signal: str
    category: str
    onsets: int
    per_week: float
    share: float
    long: float
    hold_bars: Estimate
    hit_rate: Estimate
    gross_bps: Estimate
    net_bps: Estimate


@dataclass(frozen=True, slots=True)
class Scores:
    """Hold the scores of all signals on one history, with what they are compared to.

    market_bps  return over the horizon of buying at every bar: the market's own drift
    cost_bps    mean over the decision bars of what a round trip costs; costs: which row, and where the spread is from
    tested      signals with an event: one in forty of them is above zero by luck alone
    """

    bars: int
    weeks: float
    horizon_bars: int
    target_atr: float
    stop_atr: float
    cost_bps: float
    costs: str
    market_bps: Estimate
    tested: int
    scores: tuple[Score, ...]

    def above(self) -> list[str]:
        """Return the signals whose net return is above zero with its whole interval."""
        return [score.signal for score in self.scores if score.net_bps.low > 0]

    def to_dict(self) -> JsonObject:
        """Return the scores JSON-ready; None where a figure is unknown."""
        plain: JsonObject = json_ready({**asdict(self), "above_cost": self.above()})
        return plain


def score_signals(
    signals: Floats, decision: Floats, base: Floats, atr: Floats, grids: Grids, params: Params, costs: Costs
) -> Scores:  # fmt: skip
    """Score every signal of SIGNALS; signals (n, ks) of the decision bars, the rest as `score_sides`."""
    sides = {name: direction(signals, name) for name in signal_names()}
    return score_sides(sides, decision, base, atr, grids, params, costs)


def score_sides(
    sides: Mapping[str, Ints], decision: Floats, base: Floats, atr: Floats, grids: Grids, params: Params, costs: Costs
) -> Scores:  # fmt: skip
    """Score the sides (n,) that each signal took at the closes of n decision bars.

    decision  (n, 9) bars
    base      (m, 9) bars they were made of; the decision bars themselves if nothing finer was recorded
    grids     of the decision bars and of the base bars
    costs     of the market; a perpetual's funding is left out
    atr       (n,) fraction of price at each close; events without one are left out, as no barrier can be set
    Raises    BadShape if lengths differ
    """
    n = len(decision)
    if atr.shape != (n,) or any(side.shape != (n,) for side in sides.values()):
        raise BadShape(
            f"{n} decision bars, {atr.shape} ATR and sides {[s.shape for s in sides.values()]}; pass one per bar"
        )
    grid, base_grid = grids
    closes = grid.closes(decision[:, OPEN_TIME])
    forward = forward_returns(base, base_grid, closes, grid.deadline(closes, params.labels.horizon_bars))
    ahead, cost_bps = forward.gross_bps, forward_cost_bps(costs, forward.spread_bps)
    weeks = (closes[-1] - decision[0, OPEN_TIME]) / WEEK_S if n else 0.0
    category = {name: group for group, names in PRODUCERS.items() for name in names}
    found = []
    for name, side in sides.items():
        at = onsets(side)
        at = at[atr[at] > 0]
        event_side = side[at]
        hold, hit = _to_barrier(decision, base, atr, at, event_side, grids, params)
        gross, cost = event_side * ahead[at], cost_bps[at]
        gross, cost = gross[np.isfinite(gross)], cost[np.isfinite(gross)]
        found.append(
            Score(
                signal=name,
                category=category.get(name, ""),
                onsets=len(at),
                per_week=len(at) / weeks if weeks else float("nan"),
                share=float((side != 0).mean()) if n else float("nan"),
                long=float((event_side > 0).mean()) if len(at) else float("nan"),
                hold_bars=mean_estimate(hold),
                hit_rate=mean_estimate(hit),
                gross_bps=mean_estimate(gross),
                net_bps=mean_estimate(gross - cost, float(cost.mean()) if len(cost) else None),
            )
        )
    return Scores(
        bars=n,
        weeks=float(weeks),
        horizon_bars=params.labels.horizon_bars,
        target_atr=params.labels.target_atr,
        stop_atr=params.labels.stop_atr,
        cost_bps=float(cost_bps.mean()) if n else float("nan"),
        costs=costs.describe(np.isfinite(forward.spread_bps)),
        market_bps=mean_estimate(ahead[np.isfinite(ahead)]),
        tested=sum(score.gross_bps.n > 0 for score in found),
        scores=tuple(found),
    )


def _to_barrier(
    decision: Floats, base: Floats, atr: Floats, at: Ints, side: Ints, grids: Grids, params: Params
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return (hold in decision bars, hit 0 or 1) of the resolved events, up to the end of the resolving base bar."""
    if len(at) == 0:
        return np.empty(0), np.empty(0)
    labels, (grid, base_grid) = params.labels, grids
    closes = grid.closes(decision[at, OPEN_TIME])
    resolved = triple_barrier(
        base, closes, decision[at, CLOSE], side, atr[at], labels.target_atr, labels.stop_atr,
        grid.deadline(closes, labels.horizon_bars),
    )  # fmt: skip
    known = resolved.barrier != UNRESOLVED
    hold = (base_grid.closes(resolved.exit_time) - resolved.start_time) / grid.step_s
    return hold[known], resolved.label[known]


COLOURS = ("#3b5bdb", "#1a7f37", "#d9730d", "#c2255c", "#7048e8", "#495057")  # of the categories of PRODUCERS


def write_page(path: Path, scores: Scores, title: str) -> Path:
    """Write net return and hit rate of each tested signal as one self-contained page; return its path."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    tested = sorted((s for s in scores.scores if s.net_bps.n), key=lambda s: s.net_bps.value)
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04, column_widths=[0.6, 0.4],
        subplot_titles=(
            f"net bps over {scores.horizon_bars} bars, after {scores.cost_bps:.3g} bps ({scores.costs})",
            f"share whose target ({scores.target_atr:g} ATR) came before the stop ({scores.stop_atr:g} ATR) and time",
        ),
    )  # fmt: skip
    for category, colour in zip(PRODUCERS, COLOURS, strict=True):
        mine = [s for s in tested if s.category == category]
        for column, part in ((1, "net_bps"), (2, "hit_rate")):
            estimates: list[Estimate] = [getattr(s, part) for s in mine]
            up = [e.high - e.value if np.isfinite(e.high) else 0.0 for e in estimates]
            down = [e.value - e.low if np.isfinite(e.low) else 0.0 for e in estimates]
            figure.add_trace(
                go.Scatter(
                    x=[e.value for e in estimates],
                    y=[s.signal for s in mine],
                    mode="markers",
                    marker={"color": colour},
                    name=category,
                    legendgroup=category,
                    showlegend=column == 1 and bool(mine),
                    error_x={"type": "data", "symmetric": False, "array": up, "arrayminus": down},
                    text=[f"{s.signal}: {format_estimate(e)}, n {e.n:,}" for s, e in zip(mine, estimates, strict=True)],
                    hovertemplate="%{text}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.add_vline(x=0.0, line_dash="dot", row=1, col=1)
    figure.update_yaxes(categoryorder="array", categoryarray=[s.signal for s in tested])
    figure.update_layout(
        title=f"{title}: {scores.tested} signals tested on {scores.bars:,} bars; {len(scores.above())} with the whole "
        f"interval above zero.<br>Buying at every bar: {format_estimate(scores.market_bps)} bps. 95 % interval; "
        "no error bar = too few events",
        template="plotly_white", height=220 + 28 * len(tested), margin={"l": 120, "r": 20, "t": 90, "b": 40},
    )  # fmt: skip
    return write_figure(path, figure, title)


def format_estimate(estimate: Estimate, digits: int = 1) -> str:
    """Return "value [low, high]", or what is known of it."""
    if not np.isfinite(estimate.value):
        return "–"
    value, low, high = (
        f"{round(x, digits) + 0.0:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high)
    )  # fmt: skip
    return f"{value} [{low}, {high}]" if np.isfinite(estimate.low) else f"{value} [too few]"
