"""The evidence on experiments, with small counts; docs/results/ab.md repeats it with thousands."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from benchmarks import ab, ab_page, evidence, results
from benchmarks.ab_streams import (
    BASE_RATE,
    EVENTS_A_DAY,
    HORIZON,
    HORIZONS,
    NULLS,
    PERIOD,
    SKILL,
    SYMBOLS,
    error_of,
    spread_of,
    streams,
)
from pipelines.experiments.eprocess import block_means
from pipelines.experiments.verdict import progress_of, win_evidence
from pipelines.settings import ROOT

BAR_S = 900.0


def test_blocks_of_a_stream_are_those_of_the_ledger() -> None:
    stream = next(streams("labels", 0, 1, 4))
    bars, symbols = np.nonzero(stream.events[0])
    found = block_means(
        bars * BAR_S, stream.gains[0][bars, symbols], origin_s=0.0, until_s=4 * PERIOD * BAR_S,
        horizon_s=HORIZON * BAR_S, horizons=HORIZONS,
    )  # fmt: skip
    assert stream.means()[0] == pytest.approx(found.mean, rel=1e-12)
    assert found.n.sum() == pytest.approx(4 * SYMBOLS * EVENTS_A_DAY * HORIZONS / (HORIZONS + 1), rel=0.25)


@pytest.mark.parametrize(("kind", "gain", "mean"), [
    *((kind, 0.0, 0.0) for kind in NULLS), ("better", 0.01, 0.01), ("worse", 0.018, -0.018),
])  # fmt: skip
def test_a_stream_has_its_stated_gain(kind, gain, mean) -> None:
    means = np.concatenate([stream.means() for stream in streams(kind, 1, 10, 100, gain)])
    error = means.std() / np.sqrt(means.size)
    assert abs(means.mean() - mean) < 4.0 * error
    assert error < 0.004  # so that a gain of the wrong size would show


def test_outcomes_overlap_and_symbols_move_together() -> None:
    gains = np.concatenate([stream.gains for stream in streams("AR 0", 2, 20, 20)])
    near, far = (np.corrcoef(gains[:, :-lag].ravel(), gains[:, lag:].ravel())[0, 1] for lag in (1, HORIZON))
    assert near == pytest.approx(1.0 - 1.0 / HORIZON, abs=0.02)
    assert abs(far) < 0.05
    assert np.corrcoef(gains[..., 0].ravel(), gains[..., 1].ravel())[0, 1] == pytest.approx(0.5, abs=0.08)


def test_the_error_of_a_champion_costs_what_is_stated() -> None:
    rng = np.random.default_rng(3)
    true = np.log(BASE_RATE / (1.0 - BASE_RATE)) + spread_of(SKILL) * rng.standard_normal(400_000)
    stated = true + error_of(0.01) * rng.standard_normal(len(true))
    chance = 1.0 / (1.0 + np.exp(-true))
    cost = chance * (true - stated) - np.logaddexp(0.0, true) + np.logaddexp(0.0, stated)
    assert cost.mean() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("kind", ["AR .6", "GARCH, skewed"])
def test_looking_after_every_block_is_safe_and_the_wrong_ways_are_not(kind) -> None:
    found = ab.false_promotions(f"{kind}|7", runs=40, blocks=60)
    assert found["ours|0.05"] <= 0.05 * found["runs"]
    assert found["t_test|0.05"] > 0.1 * found["runs"]
    assert found["each|0.05"] > 0.3 * found["runs"]
    assert found["clipped"] <= 0.01 * found["blocks"]


def test_a_gain_is_found_faster_the_larger_it_is_and_no_faster_than_by_a_fixed_test() -> None:
    figures = ab.power_figures([
        {"case": case, **ab.power(case, runs=25, blocks=100)} for case in ("0.01|7", "0.03|7")
    ])  # fmt: skip
    assert figures["0.03|0.05|median"]["value"] < figures["0.01|0.05|median"]["value"]
    assert figures["0.03|0.05|120"]["value"] > 0.9
    assert figures["0.03|0.05|price"]["value"] > 1.0
    assert figures["0.03|0.05|median"]["value"] < figures["0.03|0.005|median"]["value"]
    assert figures["0.01|split"]["value"] < 0.25


def test_harm_is_stopped_and_a_useful_challenger_is_not() -> None:
    worse = ab.futility("worse by the skill|0.03|7", runs=20)["stopped"]["0.2"]
    better = ab.futility("better by the skill|0.03|7", runs=20)["stopped"]["0.2"]
    assert np.mean(np.array(worse) > 0) > 0.95
    assert np.mean(np.array(better) > 0) < 0.2


def test_a_year_counts_each_promotion_and_spends_less_than_its_budget() -> None:
    rng = np.random.default_rng(4)
    noise = 0.03 * rng.standard_normal((1, ab.GATE_BLOCKS + ab.YEAR_BLOCKS + ab.MAX_BLOCKS))
    none, gaining = ab.a_year(noise), ab.a_year(noise + 0.03)
    assert none["experiments"] == none["stopped"] + none["expired"] + none["won"]
    assert 0.05 < none["alpha"] < 1.0
    assert none["won"] == 0
    assert gaining["won"] == gaining["experiments"] > none["experiments"]
    assert gaining["alpha"] < 1.0


def test_the_counts_of_the_evidence_are_those_of_the_verdict() -> None:
    blocks = ab.blocks_of(0.01 + 0.03 * np.random.default_rng(5).standard_normal((6, ab.GATE_BLOCKS + 120)))
    first = ab.first_at(win_evidence(blocks.scaled, 1.0), ab.ALPHA)
    for means, bound, at in zip(blocks.means, blocks.bounds[:, 0], first, strict=True):
        rules = ab.Rules(ab.ALPHA, float(bound), 0.0, 0.0, 0)
        decided = progress_of(means, rules).decided_at
        assert at == (0 if decided is None else decided + 1)
    assert max(first) > 0


def test_the_repeated_t_test_is_the_textbook_one() -> None:
    means = np.random.default_rng(6).standard_normal((3, 30))
    expected = [stats.ttest_1samp(row[:20], 0.0).statistic for row in means]
    assert ab.t_values(means)[:, 19] == pytest.approx(expected, rel=1e-9)


def test_a_median_that_was_not_reached_is_none() -> None:
    assert ab.median_of([10, 20, 30, 0, 0])["value"] == 30.0
    assert ab.median_of([10, 0, 0])["value"] is None
    reached = ab.median_of(list(range(1, 101)))
    assert (reached["low"], reached["value"], reached["high"]) == (41.0, 50.5, 61.0)


def test_the_page_shows_what_was_stored_and_names_what_is_missing_or_not_kept(tmp_path) -> None:
    part = evidence.PARTS["ab_false_promotions"]
    counts = {f"{way}|{level:g}": 9 for way in ("ours", "t_test", "each") for level in ab.LEVELS}
    evidence.save(tmp_path / "ab_false_promotions.json", part, {"AR 0|0": {"runs": 100, "clipped": 1, "blocks": 12000}
                                                                | counts})  # fmt: skip
    summary = results.write_page(tmp_path / "ab.md", tmp_path, ab_page.PARTS, ab_page.ab_page)
    text = (tmp_path / "ab.md").read_text()
    assert "missing or incomplete: ab_false_promotions, ab_years, ab_power, ab_futility, ab_" in summary
    assert "| AR 0 | 0.05 | 9.00%, at most 16.23% | 9.0% | 9.0% | 0.008% | 100 |" in text
    assert "0.05: at most 16.23%, **not kept**" in text
    assert json.loads((tmp_path / "ab_false_promotions.json").read_text())["complete"] is False


def test_every_part_of_the_page_is_a_part_of_the_evidence() -> None:
    assert set(ab_page.PARTS) <= set(evidence.PARTS)


def test_the_measured_page_has_the_words_of_its_writer() -> None:
    page = " ".join((ROOT / "docs" / "results" / "ab.md").read_text().split())
    texts = [value for name, value in vars(ab_page).items() if name.isupper() and isinstance(value, str)]
    parts = [" ".join(part.split()) for text in texts for part in re.split(r"\{[^}]*\}", text)]
    assert len(parts) > 20
    assert [part for part in parts if part not in page] == []
    assert "Not run" not in page
