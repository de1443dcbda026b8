"""The page of the watch is made from what was stored, and names what was not run."""

from benchmarks import evidence, results, results_drift, watch_evidence
from pipelines.settings import load_params


def test_the_page_shows_what_was_stored_with_its_interval_and_names_the_rest(tmp_path):
    case = {"alarm": True, "missing_alarm": False, "blocks_in_alarm": 2, "missing_blocks_in_alarm": 0, "blocks": 10,
            "reason": "drift"}  # fmt: skip
    part = evidence.PARTS["drift_false_alarms"]
    evidence.save(tmp_path / "drift_false_alarms.json", part, {"0": case})
    summary = results.write_page(tmp_path / "drift.md", tmp_path, results_drift.PARTS, results_drift.drift_page)
    page = (tmp_path / "drift.md").read_text()
    assert "missing or incomplete: drift_false_alarms, drift_detection" in summary
    assert "| values, blocks a month | 2 | 0.2422 to 7.225 | 1 |" in page  # exact Poisson interval of two
    assert "| missing, blocks a month | 0 | 0 to 3.689 | 1 |" in page
    assert "false alarms a month" in page


def test_every_part_of_the_page_is_a_part_of_the_evidence():
    assert set(results_drift.PARTS) <= set(evidence.PARTS)
    assert results_drift.TITLES.keys() == results_drift.NOTES.keys() == set(results_drift.PARTS)


def test_figures_without_a_case_that_has_them_are_left_out():
    found = [{"days_to_alarm": None, "expected": 0.01}, {"days_to_alarm": None, "expected": 0.03}]
    assert watch_evidence.mean_figures("days_to_alarm", "expected")(found) == {
        "expected": {"value": 0.02, "low": 0.01, "high": 0.03, "n": 2}
    }


def test_the_split_of_false_alarms_is_within_one_a_month():
    budget = load_params().drift.false_alarms_a_month
    assert budget.values + budget.missing + budget.loss <= 1.0
