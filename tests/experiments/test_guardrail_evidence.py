"""The evidence on guardrails and on whole experiments, with small counts; docs/results/ab.md repeats it with many."""

import numpy as np
import pytest

from benchmarks import ab_end_to_end, ab_guardrails, ab_page
from benchmarks.ab_guardrails import SCENARIOS, SPLITS, guardrail_figures, guardrails
from benchmarks.ab_streams import streams
from pipelines.contracts import utc
from pipelines.experiments.guardrails import GUARDRAILS, latency_harm
from pipelines.experiments.sample_ratio import StageCount, sample_ratio


@pytest.mark.parametrize("metric", ["abstention", "novelty", "calibration"])
def test_block_means_of_a_scenario_have_the_stated_size(metric) -> None:
    one = next(one for one in SCENARIOS.values() if one.metric == metric and not one.harmless and one.size > 0)
    means = np.concatenate(list(ab_guardrails.block_means_of(one, one.size, np.random.default_rng(0), 5)))
    assert means.shape == (5, 120)
    assert means.mean() == pytest.approx(one.size, abs=0.03)


def test_every_guardrail_has_a_harmless_row_or_promises_nothing_and_a_harmful_one() -> None:
    harmless = {one.metric for one in SCENARIOS.values() if one.harmless}
    assert {rail.metric for rail in GUARDRAILS} - harmless == {"drawdown"}
    assert {one.metric for one in SCENARIOS.values() if not one.harmless} == {rail.metric for rail in GUARDRAILS}


def test_harm_trips_and_the_harmless_does_not() -> None:
    found = {name: guardrails(f"{name}|7", runs=4)["after"] for name in (
        "abstention: 50 % more", "abstention: at the limit", "calibration: off by .25", "calibration: calibrated",
        "fault: 5 % of the answers", "fault: no fault", "latency: 3 times slower", "latency: as fast as the champion",
        "drawdown: loses half of 0.5 % a day",
    )}  # fmt: skip
    harmful = {name for name, after in found.items() if all(after)}
    assert harmful == {name for name in found if not SCENARIOS[name].harmless}
    assert all(not any(after) for name, after in found.items() if name not in harmful)


def test_latency_trips_where_the_guardrail_does() -> None:
    times = np.random.default_rng(1).lognormal(np.log(10.0), 0.5, (2, 400)) * [[1.0], [2.6]]
    at = ab_guardrails.latency_trips(times, 25.0)
    assert at > 50
    assert latency_harm(*times[:, :at], 25.0).reason
    assert not any(latency_harm(*times[:, :n], 25.0).reason for n in range(50, at))
    assert ab_guardrails.medians_trip(times, 25.0)


def test_a_machine_is_slow_for_the_stated_share_of_the_time() -> None:
    slow = [ab_guardrails.slow_at_times(np.random.default_rng(seed), 9600).mean() for seed in range(200)]
    assert np.mean(slow) == pytest.approx(ab_guardrails.SLOW_SHARE, abs=0.02)


def test_the_evidence_of_a_split_is_that_of_the_test() -> None:
    hits = np.array([0, 3, 7])
    assert ab_guardrails.ratios(0.1, 8, hits) == pytest.approx(
        [sample_ratio([StageCount(0.1, 8, int(k))]) for k in hits]
    )
    none = guardrails("none, 4 symbols|7", runs=3)["after"]
    blocks = next(b for b in range(1, 6) if sample_ratio([StageCount(0.1, 20, 0), StageCount(0.5, 4 * b, 0)]) >= 1000)
    assert none == [5 + blocks] * 3
    assert not any(guardrails("as stated, 20 symbols|7", runs=50)["after"])


def test_figures_and_section_name_every_row_that_was_run() -> None:
    found = [{"case": f"{name}|0", "runs": 10, "after": [5] * 3 + [0] * 7} for name in (*SCENARIOS, *SPLITS)]
    text = "\n\n".join(ab_page.guardrail_section(guardrail_figures(found)))
    for name in (*(one.challenger for one in SCENARIOS.values()), *SPLITS):
        assert f" {name} |" in text
    assert "abstention: at most 60.32%, **not kept**" in text
    assert "| fault | 0 | no fault | 30.0% (10.8% to 60.3%) | 30.0% | over 9600 (5 to over 9600) answers |" in text


def test_blocks_on_the_store_are_those_of_the_stream(tmp_path) -> None:
    stream = next(streams("worse", 5, 1, ab_end_to_end.GATE_BLOCKS + 4, 0.03))
    installation = ab_end_to_end.home_in(tmp_path)
    experiment = ab_end_to_end.begun(installation, 0.2, 0.003)
    assert (experiment.begun, experiment.alpha) == (utc(ab_end_to_end.START.timestamp()), 0.02)
    ab_end_to_end.store_days(installation, stream, 0, 1)
    ab_end_to_end.store_days(installation, stream, 1, 2)
    assert ab_end_to_end.experiments.advance(installation, ab_end_to_end.FAMILY) == []
    scores = installation.store.block_scores(experiment.number)
    installation.store.close()
    assert [score.void for score in scores] == [""] * 3
    assert [score.mean for score in scores] == pytest.approx(
        stream.means()[0, ab_end_to_end.GATE_BLOCKS :][:3].tolist()
    )


def test_the_section_says_what_was_kept() -> None:
    case = {"blocks": 20, "void": 0, "same": True, "faults": 0, "alpha": 0.02, "after": 20, "broken": "",
            "misassigned": 0}  # fmt: skip
    states = {"better": "won", "equal": "expired", "worse": "stopped"}
    found = [{"case": f"{who}|{seed}", "state": state, **case} for who, state in states.items() for seed in range(40)]
    text = " ".join(ab_page.end_to_end_section(ab_end_to_end.end_to_end_figures(found)))
    assert text.count(", kept") == 6
    assert "| better | +0.03 | 0.00075 | 40 of 40 | 0 of 40 | 0 of 40 | 20 (20 to 20) |" in text
    found[0]["same"] = False
    found[40]["state"] = found[41]["state"] = "won"
    text = " ".join(ab_page.end_to_end_section(ab_end_to_end.end_to_end_figures(found)))
    assert text.count("**not kept**") == 2
