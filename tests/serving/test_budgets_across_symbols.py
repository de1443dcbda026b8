"""R4, R5 over many symbols: what is open in one counts for a new position in another, in decisions and in /risk."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from support.records import DECISION

from pipelines.contracts import CLOSE, utc
from pipelines.settings import load_params
from pipelines.warm_start import read_warm_start
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import flatten, to_rows
from serving.policy.fusion import N_SCORES
from serving.risk import codes
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.risk.utilisation import utilisation
from serving.state.account import Account
from serving.state.symbols import Symbol

PARAMS = load_params()
NAMES = ("SIM/USDT", "SIMB/USDT", "SIMC/USDT", "EUR/USD")


@pytest.fixture(scope="module")
def symbols(stand):
    """Three markets that move as one, and one that moves on its own, in another currency."""
    warm = read_warm_start(stand.stage)
    found = {name: Symbol(replace(warm, symbol=name)) for name in NAMES}
    own = warm.closes.copy()
    own[:, 1] = 100.0 * np.exp(np.cumsum(np.random.default_rng(5).normal(0.0, 0.004, len(own))))
    found["EUR/USD"].warm = replace(found["EUR/USD"].warm, closes=own)
    return found


@pytest.fixture
def account(symbols):
    """An account with the scenarios of all live symbols."""
    closes = {name: symbol.warm.closes for name, symbol in symbols.items()}
    assets = {name: AssetCloses(symbol.grid, closes[name]) for name, symbol in symbols.items()}
    risk = PARAMS.risk
    scenarios = scenarios_of(assets, PARAMS.labels.horizon_bars, risk.tail, risk.account_currency)
    return Account(scenarios=scenarios, newest_closes=lambda name: closes[name][:, 1])


def at_of(symbols):
    return utc(symbols["SIM/USDT"].closed.close_time)


def bought(account, symbols, **sizes):
    """Open positions of these sizes at the newest close; a name stands for its market in USDT."""
    for name, size in sizes.items():
        symbol = name if "/" in name else f"{name}/USDT"
        at = at_of(symbols)
        account.add_decision(
            replace(
                DECISION, id=symbol, symbol=symbol, action="BUY" if size > 0 else "SELL", size=abs(size), as_of=at,
                event=f"of {name}", expiry=at + timedelta(hours=4),
            )
        )  # fmt: skip


def together(account):
    """The correlation of two markets that move as one, shrunk by its sampling error."""
    correlation = float(account.scenarios.correlation[0, 1])
    assert correlation == account.scenarios.correlation[0, 2] > 0.98
    return correlation


def refused(account, symbols, name, side, without_tails=True):
    """Return the refusals of a new position with a strong signal, and its size."""
    symbol = symbols[name]
    found = account.portfolio(at_of(symbols), name, "new", side).to_dict()
    if without_tails:  # their budgets would refuse first
        found |= {"es": 0.0, "stress": 0.0}
    sides = np.full((1, N_SCORES), side)
    row = to_rows(
        sides, np.ones((1, N_SCORES)), regime=0, trend=1, unicorn=20.0 * side, event=side, tier=1, age_bars=0,
        breakers=0, embargoed=0, volatility=0.002, atr=0.004, price=float(symbol.closed.bar[CLOSE]), p=0.95, p_low=0.9,
        cost_bps=5.0, stop_cost_bps=5.0, miss_bps=-38.0, **found,
    )[0]  # fmt: skip
    out = np.empty(decision_kernel.OUT_WIDTH)
    code = decision_kernel.decide_row(row, flatten(PARAMS), out)
    return {codes.name_of(bit) for bit in codes.bits_of(code)}, float(out[decision_kernel.SIZE])


def test_two_positions_in_correlated_symbols_leave_no_room_for_a_third_on_their_side(account, symbols):
    bought(account, symbols, SIM=0.22, SIMB=0.20)
    assert refused(account, symbols, "SIMC/USDT", 1.0)[0] == {"CORRELATED_AT_LIMIT"}
    assert refused(account, symbols, "SIMC/USDT", -1.0)[0] == set()  # against them
    assert refused(account, symbols, "EUR/USD", 1.0)[0] == set()  # on its own


def test_a_correlated_position_leaves_a_smaller_size(account, symbols):
    alone = refused(account, symbols, "SIMC/USDT", 1.0)[1]
    bought(account, symbols, SIM=0.20, SIMB=0.18)
    names, size = refused(account, symbols, "SIMC/USDT", 1.0)
    assert (names, size) == (set(), pytest.approx(PARAMS.risk.budgets.max_correlated - 0.38 * together(account)))
    assert alone > size


def test_positions_in_two_symbols_of_a_currency_fill_its_budget_and_leave_that_of_another(account, symbols):
    limits = PARAMS.risk.budgets
    most = max(limits.max_market, limits.max_gross)
    bought(account, symbols, SIM=most / 2, SIMB=-most / 2)  # on two sides: they do not move together
    assert refused(account, symbols, "SIMC/USDT", 1.0)[0] >= {"MARKET_AT_LIMIT", "GROSS_EXCEEDS_LIMIT"}
    assert "MARKET_AT_LIMIT" not in refused(account, symbols, "EUR/USD", 1.0)[0]
    assert "GROSS_EXCEEDS_LIMIT" in refused(account, symbols, "EUR/USD", 1.0)[0]  # gross is of all


def test_a_position_in_a_symbol_that_is_not_live_opens_nothing_anywhere(account, symbols):
    bought(account, symbols, GONE=0.1)
    assert refused(account, symbols, "SIM/USDT", 1.0, without_tails=False)[0] == {"CANNOT_COMPUTE"}


def test_risk_shows_what_all_symbols_use_together_and_refuses_alike(account, symbols):
    bought(account, symbols, SIM=0.22, SIMB=0.20)
    found = utilisation(account, symbols, at_of(symbols), PARAMS, flatten(PARAMS), (), dict.fromkeys(NAMES, 1))
    limits = {(row["limit"], row["of"]): row for row in found["limits"]}
    assert limits["gross", ""]["used"] == pytest.approx(0.42)
    assert limits["market", "USDT"]["used"] == pytest.approx(0.42)
    assert limits["asset", "SIM/USDT"]["used"] == pytest.approx(0.22)
    assert limits["correlated", "SIMC/USDT long"]["used"] == pytest.approx(0.42 * together(account))
    assert limits["correlated", "SIMC/USDT long"]["share"] > 1.0
    (of_its_own,) = [row for (limit, of), row in limits.items() if limit == "correlated" and of.startswith("EUR/USD")]
    assert of_its_own["used"] < 0.1
    following = {(row["symbol"], row["side"]): row["refused"] for row in found["next"]}
    assert any(reason.startswith("CORRELATED_AT_LIMIT") for reason in following["SIMC/USDT", "long"])
    assert not any(reason.startswith("CORRELATED_AT_LIMIT") for reason in following["SIMC/USDT", "short"])
    assert found["tail"]["by_asset"].keys() == {"SIM/USDT", "SIMB/USDT"}
    assert (found["account"], len(found["positions"])) == ("ledger", 2)
