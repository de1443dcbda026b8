"""Rules of single checks, each on rows made so that only the stated rule decides."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation.calibration import calibration_error
from pipelines.evaluation.gates import Evidence, against_champion, calibrated, evidence_of, lift, luck
from pipelines.evaluation.metrics import lift_of
from pipelines.settings import load_params
from pipelines.stage_outputs import timings_file

PARAMS = load_params()
GATE = PARAMS.gate
N = 2_000


def evidence(n=N, **given):
    """Return evidence of the validator on n rows whose outcomes no one knows, with the fields given."""
    rng = np.random.default_rng(3)
    flat = np.full(n, 0.5)
    plain = Evidence(
        family="validator", loss_name="log loss", classes=("target_first",), loss=np.zeros(n),
        baseline_losses={"base_rate": np.zeros(n)}, p=flat, y=(rng.random(n) < 0.5).astype(float), champion_loss=None,
        trials=1, parity_gap=0.0, latency_ms=0.1, schema_coverage=1.0, novel_share=0.0,
        baselines={"base_rate": flat}, gross_bps=rng.normal(0.0, 40.0, n),
    )  # fmt: skip
    return replace(plain, **given)


# ---- against the champion


def compared(gain, own, noise, mode):
    """Return the check of a challenger that is better by `gain` than a champion whose own skill is `own`.

    noise  standard deviation of the differences; their mean is `gain` exactly
    """
    drawn = np.random.default_rng(1).normal(0.0, noise, N)
    champion = gain + drawn - drawn.mean()
    e = evidence(champion_loss=champion, baseline_losses={"base_rate": champion + own})
    gate = GATE.model_copy(update={"against_champion": mode})
    return against_champion(e, PARAMS.model_copy(update={"gate": gate}))


def test_an_improvement_large_enough_is_refused_where_its_interval_reaches_zero():
    line = compared(gain=0.01, own=0.02, noise=1.0, mode="superior")
    assert line.value > GATE.min_improvement_share * 0.02
    assert line.low < 0.0
    assert not line.passed
    assert compared(gain=0.01, own=0.02, noise=0.01, mode="superior").passed


@pytest.mark.parametrize(("own", "passed"), [(0.002, False), (0.1, True)])
def test_what_may_be_lost_is_a_share_of_the_champions_own_skill(own, passed):
    """Half of .002 is less than the .003 that is lost, half of .1 is more; no one margin fits both."""
    line = compared(gain=-0.003, own=own, noise=1e-4, mode="non_inferior")
    assert line.value == pytest.approx(-0.003)
    assert line.passed == passed


# ---- calibration


def test_the_calibration_error_of_a_perfect_model_is_not_the_noise_of_its_bins():
    """The mean square of ten bins of fifty rows is that of their noise, .07, before the noise is subtracted."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.3, 0.6, 500)
        found.append(calibration_error(p, (rng.random(500) < p).astype(float)).error.value)
    assert np.sqrt(np.mean(np.square(found))) < 0.04
    assert np.median(found) < 0.02


def test_the_least_of_many_classes_chances_is_corrected_for_their_number():
    """One of eight classes is off by what chance gives one class in fifty, and one in six where eight are judged."""
    rng, cells, classes = np.random.default_rng(5), 300, 8
    p = rng.uniform(0.35, 0.55, (cells, classes))
    y = (rng.random(p.shape) < p).astype(float)
    shifted = [p[:, 0] + by for by in np.arange(-0.15, 0.15, 0.002)]
    found = [calibration_error(each, y[:, 0]) for each in shifted]
    at = next(
        i for i, each in enumerate(found)
        if 0.012 < each.chance < 0.02 and each.error.value > GATE.max_calibration_error
    )  # fmt: skip
    p[:, 0] = shifted[at]
    e = evidence(cells, family="pattern", classes=tuple("abcdefgh"), p=p, y=y)
    line = {each.name: each for each in calibrated(e, PARAMS)}["calibration_error:a"]
    assert line.value > GATE.max_calibration_error
    assert line.passed
    (alone,) = calibrated(replace(e, classes=("a",), p=p[:, :1], y=y[:, :1]), PARAMS)
    assert alone.passed is False


# ---- the most confident share


def test_the_lift_is_that_of_the_rows_above_the_threshold_of_their_training_window():
    """Ranks among earlier predictions decide, not the order of p among the rows to be judged."""
    rank = np.random.default_rng(7).random(N)
    e = evidence(p=np.linspace(0.1, 0.9, N), rank=rank)
    line, _ = lift(e, PARAMS)
    taken = rank >= 1.0 - GATE.coverage
    assert (line.n, line.value) == (int(taken.sum()), pytest.approx(lift_of(taken, e.gross_bps).value))


def test_without_earlier_predictions_the_most_confident_rows_are_those_of_each_fold():
    """Over all rows the second fold, calibrated higher, is the whole share."""
    p, half = np.tile(np.linspace(0.1, 0.3, N // 2), 2), np.repeat([0, 1], N // 2)
    e = evidence(p=p + 0.5 * half, fold=half)
    line, _ = lift(e, PARAMS)
    taken = p >= np.quantile(p, 1.0 - GATE.coverage)
    assert taken[half == 0].sum() == taken[half == 1].sum()
    assert line.value == pytest.approx(lift_of(taken, e.gross_bps).value)


# ---- luck


def test_the_spread_of_the_trials_known_is_what_deflates_the_sharpe_ratio():
    rank = np.linspace(0.0, 1.0, N)
    e = evidence(rank=rank, gross_bps=evidence().gross_bps + 6.0 * (rank >= 0.8))
    one, alike, unknown, apart = (
        luck(replace(e, trials=trials, trial_sharpes=known), PARAMS)[0].value
        for trials, known in ((1, ()), (10, [0.1] * 40), (10, ()), (10, np.linspace(-0.3, 0.3, 40)))
    )
    assert one > alike > unknown > apart  # trials that do not differ come near to one trial
    assert apart < 0.5 * one


# ---- what a stage wrote


def test_the_gate_reads_folds_ranks_and_presence_from_what_the_stage_wrote(tmp_path):
    """Each is optional in the evidence, so one that is not read would be missed by no one."""
    fit = {
        "family": "pattern", "loss_name": "Brier", "classes": ["a", "b"], "parity_gap": 0.0,
        "schema_coverage": 1.0, "novel_share": 0.0,
    }  # fmt: skip
    two = np.arange(6.0).reshape(3, 2)
    arrays = {
        "loss": np.zeros(3), "p": two / 10.0, "y": np.ones((3, 2)), "fold": np.array([1, 1, 2]), "rank": two / 6.0,
        "extra_direction": np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]),
    }  # fmt: skip
    folder = tmp_path / "pattern"
    for file, content in ((folder / "fit.json", fit), (timings_file(folder), {"latency_ms": 0.1, "seconds": 9.0})):
        file.parent.mkdir()
        file.write_text(json.dumps(content))
    np.savez(folder / "oof.npz", **arrays)
    read = evidence_of(folder, None, 3, trial_sharpes=[0.1, 0.2])
    assert read.latency_ms == 0.1
    timings_file(folder).unlink()
    assert np.isnan(evidence_of(folder, None, 3).latency_ms)
    assert read.fold.tolist() == [1, 1, 2]
    assert read.rank.tolist() == arrays["rank"].tolist()
    assert read.present.tolist() == [[True, False], [False, False], [True, True]]
    assert (read.trials, list(read.trial_sharpes)) == (3, [0.1, 0.2])
