"""Bars held back and bars corrected: what is folded, what decisions rest on, and what replay says of them."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from support.decision_service import as_json, running_service
from support.service_probes import alarms, eventually, next_decision, status
from support.serving_fixture import SYMBOL, slot_entry
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.operations import corrections
from bellwether.operations.replay_decisions import replay_decisions
from flows.support.installation import Installation
from pipelines.contracts import CLOSE, HIGH, OPEN_TIME, utc
from pipelines.data.schemas import to_frame, write_bars
from pipelines.errors import BadTimes, BadValues, StateError, UnknownName
from pipelines.settings import load_params, settings
from pipelines.store import Promotion, Signed
from pipelines.warm_start import read_warm_start
from serving.state.symbols import Symbol, restore_symbol

PARAMS = load_params()


@pytest.fixture
def served(stand, tmp_path):
    """Return a service of its own with a champion, after two decisions."""
    (tmp_path / "bundles").mkdir()
    with running_service(stand, tmp_path) as client:
        client.serve(slot_entry("1", client.champion))
        client.store().add_promotion(Promotion(
            at=utc(0), actor="tests", action="promote", family="validator", arm="champion", from_version=None,
            to_version="1", digest=client.champion, run_id="run1", data_hash="d" * 32, git_commit="c" * 40,
            verdict_passed=True, reason="tests",
        ))  # fmt: skip
        next_decision(client)
        client.first = next_decision(client)
        yield client


@pytest.fixture
def installation(served):
    return Installation(settings(), PARAMS, served.store())


def signed(reason="the venue corrected it"):
    return Signed("ann", datetime.now(UTC), reason)


def send(client, rows):
    answer = client.call("/observe", {"symbol": SYMBOL, "bars": [as_json(row) for row in rows]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def spoiled(client, n=15, at=7, factor=1e6):
    """Return the next n live rows of which one reaches up by a factor."""
    rows = client.stand.live[client.sent : client.sent + n].copy()
    client.sent += n
    rows[at, HIGH] *= factor
    return rows


def folded(client, bars):
    """Return what a new process would hold after these bars."""
    return restore_symbol(read_warm_start(client.stand.stage), bars)


def features_of(decision, client):
    return client.store().decision(decision["id"]).features


def followed(client, moment):
    return eventually(lambda: status(client)["symbols"][SYMBOL]["reading"] == moment.isoformat())


def test_a_price_out_of_all_proportion_is_held_back_named_and_raises_an_alarm(served):
    rows = spoiled(served)
    answer = send(served, rows)
    opened = utc(rows[7, OPEN_TIME]).isoformat()
    assert [(datetime.fromisoformat(q["open_time"]).isoformat(), q["reason"]) for q in answer["quarantined"]] == [
        (opened, "COLLAR")
    ]
    assert (answer["received"], answer["new"], len(answer["closed"]), answer["reason"]) == (15, 14, 1, None)
    decision = served.decide()
    without = np.delete(served.stand.live[: served.sent], served.sent - 8, axis=0)
    assert features_of(decision, served) == folded(served, without).closed.features.tobytes()
    (alarm,) = eventually(lambda: alarms(served, "bar_quarantined"))
    assert alarm.severity == "high"
    assert "more than 1.5 times outside of" in alarm.detail
    (held,) = served.store().quarantined(SYMBOL)
    np.testing.assert_array_equal(held.bar, rows[7])
    assert status(served)["symbols"][SYMBOL]["withheld"] == 1
    again = send(served, rows)  # the feed sends them again
    assert (again["new"], len(again["quarantined"])) == (0, 1)
    assert len(served.store().quarantined(SYMBOL)) == 1


def test_following_bars_at_the_same_distance_are_held_back_until_a_person_releases_them(served, installation):
    rows = served.stand.live[served.sent : served.sent + 30].copy()
    served.sent += 30
    rows[:, 1:5] *= 10.0
    first = send(served, rows[:15])
    assert (first["new"], len(first["quarantined"]), first["closed"]) == (0, 15, [])
    assert eventually(lambda: alarms(served, "bar_quarantined"))
    held = corrections.held(installation, (), SYMBOL)
    shown = corrections.release(installation, held, signed(), dry_run=True)
    assert shown == corrections.Decided()
    assert len(served.store().quarantined(SYMBOL)) == 15
    decided = corrections.release(installation, held, signed("a new contract unit"))
    assert followed(served, decided.corrections[-1].at)
    assert status(served)["symbols"][SYMBOL]["withheld"] == 0
    assert [alarm.cleared_at is not None for alarm in alarms(served, "bar_quarantined")] == [True]
    second = send(served, rows[15:])  # inside the new range
    assert (second["new"], second["quarantined"], len(second["closed"])) == (15, [], 1)
    with pytest.raises(StateError, match="was released by ann"):
        corrections.drop(installation, held[:1], signed())


def test_a_dropped_bar_stays_out_and_its_alarm_ends(served, installation):
    rows = spoiled(served)
    send(served, rows)
    assert eventually(lambda: alarms(served, "bar_quarantined"))
    held = served.store().quarantined(SYMBOL)
    assert len(corrections.drop(installation, held, signed()).dropped) == 1
    assert [alarm.cleared_at is not None for alarm in alarms(served, "bar_quarantined")] == [True]
    assert send(served, rows)["quarantined"][0]["reason"] == "COLLAR"
    assert served.store().corrections(SYMBOL) == []


def test_a_correction_is_folded_and_decisions_keep_the_reading_they_were_made_on(served, installation):
    bar = served.stand.live[served.sent - 8].copy()  # the last of a decision bar
    bar[[HIGH, CLOSE]] *= 1.001
    decided = corrections.correct(installation, SYMBOL, bar[np.newaxis], signed())
    assert followed(served, decided.corrections[0].at)
    second = served.decide()  # on the same bar, read otherwise: another decision
    assert second["id"] != served.first["id"]
    assert second["as_of"] == served.first["as_of"]
    assert second["lineage"]["reading"] == decided.corrections[0].at.isoformat()
    assert "reading" not in served.first["lineage"]
    live = served.stand.live[: served.sent].copy()
    live[served.sent - 8] = bar
    assert features_of(second, served) == folded(served, live).closed.features.tobytes()
    assert features_of(second, served) != features_of(served.first, served)
    assert send(served, served.stand.live[served.sent - 20 : served.sent])["new"] == 0  # the feed sends the old one

    records = served.store().decisions(SYMBOL)
    then, now = (replay_decisions(installation, records, reading) for reading in ("then", "now"))
    assert (then.decisions, then.equal, then.reading) == (3, 3, "then")
    assert (now.equal, now.reading) == (2, "now")  # the first decision came before the corrected bar
    assert [found["id"] for found in now.different] == [served.first["id"]]
    assert "features" in now.different[0]["fields"]
    assert now.to_dict()["reading"] == "now"


def test_a_bar_set_aside_counts_no_more_and_comes_back(served, installation):
    at = utc(served.stand.live[served.sent - 3, OPEN_TIME])
    decided = corrections.set_aside(installation, SYMBOL, at, signed("a wrong print"))
    assert followed(served, decided.corrections[0].at)
    second = served.decide()
    without = np.delete(served.stand.live[: served.sent], served.sent - 3, axis=0)
    assert features_of(second, served) == folded(served, without).closed.features.tobytes()
    again = send(served, served.stand.live[served.sent - 3 : served.sent])
    assert [q["reason"] for q in again["quarantined"]] == ["SET_ASIDE"]
    assert again["new"] == 0
    with pytest.raises(UnknownName, match="no observed bar"):
        corrections.set_aside(installation, SYMBOL, at, signed())
    back = corrections.release(installation, served.store().quarantined(SYMBOL), signed())
    assert followed(served, back.corrections[0].at)
    assert features_of(served.decide(), served) == features_of(served.first, served)


def test_what_the_live_state_cannot_reach_is_refused_naming_the_run(served, installation):
    last = served.stand.base[len(served.stand.base) - len(served.stand.live) - 1]
    with pytest.raises(BadTimes, match=r"last bar of the data version.*`bellwether run`\. Nothing was changed"):
        corrections.correct(installation, SYMBOL, last[np.newaxis], signed())
    with pytest.raises(BadTimes, match="`bellwether run`"):
        corrections.set_aside(installation, SYMBOL, utc(last[OPEN_TIME]), signed())
    bad = served.stand.live[3].copy()
    bad[HIGH] = 1.0
    with pytest.raises(BadValues, match=r"bars\.0\.high: 1 is below low"):
        corrections.correct(installation, SYMBOL, bad[np.newaxis], signed())
    with pytest.raises(UnknownName, match="known: SIM/USDT"):
        corrections.correct(installation, "ETH/USDT", bad[np.newaxis], signed())


def test_the_next_process_leaves_out_what_this_one_held_back(stand):
    live = stand.live[:45].copy()
    live[40, HIGH] *= 1e6
    symbol = Symbol(read_warm_start(stand.stage))
    rows, held = symbol.hold_back(live, PARAMS.data.quality)
    assert len(rows) == 44
    again = restore_symbol(read_warm_start(stand.stage), rows, withheld={held[0].bar[OPEN_TIME]: held[0].code})
    assert again.withheld_of(live) == [(live[40, OPEN_TIME], "COLLAR")]
    nothing = again.validate_new(live[40:41], datetime(2025, 1, 1, tzinfo=UTC), lambda after, until: rows[:0])
    assert len(nothing) == 0


# ---- commands, with no service running


@pytest.fixture
def stopped(stand, tmp_path, monkeypatch):
    """Return the store of a home with observed bars, one of them held back; nothing runs."""
    (tmp_path / "bundles").mkdir()
    with running_service(stand, tmp_path) as client:
        client.serve(slot_entry("1", client.champion))
        next_decision(client)
        send(client, spoiled(client))
        assert eventually(lambda: alarms(client, "bar_quarantined"))
        store = client.store()
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    monkeypatch.setenv("BELLWETHER_DECISION_PORT", "9")
    monkeypatch.setenv("USER", "bob")
    settings.cache_clear()
    yield store
    settings.cache_clear()


def data(*words):
    return CliRunner().invoke(app, ["data", *words])


def shown(*words):
    """Return what a command prints, which fits eighty columns."""
    done = data(*words)
    assert done.exit_code == 0, done.exception
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    return " ".join(done.stdout.split())


def test_the_commands_show_and_decide_what_is_held_back_at_eighty_columns(stopped):
    assert "COLLAR" in shown("quarantine", "list")
    (held,) = json.loads(data("quarantine", "list", "--json").stdout)["quarantined"]
    number, opened = str(held["id"]), held["open_time"]
    assert "by admission" in shown("quarantine", "show", number)
    assert "needs a reason" in str(data("quarantine", "release", number).exception)
    assert "nothing was changed" in shown("quarantine", "release", number, "--reason", "true", "--dry-run")
    assert "nothing was changed" in shown("quarantine", "drop", "--symbol", SYMBOL, "--reason", "true", "--dry-run")
    assert "one of the two" in str(data("quarantine", "drop", "--reason", "true").exception)
    assert len(stopped.quarantined()) == 1

    text = f"open_time={opened} open=40000 high=40010 low=39990 close=40001 volume=3"
    words = ("correct", SYMBOL, "--bar", text, "--reason", "the venue's own bar", "--by", "ann", "--json")
    found = json.loads(data(*words).stdout)
    assert [(one["before"], one["by"], one["after"]["volume"]) for one in found["corrections"]] == [(None, "ann", 3.0)]
    assert found["service_follows"] is None
    assert stopped.quarantined() == []
    assert [alarm.cleared_at is not None for alarm in stopped.alarms(open_only=False)] == [True]
    assert "put in ann the venue's own bar" in shown("corrections", SYMBOL)
    assert "1 bar(s) set aside" in shown("quarantine", "set-aside", SYMBOL, opened, "--reason", "not so")
    assert stopped.quarantined()[0].by == "bob"
    assert "dropped" in shown("quarantine", "drop", "2", "--reason", "not so")
    assert "dropped" in shown("quarantine", "list", "--all")


def test_a_file_of_right_bars_corrects_those_that_differ(stopped, tmp_path):
    observed = stopped.bars(SYMBOL)[-4:]
    observed[1, CLOSE] = observed[1, HIGH]
    grid = read_warm_start(next((tmp_path / "serving" / "warm").iterdir())).base_grid
    file = tmp_path / "right.parquet"
    write_bars(to_frame(observed, grid, None), file)
    assert "4 bar(s) would be corrected; nothing was changed" in shown(
        "correct", SYMBOL, "--file", str(file), "--reason", "x", "--dry-run"
    )
    assert "1 of 4 bar(s) corrected" in shown("correct", SYMBOL, "--file", str(file), "--reason", "the venue")
    assert stopped.bars(SYMBOL)[-3, CLOSE] == observed[1, HIGH]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--bar", "open_time=soon open=1 high=1 low=1 close=1"), "open_time: this is not a time"),
        (("--bar", "open_time=2024-01-09T08:00Z open=1"), "high: Field required"),
        (("--bar", "open"), "is no name=value"),
        ((), "one of the two"),
    ],
)
def test_a_bar_that_is_none_is_refused_by_field(stopped, words, problem):
    assert problem in str(data("correct", SYMBOL, "--reason", "x", *words).exception)
