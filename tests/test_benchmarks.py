"""Every benchmark the README names exists, runs at a tiny size, and gives finite figures and ratios."""

import json
import math
import re

import numpy as np
import pytest

from benchmarks import evidence
from benchmarks.__main__ import NAMES, measure, table
from benchmarks.exits import Market, PlanResult, exit_cost_bps, verdict
from benchmarks.measured import in_turn, pairs
from benchmarks.signals import detection
from pipelines.contracts import BAR_WIDTH, HALF_SPREAD, OPEN_TIME
from pipelines.costs import costs_of
from pipelines.data.simulator.market import Planted
from pipelines.data.timeframes import Grid
from pipelines.labels.barriers import TIME
from pipelines.settings import ROOT, load_params
from serving.risk.exits import flatten, simulate_exits


def test_every_benchmark_the_readme_names_exists():
    named = set(re.findall(r"benchmarks[./](\w+)", (ROOT / "README.md").read_text()))
    named -= {
        "columns",
        "evidence",
        "exits",
        "fusion",
        "portfolio",
        "signals",
        "simulator_edge",
        "stress",
        "tail_risk",
    }
    assert named <= set(NAMES)
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_measures_both_sides_of_each_ratio_in_one_run(name):
    rows = measure(name, tiny=True)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    assert ratios
    assert all(0.0 < r.low <= r.median <= r.high < math.inf for r in ratios)
    assert all(row.theirs is not None and row.compared_with for row in rows if row.ratio is not None)
    assert all(row.ours.median > 0.0 and row.ours.n > 0 for row in rows)
    assert table(rows, name).row_count == len(rows)


def test_a_side_that_does_ten_times_the_work_is_about_ten_times_slower():
    ours, theirs = in_turn(lambda: sum(range(1_000)), lambda: sum(range(10_000)), repeats=9)
    assert 4 < pairs("", "s", ours, "", theirs).ratio.median < 25


def planted(*patterns):
    """Patterns of (start, end, kind, direction)."""
    start, end, kind, direction = np.array(patterns, dtype=float).T
    return Planted(start, end, kind.astype(int), direction, np.ones(len(start)), np.ones(len(start)))


def answers_at(n, **at):
    answers = np.zeros((n, 2), bool)
    answers[at.get("long", []), 0] = True
    answers[at.get("short", []), 1] = True
    return answers


def test_a_planted_pattern_is_found_by_an_answer_of_its_direction_in_its_window_only():
    opens = 60.0 * np.arange(1000)
    truth = planted((6000, 6005, 1, 1), (12000, 12005, 1, -1), (18000, 18005, 0, 1))  # bars 100, 200 and 300
    found = detection(answers_at(1000, long=[103, 201, 300], short=[204]), opens, truth, kind=1, after=3)
    assert (found.recall.value, found.recall.n) == (0.5, 2)  # 204 comes too late, 201 has the wrong side
    assert (found.precision.value, found.precision.n) == (0.25, 4)
    assert found.recall.low < 0.5 < found.recall.high
    assert detection(answers_at(1000), opens, truth, kind=1, after=3) is None
    assert detection(answers_at(1000, long=[1]), opens, truth, kind=2, after=3) is None


def test_chance_finds_what_as_many_random_answers_find():
    opens, rng = 60.0 * np.arange(50_000), np.random.default_rng(7)
    start = 60.0 * np.sort(rng.choice(49_000, 1000, replace=False)) + 1
    truth = planted(*[(t, t + 1, 1, way) for t, way in zip(start, rng.choice([-1, 1], 1000), strict=True)])
    found = detection(rng.random((50_000, 2)) < 0.05, opens, truth, kind=1, after=3)
    assert found.by_chance_recall == pytest.approx(1 - 0.95**4, abs=0.01)  # one of four bars answers
    assert found.recall.value == pytest.approx(found.by_chance_recall, abs=0.05)
    assert found.precision.value == pytest.approx(found.by_chance_precision, abs=0.01)


def test_a_plan_to_leave_a_position_is_called_better_only_where_its_whole_interval_is():
    plain = np.random.default_rng(5).normal(0.0, 50.0, 2000)
    none = np.zeros(2000, int)
    gains = {"plain": 0.0, "ladder": 1.0, "trailing": -1.0, "ladder_trailing": np.tile([90.0, -90.0], 1000)}
    found = [PlanResult(plan, plain + gain, plain + gain - 5.0, none, none, none) for plan, gain in gains.items()]
    text = verdict(found, load_params()).replace("\n", " ")
    assert "whole interval: `ladder`; worse: `trailing`.**" in text
    assert "above zero with the whole interval: none." in text


def test_a_position_pays_its_spread_once_where_only_some_bars_record_it():
    """Flat prices: all that a position loses is its cost, the same whether bars record the spread or it is assumed."""
    params, half = load_params(), 0.005  # .5 bps of 100, as `costs.half_spread_bps` assumes
    base = np.full((40, BAR_WIDTH), 100.0)
    base[:, OPEN_TIME] = 60.0 * np.arange(40)
    decided, side = 600.0 * np.arange(4), np.array([1, -1, 1, -1])
    costs = costs_of(params.costs, "binance", "spot")
    fill, last = 10 * np.arange(4), 10 * np.arange(4) + 4
    for at_fill, at_exit in ((half, half), (np.nan, np.nan), (half, np.nan), (np.nan, half)):
        base[:, HALF_SPREAD] = half
        base[fill, HALF_SPREAD], base[last, HALF_SPREAD] = at_fill, at_exit
        found = simulate_exits(
            base, decided, np.full(4, 100.0), side, np.full(4, 0.01), 300.0, flatten(params.exits, params.labels)
        )
        assert set(found.barrier) == {TIME}
        market = Market("", "", base, base, Grid("1m"), Grid("1m"), costs)
        assert found.gross_bps - exit_cost_bps(market, found) == pytest.approx([-21.0] * 4, abs=1e-3)


def test_evidence_goes_on_where_it_ended_and_forgets_figures_of_other_code(tmp_path):
    part = evidence.Part("description", ("a", "b"), None, evidence.share("alarm"))
    path = tmp_path / "part.json"
    figures = evidence.save(path, part, {"a": {"alarm": True}})
    assert figures["alarm"]["n"] == 1
    assert evidence.stored(path, again=False) == {"a": {"alarm": True}}
    assert json.loads(path.read_text())["complete"] is False
    assert evidence.stored(path, again=True) == {}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "of other code"}))
    assert evidence.stored(path, again=False) == {}
