"""The figures of the half hour and of the two turns, from samples and results as a run stores them."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks import evidence, live_half_hour, live_summary, universe_turns
from benchmarks.live_samples import differences, folder_bytes
from benchmarks.scratch_home import environment
from pipelines.params import Params
from pipelines.settings import load_params

START = datetime(2025, 1, 13, tzinfo=UTC)
DRIFT = START + timedelta(days=1)


def alarm(number, opened=True):
    return {"id": number, "kind": "drift", "severity": "high", "detail": "", "at": f"a{number}", "open": opened}


def sample(i, **changes):
    """Sample number i, of a market that goes on by an hour from one to the next."""
    return {
        "at": 1000.0 + 10.0 * i, "run": 1, "run_rss": 10**8, "rss": {"decision": 10**8 + i * 10**6}, "differences": [],
        "health": "HEALTHY", "market_time": (START + timedelta(hours=i)).isoformat(), "held": None,
        "age_bars": {"SIM/USDT": 0.5}, "tiers": {"SIM/USDT": 1}, "alarms": [], "retrains": [],
        "folders": {"store": 10**6 * i, "mlflow": 5},
    } | changes  # fmt: skip


def summed(samples):
    counted = {"SIM/USDT": {"closes": 4, "missing": 0, "doubled": 0, "decisions": 4}}
    return live_summary.summary(samples, counted, [DRIFT], 2.0, live_half_hour.GAP_S)


def test_a_drift_is_found_by_an_alarm_that_comes_after_it_and_one_before_is_counted_apart():
    samples = [sample(i, alarms=[alarm(1)] if i < 36 else [alarm(1, False), alarm(2)]) for i in range(50)]
    found = summed(samples)["drift"]
    assert found == {"dates": {DRIFT.isoformat(): 0.5}, "alarms_before": 0}  # the first sample already had alarm 1
    samples[0] = sample(0, market_time=None, alarms=[alarm(1)])  # no live bar yet
    assert summed(samples)["drift"]["dates"] == {DRIFT.isoformat(): 0.5}
    samples = [sample(i, alarms=[alarm(1)] if i > 3 else []) for i in range(20)]
    assert summed(samples)["drift"] == {"dates": {DRIFT.isoformat(): None}, "alarms_before": 1}


def test_retrains_that_were_requested_meanwhile_have_the_market_days_until_their_verdict():
    def request(number, hours):
        ended = None if hours is None else (START + timedelta(hours=5 + hours)).isoformat()
        return {"id": number, "at": (START + timedelta(hours=5)).isoformat(), "finished_at": ended, "reason": "drift"}

    samples = [
        sample(0, retrains=[request(1, 0)]),
        sample(1, retrains=[request(1, 0), request(2, 36), request(3, None)]),
    ]
    assert [(each["id"], each["days"]) for each in summed(samples)["retrains"]] == [(2, 1.5), (3, None)]


def test_growth_leaves_out_peaks_and_counts_the_time_that_samples_cover():
    samples = [sample(i) for i in range(50)]
    samples[47]["rss"] = {"decision": 10**10}
    for i in (3, 49):
        samples[i]["rss"]["jobs"] = 10**9 + i * 10**6  # flow runs come and go
    found = summed(samples)
    assert found["jobs_mb"] == 1049.0
    assert found["growth_mb"] == {"decision": 40.0, "bellwether run": 0.0}
    assert found["home_mb_hour"] == {"mlflow": 0.0, "store": 360.0, "all": 360.0}
    assert found["home_end_mb_hour"] == 360.0
    retraining = [*samples[:-1], samples[-1] | {"folders": {"store": 10**9, "mlflow": 5}}]  # it ends while one runs
    assert summed(retraining)["home_mb_hour"]["all"] == 360.0
    assert summed(retraining)["home_end_mb_hour"] > 7_000.0
    samples[25:] = [one | {"at": one["at"] + 5000.0, "run": 2} for one in samples[25:]]  # interrupted, then continued
    assert live_half_hour.covered_s(samples) == summed(samples)["covered_s"] == 480.0
    assert summed(samples)["runs"] == 2


def test_old_data_the_emergency_tier_and_a_status_without_an_answer_are_counted():
    samples = [
        sample(0), sample(1, age_bars={"SIM/USDT": 2.5}), sample(2, tiers={"SIM/USDT": 4}),
        {**sample(3), "error": "no answer"}, sample(4, differences=["champion of validator: status 1, ledger 2"]),
    ]  # fmt: skip
    found = summed(samples)
    assert (found["stale_samples"], found["oldest_age_bars"], found["status_true"]) == (2, 2.5, 3)
    figures = live_summary.live_figures([found])
    assert figures["status true, share of samples"]["value"] == 0.6
    assert figures["samples without an answer"]["value"] == 1.0
    assert evidence.PARTS["live_half_hour"].sums is live_summary.live_figures


def test_status_may_say_what_the_ledger_held_before_or_after_and_nothing_else():
    def ledger(version, *alarms):
        newest = {"SIM/USDT": "2025-01-13T01:00:00+00:00"}
        return {"champions": {"validator": version}, "alarms": list(alarms), "newest": newest}

    def status(version, alarms=(), newest="2025-01-13T01:15:00+00:00"):
        return {
            "families": {"validator": {"champion": version and {"version": version}, "challenger": None}},
            "alarms": [{"kind": "drift", "at": at} for at in alarms],
            "universe": [{"symbol": "SIM/USDT", "newest_bar": newest}],
        }

    assert differences(status("2", ["a1"]), ledger("1", alarm(1)), ledger("2")) == []
    assert differences(status("3"), ledger("1"), ledger("2")) == ["champion of validator: status 3, ledger ['1', '2']"]
    assert len(differences(status("1"), ledger("1", alarm(1)), ledger("1", alarm(1)))) == 1
    assert len(differences(status("1", ["a9"]), ledger("1"), ledger("1"))) == 1
    assert len(differences(status("1", newest="2025-01-13T00:45:00+00:00"), ledger("1"), ledger("1"))) == 1


def test_a_file_with_two_names_is_counted_once(tmp_path):
    for name in ("bundles", "mlflow"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundles" / "a").write_bytes(b"x" * 100)
    os.link(tmp_path / "bundles" / "a", tmp_path / "mlflow" / "a")
    (tmp_path / "universe.json").write_bytes(b"x" * 7)
    assert folder_bytes(tmp_path) == {"bundles": 100, ".": 7}


def test_the_drift_lies_in_the_half_hour_and_the_changed_parameters_are_valid(tmp_path):
    env = environment(tmp_path, live_half_hour.changes())
    params = load_params(tmp_path / "params.yaml")
    assert isinstance(params, Params)
    assert params.drift.block_bars == 96
    market_days = live_half_hour.LIVE_S * params.feed.speed / 86400
    after = params.simulator.drift_after_live_days - params.simulator.live_days
    assert 0 < after < market_days / 2
    assert env["BELLWETHER_HOME"] == str(tmp_path / "home")
    assert universe_turns.symbols_of(universe_turns.ONE) == list(params.universe.symbols[:1])
    assert universe_turns.symbols_of(universe_turns.ALL) == list(params.universe.symbols)


def test_the_ratio_of_two_turns_and_the_page_of_them():
    def case(name, seconds, symbols):
        rows = [["log loss", "0.68", "0.67 to 0.69", 3854]]
        return {
            "case": name, "symbols": symbols, "exit_code": 0, "seconds": seconds, "turn_seconds": seconds,
            "figures": {"validator": rows}, "gates": {"validator": "passed"}, "untrained": {}, "left_out": {},
            "decisions": {symbol: {"NO_TRADE": 280, "LONG": 8} for symbol in symbols},
        }  # fmt: skip

    found = [case(universe_turns.ONE, 100.0, ["A"]), case(universe_turns.ALL, 210.0, ["A", "B"])]
    figures = universe_turns.turn_figures(found)
    assert figures["ratio, at most 2.3"]["value"] == pytest.approx(2.1)
    assert figures["B: decisions"]["value"] == 288
    assert "ratio, at most 2.3" not in universe_turns.turn_figures([found[0], {**found[1], "exit_code": 1}])
    part = {"figures": figures, "cases": {each["case"]: each for each in found}, "machine": "one", "at": "2025-01-01"}
    text = universe_turns.page_of({"universe_turns": part}, [])
    assert "| B | 288 | 8 |" in text
    assert "| log loss | 0.68 | 0.67 to 0.69 | 3854 |" in text


def test_the_page_of_the_half_hour_has_a_line_a_symbol_service_and_folder():
    found = summed([sample(i, alarms=[alarm(1)] if i > 30 else []) for i in range(50)])
    part = {
        "figures": live_summary.live_figures([found]), "cases": {"half hour": found}, "machine": "one",
        "at": "2025-01-01",
    }  # fmt: skip
    text = live_summary.page_of({"live_half_hour": part}, [])
    for line in (
        "| SIM/USDT | 4 | 4 | 0 | 0 |",
        "| decision | 149 | 40 |",
        "| store | 360 |",
        "| planted drifts | 1 |",
    ):
        assert line in text
