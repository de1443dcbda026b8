"""The account that follows from the ledger: exposure, today, drawdown, and the same figures after a restart."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.records import DECISION

from pipelines.contracts import Outcome
from pipelines.store import BreakerTrip, DecisionRecord, Store
from serving.state.account import Account

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
    account.add_decision(bought("a"))
    account.add_decision(replace(bought("b", T0 + HOUR), action="NO_TRADE"))
    assert account.portfolio(T0 + HOUR).gross == 0.1
    account.resolve(ended("a", 100.0))
    after = account.portfolio(T0 + HOUR)
    assert (after.gross, after.open_count, after.trades_today) == (0.0, 0.0, 1.0)
    assert after.daily_pnl == pytest.approx(0.1 * 100 / 1e4)


def test_a_position_past_its_expiry_no_longer_counts_as_open_but_its_profit_still_comes():
    account = Account()
    account.add_decision(bought("a"))
    assert account.portfolio(T0 + 4 * HOUR).open_count == 0.0
    account.resolve(ended("a", -200.0, T0 + 4 * HOUR))
    assert account.portfolio(T0 + 5 * HOUR).drawdown == pytest.approx(0.002)


def test_one_bar_opens_one_position_and_one_outcome_is_booked_once():
    account = Account()
    account.add_decision(bought("a"))
    account.add_decision(bought("again"))
    assert account.portfolio(T0).gross == 0.1
    account.resolve(ended("a", 100.0))
    account.resolve(ended("a", 100.0))
    assert account.equity == pytest.approx(1.001)


def test_a_decision_that_never_became_durable_leaves_no_trace():
    account = Account()
    account.add_decision(bought("a"))
    account.remove_decision(bought("a"))
    assert (account.portfolio(T0).gross, account.trades_today, account.sizes) == (0.0, 0, {})


def test_a_new_day_starts_at_zero_and_a_late_outcome_belongs_to_its_own_day():
    account = Account()
    account.add_decision(bought("a"))
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
        account.add_decision(decision)
        store.add_decisions([DecisionRecord(decision, b"", b"")])
        if i < 3:
            outcome = ended(str(i), 80.0 - 60.0 * i, T0 + i * HOUR + HOUR / 2)
            account.resolve(outcome)
            store.add_outcome(outcome, outcome.resolved_at)
    at = T0 + 5 * HOUR
    assert Account.restore(store).portfolio(at).to_dict() == account.portfolio(at).to_dict()
    store.close()


# ---- resets by a person


def was_reset(name, as_of, id=1):
    return BreakerTrip(id, name, T0, "it tripped", T0, "ann", "seen", as_of)


def lost(*outcomes):
    """An account of six trades of half the equity each, with these outcomes booked."""
    account = Account()
    for i in range(6):
        account.add_decision(bought(str(i), T0 - 3 * HOUR + i * HOUR / 4, size=0.5))
    for outcome in outcomes:
        account.resolve(outcome)
    return account


def test_a_reset_drawdown_is_counted_from_where_it_was_accepted():
    account = lost(ended("0", 400.0), ended("1", -1000.0))
    account.apply_reset(was_reset("drawdown", T0 + HOUR))
    assert account.losses[1] == 0.0
    account.resolve(ended("2", -100.0, T0 + 2 * HOUR))
    assert account.losses[1] == pytest.approx(0.005)
    account.apply_reset(was_reset("drawdown", T0 + HOUR))  # the same reset, seen again
    assert account.losses[1] == pytest.approx(0.005)


def test_a_reset_daily_loss_is_counted_from_the_reset_that_day_and_on_no_other():
    account = lost(ended("0", -1000.0))
    account.apply_reset(was_reset("daily_loss", T0 + HOUR))
    assert account.losses == pytest.approx((0.0, 0.05))
    account.resolve(ended("1", -200.0, T0 + 2 * HOUR))
    assert account.losses[0] == pytest.approx(-0.01)
    account.portfolio(T0 + timedelta(days=1))
    account.resolve(ended("2", -100.0, T0 + timedelta(days=1)))
    before = account.losses
    account.apply_reset(was_reset("daily_loss", T0 + 3 * HOUR, id=2))  # of yesterday
    assert account.losses == before


def test_an_outcome_from_before_a_reset_that_arrives_after_it_was_accepted_too():
    early = lost(ended("0", -600.0), ended("1", -400.0))
    late = lost(ended("0", -600.0))
    for account in (early, late):
        account.apply_reset(was_reset("drawdown", T0 + HOUR))
        account.apply_reset(was_reset("daily_loss", T0 + HOUR, id=2))
    late.resolve(ended("1", -400.0))
    assert late.losses == pytest.approx(early.losses)
    assert late.equity == pytest.approx(early.equity)


def test_other_breakers_and_resets_of_an_older_release_change_nothing():
    account = lost(ended("0", -1000.0))
    before = account.losses
    for trip in (was_reset("volatility_spike", T0 + HOUR), was_reset("drawdown", None, id=2)):
        account.apply_reset(trip)
    assert account.losses == before


def test_a_restart_replays_resets_where_they_were(tmp_path):
    store, account = Store.open(f"sqlite:///{tmp_path / 's.db'}"), Account()
    for i in range(4):
        store.add_decisions([DecisionRecord(bought(str(i), T0 + i * HOUR, size=0.5), b"", b"")])
        account.add_decision(bought(str(i), T0 + i * HOUR, size=0.5))
        outcome = ended(str(i), -300.0, T0 + i * HOUR + HOUR / 2)
        store.add_outcome(outcome, outcome.resolved_at)
        account.resolve(outcome)
        if i in (1, 2):  # in the wall time of today, in the event time of T0
            name = ("drawdown", "daily_loss")[i - 1]
            store.trip(name, T0 + 1000 * HOUR, "over the limit")
            store.reset(name, T0 + 2000 * HOUR, "ann", "seen")
            account.apply_reset(store.breaker_trips(tripped_only=False)[-1])
    assert Account.restore(store).losses == account.losses == pytest.approx((-0.015, 1 - 0.985**2))
    store.close()
