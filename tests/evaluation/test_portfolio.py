"""Portfolios: weights sum to one, only the past decides, bands save trades, costs and attribution add up."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fixture import recording
from benchmarks.portfolio import CRYPTO, FOREX, recorded, simulated
from pipelines.errors import BadShape, BadValues, MissingPackage, NotEnoughData, UnknownName
from pipelines.evaluation.portfolio import METHODS, Past, figures, no_trade_band, walk, weights
from pipelines.settings import load_params

OPTIMISED = ("max Sharpe", "risk parity", "HRP")
RETURNS_ONLY = ("equal", "inverse volatility", *OPTIMISED)  # need nothing but returns


@pytest.fixture
def library():
    pytest.importorskip("skfolio", reason="the optimising methods need skfolio")


def market(seed=3, n=400, k=4, drift=4e-4):
    """Return (n, k) returns of a common factor and independent parts, the later assets more volatile."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0.0, 5e-3, (n, 1))
    return drift + common + rng.normal(0.0, 1.0, (n, k)) * np.linspace(4e-3, 16e-3, k)


def past(returns=None, **more):
    returns = market() if returns is None else returns
    return Past(returns, np.zeros(returns.shape[1]), **more)


# ---- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("k", [1, 2, 4, 10])
@pytest.mark.parametrize("method", RETURNS_ONLY)
def test_weights_are_not_negative_and_sum_to_one(method, k):
    found = weights(method, past(market(k=k)))
    assert found.shape == (k,)
    assert found.min() >= 0.0
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("k", [2, 4, 10])
def test_under_risk_parity_every_asset_adds_the_same_to_the_variance(k):
    from sklearn.covariance import ledoit_wolf

    returns = market(k=k)
    found = weights("risk parity", past(returns))
    covariance = ledoit_wolf(returns)[0]
    added = found * (covariance @ found)
    assert added / added.sum() == pytest.approx(np.full(k, 1.0 / k), rel=2e-3)


@pytest.mark.usefixtures("library")
def test_hrp_and_risk_parity_give_the_calm_asset_more_than_the_volatile_one():
    for method in ("risk parity", "HRP", "inverse volatility"):
        found = weights(method, past())
        assert found[0] > 0.25 > found[-1]


@pytest.mark.usefixtures("library")
def test_no_mix_of_two_has_a_higher_sharpe_in_the_window_than_the_one_found():
    from sklearn.covariance import ledoit_wolf

    returns = market(k=2, drift=np.array([6e-4, 9e-4]))
    covariance = ledoit_wolf(returns)[0]
    grid = np.column_stack([np.linspace(0, 1, 2001), np.linspace(1, 0, 2001)])
    sharpe = (grid @ returns.mean(axis=0)) / np.sqrt(np.einsum("ij,jk,ik->i", grid, covariance, grid))
    assert weights("max Sharpe", past(returns)) == pytest.approx(grid[sharpe.argmax()], abs=2e-3)


@pytest.mark.usefixtures("library")
def test_held_assets_are_not_traded_when_trading_costs_more_than_it_gains():
    returns = market(k=2, drift=np.array([6e-4, 9e-4]))
    held = np.array([0.3, 0.7])
    free = weights("max Sharpe", Past(returns, held, cost=0.0, every=5))
    dear = weights("max Sharpe", Past(returns, held, cost=0.02, every=5))
    assert abs(free - held).sum() > 0.3
    assert dear == pytest.approx(held, abs=1e-3)


@pytest.mark.usefixtures("library")
def test_max_sharpe_abstains_where_no_portfolio_earns_its_cost():
    falling = past(market(drift=-2e-3))
    assert weights("max Sharpe", falling) == "no portfolio is expected to earn more than its cost"
    rising = market(k=2)
    assert isinstance(weights("max Sharpe", Past(rising, np.zeros(2), cost=0.5)), str)
    assert isinstance(weights("max Sharpe", Past(rising, np.array([0.5, 0.5]), cost=0.5)), np.ndarray)  # no need to pay


def test_a_method_without_its_input_abstains_with_the_reason():
    assert weights("custom", past()) == "no weights were given"
    assert "capitalisation" in weights("market cap", past())
    assert "capitalisation" in weights("market cap", past(caps=np.array([1.0, 2.0, np.nan, 1.0])))
    still = market()
    still[:, 1] = 0.0
    for method in ("inverse volatility", "risk parity", "HRP"):
        assert "did not move" in weights(method, past(still))


def test_given_weights_and_capitalisations_are_used_as_they_are():
    given = np.array([0.1, 0.2, 0.3, 0.4])
    assert weights("custom", past(given=given)) is given
    assert weights("market cap", past(caps=5e9 * given)) == pytest.approx(given)


def test_impossible_input_is_refused():
    with pytest.raises(UnknownName, match="risk parity"):
        weights("astrology", past())
    with pytest.raises(BadValues, match="sum to 1"):
        weights("custom", past(given=np.array([0.5, 0.5, 0.5, -0.5])))
    with pytest.raises(BadShape, match="caps"):
        weights("market cap", past(caps=np.ones(3)))
    with pytest.raises(NotEnoughData):
        weights("equal", past(market(n=2)))
    for worst in (np.nan, -1.0):
        with pytest.raises(BadValues, match="above -1"):
            weights("equal", past(np.full((9, 2), worst)))


@pytest.mark.parametrize("method", OPTIMISED)
def test_without_the_library_the_error_names_the_package(method, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "skfolio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skfolio", None)
    with pytest.raises(MissingPackage, match="skfolio"):
        weights(method, past())


def test_weights_that_the_solver_reports_as_inaccurate_are_not_used(monkeypatch, library):
    from skfolio.optimization import RiskBudgeting

    def inaccurate(self, returns):
        warnings.warn("Solution may be inaccurate. Try changing the solver params", stacklevel=2)
        self.weights_ = np.array([0.9, 0.1])
        return self

    monkeypatch.setattr(RiskBudgeting, "fit", inaccurate)
    assert weights("risk parity", past(market(k=2))) == "the solver stopped before its weights were accurate"


# ---- bands ------------------------------------------------------------------------------------------------------


def test_inside_its_band_nothing_is_traded():
    target = np.array([0.5, 0.3, 0.2])
    assert not no_trade_band(np.array([0.54, 0.27, 0.19]), target, 0.05, 0.001).any()


def test_the_asset_outside_goes_to_the_nearest_edge_and_the_others_balance_it_in_proportion_to_their_distance():
    target = np.array([0.4, 0.3, 0.3])
    trades = no_trade_band(np.array([0.48, 0.26, 0.26]), target, 0.05, 0.0)
    assert trades == pytest.approx([-0.03, 0.015, 0.015])
    trades = no_trade_band(np.array([0.48, 0.20, 0.32]), target, 0.05, 0.0)  # 0.03 and 0.05 are forced, 0.02 is missing
    assert trades == pytest.approx([-0.03 - 0.02 * 5 / 7, 0.05, -0.02 * 2 / 7])  # from 0.05 and 0.02 above the targets


def after(held, trades, fee):
    left = 1.0 - fee * abs(trades).sum()
    assert held.sum() + trades.sum() <= left + 1e-12  # nothing is borrowed for the fee
    return (held + trades) / left


@pytest.mark.parametrize("fee", [0.0, 0.001, 0.02])
@pytest.mark.parametrize("band", [0.0, 0.03, 0.2])
def test_a_trade_never_passes_its_target_and_ends_inside_its_band(band, fee):
    rng = np.random.default_rng(5)
    for _ in range(200):
        held, target = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        trades = no_trade_band(held, target, band, fee)
        ended = after(held, trades, fee)
        assert ended.sum() == pytest.approx(1.0, abs=1e-10)
        assert (abs(ended - target) <= band + 3.0 * fee + 1e-12).all()
        moved = trades != 0.0
        assert (np.sign(trades[moved]) * (target - ended)[moved] >= -1e-9).all()


@pytest.mark.parametrize("fee", [0.0, 0.0025, 0.02])
def test_without_a_band_the_shares_after_the_fee_are_the_target(fee):
    held, target = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    assert after(held, no_trade_band(held, target, 0.0, fee), fee) == pytest.approx(target, abs=1e-12)


def test_a_wider_band_trades_less():
    held, target = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    traded = [abs(no_trade_band(held, target, band, 0.001)).sum() for band in (0.0, 0.1, 0.3, 0.5)]
    assert traded == sorted(traded, reverse=True)
    assert traded[-1] == 0.0


def test_cash_is_invested_however_wide_the_band():
    target = np.array([0.3, 0.7])
    trades = no_trade_band(np.zeros(2), target, 0.9, 0.01)
    assert trades == pytest.approx(target / 1.01)


def test_a_fee_in_basis_points_is_refused():
    with pytest.raises(BadValues, match="not bps"):
        no_trade_band(np.array([0.5, 0.5]), np.array([0.5, 0.5]), 0.0, 2.5)


# ---- the walk ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("method", RETURNS_ONLY)
def test_a_garbage_future_changes_nothing_before_it(method):
    returns, cut = market(n=120, k=3), 80
    spoilt = returns.copy()
    spoilt[cut:] = np.random.default_rng(0).uniform(-0.5, 2.0, spoilt[cut:].shape)
    clean, other = (walk(given, method, 10, 40, 5.0, 0.02) for given in (returns, spoilt))
    assert (clean.net[: cut - 40] == other.net[: cut - 40]).all()
    assert (clean.weights[: cut - 39] == other.weights[: cut - 39]).all()  # held as the first garbage row begins
    assert (clean.net != other.net).any()


def test_later_capitalisations_are_not_used():
    returns, caps = market(n=60, k=2), np.ones((60, 2))
    caps[31:, 0] = 3.0
    path = walk(returns, "market cap", 1, 20, 0.0, caps=caps)
    share = path.weights[:, 0]  # row r is held as row 20 + r begins: known at 31, filled at 32, held from 33
    assert share[12] == pytest.approx(0.5, abs=0.02)
    assert share[13] == pytest.approx(0.75, abs=1e-12)


def test_a_path_by_hand():
    """Half and half from the close of row 4 on; the second decision after row 5 is filled at the close of row 6."""
    returns = np.array(
        [[0.0, 0.0], [0.01, 0.0], [0.0, 0.01], [0.0, 0.0], [0.5, 0.5], [0.1, -0.1], [0.2, 0.0], [0.0, 0.1]]
    )
    path = walk(returns, "equal", 2, 4, 100.0)
    first = 1.0 / 1.01  # after paying 1 % of what was bought
    a, b = first * 0.5 * 1.1 * 1.2, first * 0.5 * 0.9
    spread = 0.01 * abs(a - b) / (a + b)  # bought and sold together, before the fee is taken from them
    assert path.start == 4
    assert path.net[:3] == pytest.approx([first - 1.0, 0.0, (a + b) * (1.0 - path.paid[2]) / first - 1.0])
    assert path.net[3] == pytest.approx(0.05)
    assert path.weights == pytest.approx(np.array([[0, 0], [0.5, 0.5], [0.55, 0.45], [0.5, 0.5]]))
    assert path.paid[2] == pytest.approx(spread, rel=0.01)
    assert path.decisions == 2


def test_costs_are_exactly_as_stated():
    returns = market(n=200)
    dear, free = (walk(returns, "equal", 500, 50, cost, 0.0) for cost in (40.0, 0.0))
    assert (1.0 + dear.total) * (1.0 + 40e-4) == pytest.approx(1.0 + free.total, rel=1e-12)  # bought once
    often = walk(returns, "inverse volatility", 5, 50, 40.0)
    assert often.paid == pytest.approx(40e-4 * often.traded, rel=1e-12)
    assert np.prod((1.0 + often.net) / (1.0 - often.paid)) == pytest.approx(
        1.0 + walk(returns, "inverse volatility", 5, 50, 0.0).total, rel=1e-12
    )  # the same shares after each trade, so that costs are all the difference


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("band", [0.0, 0.05])
@pytest.mark.parametrize("method", RETURNS_ONLY)
def test_attribution_sums_to_the_total(method, band):
    path = walk(market(n=150, k=3), method, 10, 40, 25.0, band)
    assert path.attribution.sum() == pytest.approx(path.total, abs=1e-12)
    assert path.total == pytest.approx(np.prod(1.0 + path.net) - 1.0)


@pytest.mark.parametrize("method", ["equal", "inverse volatility"])
def test_with_a_band_less_is_traded_and_weights_stay_near_the_target(method):
    returns = market(n=600)
    tight, wide = (walk(returns, method, 5, 60, 10.0, band) for band in (0.0, 0.03))
    assert wide.traded.sum() < 0.7 * tight.traded.sum()
    assert abs(tight.weights - wide.weights).max() < 0.03 * 2.0  # target ± band, and five rows of drift


def test_a_method_that_abstains_leaves_the_portfolio_unchanged():
    path = walk(market(n=100), "market cap", 10, 40, 5.0)
    assert path.never_allocated
    assert path.abstained == {"no market capitalisation of every asset was recorded": path.decisions}
    assert not path.net.any()
    assert not path.traded.any()
    caps = np.ones((100, 4))
    caps[60:] = np.nan
    later = walk(market(n=100), "market cap", 10, 40, 5.0, caps=caps)
    assert not later.never_allocated
    assert not later.traded[61 - later.start :].any()
    assert later.weights[-1].sum() == pytest.approx(1.0)


def test_selling_everything_leaves_no_short_position(monkeypatch):
    """The rounding error of an asset sold completely must not become a short position."""
    monkeypatch.setitem(METHODS, "best row", lambda past: np.eye(7)[past.returns[-1].argmax()])
    path = walk(market(n=3000, k=7), "best row", 1, 10, 2.5)
    assert path.weights.min() == 0.0
    assert path.weights.sum(axis=1).max() == pytest.approx(1.0, abs=1e-12)
    assert path.attribution.sum() == pytest.approx(path.total, abs=1e-10)


def test_a_history_too_short_to_fill_a_decision_is_refused():
    with pytest.raises(NotEnoughData, match="42"):
        walk(market(n=41), "equal", 5, 40, 0.0)


# ---- figures ----------------------------------------------------------------------------------------------------


def test_figures_by_plain_arithmetic():
    path = walk(market(n=800), "inverse volatility", 5, 50, 10.0)
    one = walk(market(n=800), "equal", 5, 50, 10.0)
    found = figures(path, one, 252.0)
    years = len(path.net) / 252.0
    wealth = np.r_[1.0, np.cumprod(1.0 + path.net)]
    assert found.net_return.value == pytest.approx((1.0 + path.total) ** (1.0 / years) - 1.0)
    assert found.sharpe.value == pytest.approx(path.net.mean() / path.net.std() * np.sqrt(252.0))
    assert found.max_drawdown == pytest.approx(max(1.0 - wealth[i] / wealth[: i + 1].max() for i in range(len(wealth))))
    assert found.cost == pytest.approx(10e-4 * found.turnover)
    assert found.return_over_equal.value == pytest.approx(
        found.net_return.value - (1.0 + one.total) ** (1.0 / years) + 1.0
    )
    assert found.sharpe.low < found.sharpe.value < found.sharpe.high
    assert found.net_return.n == len(path.net)


def test_one_over_n_differs_from_itself_by_nothing():
    one = walk(market(), "equal", 5, 50, 10.0)
    found = figures(one, one, 252.0)
    for difference in (found.return_over_equal, found.sharpe_over_equal):
        assert (difference.low, difference.value, difference.high) == (0.0, 0.0, 0.0)


def test_the_interval_of_the_sharpe_contains_the_truth_about_as_often_as_stated():
    covered, true = [], 0.05 * np.sqrt(252.0)
    one = walk(market(), "equal", 5, 50, 0.0)
    rng = np.random.default_rng(11)
    for _ in range(200):
        path = replace(one, net=rng.normal(0.05e-2, 1e-2, len(one.net)))
        sharpe = figures(path, one, 252.0).sharpe
        covered.append(sharpe.low < true < sharpe.high)
    assert 0.92 < np.mean(covered) < 0.99  # a bootstrap of blocks of ten: from .86 on


def test_paths_of_other_rows_are_not_compared():
    with pytest.raises(BadShape):
        figures(walk(market(), "equal", 5, 50, 0.0), walk(market(), "equal", 5, 60, 0.0), 252.0)


def test_every_method_of_the_registry_gives_weights_or_a_reason():
    pytest.importorskip("skfolio", reason="the optimising methods need skfolio")
    for method in METHODS:
        found = weights(method, past())
        assert isinstance(found, np.ndarray) or (isinstance(found, str) and found)


# ---- the page's markets -----------------------------------------------------------------------------------------


def test_the_true_weights_of_the_simulated_assets_are_optimal():
    pytest.importorskip("skfolio", reason="the optimising methods need skfolio")
    truth = simulated(load_params())
    assert truth.given.min() >= 0.0
    assert truth.given.sum() == pytest.approx(1.0)
    endless = simulated(load_params(), years=2000)
    assert endless.given == pytest.approx(truth.given)
    assert weights("max Sharpe", past(endless.returns)) == pytest.approx(truth.given, abs=0.05)


@pytest.mark.parametrize("files", [CRYPTO, FOREX], ids=["crypto", "forex"])
def test_recorded_closes_are_aligned_on_their_common_hours(files):
    if not all(recording(name).is_file() for name in files.values()):
        pytest.skip("recorded market data is not part of the repository")
    market = recorded(files, "", load_params())
    assert market.returns.shape[1] == 2
    assert np.isfinite(market.returns).all()
    assert abs(market.returns).max() < 0.25
    assert 100 < market.every <= 168
