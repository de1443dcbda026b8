"""Portfolio weights from past returns, rebalancing with no-trade bands, and the resulting performance.

Methods are functions in one registry, `METHODS`; three of them use skfolio's optimisation. A method that lacks its
input abstains with a reason, and the portfolio then stays as it is (in cash before the first allocation). Every figure
is compared with 1/N, which hardly any method is known to beat out of sample (DeMiguel, Garlappi and Uppal 2009). Long
only, no borrowing; cash earns nothing.

Time: row t of `returns` is the simple return from the close of row t - 1 to the close of row t. A decision after row t
reads rows up to t and is filled at the close of row t + 1: no trade is made at the price it was decided by.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipelines.contracts import Estimate, Floats
from pipelines.errors import BadShape, BadValues, MissingPackage, NotEnoughData, UnknownName
from pipelines.evaluation.intervals import Measurement, measure

LEAST_ROWS = 3  # of the past: fewer give no covariance
ROUNDING = 1e-12  # of the portfolio: a smaller amount is neither trade nor cash
MOST_FEE = 0.1  # of the traded amount; a higher fee is a mistake in units


@dataclass(frozen=True, slots=True)
class Past:
    """Hold what a method may read when it decides.

    returns  (rows, k) simple returns, oldest first, up to the close of the decision
    held     (k,) shares of the portfolio held at that close; all zero before the first allocation
    cost     share of the traded amount, one side
    every    rows until the next decision, over which the cost of a trade is spread
    given    (k,) weights chosen by the caller; None = none
    caps     (k,) market capitalisations known at that close, in one currency; None or NaN = not recorded
    """

    returns: Floats
    held: Floats
    cost: float = 0.0
    every: int = 1
    given: Floats | None = None
    caps: Floats | None = None


Weights = Floats | str  # (k,) weights, or why there are none
Method = Callable[[Past], Weights]


def equal(past: Past) -> Weights:
    """Return 1/N."""
    k = past.returns.shape[1]
    return np.full(k, 1.0 / k)


def inverse_volatility(past: Past) -> Weights:
    """Return weights proportional to one over the volatility of the window."""
    volatility = past.returns.std(axis=0)
    if (volatility == 0.0).any():
        return "an asset did not move in the window, so its volatility is zero"
    return _shares(1.0 / volatility)


def custom(past: Past) -> Weights:
    """Return the given weights."""
    return "no weights were given" if past.given is None else past.given


def market_cap(past: Past) -> Weights:
    """Return weights proportional to market capitalisation."""
    if past.caps is None or not (np.isfinite(past.caps) & (past.caps > 0.0)).all():
        return "no market capitalisation of every asset was recorded"
    return _shares(past.caps)


def max_sharpe(past: Past) -> Weights:
    """Return the weights of the highest expected return over volatility (Markowitz 1952), net of trading costs.

    The cost of the trade is spread over the rows until the next decision. Means of the window; covariance shrunk by
    Ledoit and Wolf (2004).
    """
    if past.returns.shape[1] == 1:
        return np.ones(1)
    cost, mean = past.cost / past.every, past.returns.mean(axis=0)
    # the best net return possible: from any asset to the best one, if that earns more than selling and buying cost
    gained = float(past.held @ np.maximum(mean.max() - mean - 2.0 * cost, 0.0))
    best = float(past.held @ mean) + gained + (1.0 - float(past.held.sum())) * (float(mean.max()) - cost)
    if best <= 0.0:
        return "no portfolio is expected to earn more than its cost"
    library = _library()
    unit = float(past.returns.std())  # the solver works best with numbers near one; weights do not depend on the unit
    return _solved(
        library,
        library.MeanRisk(
            objective_function=library.ObjectiveFunction.MAXIMIZE_RATIO,
            prior_estimator=_shrunk(library),
            transaction_costs=cost / unit,
            previous_weights=past.held,
        ),
        past.returns / unit,
    )


def risk_parity(past: Past) -> Weights:
    """Return weights under which every asset adds the same variance (Maillard, Roncalli and Teïletche 2010)."""
    if past.returns.shape[1] == 1:
        return np.ones(1)
    if (past.returns.std(axis=0) == 0.0).any():
        return "an asset did not move in the window, so its risk is zero"
    library = _library()
    scaled = past.returns / float(past.returns.std())
    return _solved(library, library.RiskBudgeting(prior_estimator=_shrunk(library)), scaled)


def hierarchical(past: Past) -> Weights:
    """Return hierarchical risk parity (López de Prado 2016) on clusters by Ward's linkage."""
    if past.returns.shape[1] == 1:
        return np.ones(1)
    if (past.returns.std(axis=0) == 0.0).any():
        return "an asset did not move in the window, so it has no correlation"
    library = _library()
    # only the order of the tree is read; skfolio 1.0.5 fails to find its best number of clusters for two assets
    tree = library.HierarchicalClustering(max_clusters=past.returns.shape[1])
    estimator = library.HierarchicalRiskParity(prior_estimator=_shrunk(library), hierarchical_clustering_estimator=tree)
    return _solved(library, estimator, past.returns)


METHODS: dict[str, Method] = {
    "equal": equal,
    "inverse volatility": inverse_volatility,
    "market cap": market_cap,
    "custom": custom,
    "max Sharpe": max_sharpe,
    "risk parity": risk_parity,
    "HRP": hierarchical,
}


def weights(method: str, past: Past) -> Weights:
    """Return (k,) weights of a method, none negative, sum 1; or the reason why it abstains.

    Raises  UnknownName, BadShape (returns are no matrix; held, given or caps are not of k), BadValues (returns not
            finite or not above -1; given weights negative or not of sum 1), NotEnoughData (under `LEAST_ROWS` rows),
            MissingPackage
    """
    if method not in METHODS:
        raise UnknownName(f"no portfolio method {method!r}; use one of {', '.join(METHODS)}")
    _check(past.returns)
    rows, k = past.returns.shape
    if rows < LEAST_ROWS:
        raise NotEnoughData(f"{rows} rows of returns; pass at least {LEAST_ROWS}")
    for name, values in (("held", past.held), ("given", past.given), ("caps", past.caps)):
        if values is not None and values.shape != (k,):
            raise BadShape(f"{name} {values.shape} for returns of {k} assets; pass ({k},)")
    if past.given is not None:
        _check_weights("given weights", past.given)
    return METHODS[method](past)


# ---- rebalancing ------------------------------------------------------------------------------------------------


def no_trade_band(held: Floats, target: Floats, band: float, fee: float) -> Floats:
    """Return (k,) amounts to buy (+) and sell (-), as shares of the portfolio before the trade.

    held    (k,) shares held, sum at most 1; the rest is cash and is invested
    target  (k,) target shares, sum 1
    band    half its width, in shares of the portfolio: an asset within target ± band is not traded
    fee     share of the traded amount, one side; paid out of the trades, so that the shares *after* it are as intended

    An asset outside its band goes to the nearest edge. Purchases beyond sales (or sales beyond purchases) are balanced
    by the assets on the other side of their targets, each in proportion to its distance. None passes its target. With a
    band of 0 every asset goes to its target.
    Raises  BadShape, BadValues
    """
    if held.shape != target.shape or held.ndim != 1:
        raise BadShape(f"held {held.shape} and target {target.shape}; pass (k,) both")
    _check_weights("target", target)
    if not np.isfinite(held).all() or held.min() < 0.0 or held.sum() > 1.0 + 1e-9:
        raise BadValues(f"held {held}: shares of one portfolio are not negative and sum to at most 1")
    if not (band >= 0.0 and 0.0 <= fee < MOST_FEE):
        raise BadValues(f"band {band} must not be negative, fee {fee} within 0 and {MOST_FEE} (a fraction, not bps)")
    after, trades = 1.0, np.zeros(len(held))
    # wealth after fees and trades depend on each other: the error shrinks by the factor `fee` with each pass
    for _ in range(100):
        trades = _to_edges(held, after * target, after * band, after)
        left = 1.0 - fee * float(np.abs(trades).sum())
        if abs(left - after) <= 1e-15:
            break
        after = left
    return trades


def _to_edges(held: Floats, target: Floats, half: float, wealth: float) -> Floats:
    """Return (k,) trades to the edges of the bands and the trades that balance them; amounts of one portfolio."""
    forced = np.clip(held, np.maximum(target - half, 0.0), target + half) - held
    rest = wealth - float(held.sum()) - float(forced.sum())
    if abs(rest) <= ROUNDING:
        return np.asarray(forced)
    room = np.maximum(np.sign(rest) * (target - held - forced), 0.0)  # sums to at least |rest|: targets sum to wealth
    return np.asarray(forced + rest * room / room.sum())


# ---- the walk ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Path:
    """Hold the performance of one portfolio over m rows from the first fill on, starting with 1 in cash.

    start        number in `returns` of the first row here
    net          (m,) simple return of the row after costs; a trade at its close is paid in it
    traded       (m,) amount bought and sold at the row's close, as a share of the portfolio then
    paid         (m,) its cost, likewise
    weights      (m, k) shares held at the start of the row; they sum to less than 1 if there is cash
    attribution  (k,) each asset's profit less its trading costs, in starting portfolios: sums to the total return
    decisions    number of decisions; abstained: reason → number without weights
    cost_bps     of one side
    """

    method: str
    start: int
    net: Floats
    traded: Floats
    paid: Floats
    weights: Floats
    attribution: Floats
    decisions: int
    abstained: Mapping[str, int]
    cost_bps: float

    @property
    def total(self) -> float:
        """Return the simple return over all rows, after costs."""
        return float(np.prod(1.0 + self.net) - 1.0)

    @property
    def never_allocated(self) -> bool:
        """Return whether the method abstained from every decision."""
        return sum(self.abstained.values()) == self.decisions


def walk(
    returns: Floats, method: str, every: int, window: int, cost_bps: float, band: float = 0.0,
    given: Floats | None = None, caps: Floats | None = None,
) -> Path:  # fmt: skip
    """Walk forward: every `every` rows compute weights from the last `window` rows, filled one row later.

    returns   (n, k) simple returns
    cost_bps  of one side, on purchases and on sales; the first allocation is paid too
    band      as in `no_trade_band`
    given     (k,) weights for `custom`
    caps      (n, k) market capitalisations known at each row's close, for `market cap`; NaN = not recorded
    Raises    as `weights`; NotEnoughData if no decision can be filled and followed by a row
    """
    _check(returns)
    n, k = returns.shape
    if every < 1 or window + 2 > n:
        raise NotEnoughData(
            f"{n} rows, every {every}: a window of {window}, a fill and a row after it need {window + 2}; every >= 1"
        )
    if caps is not None and caps.shape != (n, k):
        raise BadShape(f"capitalisations {caps.shape} for returns {returns.shape}; pass the same shape")
    fee = cost_bps * 1e-4
    decided = range(window - 1, n - 1, every)
    positions, cash, idle = np.zeros((n, k)), np.ones(n), 1.0  # values at each close, after its trades
    traded, paid, spent = np.zeros(n), np.zeros(n), np.zeros(k)
    abstained: Counter[str] = Counter()
    for at in decided:
        fill, last = at + 1, min(at + every, n - 1)
        before = positions[at] * (1.0 + returns[fill])
        now = float(before.sum()) + idle
        held = positions[at] / (float(positions[at].sum()) + idle)
        known = None if caps is None else caps[at]
        chosen = weights(method, Past(returns[at + 1 - window : at + 1], held, fee, every, given, known))
        trades = np.zeros(k)
        if isinstance(chosen, str):
            abstained[chosen] += 1
        else:
            trades = now * no_trade_band(before / now, chosen, band, fee)
        costs = fee * np.abs(trades)
        spent += costs
        idle -= float(trades.sum() + costs.sum())
        traded[fill], paid[fill] = np.abs(trades).sum() / now, costs.sum() / now
        after = np.maximum(before + trades, 0.0)  # an asset sold completely is not short by a rounding error
        positions[fill : last + 1] = after * np.vstack(
            [np.ones(k), np.cumprod(1.0 + returns[fill + 1 : last + 1], axis=0)]
        )
        cash[fill : last + 1] = idle
    wealth = positions.sum(axis=1) + cash
    return Path(
        method=method,
        start=window,
        net=wealth[window:] / wealth[window - 1 : -1] - 1.0,
        traded=traded[window:],
        paid=paid[window:],
        weights=positions[window - 1 : -1] / wealth[window - 1 : -1, None],
        attribution=(positions[:-1] * returns[1:]).sum(axis=0) - spent,
        decisions=len(decided),
        abstained=dict(abstained),
        cost_bps=cost_bps,
    )


# ---- figures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """Hold annual figures of one path after costs; 95 % moving-block intervals, differences from common draws.

    net_return         compounded, fraction
    volatility         fraction; sharpe: mean over deviation of the rows' net returns, against cash that earns nothing
    max_drawdown       fraction of the highest value before
    turnover           bought and sold, in portfolios; cost: paid for it, fraction of the portfolio
    return_over_equal  net_return less that of 1/N on the same rows, at the same cost and band; sharpe_over_equal: same
    """

    net_return: Estimate
    volatility: float
    sharpe: Estimate
    max_drawdown: float
    turnover: float
    cost: float
    return_over_equal: Estimate
    sharpe_over_equal: Estimate


def figures(path: Path, one_over_n: Path, rows_a_year: float) -> Figures:
    """Return the figures of `path`, compared with 1/N on the same rows.

    Raises  BadShape if the two do not cover the same rows
    """
    n = len(path.net)
    if n != len(one_over_n.net) or path.start != one_over_n.start:
        raise BadShape(
            f"{n} rows from {path.start}, 1/N has {len(one_over_n.net)} from {one_over_n.start}: pass the same rows"
        )
    (earned, earning), (ratio, rating) = _annual_return(path.net, rows_a_year), _sharpe(path.net, rows_a_year)
    equal_earned, equal_earning = _annual_return(one_over_n.net, rows_a_year)
    equal_ratio, equal_rating = _sharpe(one_over_n.net, rows_a_year)

    def estimate(value: float, influence: Floats) -> Estimate:
        """Return a figure with the interval of its rows' influences; NaN if it is not known."""
        found = measure(value, influence) if np.isfinite(value) else Measurement(value, np.nan, 1, n)
        return found.estimate(path.cost_bps)

    wealth = np.concatenate([[1.0], np.cumprod(1.0 + path.net)])
    return Figures(
        net_return=estimate(earned, earning),
        volatility=float(path.net.std() * np.sqrt(rows_a_year)),
        sharpe=estimate(ratio, rating),
        max_drawdown=float((1.0 - wealth / np.maximum.accumulate(wealth)).max()),
        turnover=float(path.traded.sum() * rows_a_year / n),
        cost=float(path.paid.sum() * rows_a_year / n),
        return_over_equal=estimate(earned - equal_earned, earning - equal_earning),
        sharpe_over_equal=estimate(ratio - equal_ratio, rating - equal_rating),
    )


def _annual_return(net: Floats, rows_a_year: float) -> tuple[float, Floats]:
    """Return the compound return a year, a fraction, and the influence (n,) of each row on it."""
    logs = np.log1p(net)
    growth = float(np.exp(rows_a_year * logs.mean()))
    return growth - 1.0, np.asarray(growth * rows_a_year * (logs - logs.mean()))


def _sharpe(net: Floats, rows_a_year: float) -> tuple[float, Floats]:
    """Return mean / deviation a year, NaN without variance, and the influence (n,) of each row on it (Lo 2002)."""
    deviation, year = float(net.std()), np.sqrt(rows_a_year)
    if deviation == 0.0:
        return float("nan"), np.full(len(net), np.nan)
    standard, ratio = (net - net.mean()) / deviation, float(net.mean()) / deviation
    return float(year * ratio), np.asarray(year * (standard - 0.5 * ratio * (standard**2 - 1.0)))


# ---- the library ------------------------------------------------------------------------------------------------


def _library() -> SimpleNamespace:
    """Return the parts of skfolio that are used; loading takes seconds. Raises MissingPackage."""
    try:
        from skfolio.cluster import HierarchicalClustering
        from skfolio.exceptions import OptimizationError
        from skfolio.moments import LedoitWolf
        from skfolio.optimization import HierarchicalRiskParity, MeanRisk, ObjectiveFunction, RiskBudgeting
        from skfolio.prior import EmpiricalPrior
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"portfolio methods max Sharpe, risk parity and HRP need the package {error.name}, which is not installed. "
            "Install skfolio as requirements.lock pins it."
        ) from error
    return SimpleNamespace(
        OptimizationError=OptimizationError,
        LedoitWolf=LedoitWolf,
        HierarchicalClustering=HierarchicalClustering,
        HierarchicalRiskParity=HierarchicalRiskParity,
        MeanRisk=MeanRisk,
        ObjectiveFunction=ObjectiveFunction,
        RiskBudgeting=RiskBudgeting,
        EmpiricalPrior=EmpiricalPrior,
    )


def _shrunk(library: SimpleNamespace) -> Any:
    """Return a prior with the covariance shrunk by Ledoit and Wolf (2004)."""
    return library.EmpiricalPrior(covariance_estimator=library.LedoitWolf())


def _solved(library: SimpleNamespace, estimator: Any, returns: Floats) -> Weights:
    """Return the weights an estimator finds, or the reason why it finds none."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Solution may be inaccurate", category=UserWarning)
            found = np.asarray(estimator.fit(returns).weights_, dtype=np.float64)
    except library.OptimizationError:
        return "the solver found no weights"
    except UserWarning:
        return "the solver stopped before its weights were accurate"
    return _shares(np.maximum(found, 0.0))  # a solver stops within its tolerance of zero


def _shares(amounts: Floats) -> Floats:
    """Return amounts scaled to sum to 1."""
    return np.asarray(amounts / amounts.sum())


def _check(returns: Floats) -> None:
    """Raise BadShape unless returns are a matrix with a column, BadValues unless finite and above -1."""
    if returns.ndim != 2 or returns.shape[1] == 0:
        raise BadShape(f"returns {returns.shape}; pass (rows, assets)")
    if not np.isfinite(returns).all() or (returns.size and returns.min() <= -1.0):
        raise BadValues("returns must be finite and above -1: align the assets on the rows they share")


def _check_weights(name: str, values: Floats) -> None:
    """Raise BadValues unless no weight is negative and they sum to 1."""
    if not np.isfinite(values).all() or values.min() < 0.0 or abs(float(values.sum()) - 1.0) > 1e-9:
        raise BadValues(f"{name} {values}: none may be negative and they must sum to 1 (sum {values.sum():.6g})")
