"""Guardrails: what trips each of them, what does not, and what a page shows of them."""

import json

import numpy as np
import pytest

from pipelines.errors import BadShape, BadValues
from pipelines.experiments.guardrails import (
    BLOCK_WORDS,
    GUARDRAILS,
    HARM_BETS,
    HARM_CLIP,
    LATENCY_ALONE,
    LATENCY_ANSWERS,
    block_harm,
    drawdown_harm,
    fault_harm,
    guardrail_rows,
    latency_harm,
)
from pipelines.params import GuardrailParams

PARAMS = GuardrailParams()


def test_the_first_fault_trips_and_an_arm_without_one_never_does() -> None:
    assert fault_harm([None] * 5000).reason is None
    tripped = fault_harm([None, None, "ValueError: no number", None, "KeyError"])
    assert (tripped.after, tripped.value) == (3, 2.0)
    assert tripped.reason is not None
    assert "ValueError: no number" in tripped.reason


def test_a_challenger_that_alone_is_slow_at_most_closes_trips() -> None:
    fast, slow = np.full(LATENCY_ANSWERS, 8.0), np.full(LATENCY_ANSWERS, 8.0)
    slow[: LATENCY_ALONE - 1] = 26.0
    assert latency_harm(fast, slow, 25.0).reason is None
    slow[-1] = 26.0
    tripped = latency_harm(fast, slow, 25.0)
    assert tripped.reason == (
        "at 30 of the last 50 closes it alone took more than 25 ms to answer: median 26 ms, of the other version 8 ms"
    )
    later = np.full(LATENCY_ANSWERS // 2, 8.0)  # it is fast again
    assert latency_harm(np.append(fast, later), np.append(slow, later), 25.0).reason is None


def test_a_slow_machine_is_not_the_challengers_fault_and_fewer_answers_say_nothing() -> None:
    both = np.random.default_rng(0).lognormal(np.log(25.0), 0.3, (2, LATENCY_ANSWERS, 4000))
    medians = np.median(both, axis=1)
    assert ((medians[1] > 25.0) & (medians[0] <= 25.0)).mean() > 0.2  # which two medians alone would take for harm
    assert not any(latency_harm(*both[:, :, i], 25.0).reason for i in range(4000))
    assert latency_harm(np.full(50, 80.0), np.full(50, 90.0), 25.0).reason is None
    assert latency_harm(np.full(49, 8.0), np.full(49, 900.0), 25.0).value is None


@pytest.mark.parametrize("seed", range(20))
def test_what_trips_by_latency_has_the_challengers_median_above_the_limit_and_the_champions_not(seed) -> None:
    champion, challenger = np.random.default_rng(seed).lognormal([[np.log(15.0)], [np.log(60.0)]], 0.5, (2, 50))
    assert latency_harm(champion, challenger, 25.0).reason
    assert np.median(challenger) > 25.0 >= np.median(champion)


def test_drawdown_is_of_the_highest_equity_since_the_challenger_acts_and_is_not_forgotten() -> None:
    assert drawdown_harm(np.array([]), 0.02).value is None
    assert drawdown_harm(np.array([100.0, 110.0, 108.0]), 0.02).reason is None  # 1.8 %
    tripped = drawdown_harm(np.array([100.0, 110.0, 107.0, 112.0]), 0.02)
    assert (tripped.after, tripped.value) == (3, pytest.approx(3 / 110))
    assert tripped.reason == "the account lost 2.73% since it began to decide; 2.00% is the limit"


def test_a_bet_on_blocks_is_worked_by_hand() -> None:
    harm = block_harm("abstention", np.array([0.5, -0.2, -0.8]), 0.1, 0.01)
    by_hand = (1 + 0.9 * 0.4 / 0.6) * (1 - 0.9 * 0.3 / 0.6) * (1 - 0.9)  # the last block counts as -.5
    assert (HARM_BETS, HARM_CLIP) == ((0.9,), 0.5)
    assert harm.e_value == pytest.approx(by_hand)
    assert (harm.value, harm.after, harm.reason) == (pytest.approx(-0.5 / 3), None, None)
    two = block_harm("calibration", np.array([-0.3]), 0.05, 0.01)
    assert two.e_value == pytest.approx(np.mean([1 + 0.9 * 0.25 / 0.55, 1 - 0.9 * 0.35 / 0.55]))


@pytest.mark.parametrize(("metric", "mean", "words"), [
    ("abstention", 0.6, "60.0% above"), ("novelty", 0.9, "90.0% above"), ("calibration", 0.5, "+0.500 away"),
    ("calibration", -0.5, "-0.500 away"),
])  # fmt: skip
def test_what_lies_above_the_limit_trips_and_later_blocks_change_nothing(metric, mean, words) -> None:
    tripped = block_harm(metric, np.full(40, mean), 0.1, 0.01)
    assert tripped.reason is not None
    assert words in tripped.reason
    assert tripped.reason.endswith("reached 100")
    assert block_harm(metric, np.append(np.full(tripped.after, mean), np.full(60, -0.0)), 0.1, 0.01) == tripped
    assert block_harm(metric, np.full(tripped.after - 1, mean), 0.1, 0.01).reason is None


@pytest.mark.parametrize("metric", BLOCK_WORDS)
def test_what_is_exactly_at_the_limit_trips_within_the_level(metric) -> None:
    rng = np.random.default_rng(1)
    worst = np.where(rng.random((4000, 120)) < 0.6 / 1.5, 1.0, -0.5)  # mean .1 on values as far apart as can be
    tripped = [block_harm(metric, row, 0.1, 0.05).after is not None for row in worst]
    assert 0.0 < np.mean(tripped) <= 0.05


def test_a_row_for_every_guardrail_json_ready() -> None:
    rows = guardrail_rows({"novelty": block_harm("novelty", np.full(30, 0.9), PARAMS.novelty, PARAMS.level)}, PARAMS)
    assert [row["metric"] for row in rows] == [rail.metric for rail in GUARDRAILS]
    assert [row["metric"] for row in rows if row["tripped"]] == ["novelty"]
    assert [row["metric"] for row in rows if row["of"] == "account"] == ["drawdown"]
    assert [row["limit"] for row in rows] == [0.0, 25.0, 0.1, 0.2, 0.05, 0.02]
    assert {row["trips_at"] for row in rows} == {None, 100.0}
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_what_is_not_a_measurement_is_refused() -> None:
    with pytest.raises(BadValues, match=r"abstention is 1\.1"):
        block_harm("abstention", np.array([1.1]), 0.1, 0.01)
    with pytest.raises(BadValues, match="outside"):
        block_harm("novelty", np.array([0.0, np.nan]), 0.1, 0.01)
    with pytest.raises(BadValues, match="limit=0"):
        block_harm("novelty", np.zeros(2), 0.0, 0.01)
    with pytest.raises(BadValues, match="fault does not rest on blocks"):
        block_harm("fault", np.zeros(2), 0.1, 0.01)
    with pytest.raises(BadShape, match="one of each close"):
        latency_harm(np.zeros(3), np.zeros(2), 25.0)
    with pytest.raises(BadValues, match="1 of 4 times"):
        latency_harm(np.zeros(2), np.array([1.0, np.nan]), 25.0)
    with pytest.raises(BadValues, match="positive"):
        drawdown_harm(np.array([1.0, 0.0]), 0.02)
