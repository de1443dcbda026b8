"""Y8 and V5 on the real service: swaps under load without a failed answer, kills under load without a lost one."""

from benchmarks import hardship


def test_fifty_champion_swaps_under_load_fail_no_request_and_hold_no_memory():
    found = hardship.swaps(50, tiny=True)
    assert (found["swaps"], found["failed"]) == (50, 0), found["faults"]
    assert found["answers"] > 500
    assert found["generations_answered"] > 40
    assert found["mb_at_last"] < found["mb_at_tenth"] + 20.0  # forty bundles more, none of them retained


NONE_LOST = dict.fromkeys(("lost", "doubled", "lost_bars", "state", "not_replayed"), 0)


def test_kill_9_under_load_loses_and_doubles_no_decision_and_state_goes_on_on_sqlite():
    found = hardship.crashes(5, tiny=True)
    assert found == found | NONE_LOST | {"faults": []}, found
    assert found["acknowledged"] > 150


def test_kill_9_under_load_loses_and_doubles_no_decision_and_state_goes_on_on_postgresql(postgres_url):
    found = hardship.crashes(5, tiny=True, store_url=postgres_url)
    assert found == found | NONE_LOST | {"faults": []}, found
    assert found["acknowledged"] > 150


def test_predictions_over_http_equal_those_in_the_process_and_their_service_may_die():
    found = hardship.together(60, tiny=True)
    assert (found["bars"], found["faulty"], found["different"]) == (60, 0, [])
    assert found["predicted"] >= 3
    tier, why_here = found["out"]  # `models.fallback: local`: the same bundles answer in this process
    assert (tier, found["back"]) == (2, 2)
    assert why_here.startswith("MODEL_SERVICE_")
