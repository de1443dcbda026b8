"""How a portfolio would have been shared out: weights from the past alone, rebalancing with bands, and what came of it.

Methods are functions in one registry, `METHODS`; the optimisation behind three of them is skfolio's. A method that
lacks its input abstains with a reason, and the portfolio then keeps what it holds (nothing, before the first
allocation). 1/N stands beside every figure: hardly a method is known to beat it out of sample (DeMiguel, Garlappi and
Uppal 2009). Long only, no borrowing; what is not invested earns nothing.

Time: row t of `returns` is the simple return from the close of row t - 1 to the close of row t. A decision after row t
sees rows up to t and is filled at the close of row t + 1, as nobody trades at the price he decides by.
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
from pipelines.evaluation.metrics import block_starts, block_sums, default_block, interval

LEAST_ROWS = 3  # of the past: a covariance of fewer says nothing
ROUNDING = 1e-12  # of the portfolio: less is no trade and no cash
MOST_FEE = 0.1  # of what is traded; beyond it a fee is a mistake in units


@dataclass(frozen=True, slots=True)
class Past:
    """What a method may look at when it decides.

    returns  (rows, k) simple returns, oldest first, up to the close it decides at
    held     (k,) shares of the portfolio held at that close; all nought before the first allocation
    cost     share of what is traded, one side
    every    rows until the next decision, over which the cost of a trade is spread
    given    (k,) weights that somebody chose; None = nobody did
    caps     (k,) market capitalisations known at that close, in one currency; None or NaN = not recorded
    """

    returns: Floats
    held: Floats
    cost: float = 0.0
    every: int = 1
    given: Floats | None = None
    caps: Floats | None = None


Answer = Floats | str  # (k,) weights, or why there are none
Method = Callable[[Past], Answer]


def equal(past: Past) -> Answer:
    k = past.returns.shape[1]
    return np.full(k, 1.0 / k)


def inverse_volatility(past: Past) -> Answer:
    volatility = past.returns.std(axis=0)
    if (volatility == 0.0).any():
        return "an asset did not move in the window, so it has no volatility to weigh it by"
    return _shares(1.0 / volatility)


def custom(past: Past) -> Answer:
    return "no weights were given" if past.given is None else past.given


def market_cap(past: Past) -> Answer:
    if past.caps is None or not (np.isfinite(past.caps) & (past.caps > 0.0)).all():
        return "no market capitalisation of every asset was recorded"
    return _shares(past.caps)


def max_sharpe(past: Past) -> Answer:
    """Highest expected return over volatility (Markowitz 1952), less what getting there costs a row until the next
    decision; means of the window, covariance shrunk by Ledoit and Wolf (2004)."""
    if past.returns.shape[1] == 1:
        return np.ones(1)
    cost, mean = past.cost / past.every, past.returns.mean(axis=0)
    # the best net return there is: from any asset to the best one, where that earns more than selling and buying
    gained = float(past.held @ np.maximum(mean.max() - mean - 2.0 * cost, 0.0))
    best = float(past.held @ mean) + gained + (1.0 - float(past.held.sum())) * (float(mean.max()) - cost)
    if best <= 0.0:
        return "no portfolio is expected to earn more than its cost"
    library = _library()
    unit = float(past.returns.std())  # the solver likes numbers near one; weights do not depend on the unit
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


def risk_parity(past: Past) -> Answer:
    """Every asset adds the same to the variance (Maillard, Roncalli and Teïletche 2010); covariance as above."""
    if past.returns.shape[1] == 1:
        return np.ones(1)
    if (past.returns.std(axis=0) == 0.0).any():
        return "an asset did not move in the window, so it has no risk to share"
    library = _library()
    scaled = past.returns / float(past.returns.std())
    return _solved(library, library.RiskBudgeting(prior_estimator=_shrunk(library)), scaled)


def hierarchical(past: Past) -> Answer:
    """Hierarchical risk parity (López de Prado 2016) on clusters by Ward's linkage; covariance as above."""
    if past.returns.shape[1] == 1:
        return np.ones(1)
    if (past.returns.std(axis=0) == 0.0).any():
        return "an asset did not move in the window, so it has no correlation to cluster by"
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


def weights(method: str, past: Past) -> Answer:
    """(k,) weights of a method, none negative, sum 1; or the reason it abstains.

    Raises  UnknownName, BadShape (returns are no matrix; held, given or caps are not of k), BadValues (returns not
            finite or not above -1; given weights negative or not of sum 1), NotEnoughData (under `LEAST_ROWS` rows),
            MissingPackage
    """
    if method not in METHODS:
        raise UnknownName(f"no portfolio method {method!r}; known: {', '.join(METHODS)}")
    _check(past.returns)
    rows, k = past.returns.shape
    if rows < LEAST_ROWS:
        raise NotEnoughData(f"{rows} rows of returns; weights need at least {LEAST_ROWS}")
    for name, values in (("held", past.held), ("given", past.given), ("caps", past.caps)):
        if values is not None and values.shape != (k,):
            raise BadShape(f"{name} {values.shape} beside returns of {k} assets")
    if past.given is not None:
        _check_weights("given weights", past.given)
    return METHODS[method](past)


# ---- rebalancing ------------------------------------------------------------------------------------------------


def no_trade_band(held: Floats, target: Floats, band: float, fee: float) -> Floats:
    """(k,) what to buy (+) and sell (-), as shares of the portfolio before the trade. The rest of it is cash.

    held    (k,) shares held, sum at most 1; what is missing to 1 is cash and is invested
    target  (k,) shares wanted, sum 1
    band    half its width, in shares of the portfolio: an asset is left alone while it is within target ± band
    fee     share of what is traded, one side; it is paid out of the trades, so that the shares *after* it stand where
            they should

    An asset outside goes to the nearest edge of its band. Money has to come from somewhere: what is bought beyond what
    is sold (or sold beyond what is bought) is met by the assets on the other side of their targets, each in proportion
    to its distance. None passes its target. With a band of 0 every asset goes to its target.
    Raises  BadShape, BadValues
    """
    if held.shape != target.shape or held.ndim != 1:
        raise BadShape(f"held {held.shape} and target {target.shape}")
    _check_weights("target", target)
    if not np.isfinite(held).all() or held.min() < 0.0 or held.sum() > 1.0 + 1e-9:
        raise BadValues(f"held {held}: shares of one portfolio are not negative and sum to at most 1")
    if not (band >= 0.0 and 0.0 <= fee < MOST_FEE):
        raise BadValues(f"band {band} must not be negative, fee {fee} within 0 and {MOST_FEE} (a fraction, not bps)")
    after, trades = 1.0, np.zeros(len(held))
    for _ in range(
        100
    ):  # what is left after fees depends on the trades and they on it: each pass is `fee` times closer
        trades = _to_edges(held, after * target, after * band, after)
        left = 1.0 - fee * float(np.abs(trades).sum())
        if abs(left - after) <= 1e-15:
            break
        after = left
    return trades


def _to_edges(held: Floats, wanted: Floats, half: float, wealth: float) -> Floats:
    forced = np.clip(held, np.maximum(wanted - half, 0.0), wanted + half) - held
    rest = wealth - float(held.sum()) - float(forced.sum())
    if abs(rest) <= ROUNDING:
        return np.asarray(forced)
    room = np.maximum(np.sign(rest) * (wanted - held - forced), 0.0)  # sums to at least |rest|: targets sum to wealth
    return np.asarray(forced + rest * room / room.sum())


# ---- the walk ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Path:
    """What became of one portfolio over m rows, the first of which is that of the first fill. Starts with 1 in cash.

    start        row of `returns` that the first row here is
    net          (m,) simple return of the row after costs; a trade at its close is paid in it
    traded       (m,) bought and sold at the row's close, as a share of the portfolio then
    paid         (m,) its cost, likewise
    weights      (m, k) shares held as the row began; they may sum to less than 1 where cash is left
    attribution  (k,) what each asset added less what trading it cost, in starting portfolios: sums to the total return
    decisions    how many there were; abstained: of them without an answer, by reason
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
        """Return over all rows, after costs."""
        return float(np.prod(1.0 + self.net) - 1.0)

    @property
    def never_allocated(self) -> bool:
        """The method never had an answer."""
        return sum(self.abstained.values()) == self.decisions


def walk(
    returns: Floats, method: str, every: int, window: int, cost_bps: float, band: float = 0.0,
    given: Floats | None = None, caps: Floats | None = None,
) -> Path:  # fmt: skip
    """Walk forward: every `every` rows weights from the last `window` rows, filled one row later.

    returns   (n, k) simple returns
    cost_bps  of one side, on what is bought and on what is sold; the first allocation is paid too
    band      as `no_trade_band`
    given     (k,) weights for `custom`
    caps      (n, k) market capitalisations known at each row's close, for `market cap`; NaN = not recorded
    Raises    as `weights`; NotEnoughData if no decision could be filled and lived through
    """
    _check(returns)
    n, k = returns.shape
    if every < 1 or window + 2 > n:
        raise NotEnoughData(
            f"{n} rows: a window of {window}, a fill and a row to live need {window + 2}; every {every}"
        )
    if caps is not None and caps.shape != (n, k):
        raise BadShape(f"capitalisations {caps.shape} beside returns {returns.shape}")
    fee = cost_bps * 1e-4
    decided = range(window - 1, n - 1, every)
    worth, cash, idle = np.zeros((n, k)), np.ones(n), 1.0  # at each close, after its trades
    traded, paid, spent = np.zeros(n), np.zeros(n), np.zeros(k)
    abstained: Counter[str] = Counter()
    for at in decided:
        fill, last = at + 1, min(at + every, n - 1)
        before = worth[at] * (1.0 + returns[fill])
        now = float(before.sum()) + idle
        held = worth[at] / (float(worth[at].sum()) + idle)
        known = None if caps is None else caps[at]
        answer = weights(method, Past(returns[at + 1 - window : at + 1], held, fee, every, given, known))
        trades = np.zeros(k)
        if isinstance(answer, str):
            abstained[answer] += 1
        else:
            trades = now * no_trade_band(before / now, answer, band, fee)
        costs = fee * np.abs(trades)
        spent += costs
        idle -= float(trades.sum() + costs.sum())
        traded[fill], paid[fill] = np.abs(trades).sum() / now, costs.sum() / now
        after = np.maximum(before + trades, 0.0)  # an asset sold whole is gone, and not short by a rounding error
        worth[fill : last + 1] = after * np.vstack([np.ones(k), np.cumprod(1.0 + returns[fill + 1 : last + 1], axis=0)])
        cash[fill : last + 1] = idle
    wealth = worth.sum(axis=1) + cash
    return Path(
        method=method,
        start=window,
        net=wealth[window:] / wealth[window - 1 : -1] - 1.0,
        traded=traded[window:],
        paid=paid[window:],
        weights=worth[window - 1 : -1] / wealth[window - 1 : -1, None],
        attribution=(worth[:-1] * returns[1:]).sum(axis=0) - spent,
        decisions=len(decided),
        abstained=dict(abstained),
        cost_bps=cost_bps,
    )


# ---- figures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one path, after costs, a year. Intervals: 95 %, moving blocks; both sides of a difference from the same draws.

    net_return         compounded, fraction
    volatility         fraction; sharpe: mean over deviation of the rows' net returns, against cash that earns nothing
    max_drawdown       fraction of the highest worth before
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


def figures(path: Path, one_over_n: Path, rows_a_year: float, block: int, draws: int, seed: int) -> Figures:
    """Figures of `path` beside a 1/N of the same rows.

    block   rows that are drawn together: at least the rows between two decisions, which share their weights
    Raises  BadShape if the two do not cover the same rows
    """
    n = len(path.net)
    if n != len(one_over_n.net) or path.start != one_over_n.start:
        raise BadShape(f"{n} rows from {path.start}, 1/N has {len(one_over_n.net)} from {one_over_n.start}")
    block = max(1, min(max(block, default_block(n)), n))
    starts = block_starts(n, block, draws, seed)

    def resampled(net: Floats) -> tuple[Floats, Floats]:
        """(net return a year, Sharpe) of each draw; the first is not a draw but the history itself."""
        sums = [
            np.concatenate([[values.sum()], block_sums(values, starts, block)]) / n
            for values in (np.log1p(net), net, net**2)
        ]
        deviation = np.sqrt(np.maximum(sums[2] - sums[1] ** 2, 0.0))
        ratio = np.divide(sums[1], deviation, out=np.full(draws + 1, np.nan), where=deviation > 0.0)
        return np.expm1(rows_a_year * sums[0]), np.sqrt(rows_a_year) * ratio

    def told(samples: Floats) -> Estimate:
        return interval(samples[1:], float(samples[0]), n, path.cost_bps)

    (earned, ratio), (theirs, their_ratio) = resampled(path.net), resampled(one_over_n.net)
    worth = np.concatenate([[1.0], np.cumprod(1.0 + path.net)])
    return Figures(
        net_return=told(earned),
        volatility=float(path.net.std() * np.sqrt(rows_a_year)),
        sharpe=told(ratio),
        max_drawdown=float((1.0 - worth / np.maximum.accumulate(worth)).max()),
        turnover=float(path.traded.sum() * rows_a_year / n),
        cost=float(path.paid.sum() * rows_a_year / n),
        return_over_equal=told(earned - theirs),
        sharpe_over_equal=told(ratio - their_ratio),
    )


# ---- the library ------------------------------------------------------------------------------------------------


def _library() -> SimpleNamespace:
    """skfolio, loaded by who optimises: it takes seconds and nobody else needs it. Raises MissingPackage."""
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
    return library.EmpiricalPrior(covariance_estimator=library.LedoitWolf())


def _solved(library: SimpleNamespace, estimator: Any, returns: Floats) -> Answer:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Solution may be inaccurate", category=UserWarning)
            found = np.asarray(estimator.fit(returns).weights_, dtype=np.float64)
    except library.OptimizationError:
        return "the solver found no weights"
    except UserWarning:
        return "the solver stopped before its weights were accurate"
    return _shares(np.maximum(found, 0.0))  # a solver stops within its tolerance of nought


def _shares(amounts: Floats) -> Floats:
    return np.asarray(amounts / amounts.sum())


def _check(returns: Floats) -> None:
    if returns.ndim != 2 or returns.shape[1] == 0:
        raise BadShape(f"returns {returns.shape}: wanted (rows, assets)")
    if not np.isfinite(returns).all() or (returns.size and returns.min() <= -1.0):
        raise BadValues("returns must be finite and above -1: align the assets on the rows they share")


def _check_weights(name: str, values: Floats) -> None:
    if not np.isfinite(values).all() or values.min() < 0.0 or abs(float(values.sum()) - 1.0) > 1e-9:
        raise BadValues(f"{name} {values}: none may be negative and they must sum to 1 (sum {values.sum():.6g})")
