"""A ledger that was changed moves no champion, on either database, and goes on once a person accepts it."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.owner_sql import execute_as_owner

from flows.support.installation import Installation
from flows.support.ledger_chain import BROKEN, accept, anchor, anchors_of, require_intact, verify
from flows.verify import verify as verify_flow
from pipelines.errors import ChainBroken
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion
from serving.service.home_store import open_store

T0 = datetime(2024, 1, 1, tzinfo=UTC)
LINE = Promotion(
    T0, "policy", "challenge", "validator", "challenger", None, "1", "ab" * 32, "r", "d", "c", True, "passed"
)
CHANGES = {
    "edited": "UPDATE promotions SET verdict_passed = FALSE WHERE id = 2",
    "deleted": "DELETE FROM promotions WHERE id = 2",
    "inserted": "INSERT INTO promotions (id, at, actor, action, family, arm, reason, evidence) SELECT 90, at, actor, "
    "action, family, arm, reason, evidence FROM promotions WHERE id = 1",
    "exchanged": "UPDATE promotions SET to_version = CASE id WHEN 1 THEN '3' ELSE '1' END WHERE id IN (1, 3)",
    "cut off": "DELETE FROM chain WHERE seq > 2",
}


@pytest.fixture
def installation(url, tmp_path):
    """An installation whose ledger has four lines and an anchor; MLflow is down."""
    where = Settings(home=tmp_path / "home", store_url=url, mlflow_port=9)
    opened = Installation(where, load_params(), open_store(where))
    for version in "1234":
        opened.store.add_promotion(replace(LINE, to_version=version))
    require_intact(opened)
    assert anchor(opened).seq == opened.store.chain_head().seq
    yield opened
    opened.store.close()


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_changed_ledger_stops_promotions_with_one_alarm_until_a_person_accepts_it(installation, statement):
    execute_as_owner(installation.store, statement)
    for _ in range(2):
        with pytest.raises(ChainBroken, match="No champion moves; what is served stays"):
            require_intact(installation)
    assert [alarm.kind for alarm in installation.store.alarms()] == [BROKEN]
    before, after = accept(installation, "ann", "a restored backup")
    assert (len(before.faults) > 0, after.faults) == (True, ())
    require_intact(installation)
    assert installation.store.alarms() == []
    anchor(installation)
    assert verify(installation).since == installation.store.chain_head().seq == anchors_of(installation)[-1].seq


def test_the_flow_of_every_day_anchors_what_is_intact_and_counts_what_is_not(installation, monkeypatch):
    monkeypatch.setattr("flows.verify.open_installation", lambda: installation)
    monkeypatch.setattr("flows.verify.report_progress", print)
    n = len(anchors_of(installation))
    assert (verify_flow.fn(), len(anchors_of(installation))) == (0, n + 1)
    execute_as_owner(installation.store, CHANGES["edited"])
    assert (verify_flow.fn(everything=True), len(anchors_of(installation))) == (1, n + 1)
    assert [alarm.kind for alarm in installation.store.alarms()] == [BROKEN]


def test_accepting_an_intact_ledger_changes_nothing(installation):
    head = installation.store.chain_head()
    accept(installation, "ann", "no reason")
    assert installation.store.chain_head() == head
