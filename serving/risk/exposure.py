"""Measure what the open positions use of each budget (R3, R4, R5): system, strategy, market, asset, tail, correlation.

Tails come from scenarios: returns of each asset over a position's longest life, on one clock, so that a row covers the
same hours of every asset. They are filtered: in units of the EWMA volatility at their start, times the volatility at
the newest close (Barone-Adesi et al. 1999). On timeframes where that alone did not pass its coverage tests, the plain
returns count too and the larger loss holds: `params.yaml:risk.tail`, measured in docs/results/tail-risk.md.

Where assets share too few scenarios their joint losses are unknown: the expected shortfall is then the sum of their
own, an upper bound (Artzner et al. 1999, subadditivity; the larger of two such measures keeps it), and a pair's
correlation is taken as the worst case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.data.symbols import currency_of
from pipelines.data.timeframes import Grid
from pipelines.params import TailParams
from pipelines.tails import VOLATILITY_BARS, euler_es, ewma_volatility, newest_volatility, tail_losses
from pipelines.warm_start import CLOSES_KEPT

ES_LEVEL = 0.975  # of every expected shortfall here; Basel Committee 2019, MAR33
MIN_SCENARIOS = 120  # the ES at .975 then rests on three of them
STRIDE = 4  # scenarios that start within one horizon; they overlap, so that all bars count

# Output of `exposure`, in this order; fractions of equity. The account part of the kernel's row begins with it.
EXPOSURES = ("gross", "strategy", "market", "asset", "correlated", "es", "stress", "es_unit")
(GROSS, STRATEGY, MARKET, ASSET, CORRELATED, ES, STRESS, ES_UNIT) = range(len(EXPOSURES))

# Expected shortfall of one unit of an asset: filtered, in units of its volatility, then plain; that is 0 where the
# filtered one counts alone.
UNIT_ES = ("filtered_long", "filtered_short", "plain_long", "plain_short")
(FILTERED_LONG, FILTERED_SHORT, PLAIN_LONG, PLAIN_SHORT) = range(len(UNIT_ES))

POSITION = ("size", "asset", "strategy")  # one open position: signed fraction of equity, two codes
UNKNOWN_ASSET = -1.0


@kernel
def _unit_es(unit_es: Floats, volatility: Floats, side: float, asset: int) -> float:
    """Return the expected shortfall of one unit of an asset: filtered, or plain where that counts and is larger."""
    long = side > 0.0
    own = float(volatility[asset] * unit_es[FILTERED_LONG if long else FILTERED_SHORT, asset])
    floor = float(unit_es[PLAIN_LONG if long else PLAIN_SHORT, asset])
    return floor if floor > own else own  # NaN where the filtered one is not known


@kernel
def exposure(
    positions: Floats, count: int, side: float, asset: int, strategy: float, volatility: Floats, filtered: Floats,
    plain: Floats, unit_es: Floats, correlation: Floats, markets: Floats, out: Floats,
) -> None:  # fmt: skip
    """Write what open positions use, for a new one of `strategy` in `asset` on `side` (1 long, -1 short, 0 none).

    positions    (k, 3) POSITION rows, the first `count` are open; an asset code < 0 is not known here
    volatility   (assets,) `ewma_volatility` at each asset's newest close; NaN = not known
    filtered     (n, assets) scenarios in units of that volatility, n = 0 where the assets share too few
    plain        (n, assets) the same rows as simple returns; NaN columns: only the filtered ones count for that asset
    unit_es      (4, assets) UNIT_ES of each asset; NaN = not known
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
        out[ES_UNIT] = _unit_es(unit_es, volatility, side, asset)
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
    floors = False  # a position for which plain history counts too
    for a in range(assets):
        if net[a] != 0.0:
            out[STRESS] += abs(net[a]) * _unit_es(unit_es, volatility, net[a], a)
            floors = floors or unit_es[PLAIN_LONG, a] > 0.0
            if known and side != 0.0:
                together = side * net[a] * correlation[asset, a]
                out[CORRELATED] += abs(net[a]) if together != together else max(together, 0.0)
    out[ES] = out[STRESS]
    if filtered.shape[0] > 0:
        earned, worst = np.zeros(filtered.shape[0]), 0.0
        for with_plain in range(2 if floors else 1):
            for i in range(filtered.shape[0]):
                earned[i] = 0.0
                for a in range(assets):
                    if net[a] != 0.0:
                        is_plain = with_plain == 1 and plain[i, a] == plain[i, a]
                        earned[i] += net[a] * (plain[i, a] if is_plain else filtered[i, a] * volatility[a])
            found = tail_losses(earned, 1.0 - ES_LEVEL)[1]
            worst = found if found > worst or found != found else worst
        out[ES] = min(worst, out[STRESS]) if worst == worst else np.nan
    if unknown:
        out[MARKET] = out[CORRELATED] = out[ES] = out[STRESS] = np.nan


@dataclass(frozen=True, slots=True)
class AssetCloses:
    """Hold the closing prices of one asset: (n, 2) close time in epoch seconds, ascending, and price; their grid."""

    grid: Grid
    closes: Floats


@dataclass(frozen=True)
class Scenarios:
    """Hold the inputs of `exposure` for the known assets; `codes`: symbol → column; `decay` of the filter."""

    codes: Mapping[str, int] = field(default_factory=dict)
    filtered: Floats = field(default_factory=lambda: np.empty((0, 0)))
    plain: Floats = field(default_factory=lambda: np.empty((0, 0)))
    unit_es: Floats = field(default_factory=lambda: np.empty((len(UNIT_ES), 0)))
    correlation: Floats = field(default_factory=lambda: np.empty((0, 0)))
    markets: Floats = field(default_factory=lambda: np.empty(0))
    decay: float = float("nan")

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return filtered, plain, unit_es, correlation and markets in the order in which `exposure` takes them."""
        return self.filtered, self.plain, self.unit_es, self.correlation, self.markets

    def code(self, symbol: str) -> float:
        """Return the column of a symbol; UNKNOWN_ASSET if it has none."""
        return float(self.codes.get(symbol, UNKNOWN_ASSET))

    def volatility(self, newest_closes: Callable[[str], Floats]) -> Floats:
        """Return (assets,) volatility at the newest close of each asset; NaN where it cannot be known.

        newest_closes  symbol → (n,) prices of its closed decision bars, the newest last; n > VOLATILITY_BARS wherever
                       so many have closed
        """
        now = np.full(len(self.codes), np.nan)
        for symbol, at in self.codes.items():
            prices = np.ascontiguousarray(newest_closes(symbol)[-VOLATILITY_BARS - 1 :])
            if len(prices):
                now[at] = newest_volatility(prices, self.decay, len(prices) - 1)
        return now

    def losing_most(self, net: Floats, volatility: Floats) -> Floats:
        """Return (n, assets) the returns, filtered or plain, on which positions `net` (assets,) lose more in the tail.

        Only rows of the assets that are held count; n = 0 where the assets share too few scenarios.
        """
        returns = np.where(net != 0.0, self.filtered * volatility, 0.0)
        with_plain = np.where(np.isnan(self.plain) | (net == 0.0), returns, self.plain)
        if not len(returns):
            return returns
        losses = [tail_losses(each @ net, 1.0 - ES_LEVEL)[1] for each in (returns, with_plain)]
        return with_plain if losses[1] > losses[0] else returns


def horizon_returns(asset: AssetCloses, horizon_bars: int, decay: float) -> tuple[Floats, Floats, Floats]:
    """Return (k,) epoch seconds, (k,) simple returns over the bars that follow, (k,) volatility at their start.

    They start STRIDE times per horizon of so many bars, counted from the grid's first, so that those of two assets on
    one grid align. A horizon with one
    end missing is left out, and one that starts while the volatility is not known or nothing moved.
    """
    times, prices = asset.closes[:, 0], np.ascontiguousarray(asset.closes[:, 1])
    volatility = ewma_volatility(prices, decay)
    start = np.flatnonzero((asset.grid.closed_by(times) % max(horizon_bars // STRIDE, 1) == 0) & (volatility > 0.0))
    deadline = asset.grid.deadline(times[start], horizon_bars)
    end = np.searchsorted(times, deadline)
    whole = end < len(times)
    whole[whole] = times[end[whole]] == deadline[whole]
    start, end = start[whole], end[whole]
    return times[start], prices[end] / prices[start] - 1.0, volatility[start]


def scenarios_of(
    assets: Mapping[str, AssetCloses], horizon_bars: int, tail: TailParams, account_currency: str = "USD"
) -> Scenarios:
    """Return the scenarios of these assets over a position's longest life of `horizon_bars` decision bars.

    The newest CLOSES_KEPT count, as many as a warm start holds. Whether plain history counts next to the filtered one
    is looked up by the asset's timeframe. A market, for its budget, is a currency: see `symbols.currency_of`.
    """
    newest = {symbol: AssetCloses(asset.grid, asset.closes[-CLOSES_KEPT:]) for symbol, asset in assets.items()}
    samples = {symbol: horizon_returns(asset, horizon_bars, tail.decay) for symbol, asset in newest.items()}
    names = list(samples)
    unit_es = np.full((len(UNIT_ES), len(names)), np.nan)
    floored = np.array([asset.grid.timeframe not in tail.filtered_alone for asset in newest.values()])
    for at, (_, returns, volatility) in enumerate(samples.values()):
        if len(returns) >= MIN_SCENARIOS:
            both = (returns / volatility, returns)
            unit_es[:, at] = [tail_losses(side * of, 1.0 - ES_LEVEL)[1] for of in both for side in (1.0, -1.0)]
    unit_es[[PLAIN_LONG, PLAIN_SHORT]] *= floored
    correlation = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(names):
        correlation[i, i] = 1.0
        for j, b in enumerate(names[:i]):
            _, joint, _ = _joint([samples[a], samples[b]])
            if len(joint) >= MIN_SCENARIOS:
                correlation[i, j] = correlation[j, i] = shrunk_correlation(joint)[0, 1]
    _, joint, volatility = _joint(list(samples.values()))
    if len(joint) < MIN_SCENARIOS:
        joint, volatility = joint[:0], volatility[:0]
    currencies = [currency_of(name, account_currency) for name in names]
    return Scenarios(
        codes={name: a for a, name in enumerate(names)},
        filtered=joint / volatility,
        plain=np.where(floored, joint, np.nan),
        unit_es=unit_es,
        correlation=correlation,
        markets=np.array([currencies.index(each) for each in currencies], dtype=np.float64),
        decay=tail.decay,
    )


def _joint(samples: Sequence[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    """Return the (n,) times that all k samples share, their (n, k) returns and (n, k) volatilities."""
    if not samples:
        return np.empty(0), np.empty((0, 0)), np.empty((0, 0))
    times = samples[0][0]
    for other, _, _ in samples[1:]:
        times = np.intersect1d(times, other)
    rows = [np.searchsorted(own, times) for own, _, _ in samples]
    returns, volatility = (
        np.column_stack([sample[part][at] for sample, at in zip(samples, rows, strict=True)]) for part in (1, 2)
    )
    return times, returns, volatility


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


def allocation(positions: Floats, scenarios: Scenarios, volatility: Floats) -> tuple[Floats, Floats]:
    """Return (assets,) net positions and (assets,) their parts of the total ES, by Euler; the parts add up to it.

    positions  (k, 3) POSITION rows; volatility (assets,) as `exposure` takes it
    Where the assets share no scenarios the total is the sum of each one's own ES, and so are the parts. NaN where the
    volatility of an asset that is held is not known.
    """
    net = np.zeros(len(scenarios.codes))
    known = positions[positions[:, 1] >= 0.0]
    np.add.at(net, known[:, 1].astype(int), known[:, 0])
    if np.isnan(volatility[net != 0.0]).any():
        return net, np.where(net != 0.0, np.nan, 0.0)
    if len(scenarios.filtered):
        return net, euler_es(scenarios.losing_most(net, volatility), net, ES_LEVEL)
    units = [_unit_es(scenarios.unit_es, volatility, each, a) for a, each in enumerate(net)]
    return net, np.where(net != 0.0, np.abs(net) * units, 0.0)


def exposure_by_name(
    positions: Floats, side: float, asset: float, strategy: float, scenarios: Scenarios, volatility: Floats
) -> dict[str, float]:
    """Return the `exposure` of positions (k, 3) by name, as fractions of equity; volatility (assets,) at this close."""
    out = np.empty(len(EXPOSURES))
    exposure(
        positions, len(positions), float(side), int(asset), float(strategy), volatility, *scenarios.arrays, out
    )  # fmt: skip
    return dict(zip(EXPOSURES, out.tolist(), strict=True))
