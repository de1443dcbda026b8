"""One watch over several markets: each has its own inputs and alarms, all of them one budget and one edge."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.watched_home import BLOCK, QUARTER, START, WatchedHome, feature_rows

from flows import monitor as monitor_module
from flows.monitor import as_text, summary_of, trip_model, universe, watch_each
from flows.support import market_time, watches
from flows.support.live_outcomes import Resolved
from flows.support.monitor_summary import markets_of
from flows.support.watches import MARKET_FAULT, ServedReader, family_watch, model_under_watch
from pipelines.errors import UnknownName
from pipelines.features.catalog import FEATURES
from pipelines.monitoring.drift import alarm_rates
from pipelines.monitoring.loss import pooled_until

BTC, ETH, SOL = "BTC/USDT:USDT", "ETH/USDT", "SOL/USDT"
VOLATILITY = FEATURES.index["volatility_20"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home of three markets whose champion was trained on the first two."""
    made = WatchedHome(tmp_path, monkeypatch, symbols=(BTC, ETH, SOL), trained_on=(BTC, ETH))
    yield made
    made.store.close()


def quiet(blocks, seed):
    return feature_rows(blocks * BLOCK, seed)


def drifted(blocks, seed):
    rows = quiet(blocks, seed)
    rows[:, VOLATILITY] *= 4.0
    return rows


def subjects(home, kind):
    """Return whom the open alarms of this kind are about."""
    return [alarm.detail.split(": ")[0] for alarm in home.store.alarms() if alarm.kind == kind]


def test_a_drift_in_one_market_is_an_alarm_that_names_it_and_the_others_are_quiet(home):
    home.serve(quiet(1, 2), {ETH: drifted(1, 3)})
    watched, due = home.watch()
    assert [(market.symbol, market.drift.alarm) for market in watched.markets] == [(BTC, False), (ETH, True)]
    assert watched.worst.symbol == ETH
    assert [(reason.kind, reason.market) for reason in due] == [("drift", ETH)]
    assert subjects(home, "drift") == [f"validator {ETH}"]
    (text,) = as_text({"validator": due})["validator"]
    assert text.startswith(f"drift: {ETH}: drift: 1 of 1 blocks")
    summary = summary_of([watched], None)
    assert f"{ETH}: drift: 1 of 1 blocks" in summary
    assert f"no drift in {BTC}" in summary
    assert f"{SOL} not watched: not in the training of version 1" in summary


def test_a_drift_that_begins_in_another_market_is_a_new_condition_and_a_new_retrain(home):
    home.serve(quiet(1, 2), {ETH: drifted(1, 3)})
    home.watch()
    assert home.retrain()
    home.serve(quiet(1, 4), {ETH: drifted(1, 5)})
    assert home.watch()[1] == []  # answered
    home.serve(drifted(1, 6), {ETH: drifted(1, 7)})
    assert [reason.market for reason in home.watch()[1]] == [BTC]
    assert subjects(home, "drift") == [f"validator {ETH}", f"validator {BTC}"]
    home.serve(quiet(1, 8), {ETH: drifted(1, 9)})
    home.watch()
    assert subjects(home, "drift") == [f"validator {ETH}"]


def test_alarms_of_markets_that_are_watched_no_more_and_of_earlier_releases_end(home):
    at = home.at
    for detail in ("validator: of release 0.10", f"validator {SOL}: left the training", f"validator {ETH}: still so"):
        home.store.raise_alarm("drift", "warning", detail, at)
    home.store.raise_alarm("drift", "warning", "pattern: of another family", at)
    home.serve(quiet(1, 2))
    monitor_module.reasons_of(home.installation, family_watch(home.installation, model(home), [BTC]))
    assert sorted(subjects(home, "drift")) == ["pattern", f"validator {ETH}"]  # ETH was not looked at now


def model(home):
    return model_under_watch(home.installation, "validator")


def test_the_budget_of_false_alarms_is_shared_over_families_and_markets_whichever_are_looked_at(home):
    home.line("promote", "1", True, family="pattern")
    home.serve(quiet(1, 2), {ETH: quiet(1, 3)})
    expected = alarm_rates(home.installation.params.drift.false_alarms_a_month, BLOCK, 900.0, 2 * 3)
    assert [market.rates for market in home.family_watch().markets] == [expected, expected]
    (alone,) = family_watch(home.installation, model(home), universe(home.installation, ETH)).markets
    assert (alone.symbol, alone.rates) == (ETH, expected)
    with pytest.raises(UnknownName, match="it holds BTC"):
        universe(home.installation, "XAU/USD")


def test_a_fault_in_one_market_is_alarmed_by_name_and_the_others_go_on(home):
    home.serve(quiet(1, 2), {ETH: drifted(1, 3)})
    home.at += QUARTER
    home.store.add_decisions([home.decision(b"12345678", symbol=BTC)])  # of no catalogue that ever was
    watched, reasons = watch_each(home.installation, (BTC, ETH))
    assert [market.symbol for market in watched[0].markets] == [ETH]
    assert [reason.market for reason in reasons["validator"]] == [ETH]
    assert subjects(home, MARKET_FAULT) == [f"validator {BTC}"]
    assert f"{BTC} not watched: a fault, which the alarm market_fault names" in summary_of(watched, None)
    found = markets_of(watched, {BTC: Resolved(2, 5), ETH: "its outcomes met a fault"})
    assert found[BTC]["drift"]["validator"].startswith("not watched: a fault")
    assert (found[BTC]["resolved"], found[BTC]["family_outcomes"]) == (2, 5)
    assert found[ETH]["fault"] == "its outcomes met a fault"
    with watches.isolate_market(home.installation, f"validator {BTC}"):
        pass  # the fault is gone
    assert subjects(home, MARKET_FAULT) == []


def test_each_market_is_read_once_for_all_families(home, monkeypatch):
    home.line("promote", "1", True, family="pattern")
    home.serve(quiet(1, 2), {ETH: quiet(1, 3)})
    read = []
    whole = watches.served_rows
    monkeypatch.setattr(watches, "served_rows", lambda i, symbol, since: read.append(symbol) or whole(i, symbol, since))
    watched, _ = watch_each(home.installation, (BTC, ETH, SOL))
    assert [w.model.family for w in watched] == ["validator", "pattern"]
    assert read == [BTC, ETH]
    reader = ServedReader(home.installation, START)
    later = START + 10 * QUARTER
    assert reader.rows(BTC, later).at_s.tolist() == whole(home.installation, BTC, later).at_s.tolist()


# ---- the edge


def outcomes(home, days, follows, net=0.0):
    """Resolve a decision on two markets every two hours, as the forecast says or as often against it."""
    rng, features = np.random.default_rng(1), feature_rows(1, 9).tobytes()
    for _ in range(days * 12):
        home.at += timedelta(hours=2)
        for symbol in (BTC, ETH):
            p = 0.65 if rng.random() < 0.5 else 0.25
            home.store.add_decisions([home.decision(features, p=p, symbol=symbol, action="BUY")])
            home.resolve(int(rng.random() < (p if follows else 0.45)), net + float(rng.normal(0.0, 5.0)), symbol)
    home.bars(home.at)


def test_the_edge_is_that_of_all_markets_by_blocks_of_time(home):
    outcomes(home, 5, follows=True)
    pooled = home.family_watch().loss.blocks
    asked = family_watch(home.installation, model(home), [BTC])  # a look at one market is no other edge
    assert asked.loss.blocks.n.tolist() == pooled.n.tolist()
    alone = watches.compare_loss(home.installation, model(home), [BTC]).blocks
    assert pooled.start_s.tolist() == alone.start_s.tolist()
    assert pooled.n.tolist() == (2 * alone.n).tolist()


def test_a_lost_edge_that_costs_money_in_all_markets_together_trips_the_model_and_names_them(home):
    outcomes(home, 40, follows=False, net=-12.0)
    watched = home.family_watch()
    assert watched.loss.alarm is True
    assert f"version 1 at {BTC}, {ETH}" in trip_model(home.installation, watched)


def test_a_block_waits_for_the_slowest_market_but_not_for_one_that_stopped(home):
    assert pooled_until([100.0, 90.0, 95.0], 20.0) == 90.0
    assert pooled_until([100.0, 10.0, 95.0], 20.0) == 95.0
    home.bars(home.at + timedelta(hours=9), [BTC])
    home.bars(home.at + timedelta(hours=6), [ETH])
    until = watches.outcomes_until_s(home.installation, model(home), (BTC, ETH))
    assert until == (home.at + timedelta(hours=6)).timestamp()


# ---- the clock


def test_a_market_with_its_own_clock_ages_by_it_whatever_the_time_of_day(home, monkeypatch):
    """The simulated market is of 2024, the time of day of 2026: an hour of it is a day of the market."""
    wall = [datetime(2026, 1, 1, tzinfo=UTC)]
    for module in (monitor_module, market_time, watches):
        monkeypatch.setattr(module, "now", lambda: wall[0])
    manifest = home.installation.workspace / "data" / "manifest.json"
    version = json.loads(manifest.read_text())
    for facts in version["markets"].values():
        facts["clock"] = "market"
    manifest.write_text(json.dumps(version))
    market = home.at
    home.at = wall[0]
    home.line("challenge", "1", True)  # judged before the first bar of the feed came
    home.line("promote", "1", True)
    kinds = []
    for day in range(1, 9):
        wall[0] += timedelta(hours=1)
        home.bars(market + timedelta(days=day), came=wall[0])
        kinds.append([reason.kind for reason in home.watch()[1]])
    interval = home.installation.params.retrain.interval_days
    assert kinds == [[]] * interval + [["schedule"]]  # the history ended a bar after its last day
    assert f"{interval + 1}.0 days since the last retrain" in home.alarms()["schedule"]
    assert all(alarm.at.year == 2026 for alarm in home.store.alarms())  # people read the time of day
