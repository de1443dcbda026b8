"""Measure what the open positions use of each budget (R3, R4, R5): system, strategy, market, asset, tail, correlation.

Tails come from scenarios: returns of each asset over a position's longest life, on one clock, so that a row covers the
same hours of every asset. Where assets share too few scenarios their joint losses are unknown: the expected shortfall
is then the sum of their own, an upper bound (Artzner et al. 1999, subadditivity), and a pair's correlation is taken as
the worst case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.tails import euler_es, tail_losses

ES_LEVEL = 0.975  # of every expected shortfall here; Basel Committee 2019, MAR33
MIN_SCENARIOS = 120  # the ES at .975 then rests on three of them
STRIDE = 4  # scenarios that start within one horizon; they overlap, so that all bars count

# Output of `exposure`, in this order; fractions of equity. The account part of the kernel's row begins with it.
EXPOSURES = ("gross", "strategy", "market", "asset", "correlated", "es", "stress", "es_unit")
(GROSS, STRATEGY, MARKET, ASSET, CORRELATED, ES, STRESS, ES_UNIT) = range(len(EXPOSURES))

POSITION = ("size", "asset", "strategy")  # one open position: signed fraction of equity, two codes
UNKNOWN_ASSET = -1.0


@kernel
def exposure(
    positions: Floats, count: int, side: float, asset: int, strategy: float, scenarios: Floats, unit_es: Floats,
    correlation: Floats, markets: Floats, out: Floats,
) -> None:  # fmt: skip
    """Write what open positions use, for a new one of `strategy` in `asset` on `side` (1 long, -1 short, 0 none).

    positions    (k, 3) POSITION rows, the first `count` are open; an asset code < 0 is not known here
    scenarios    (n, assets) simple returns, n = 0 where the assets share too few
    unit_es      (2, assets) expected shortfall of one unit long, short; NaN = not known
    correlation  (assets, assets) shrunk; NaN = not known
    markets      (assets,) code of each asset's market
    out          (8,) EXPOSURES, written: gross, and its parts in the same strategy, market and asset; `correlated`:
                 the part that moves with the new position; es of all; stress: es if every position lost together;
                 es_unit of the new position. NaN where it cannot be known.
    All arrays are float64.
    """
    out[:] = 0.0
    out[ES_UNIT] = np.nan
    assets = markets.shape[0]
    known = 0 <= asset < assets
    if known and side != 0.0:
        out[ES_UNIT] = unit_es[0 if side > 0.0 else 1, asset]
    if count == 0:
        return
    net = np.zeros(assets)
    unknown = False  # an open position in an asset without scenarios
    for k in range(count):
        size, its_asset = abs(positions[k, 0]), int(positions[k, 1])
        out[GROSS] += size
        if positions[k, 2] == strategy:
            out[STRATEGY] += size
        if its_asset < 0:
            unknown = True
            continue
        net[its_asset] += positions[k, 0]
        if known and markets[its_asset] == markets[asset]:
            out[MARKET] += size
        if its_asset == asset:
            out[ASSET] += size
    for a in range(assets):
        if net[a] != 0.0:
            out[STRESS] += abs(net[a]) * unit_es[0 if net[a] > 0.0 else 1, a]
            if known and side != 0.0:
                together = side * net[a] * correlation[asset, a]
                out[CORRELATED] += abs(net[a]) if together != together else max(together, 0.0)
    out[ES] = out[STRESS]
    if scenarios.shape[0] > 0:
        earned = np.zeros(scenarios.shape[0])
        for i in range(scenarios.shape[0]):
            for a in range(assets):
                earned[i] += net[a] * scenarios[i, a]
        out[ES] = min(max(tail_losses(earned, 1.0 - ES_LEVEL)[1], 0.0), out[STRESS])
    if unknown:
        out[MARKET] = out[CORRELATED] = out[ES] = out[STRESS] = np.nan


@dataclass(frozen=True)
class Scenarios:
    """Hold the inputs of `exposure` for the known assets; `codes`: symbol → column."""

    codes: Mapping[str, int] = field(default_factory=dict)
    returns: Floats = field(default_factory=lambda: np.empty((0, 0)))
    unit_es: Floats = field(default_factory=lambda: np.empty((2, 0)))
    correlation: Floats = field(default_factory=lambda: np.empty((0, 0)))
    markets: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return returns, unit_es, correlation and markets in the order in which `exposure` takes them."""
        return self.returns, self.unit_es, self.correlation, self.markets

    def code(self, symbol: str) -> float:
        """Return the column of a symbol; UNKNOWN_ASSET if it has none."""
        return float(self.codes.get(symbol, UNKNOWN_ASSET))


def market_of(symbol: str) -> str:
    """Return the market of a symbol's budget: the quote currency, whose moves its positions share."""
    return symbol.rsplit("/", 1)[-1]


def horizon_returns(closes: Floats, horizon_s: float) -> tuple[Floats, Floats]:
    """Return (k,) epoch seconds and (k,) simple returns over the `horizon_s` that follow them.

    closes  (n, 2) close time in epoch seconds, ascending, and price
    They start STRIDE times per horizon on a grid from the epoch, so that those of two assets align. A horizon with one
    end missing is left out.
    """
    times, prices = closes[:, 0], closes[:, 1]
    start = np.flatnonzero(times % (horizon_s / STRIDE) == 0.0)
    end = np.searchsorted(times, times[start] + horizon_s)
    whole = end < len(times)
    whole[whole] = times[end[whole]] == times[start[whole]] + horizon_s
    start, end = start[whole], end[whole]
    return times[start], prices[end] / prices[start] - 1.0


def scenarios_of(closes: Mapping[str, Floats], horizon_s: float) -> Scenarios:
    """Return the scenarios of the assets with these closing prices, (n, 2) each as `horizon_returns` reads them."""
    samples = {symbol: horizon_returns(prices, horizon_s) for symbol, prices in closes.items()}
    names = list(samples)
    unit_es = np.full((2, len(names)), np.nan)
    for at, (_, returns) in enumerate(samples.values()):
        if len(returns) >= MIN_SCENARIOS:
            unit_es[:, at] = [tail_losses(sign * returns, 1.0 - ES_LEVEL)[1] for sign in (1.0, -1.0)]
    correlation = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(names):
        correlation[i, i] = 1.0
        for j, b in enumerate(names[:i]):
            joint = _joint([samples[a], samples[b]])
            if len(joint) >= MIN_SCENARIOS:
                correlation[i, j] = correlation[j, i] = shrunk_correlation(joint)[0, 1]
    joint = _joint(list(samples.values()))
    markets = list(dict.fromkeys(map(market_of, names)))
    return Scenarios(
        codes={name: a for a, name in enumerate(names)},
        returns=joint if len(joint) >= MIN_SCENARIOS else np.empty((0, len(names))),
        unit_es=unit_es,
        correlation=correlation,
        markets=np.array([markets.index(market_of(name)) for name in names], dtype=np.float64),
    )


def _joint(samples: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return (n, k) returns at the times that all k samples share."""
    if not samples:
        return np.empty((0, 0))
    times = samples[0][0]
    for other, _ in samples[1:]:
        times = np.intersect1d(times, other)
    return np.column_stack([returns[np.searchsorted(own, times)] for own, returns in samples])


def shrunk_correlation(returns: Floats) -> Floats:
    """Return (k, k) correlations of returns (n, k), shrunk towards 0 in proportion to their sampling error.

    Source: Schäfer and Strimmer 2005, Stat. Appl. Genet. Mol. Biol. 4(1), 32: target D, intensity of eq. 10.
    """
    n = len(returns)
    spread = returns.std(axis=0)
    standard = (returns - returns.mean(axis=0)) / np.where(spread > 0.0, spread, np.nan)
    products = standard[:, :, None] * standard[:, None, :]
    raw = products.mean(axis=0)
    off = ~np.eye(returns.shape[1], dtype=bool)
    error = n / (n - 1.0) ** 3 * ((products - raw) ** 2).sum(axis=0)
    share = error[off].sum() / max(float((raw[off] ** 2).sum()), 1e-300)
    shrunk = raw * (1.0 - min(float(share), 1.0))
    return np.asarray(np.where(off, shrunk, raw / raw), dtype=np.float64)


def allocation(positions: Floats, scenarios: Scenarios) -> tuple[Floats, Floats]:
    """Return (assets,) net positions and (assets,) their parts of the total ES, by Euler; the parts add up to it.

    positions  (k, 3) POSITION rows
    Where the assets share no scenarios the total is the sum of each one's own ES, and so are the parts.
    """
    net = np.zeros(len(scenarios.codes))
    known = positions[positions[:, 1] >= 0.0]
    np.add.at(net, known[:, 1].astype(int), known[:, 0])
    if len(scenarios.returns):
        return net, euler_es(scenarios.returns, net, ES_LEVEL)
    side = np.where(net > 0.0, scenarios.unit_es[0], scenarios.unit_es[1])
    return net, np.where(net != 0.0, np.abs(net) * side, 0.0)


def exposure_by_name(
    positions: Floats, side: float, asset: float, strategy: float, scenarios: Scenarios
) -> dict[str, float]:
    """Return the `exposure` of positions (k, 3) by name, as fractions of equity."""
    out = np.empty(len(EXPOSURES))
    exposure(positions, len(positions), float(side), int(asset), float(strategy), *scenarios.arrays, out)
    return dict(zip(EXPOSURES, out.tolist(), strict=True))
