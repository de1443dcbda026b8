"""The account the ledger implies: exposure, today, drawdown, and the same figures after a restart."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from test_ledger import DECISION

from pipelines.contracts import Outcome
from pipelines.store import DecisionRecord, Store
from serving.account import Account

T0 = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def bought(id, at=T0, size=0.1):
    return replace(
        DECISION, id=id, action="BUY", direction=1, size=size, as_of=at, known_at=at, expiry=at + 4 * HOUR, event="fvg"
    )  # fmt: skip


def ended(id, net_bps, at=T0 + HOUR):
    return Outcome(id, at, int(net_bps > 0), "target" if net_bps > 0 else "stop", net_bps + 5.0, net_bps, 5.0)


def test_an_emitted_decision_is_exposure_until_its_outcome_and_a_refused_one_never():
    account = Account()
    account.take(bought("a"))
    account.take(replace(bought("b", T0 + HOUR), action="NO_TRADE"))
    assert account.portfolio(T0 + HOUR).gross == 0.1
    account.resolve(ended("a", 100.0))
    after = account.portfolio(T0 + HOUR)
    assert (after.gross, after.open_count, after.trades_today) == (0.0, 0.0, 1.0)
    assert after.daily_pnl == pytest.approx(0.1 * 100 / 1e4)


def test_a_position_past_its_expiry_no_longer_counts_as_open_but_its_profit_still_comes():
    account = Account()
    account.take(bought("a"))
    assert account.portfolio(T0 + 4 * HOUR).open_count == 0.0
    account.resolve(ended("a", -200.0, T0 + 4 * HOUR))
    assert account.portfolio(T0 + 5 * HOUR).drawdown == pytest.approx(0.002)


def test_one_bar_opens_one_position_and_one_outcome_is_booked_once():
    account = Account()
    account.take(bought("a"))
    account.take(bought("again"))
    assert account.portfolio(T0).gross == 0.1
    account.resolve(ended("a", 100.0))
    account.resolve(ended("a", 100.0))
    assert account.equity == pytest.approx(1.001)


def test_a_decision_that_never_became_durable_leaves_no_trace():
    account = Account()
    account.take(bought("a"))
    account.drop(bought("a"))
    assert (account.portfolio(T0).gross, account.trades_today, account.sizes) == (0.0, 0, {})


def test_a_new_day_starts_at_nought_and_a_late_outcome_belongs_to_its_own_day():
    account = Account()
    account.take(bought("a"))
    tomorrow = T0 + timedelta(days=1)
    assert account.portfolio(tomorrow).trades_today == 0.0
    account.resolve(ended("a", -300.0, T0 + HOUR))
    today = account.portfolio(tomorrow)
    assert today.daily_pnl == pytest.approx(0.0)
    assert today.drawdown == pytest.approx(0.003)


def test_a_restart_rebuilds_the_same_account_from_the_ledger(tmp_path):
    store, account = Store.open(f"sqlite:///{tmp_path / 's.db'}"), Account()
    for i in range(5):
        decision = bought(str(i), T0 + i * HOUR)
        account.take(decision)
        store.add_decisions([DecisionRecord(decision, b"", b"")])
        if i < 3:
            outcome = ended(str(i), 80.0 - 60.0 * i, T0 + i * HOUR + HOUR / 2)
            account.resolve(outcome)
            store.add_outcome(outcome)
    at = T0 + 5 * HOUR
    assert Account.restore(store).portfolio(at).recorded() == account.portfolio(at).recorded()
    store.close()
