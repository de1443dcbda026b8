"""What is put under stress, what was recorded of its markets, and what a scenario answers."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Estimate, Floats
from pipelines.errors import BadShape, BadTimes, BadValues

NOTHING: Floats = np.empty(0)


@dataclass(frozen=True, slots=True)
class Portfolio:
    """Positions in k assets that are opened together and not traded again until a stop closes them.

    weights   (k,) signed fractions of equity at entry, negative if short
    stops     (k,) distance of the stop from the entry as a fraction of price; NaN = none
    cost_bps  of one side, of the position's value: fee and half of the ordinary spread
    Raises    BadShape if lengths differ; BadValues for a weight or cost that is not finite, or a stop not above 0
    """

    weights: Floats
    stops: Floats
    cost_bps: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 1 or self.weights.shape != self.stops.shape:
            raise BadShape(f"weights {self.weights.shape} and stops {self.stops.shape}; expected (k,) both.")
        if not np.isfinite(self.weights).all() or not 0.0 <= self.cost_bps < np.inf:
            raise BadValues(f"weights {self.weights.tolist()}, cost {self.cost_bps} bps: finite ones are needed.")
        if (self.stops <= 0.0).any():
            raise BadValues(f"stops {self.stops.tolist()}; one is above 0, or NaN for none.")

    @property
    def cost(self) -> float:
        """Of one side, as a fraction of a position's value."""
        return self.cost_bps / 1e4

    @property
    def gross(self) -> float:
        return float(np.abs(self.weights).sum())


@dataclass(frozen=True, slots=True)
class MarketHistory:
    """What scenarios may read of the k assets; what is not here makes a scenario absent.

    bars         (n, k, 8) of `step_s` seconds, the same open time across a row, ascending; prices finite
    spread       (n, k) ask less bid as a fraction of the mid price; NaN = not recorded
    crises       (m, k, 8) bars of `crises_step_s` seconds that may hold windows of `crises.CRISES`; None = not given
    crises_market    the market whose path that is, where one market's path stands for all assets
    equity       in quote currency, for what depends on absolute size; None = not given
    Raises       BadShape, BadTimes (rows out of order) or BadValues (a price that is not finite and above 0)
    """

    symbols: tuple[str, ...]
    step_s: float
    bars: Floats
    spread: Floats
    crises: Floats | None = None
    crises_step_s: float = 3600.0
    crises_market: str = ""
    equity: float | None = None

    def __post_init__(self) -> None:
        k = len(self.symbols)
        for name, bars in (("bars", self.bars), ("crises", self.crises)):
            if bars is None:
                continue
            if bars.ndim != 3 or bars.shape[1:] != (k, BAR_WIDTH):
                raise BadShape(f"{name} {bars.shape} of {k} assets; expected (rows, {k}, {BAR_WIDTH}).")
            prices = bars[:, :, [OPEN, HIGH, LOW, CLOSE]]
            if not (np.isfinite(prices) & (prices > 0.0)).all():
                raise BadValues(f"{name}: a price is not finite and above 0. Take bars that quality.assess kept.")
            if (np.diff(bars[:, 0, OPEN_TIME]) <= 0.0).any() or (bars[:, :, OPEN_TIME] != bars[:, :1, OPEN_TIME]).any():
                raise BadTimes(f"{name}: rows are not ascending, or of different times across assets. Join them first.")
        if self.spread.shape != self.bars.shape[:2]:
            raise BadShape(f"spread {self.spread.shape} beside bars {self.bars.shape}")

    @property
    def returns(self) -> Floats:
        """(n - 1, k) simple returns from close to close: a closed market's gap is one return, as holders bear it."""
        close = self.bars[:, :, CLOSE]
        return np.ascontiguousarray(close[1:] / close[:-1] - 1.0)


@dataclass(frozen=True, slots=True)
class StressResult:
    """What a portfolio loses under one scenario; either figures or the reason why there are none (law L1).

    loss            largest fall on the way below the highest equity that was booked, a fraction of it: that at entry
                    for what is opened once. An account counts its drawdown so, and its limit is held against this
    drawdown        the same below the highest mark, so it counts profit that was never taken; never under the loss
                    Neither is negative. Bounds are 95 %, NaN where nothing was estimated because it happened so
    figures         further ones by name, in the unit the name says; fractions of equity otherwise
    at, path        (m,) epoch seconds and drawdown on the way; empty where there is no way
    samples         (draws,) losses whose quantiles are told; empty where nothing was drawn
    """

    scenario: str
    method: str
    loss: Estimate | None = None
    drawdown: Estimate | None = None
    n: int = 0
    detail: str = ""
    figures: dict[str, Estimate] = field(default_factory=dict)
    at: Floats = field(default_factory=lambda: NOTHING)
    path: Floats = field(default_factory=lambda: NOTHING)
    samples: Floats = field(default_factory=lambda: NOTHING)
    absent: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the long arrays; None where a figure is not known."""
        arrays = ("at", "path", "samples")
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in arrays}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Estimate):
        bounds = {name: getattr(value, name) for name in ("value", "low", "high")}
        return {name: x if np.isfinite(x) else None for name, x in bounds.items()} | {"n": value.n}
    return value


def exact_estimate(value: float, n: int) -> Estimate:
    """A figure that was counted, not estimated: no bounds."""
    return Estimate(float(value), float("nan"), float("nan"), n)
