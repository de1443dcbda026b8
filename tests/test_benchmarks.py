"""Every benchmark the README names is there, runs at a tiny size, and gives figures and ratios that can be read."""

import json
import math
import re

import pytest

from benchmarks import evidence
from benchmarks.__main__ import NAMES, measure, table
from benchmarks.measured import in_turn, pairs
from pipelines.settings import ROOT


def test_every_benchmark_the_readme_names_exists():
    named = set(re.findall(r"benchmarks[./](\w+)", (ROOT / "README.md").read_text())) - {"evidence"}
    assert named <= set(NAMES)
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_measures_both_sides_of_each_ratio_in_one_run(name):
    rows = measure(name, tiny=True)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    assert ratios
    assert all(0.0 < r.low <= r.median <= r.high < math.inf for r in ratios)
    assert all(row.theirs is not None and row.beside for row in rows if row.ratio is not None)
    assert all(row.ours.median > 0.0 and row.ours.n > 0 for row in rows)
    assert table(rows, name).row_count == len(rows)


def test_a_side_that_does_ten_times_the_work_is_about_ten_times_slower():
    ours, theirs = in_turn(lambda: sum(range(1_000)), lambda: sum(range(10_000)), repeats=9)
    assert 4 < pairs("", "s", ours, "", theirs).ratio.median < 25


def test_evidence_goes_on_where_it_ended_and_forgets_figures_of_other_code(tmp_path):
    part = evidence.Part("told", ("a", "b"), None, evidence.share("alarm"))
    path = tmp_path / "part.json"
    figures = evidence.save(path, part, {"a": {"alarm": True}})
    assert figures["alarm"]["n"] == 1
    assert evidence.stored(path, again=False) == {"a": {"alarm": True}}
    assert json.loads(path.read_text())["complete"] is False
    assert evidence.stored(path, again=True) == {}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "of other code"}))
    assert evidence.stored(path, again=False) == {}
