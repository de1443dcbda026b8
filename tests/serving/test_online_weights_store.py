"""U5 as the service runs it: each outcome of the ledger counts once, a restart goes on, and shadow decides nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.records import DECISION

from pipelines.contracts import CATEGORIES, Outcome
from pipelines.settings import load_params
from pipelines.store import DecisionRecord
from serving.policy.fusion import N_SCORES
from serving.state.online_weights_store import (
    FILE_BEFORE_0_6,
    ONLINE_WEIGHTS_FILE,
    OnlineWeightsStore,
    factor_of,
    initial_weights,
    learn,
)

PARAMS = load_params()
ACT = PARAMS.model_copy(update={"learning": PARAMS.learning.model_copy(update={"use": "act"})})
T0 = datetime(2024, 1, 1, tzinfo=UTC)
GOOD, BAD = "order_flow", "cmt"


def resolved(i, label=None):
    """Order flow is always right, cmt always wrong; events and outcomes of both kinds."""
    label = i % 2 if label is None else label
    at = T0 + timedelta(hours=i)
    scores = {GOOD: 0.9 if label else -0.9, BAD: -0.9 if label else 0.9, "ict": 0.0}
    decision = replace(
        DECISION,
        id=f"d{i:04d}",
        as_of=at,
        known_at=at,
        entry=100.0,
        stop=99.0,
        event="fvg",
        category_scores=scores,
        regime="QUIET",
    )
    ended = Outcome(decision.id, at + timedelta(minutes=30), label, "target" if label else "stop", 10.0, 5.0, 5.0)
    return DecisionRecord(decision, b"", b""), ended


def test_a_right_category_gains_weight_and_a_wrong_one_loses_it(tmp_path):
    weights_store = OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    before = weights_store.weights
    assert weights_store.update([resolved(i) for i in range(200)]) == 200
    after = weights_store.weights
    assert after[GOOD] > 1.5 * before[GOOD]
    assert after[BAD] < 0.5 * before[BAD]
    assert sum(after.values()) == pytest.approx(1.0)
    ((kind, regime, paid),) = weights_store.patterns()
    assert (kind, regime, paid.low < 0.5 < paid.high) == ("fvg", "QUIET", True)


def test_an_outcome_counts_once_however_often_it_is_passed_in(tmp_path):
    weights_store = OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    seen = [resolved(i) for i in range(20)]
    assert weights_store.update(seen) == 20
    last = [pair for pair in seen if pair[1].resolved_at >= weights_store.since]
    assert len(last) == 1
    assert weights_store.update(last) == 0
    twin = replace(last[0][0].decision, id="twin")
    assert weights_store.update([*last, (DecisionRecord(twin, b"", b""), replace(last[0][1], decision_id="twin"))]) == 1
    assert weights_store.count == 21


def test_a_restart_goes_on_from_the_same_bits(tmp_path):
    whole = OnlineWeightsStore(tmp_path / "whole.json", PARAMS)
    for i in range(60):
        whole.update([resolved(i)])
    first = OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    first.update([resolved(i) for i in range(30)])
    again = OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    assert (again.weights, again.count) == (first.weights, 30)
    assert again.update([resolved(29)]) == 0
    again.update([resolved(i) for i in range(30, 60)])
    assert again.weights == whole.weights


def test_outcomes_that_change_nothing_are_not_requested_again(tmp_path):
    weights_store = OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    record, ended = resolved(1)
    assert weights_store.update([(DecisionRecord(replace(record.decision, category_scores={}), b"", b""), ended)]) == 0
    assert weights_store.since == ended.resolved_at
    assert weights_store.update([resolved(2)]) == 1
    assert weights_store.update([]) == 0
    assert weights_store.since == resolved(2)[1].resolved_at


def test_a_damaged_file_is_logged_and_an_absent_one_is_not(tmp_path, caplog):
    OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    assert caplog.text == ""
    (tmp_path / "e.json").write_text("{")
    OnlineWeightsStore(tmp_path / "e.json", PARAMS)
    assert "learning again from the ledger" in caplog.text


@pytest.mark.parametrize("content", ["", "{}", '{"state": "{}", "counted": []}', "[1, 2]"])
def test_an_unreadable_file_is_learned_again_from_the_ledger(tmp_path, content):
    (tmp_path / "e.json").write_text(content)
    assert OnlineWeightsStore(tmp_path / "e.json", PARAMS).since is None


def test_other_stated_weights_start_again(tmp_path):
    OnlineWeightsStore(tmp_path / "e.json", PARAMS).update([resolved(i) for i in range(20)])
    weights = {**PARAMS.fusion.weights, "cmt": 0.30, "ict": 0.30}
    other = PARAMS.model_copy(update={"fusion": PARAMS.fusion.model_copy(update={"weights": weights})})
    weights_store = OnlineWeightsStore(tmp_path / "e.json", other)
    assert (weights_store.count, weights_store.since, weights_store.weights) == (0, None, weights)


def test_learned_weights_decide_only_where_the_settings_say_so(tmp_path):
    learned = learn(initial_weights(PARAMS), [resolved(i) for i in range(100)], PARAMS).weights
    assert factor_of(learned, PARAMS).tolist() == [1.0] * N_SCORES
    factor = dict(zip((*CATEGORIES, "traditional"), factor_of(learned, ACT), strict=True))
    assert factor[GOOD] > 1.0 > factor[BAD]
    assert factor["traditional"] == 1.0


def test_an_event_without_levels_or_scores_changes_nothing():
    record, ended = resolved(1)
    for change in ({"entry": None}, {"stop": None}, {"category_scores": {}}):
        unusable = DecisionRecord(replace(record.decision, **change), b"", b"")
        assert learn(initial_weights(PARAMS), [(unusable, ended)], PARAMS) == initial_weights(PARAMS)
    assert np.isclose(sum(initial_weights(PARAMS).weights), 1.0)


def test_the_file_of_release_0_5_is_read_where_there_is_no_other(tmp_path):
    old = OnlineWeightsStore(tmp_path / FILE_BEFORE_0_6, PARAMS)
    old.update([resolved(i) for i in range(30)])
    new = OnlineWeightsStore(tmp_path / ONLINE_WEIGHTS_FILE, PARAMS)
    assert (new.weights, new.count) == (old.weights, 30)
    new.update([resolved(30)])
    again = OnlineWeightsStore(tmp_path / ONLINE_WEIGHTS_FILE, PARAMS)
    assert (again.weights, again.count) == (new.weights, 31)
