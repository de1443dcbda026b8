"""The command line before anything runs: what it refuses at once, without starting a server or writing a file."""

import json
import os
import sys
from unittest.mock import patch

import pytest
from support.command_line import bellwether, environment

from bellwether.cli import main as cli
from pipelines.settings import ROOT, settings


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A command typed in this process, which must end with exit code 1; returns what it expected on standard error."""

    def typed(*words):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["bellwether", *words])
        settings.cache_clear()
        with patch.dict(os.environ, environment(tmp_path / "home"), clear=True), pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        return capsys.readouterr().err

    yield typed
    settings.cache_clear()


@pytest.mark.parametrize(
    ("words", "kind", "expected", "remedy"),
    [
        (["--source", "pigeon"], "UnknownName", "no market source 'pigeon'", "known: simulator, files"),
        (["--source", "files"], "BadValues", "needs a path", "--path"),
        (["--source", "files", "--path", "no[such].parquet", "--symbol", "BTC/USDT"], "UnreadableFile",
         "no[such].parquet: no such file", "Check the path"),
        (["--source", "files", "--path", "README.md", "--symbol", "BTC/USDT"], "UnreadableFile",
         "cannot read .md", ".zip"),
        (["--source", "exchange"], "BadValues", "many symbols", "--symbol BTC/USDT"),
        (["--source", "exchange", "--symbol", "BTC/USDT", "--days", "3"], "BadTimes", "no history",
         "Request at least 14 days"),
        (["--source", "exchange", "--symbol", "BTC/USDT", "--since", "soon"], "BadTimes",
         "soon is no day", "2024-01-31"),
        (["--days", "30"], "BadValues", "for --source exchange", "gives all it has"),
        (["--symbol", "B T C"], "UnknownName", "B T C", "BTC/USDT"),
        (["--symbol", "DOGE/USDT"], "UnknownName", "no DOGE/USDT", "set simulator.symbol"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_at_once_and_nothing_is_started_or_written(
    tmp_path, refused, words, kind, expected, remedy
):
    message = refused("run", "--once", *words)
    assert len(message.strip().splitlines()) == 1, message
    assert message.startswith(f"{kind}: ")
    assert expected in message
    assert remedy in message
    assert not (tmp_path / "home" / "run").exists()
    assert not (tmp_path / "home" / "logs").exists()


def test_status_of_an_empty_installation_answers_and_starts_nothing(tmp_path):
    done = bellwether(tmp_path / "home", "status", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["families"]) == {"validator", "pattern", "regime", "predictor"}
    assert all(slot is None for slots in answer["families"].values() for slot in slots.values())
    assert (answer["tier"], answer["data_hash"], answer["alarms"]) == (None, None, [])


def test_limits_and_weights_answer_before_anything_was_trained(tmp_path):
    limits = json.loads(bellwether(tmp_path / "home", "limits", "--json").stdout)
    assert {row["layer"] for row in limits} == {
        "data",
        "model",
        "signal",
        "position",
        "portfolio",
        "drawdown",
        "system",
    }
    assert next(row for row in limits if row["name"] == "max_drawdown")["value"] == 0.08
    answer = json.loads(bellwether(tmp_path / "home", "weights", "--json").stdout)
    assert (answer["use"], answer["outcomes"], answer["patterns"]) == ("shadow", 0, [])
    assert answer["learned"] == pytest.approx(answer["stated"]["base"])


def test_a_naive_moment_is_refused_with_the_way_to_write_it(tmp_path):
    done = bellwether(tmp_path / "home", "replay", "--since", "2025-01-01T00:00:00")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "2025-01-01T00:00:00+00:00 for UTC" in done.stderr


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["lineage"], "bellwether run --once"),
        (["lineage", "unknown-id"], "bellwether decide"),
        (["decide"], "bellwether run --once"),
        (["features"], "bellwether run --once"),
        (["drift"], "bellwether run --once"),
        (["risk"], "bellwether up"),
        (["account"], "bellwether up"),
        (["retrain"], "bellwether up"),
        (["promote", "validator", "1"], "bellwether up"),
        (["rollback", "validator"], "bellwether promote"),
    ],
)
def test_before_the_first_turn_every_command_names_the_command_to_run(tmp_path, words, remedy):
    done = bellwether(tmp_path / "home", *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"`{remedy}" in done.stderr
