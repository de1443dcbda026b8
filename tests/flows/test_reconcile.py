"""The registry out of reach: said by an alarm while it lasts; serving does not need it."""

import socket

import pytest

from flows import promotion
from flows.promote import reconcile
from pipelines.errors import ServiceDown
from pipelines.settings import settings
from pipelines.store import Store


def test_a_registry_that_does_not_answer_is_an_alarm_until_it_answers(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("BELLWETHER_MLFLOW_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings.cache_clear()
    try:
        store = Store.open(settings().store)
        for _ in range(2):
            with pytest.raises(ServiceDown, match="MLflow does not answer"):
                reconcile.fn()
        assert [(a.kind, a.severity) for a in store.alarms()] == [("registry_down", "high")]
        monkeypatch.setattr(promotion, "reconcile", lambda site: [])  # it answers, and nothing had moved
        assert reconcile.fn() == []
        assert store.alarms() == []
        store.close()
    finally:
        settings.cache_clear()
