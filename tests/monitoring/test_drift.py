"""Drift: effects, threshold and alarms against hand-computed values and a planted change."""

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import BadShape, BadValues, NotEnoughData, UnreadableFile
from pipelines.models.reference import DriftReference, block_effects, fit_reference, read_reference, reference_files
from pipelines.monitoring.drift import AlarmRates, DriftResult, alarm_rates
from pipelines.monitoring.drift import detect as detect_at
from pipelines.settings import load_params

LENGTH = 288
COLUMNS = ("vol", "flow", "gone")
PARAMS = load_params().drift.model_copy(update={"block_bars": LENGTH, "reference_blocks": 0})
RATES = AlarmRates(values=0.005, missing=0.0025)


def detect(reference: DriftReference, values: np.ndarray) -> DriftResult:
    return detect_at(reference, values, RATES)


def market(rows: int, seed: int) -> np.ndarray:
    """Return two autocorrelated columns whose spread switches regime, and one that is always missing."""
    rng = np.random.default_rng(seed)
    calm = np.repeat(rng.choice([0.7, 1.5], rows // 24 + 1), 24)[:rows, None]
    noise = calm * rng.standard_normal((rows, 2))
    values = np.full((rows, 3), np.nan)
    values[:, :2] = noise
    for i in range(1, rows):
        values[i, :2] += 0.5 * values[i - 1, :2]
    return values


@pytest.fixture(scope="module")
def history() -> np.ndarray:
    return market(60 * LENGTH, 1)


@pytest.fixture(scope="module")
def reference(history: np.ndarray) -> DriftReference:
    return fit_reference(history, COLUMNS, PARAMS, seed=7)


def write(files: dict[str, bytes], folder) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def live(blocks: int) -> np.ndarray:
    return market(blocks * LENGTH, 99)


@pytest.mark.parametrize("ties", [False, True])
def test_effect_is_the_wasserstein_distance_over_the_reference_standard_deviation(ties: bool) -> None:
    rng = np.random.default_rng(3)
    sample, values = rng.standard_normal((500, 2)), rng.standard_normal((200, 2)) * 1.7 + 0.3
    if ties:
        sample, values = sample.round(1), values.round(1)
    values[::7, 1] = np.nan
    effects, rows = block_effects(sample, values, np.array([0, 50]), 150)
    for b, start in enumerate((0, 50)):
        for c in range(2):
            block = values[start : start + 150, c]
            block = block[np.isfinite(block)]
            expected = stats.wasserstein_distance(sample[:, c], block) / sample[:, c].std()
            assert effects[b, c] == pytest.approx(expected, rel=1e-12)
            assert rows[b, c] == len(block)


def test_a_shift_of_half_a_standard_deviation_has_effect_one_half() -> None:
    sample = np.random.default_rng(4).standard_normal((400, 1)) * 5
    effects, _ = block_effects(sample, sample + 2.5, np.array([0]), 400)
    assert effects[0, 0] == pytest.approx(2.5 / sample.std())


def test_history_blocks_are_compared_with_the_other_blocks() -> None:
    # fits whole into the sample, in the precision it is stored in, so the correction is exact
    small = market(25 * 80, 5)[:, :1].astype(np.float32).astype(np.float64)
    fitted = fit_reference(small, ("vol",), PARAMS.model_copy(update={"block_bars": 80}), seed=0)
    blocks = small[:, 0].reshape(25, 80)
    distances = [
        stats.wasserstein_distance(np.delete(blocks, b, axis=0).ravel(), block) / small.std()
        for b, block in enumerate(blocks)
    ]
    assert fitted.scale[0] == pytest.approx(np.mean(distances))
    assert fitted.values.scores == pytest.approx(np.array(distances) / np.mean(distances))


def test_the_rates_spend_the_monthly_budget_on_all_blocks_of_all_watches() -> None:
    budget = PARAMS.false_alarms_a_month
    one, four = alarm_rates(budget, LENGTH, 900.0, 1), alarm_rates(budget, LENGTH, 900.0, 4)
    assert one.values * 10 == pytest.approx(budget.values)  # ten blocks of three days a month
    assert four.values * 40 == pytest.approx(budget.values)
    assert four.missing * 40 == pytest.approx(budget.missing)


@pytest.mark.parametrize("tail", ["values", "missing"])
def test_the_level_is_the_quantile_of_the_law_of_the_historys_blocks(reference: DriftReference, tail: str) -> None:
    law = getattr(reference, tail)
    assert stats.gumbel_r.sf(law.level(0.005), law.location, law.spread) == pytest.approx(0.005)
    assert law.level(0.005) > law.scores.mean()


def test_a_market_like_the_history_raises_no_alarm(reference: DriftReference) -> None:
    result = detect(reference, live(4))
    assert result.alarm is False
    assert len(result.blocks) == 4
    assert result.reason.startswith("no drift: 0 of 4 blocks")


def test_a_tripled_spread_alarms_from_its_first_complete_block_on_and_names_the_column(
    reference: DriftReference,
) -> None:
    values = live(4)
    values[2 * LENGTH :, 0] *= 3
    result = detect(reference, values)
    assert [block.alarm for block in result.blocks] == [False, False, True, True]
    assert result.blocks[2].persistent == ("vol",)
    assert result.onset == 2 * LENGTH
    assert result.blocks[2].effects["vol"] >= reference.thresholds(RATES.values)["vol"]
    assert "vol moved" in result.reason


def test_a_burst_in_one_half_of_a_block_is_drifted_but_no_alarm(reference: DriftReference) -> None:
    values = live(1)
    values[:40, 0] += 40.0
    block = detect(reference, values).blocks[0]
    assert block.drifted == ("vol",)
    assert not block.alarm


def test_a_wholly_missing_column_is_excluded_and_a_vanished_one_is_named(reference: DriftReference) -> None:
    assert reference.watched == ("vol", "flow")
    values = live(2)
    values[:, 1] = np.nan
    result = detect(reference, values)
    assert result.alarm is False
    assert result.blocks[0].unjudged == ("flow",)
    assert result.reason.endswith("too few values to judge: flow")


def test_a_drift_that_is_over_is_no_alarm_any_more(reference: DriftReference) -> None:
    values = live(4)
    values[LENGTH : 2 * LENGTH, 0] *= 3
    result = detect(reference, values)
    assert [block.alarm for block in result.blocks] == [False, True, False, False]
    assert (result.alarm, result.onset) == (False, None)
    assert "over by row 576" in result.reason


# ---- share missing


def test_a_column_that_becomes_wholly_missing_alarms_and_is_named_with_both_shares(reference: DriftReference) -> None:
    values = live(3)
    values[LENGTH:, 1] = np.nan
    result = detect(reference, values)
    assert (result.missing_alarm, result.missing_onset) == (True, LENGTH)
    assert [block.vanished for block in result.blocks] == [(), ("flow",), ("flow",)]
    assert "flow 0% → 100%" in result.missing_reason
    assert result.alarm is False  # its values cannot have moved


def test_every_watched_column_missing_at_once_alarms_although_no_value_can_be_judged(reference: DriftReference) -> None:
    result = detect(reference, np.full((LENGTH, 3), np.nan))
    assert result.alarm is None
    assert result.missing_alarm is True
    assert set(result.blocks[0].vanished) == {"vol", "flow"}


@pytest.mark.parametrize(("share", "alarm"), [(0.05, False), (0.3, True)])
def test_a_share_missing_is_judged_by_its_size(reference: DriftReference, share: float, alarm: bool) -> None:
    values = live(1)
    values[np.random.default_rng(1).random(LENGTH) < share, 0] = np.nan
    assert detect(reference, values).missing_alarm is alarm


def test_an_outage_within_half_a_block_is_no_alarm(reference: DriftReference) -> None:
    values = live(1)
    values[: LENGTH // 3, 0] = np.nan
    assert detect(reference, values).missing_alarm is False


def test_a_column_that_always_had_gaps_may_have_them_and_alarms_when_they_close() -> None:
    history, now = market(60 * LENGTH, 1), market(2 * LENGTH, 2)
    rng = np.random.default_rng(3)
    history[rng.random(len(history)) < 0.6, 0] = np.nan
    fitted = fit_reference(history, COLUMNS, PARAMS, seed=7)
    assert fitted.missing_share[0] == pytest.approx(0.6, abs=0.01)
    assert detect(fitted, now).missing_alarm is True  # 60 % → 0 %
    now[rng.random(len(now)) < 0.6, 0] = np.nan
    assert detect(fitted, now).missing_alarm is False


def test_warming_up_and_a_column_recorded_later_are_not_missing() -> None:
    history = market(60 * LENGTH, 1)
    history[: 20 * LENGTH, 0] = np.nan
    fitted = fit_reference(history, COLUMNS, PARAMS, seed=7)
    assert fitted.missing_share.tolist()[:2] == [0.0, 0.0]
    assert np.isnan(fitted.missing_share[2])
    assert fitted.missing.scores.max() == 0.0


def test_missing_values_are_left_out_column_by_column_with_their_n(reference: DriftReference) -> None:
    values = live(1)
    values[::3, 0] = np.nan
    block = detect(reference, values).blocks[0]
    assert block.rows == {"vol": LENGTH - 96, "flow": LENGTH}


@pytest.mark.parametrize(("rows", "blank"), [(LENGTH - 1, False), (LENGTH, True)])
def test_a_block_that_cannot_be_judged_is_none_with_a_reason(reference: DriftReference, rows: int, blank: bool) -> None:
    values = live(1)[:rows]
    if blank:
        values[:] = np.nan
    result = detect(reference, values)
    assert result.alarm is None
    assert str(rows) in result.reason


def test_rows_after_the_last_whole_block_wait(reference: DriftReference) -> None:
    values = live(2)[: LENGTH + 30]
    values[LENGTH:, 0] *= 50
    result = detect(reference, values)
    assert result.alarm is False
    assert "30 rows wait" in result.reason


def test_a_stored_reference_gives_the_same_result(reference: DriftReference, tmp_path) -> None:
    write(reference.files(), tmp_path)
    again = read_reference(tmp_path)
    assert detect(again, live(3)) == detect(reference, live(3))
    assert again.sample.tobytes() == reference.sample.tobytes()
    assert again.files() == reference.files()


def test_a_history_too_short_for_a_reference_says_so_when_it_is_read(history: np.ndarray, tmp_path) -> None:
    write(reference_files(history[: 10 * LENGTH], COLUMNS, PARAMS, seed=7), tmp_path)
    with pytest.raises(NotEnoughData, match="10 blocks of 288"):
        read_reference(tmp_path)


def test_a_truncated_reference_is_refused_by_name(reference: DriftReference, tmp_path) -> None:
    write(reference.files(), tmp_path)
    (tmp_path / "drift.npz").write_bytes((tmp_path / "drift.npz").read_bytes()[:200])
    with pytest.raises(UnreadableFile, match=str(tmp_path)):
        read_reference(tmp_path)


def test_reference_blocks_limits_the_reference_to_the_newest_blocks(history: np.ndarray) -> None:
    fitted = fit_reference(history, COLUMNS, PARAMS.model_copy(update={"reference_blocks": 30}), seed=7)
    assert fitted.n == 30 * LENGTH
    assert len(fitted.values.scores) == 30


def test_bad_input_is_refused_with_its_numbers(history: np.ndarray, reference: DriftReference) -> None:
    with pytest.raises(NotEnoughData, match="10 blocks of 288"):
        fit_reference(history[: 10 * LENGTH], COLUMNS, PARAMS, seed=7)
    with pytest.raises(NotEnoughData, match="none of 1 columns"):
        fit_reference(history[:, 2:], ("gone",), PARAMS, seed=7)
    with pytest.raises(BadShape, match=r"\(n, 3\)"):
        detect(reference, live(1)[:, :2])
    infinite = live(1)
    infinite[3, 1] = np.inf
    with pytest.raises(BadValues, match="flow"):
        detect(reference, infinite)
