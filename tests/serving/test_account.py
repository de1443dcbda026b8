"""The account that follows from the ledger: exposure, today, drawdown, and the same figures after a restart."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.records import DECISION

from pipelines.contracts import Outcome
from pipelines.costs import costs_of
from pipelines.settings import load_params
from pipelines.store import BreakerTrip, DecisionRecord, Fill, Store
from serving.risk.account_report import account_report
from serving.risk.breaker_monitor import account_inputs
from serving.risk.breakers import triggered
from serving.risk.ledger_fills import entry_of, exit_of
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


def test_a_symbol_that_is_a_bar_behind_sees_what_the_others_opened_and_brings_no_day_back():
    account = Account()
    midnight = datetime(2024, 1, 2, tzinfo=UTC)
    account.add_decision(bought("a", midnight - HOUR))
    account.resolve(ended("a", -100.0, midnight - HOUR / 2))
    account.add_decision(replace(bought("b", midnight), symbol="A/USD"))
    account.add_decision(replace(bought("c", midnight - HOUR / 4), symbol="B/USD"))
    today = account.portfolio(midnight)
    assert (today.open_count, today.trades_today, today.daily_pnl) == (2.0, 1.0, 0.0)
    account.remove_decision(replace(bought("c", midnight - HOUR / 4), symbol="B/USD"))
    assert account.portfolio(midnight).trades_today == 1.0


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


# ---- fills of the ledger


COSTS = costs_of(load_params().costs, None, None)
BAR = np.array([T0.timestamp(), 100.0, 101.0, 99.0, 100.5, 1.0, np.nan, np.nan, np.nan])


def priced(id, action="BUY", at=T0, size=0.1):
    """An emitted decision at 100."""
    return replace(bought(id, at, size), action=action, direction=1 if action == "BUY" else -1, entry=100.0)


@pytest.mark.parametrize(("action", "side"), [("BUY", 1.0), ("SELL", -1.0)])
def test_an_emitted_decision_fills_at_the_next_open_with_half_the_spread_and_the_fee(action, side):
    fill = entry_of(priced("a", action), BAR, COSTS, T0 + HOUR)
    assert (fill.quantity, fill.fee_bps, fill.is_exit, fill.source) == (0.1, COSTS.fee_bps, False, "ledger")
    assert (fill.at, fill.ingested_at) == (T0, T0 + HOUR)
    assert fill.price == pytest.approx(100.0 * (1.0 + side * COSTS.half_spread_bps / 1e4))
    assert fill.slippage_bps == pytest.approx(COSTS.half_spread_bps)  # worse than decided, whatever the side
    recorded = np.append(BAR[:-1], 0.25)
    assert entry_of(priced("a", action), recorded, COSTS, T0).price == 100.0 + side * 0.25


@pytest.mark.parametrize("action", ["BUY", "SELL"])
@pytest.mark.parametrize("net_bps", [60.0, -45.0])
def test_the_exit_is_at_the_price_at_which_both_fills_earn_the_outcomes_net_return(action, net_bps):
    decision = priced("a", action)
    entry = entry_of(decision, BAR, COSTS, T0)
    left = exit_of(decision, entry, ended("a", net_bps), T0 + HOUR)
    side = 1.0 if action == "BUY" else -1.0
    earned = side * (left.price / entry.price - 1.0) * 1e4 - entry.fee_bps - left.fee_bps
    assert (earned, left.quantity, left.is_exit) == (pytest.approx(net_bps), 0.1, True)


def test_a_position_has_the_price_of_its_fill_until_its_outcome_which_leaves_an_exit_to_store():
    account, decision = Account(newest_closes=lambda _: np.array([101.0])), priced("a")
    account.add_decision(decision)
    (waits,) = account_report(account, T0, {})["positions"]
    assert (waits["filled_at"], waits["unrealised"], waits["entry"]) == (None, None, 100.0)
    assert account_report(account, T0, {})["unrealised"] is None
    entry = entry_of(decision, BAR, COSTS, T0)
    account.apply_fill(entry)
    account.apply_fill(entry)  # again
    assert account.unfilled == {}
    report = account_report(account, T0, {"account_mismatch": "a fill differs"})
    (shown,) = report["positions"]
    earned = 0.1 * (101.0 / entry.price - 1.0 - COSTS.fee_bps / 1e4)
    assert (shown["entry"], shown["unrealised"]) == (entry.price, pytest.approx(earned))
    assert (report["source"], shown["source"], report["mismatch"]) == ("ledger", "ledger", "a fill differs")
    account.resolve(ended("a", 60.0))
    assert account.equity == pytest.approx(1.0 + 0.1 * 60.0 / 1e4)
    assert (account_report(account, T0, {})["positions"], list(account.exits)) == ([], ["a"])
    account.apply_fill(exit_of(*account.exits["a"], T0 + HOUR))
    assert account.exits == {}


def test_a_restart_finds_the_fills_that_are_stored_and_those_that_are_due(url):
    store, account = Store.open(url), Account()
    for i, id in enumerate(("closed", "due", "open", "waits")):
        decision = priced(id, at=T0 + i * HOUR)
        store.add_decisions([DecisionRecord(decision, b"", b"")])
        account.add_decision(decision)
        if id != "waits":
            entry = entry_of(decision, BAR, COSTS, T0)
            store.add_fill(entry)
            account.apply_fill(entry)
        if id in ("closed", "due"):
            outcome = ended(id, 60.0, T0 + i * HOUR + HOUR / 2)
            store.add_outcome(outcome, outcome.resolved_at)
            account.resolve(outcome)
        if id == "closed":
            left = exit_of(*account.exits[id], T0)
            store.add_fill(left)
            account.apply_fill(left)
    restored = Account.restore(store)
    assert (list(restored.unfilled), list(restored.exits), list(restored.filled)) == (["waits"], ["due"], ["open"])
    at = T0 + 3 * HOUR
    assert account_report(restored, at, {}) == account_report(account, at, {})
    store.close()


# ---- what a venue reported


def report(id, of, price=100.0, at=T0, **changes):
    return replace(Fill(f"f{id}", of, at, at, "filled", price, 0.0, fee_bps=4.0), **changes)


def traded(*fills, size=0.1, action="BUY"):
    """An account by reports with one decision, `a`, and these reports of it."""
    account = Account(source="reported", assumed_fee_bps=10.0)
    account.add_decision(priced("a", action, size=size))
    for fill in fills:
        account.apply_fill(fill)
    return account


def test_by_reports_an_order_on_its_way_is_exposure_until_it_is_filled_rejected_or_out_of_time():
    assert traded().portfolio(T0).gross == 0.1
    assert traded().portfolio(T0 + 4 * HOUR).gross == 0.0
    assert traded(report(1, "a", None, status="rejected")).portfolio(T0).gross == 0.0
    filled = traded(report(1, "a", quantity=0.06), report(2, "a", 103.0, quantity=0.03))
    assert filled.portfolio(T0 + 9 * HOUR).gross == pytest.approx(0.09)  # open until its exit, whatever its expiry
    assert filled.filled["a"].price == pytest.approx(101.0)
    assert filled.mismatch is None


@pytest.mark.parametrize(("action", "side"), [("BUY", 1.0), ("SELL", -1.0)])
def test_by_reports_profit_is_of_the_reported_prices_quantities_and_fees_alone(action, side):
    account = traded(report(1, "a", quantity=0.1), action=action)
    account.resolve(ended("a", 500.0))  # the ledger's own outcome books nothing
    assert account.equity == 1.0
    account.apply_fill(report(2, "a", 102.0, T0 + HOUR, quantity=0.04, is_exit=True))
    half = 1.0 + 0.04 * (side * 0.02 - 8e-4)
    assert account.equity == pytest.approx(half)
    assert account.portfolio(T0 + HOUR).gross == pytest.approx(0.06)
    account.apply_fill(report(3, "a", 102.0, T0 + HOUR, fee_bps=None, is_exit=True))  # all of it, at the assumed fee
    assert account.equity == pytest.approx(half * (1.0 + 0.06 * (side * 0.02 - 14e-4)))
    assert (account.portfolio(T0 + HOUR).gross, account.mismatch) == (0.0, None)


@pytest.mark.parametrize(
    ("fills", "words"),
    [
        ([report(1, "a", quantity=0.12)], "fill f1: 0.1200 of the equity is open"),
        ([report(1, "a", quantity=0.1), report(2, "a", quantity=0.05)], "fill f2: 0.1500"),
        ([report(1, "never")], "fill f1 opened a position for decision never, which is closed in the ledger"),
        ([report(1, "a", is_exit=True)], "fill f1 closed a position of decision a that is not open here"),
        ([report(1, "a"), report(2, "a", quantity=0.2, is_exit=True)], "of which 0.1000 was open"),
    ],
)
def test_a_report_that_does_not_fit_what_was_decided_is_a_mismatch(fills, words):
    assert words in traded(*fills).mismatch
    (why,) = triggered(account_inputs(traded(*fills)), load_params()).values()
    assert words in why


def test_where_the_ledger_counts_a_reported_quantity_is_compared_and_a_price_alone_is_not():
    for quantity, expected in ((0.1, None), (None, None), (0.2, "fill f1: 0.2000")):
        account = Account()
        account.add_decision(priced("a"))
        account.apply_fill(report(1, "a", quantity=quantity))
        assert (account.mismatch or "").startswith(expected or "")
        assert (account.mismatch is None) == (expected is None)
        assert account.portfolio(T0).gross == 0.1


def test_a_position_that_a_venue_does_not_close_in_time_is_a_mismatch_that_a_reset_accepts():
    account = traded(report(1, "a"))
    account.find_overdue("SIM/USDT", T0 + 4 * HOUR)
    account.find_overdue("OTHER/USDT", T0 + 9 * HOUR)
    assert account.mismatch is None
    account.find_overdue("SIM/USDT", T0 + 5 * HOUR)
    assert "whose time was over at 2024-01-01 16:00:00 UTC, and reported no exit" in account.mismatch
    account.apply_reset(was_reset("account_mismatch", T0 + 5 * HOUR))
    account.find_overdue("SIM/USDT", T0 + 6 * HOUR)
    assert (account.mismatch, account.gross) == (None, 0.0)


def test_a_restart_finds_the_same_account_by_reports(url):
    store, account = Store.open(url), Account(source="reported", assumed_fee_bps=10.0)
    for i, id in enumerate(("closed", "part", "open", "waits")):
        decision = priced(id, at=T0 + i * HOUR)
        store.add_decisions([DecisionRecord(decision, b"", b"")])
        account.add_decision(decision)
        fills = [] if id == "waits" else [report(f"{i}0", id, at=T0 + i * HOUR, quantity=0.1)]
        if id in ("closed", "part"):
            quantity = {"closed": 0.1, "part": 0.03}[id]
            later = T0 + i * HOUR + HOUR / 2
            fills.append(report(f"{i}1", id, 101.0, later, quantity=quantity, is_exit=True))
        for fill in fills:
            assert store.add_fill(fill)
            account.apply_fill(fill)
    restored, at = Account.restore(store, "reported", 10.0), T0 + 3 * HOUR
    assert account_report(restored, at, {}) == account_report(account, at, {})
    assert restored.portfolio(at).to_dict() == account.portfolio(at).to_dict()
    assert restored.portfolio(at).gross == pytest.approx(0.07 + 0.1 + 0.1)
    store.close()
