"""Time is cut into bars, days and weeks in one place: a test of the sources, with the places that may and why."""

import ast
import re

import pytest

from pipelines.settings import ROOT

PACKAGES = ("bellwether", "flows", "pipelines", "serving")
GRID = {f"pipelines/data/{name}.py" for name in ("timeframes", "calendars", "sessions")}
LENGTH = re.compile(
    r"_([sS]|seconds|SECONDS)$|^(.*_)?(step|period|DAY|WEEK|HOUR)$"
)  # names of lengths of time, and of times
TIME = re.compile(r"^(OPEN_TIME|times?|moments?|opened|known|at_s)$")
LENGTHS = {60.0, 180.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 43_200.0, 86_400.0, 604_800.0}
ROUNDING = {"floor", "ceil", "round", "rint", "trunc", "int", "astype"}
# file → at how many places it cuts, what, and why that needs no hours of a market
ALLOWED = {
    "bellwether/operations/feed_pace.py": (1, "how many bars the feed is late, from wall time"),
    "bellwether/operations/feed_report.py": (1, "bars a second of wall time, for a person"),
    "flows/support/experiment_blocks.py": (2, "blocks of an experiment, counted in horizons from its start"),
    "flows/support/experiment_guardrails.py": (1, "blocks of an experiment, counted from its start"),
    "flows/support/experiments.py": (1, "the first block of a stage, counted from the experiment's start"),
    "flows/support/due.py": (1, "intervals of runs in market time, counted since the epoch"),
    "pipelines/costs.py": (2, "times of funding: an exchange's own hours since the epoch, not bars"),
    "pipelines/data/admission.py": (
        1,
        "spacings of bars against one another: which timeframe they show",
    ),
    "pipelines/data/bar_clock.py": (4, "seconds of the day by a clock, which is what it is for"),
    "pipelines/data/feeds/simulator.py": (1, "minutes of the simulator, whose markets trade day and night"),
    "pipelines/data/findings.py": (1, "weeks of UTC: in how many of them a market was filled in, for a sentence"),
    "pipelines/data/funding.py": (1, "whole hours of UTC, at which alone funding is settled"),
    "pipelines/data/readers/exchange.py": (8, "pages of an exchange that trades day and night"),
    "pipelines/data/readers/named.py": (1, "midnights of UTC: whether the dates of a series have a time of day"),
    "pipelines/data/readers/recordings.py": (2, "kernel: snapshots of a recorded book, evenly spaced since the epoch"),
    "pipelines/data/readers/trades.py": (2, "bars made of trades and of quotes, of a market that trades day and night"),
    "pipelines/data/simulator/funding.py": (2, "eight hours of UTC of a market that trades day and night"),
    "pipelines/data/simulator/market.py": (1, "the simulator, whose markets trade day and night"),
    "pipelines/data/simulator/market_path.py": (4, "the simulator, whose markets trade day and night"),
    "pipelines/data/simulator/stream.py": (1, "minutes of the simulator, whose markets trade day and night"),
    "pipelines/evaluation/allocation.py": (4, "days of UTC, the rows of an allocation"),
    "pipelines/evaluation/backtest.py": (7, "days of UTC of the account: limits of losses a day"),
    "pipelines/evaluation/crises.py": (
        1,
        "bars that a window of a crisis should hold, of markets that trade day and night",
    ),
    "pipelines/evaluation/signals.py": (1, "holding time as a number of bars, for a table"),
    "pipelines/evaluation/stress.py": (2, "days of UTC, and a horizon of days as a number of bars"),
    "pipelines/evaluation/stress_limits.py": (1, "days of UTC of the account: limits of losses a day"),
    "pipelines/experiments/eprocess.py": (1, "blocks of outcomes from the beginning of an experiment"),
    "pipelines/experiments/assignment.py": (1, "blocks of an experiment, counted from its start"),
    "serving/policy/online_weights.py": (1, "days of UTC: how far a weight may move in one"),
}


def name_of(node):
    """Return the last name of an expression: DAY_S, grid.step_s → step_s, float(step) → step, TIMEFRAMES[x] → …"""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr=name):
            return name
        case ast.Call(func=func, args=[inner, *_]) if name_of(func) in ("int", "float", "seconds"):
            return "step" if name_of(func) == "seconds" else name_of(inner)
        case ast.Subscript(value=ast.Name(id=name)) if "TIMEFRAME" in name:
            return "step"
    return ""


def is_length(node):
    """Return whether an expression is a length of time: a name of one, or a number of seconds of one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value) in LENGTHS
    return bool(LENGTH.search(name_of(node)))


def is_time(node):
    """Return whether an expression mentions a time, such as the open of bars."""
    if isinstance(node, ast.Call) and name_of(node.func) in ("slots", "closed_by"):  # a count of bars
        return False
    return any(TIME.search(name_of(part)) for part in ast.walk(node) if isinstance(part, ast.Name))


def cuts(tree):
    """Return the (line, text) of every expression that cuts a time into pieces of some length.

    A remainder, a whole quotient or a rounded one, by a length or of a time; a quotient by the length of a bar. A plain
    quotient by an hour or a day is a unit.
    """
    rounded = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in ROUNDING:
            parts = [*node.args, *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
            rounded |= {id(part) for part in parts}
    for node in ast.walk(tree):
        if not isinstance(node, ast.BinOp):
            continue
        whole = isinstance(node.op, ast.Mod | ast.FloorDiv) and not isinstance(node.left, ast.Constant | ast.JoinedStr)
        whole |= isinstance(node.op, ast.Div) and id(node) in rounded
        by_bar = isinstance(node.op, ast.Div) and name_of(node.right) in ("step_s", "base_s", "bar_s")
        if by_bar or (whole and (is_length(node.right) or is_time(node.left))):
            yield node.lineno, ast.unparse(node)


def found():
    """Return file → the cuts in it, outside the modules of the grid."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    names = {file.relative_to(ROOT).as_posix(): file for file in files}
    every = {name: list(cuts(ast.parse(file.read_text()))) for name, file in names.items() if name not in GRID}
    return {name: lines for name, lines in every.items() if lines}


def test_no_other_module_cuts_time_into_bars():
    every, most = found(), {name: most for name, (most, _) in ALLOWED.items()}
    more = [f"{name}: {lines}" for name, lines in every.items() if len(lines) > most.get(name, 0)]
    assert not more, "use pipelines.data.timeframes.Grid, or say here why not: " + "; ".join(more)
    assert most == {name: len(lines) for name, lines in every.items()}, "a place that is gone is still allowed"


@pytest.mark.parametrize(
    "source",
    ["times % step", "bars[:, OPEN_TIME] // 900", "bars[:, OPEN_TIME] % x", "(moment - close) / self.step_s",
     "np.floor(times / DAY_S)", "times // int(DAY_S)", "int(at / 3600)", "(t / WEEK_S).astype(int)",
     "t // seconds(name)", "t % TIMEFRAME_SECONDS[name]", "round(a / grid.step_s)", "t // 86_400 * 86_400",
     "np.floor(time[i] / width) * width", "-(-t // step)"],
)  # fmt: skip
def test_a_cut_is_seen(source):
    assert [text for _, text in cuts(ast.parse(source))], source


@pytest.mark.parametrize(
    "source", ["seconds / 3600.0", "(b - a) / DAY_S", "'%s' % step", "f'{x}' % day", "n % 7", "rows // 2", "a * DAY_S"]
)
def test_a_unit_or_a_count_is_no_cut(source):
    assert not list(cuts(ast.parse(source))), source
