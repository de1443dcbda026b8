"""The commands as a whole: their list is shown without loading them, their help is short, their tables fit."""

import io
import subprocess
import sys
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from bellwether.cli import output
from bellwether.cli.decisions import brief
from bellwether.cli.main import COMMANDS, app
from pipelines.settings import ROOT

COMMAND_NAMES = list(COMMANDS)
WORDS = st.text("abcdefghijk_0.", min_size=1, max_size=20)
LOADED = """
import sys
from bellwether.cli.main import main
sys.argv = ["bellwether", sys.argv[1]]
try:
    main()
except SystemExit as ended:
    assert not ended.code
print([name for name in sys.modules if name.startswith(("bellwether.cli.", "flows", "serving", "pipelines"))])
"""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_list_of_commands_and_the_version_load_no_command(option):
    done = subprocess.run([sys.executable, "-c", LOADED, option], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['bellwether.cli.main']"


def test_the_list_shows_every_command_with_its_help():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f"{name} " in shown and help in shown for name, (_, help) in COMMANDS.items())


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_the_help_of_a_command_begins_with_its_line_in_the_list_of_under_ten_words(name):
    command, line = get_command(app).commands[name], COMMANDS[name][1]
    assert command.help.splitlines()[0].split(";")[0].rstrip(".") == line
    assert len(line.split()) < 10
    for subcommand in getattr(command, "commands", {}).values():
        assert len(subcommand.help.splitlines()[0].split()) < 10


def test_an_unknown_command_is_refused_with_a_similar_one():
    done = CliRunner().invoke(app, ["statsu"])
    assert done.exit_code == 2
    assert "'status'" in done.output


@pytest.fixture
def printed(monkeypatch, capsys):
    """Print a table 80 columns wide and return its lines."""
    monkeypatch.setattr(output.out, "width", 80)

    def lines(*table):
        output.table(*table)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return lines


def test_a_table_that_fits_has_its_words_whole_and_no_line_over_the_width(printed):
    words = "one position's standard deviation in its life, or in the life of all positions together"
    lines = printed("limits", ["layer", "of"], [["position", words], ["portfolio", None]])
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(lines).split()).count("deviation") == 1
    assert lines[-2] == "portfolio  –"


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=n, max_size=n), min_size=2, max_size=5
        )
    )
)
def test_no_table_breaks_a_word_or_is_wider_than_the_terminal(rows):
    terminal = Console(width=80, file=io.StringIO())
    with patch.object(output, "out", terminal):
        output.table("title", rows[0], rows[1:])
    printed = terminal.file.getvalue()
    assert {word for row in rows[1:] for text in row for word in text.split()} <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_a_row_whose_word_does_not_fit_has_it_whole_on_a_line_of_its_own(printed):
    path = "/home/" + 90 * "x"
    lines = printed("doctor", ["check", "detail", "remedy"], [["disk", "72 GB free", None], ["library", path, "make"]])
    assert lines == ["doctor", "disk     72 GB free", "library", "    detail:", f"    {path}", "    remedy: make", ""]


def test_a_decision_in_brief_is_what_a_trader_acts_on():
    answer = {
        "action": "NO_TRADE", "size": 0.0, "entry": None, "stop": None, "take_profits": [], "expiry": None, "p": 0.5,
        "arm": "champion", "tier": 2, "reasons": ["NO_EVENT", "TIER_2"], "id": "a1", "models": {}, "weights": {},
    }  # fmt: skip
    found = brief(answer)
    assert list(found) == [
        "action",
        "size",
        "entry",
        "stop",
        "targets",
        "expiry",
        "p",
        "arm",
        "tier",
        "first reason",
        "id",
    ]
    assert (found["first reason"], found["targets"]) == ("NO_EVENT", None)
    assert brief(answer | {"reasons": [], "take_profits": [104.0, 105.5]})["first reason"] == "emitted"
