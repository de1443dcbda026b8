"""The decision service over its own HTTP: what it answers, what it refuses and how it says so, what it survives."""

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from serving_stand import SYMBOL, last_close, make_bundle, publish, told

from pipelines.contracts import BAR_FIELDS, OPEN_TIME, Outcome
from pipelines.settings import ROOT, settings
from pipelines.store import Store
from serving.slots import acknowledged, write_generation

AT = datetime(2024, 1, 1, tzinfo=UTC)
KEY = {"Authorization": "Bearer test-key"}


class Client:
    """The service in this process, with an installation of its own."""

    def __init__(self, http, home, stand):
        self.http, self.home, self.stand = http, home, stand
        self.warm = publish(stand, home)
        self.champion = make_bundle(home / "bundles", stand.columns, stand.rows, 0.1)
        self.challenger = make_bundle(home / "bundles", stand.columns, stand.rows, 0.9)
        self.sent = 0

    def call(self, path, body=None, headers=KEY):
        return self.http.post(path, json=body if body is not None else {}, headers=headers)

    def serve(self, champion=None, challenger=None):
        """Write a generation and wait, as an operator would, until this process acknowledges it."""
        families = {"validator": {"champion": champion, "challenger": challenger}}
        generation = write_generation(self.home / "serving", families, self.warm, AT)
        for _ in range(400):
            if acknowledged(self.home / "serving") == {os.getpid(): generation}:
                time.sleep(0.1)  # the warm start follows the models
                return generation
            time.sleep(0.02)
        raise AssertionError(f"generation {generation} was never served")

    def bars(self, n):
        """The next n live minutes as JSON."""
        rows = self.stand.live[self.sent : self.sent + n]
        self.sent += n
        return [as_json(row) for row in rows]

    def observe(self, n):
        return self.call("/observe", {"symbol": SYMBOL, "bars": self.bars(n)})

    def close(self):
        """Close time of the last closed decision bar."""
        seen = np.vstack([self.stand.base[: len(self.stand.base) - len(self.stand.live)], self.stand.live[: self.sent]])
        return last_close(seen)

    def decide(self, after=1.0):
        as_of = datetime.fromtimestamp(self.close() + after, tz=UTC).isoformat()
        return self.call("/decide", {"symbol": SYMBOL, "as_of": as_of}).json()


def as_json(row):
    bar = dict(zip(BAR_FIELDS, row.tolist(), strict=True))
    return bar | {"open_time": datetime.fromtimestamp(bar["open_time"], tz=UTC).isoformat()}


@pytest.fixture(scope="module")
def client(stand, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette would rather have a client that is not in the lock
        from starlette.testclient import TestClient

    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    os.environ |= {"BELLWETHER_HOME": str(home), "BELLWETHER_WRITE_KEY": "test-key"}
    settings.cache_clear()
    from serving.decision_service import DecisionService

    with TestClient(DecisionService.to_asgi()) as http:
        yield Client(http, home, stand)
    for name in ("BELLWETHER_HOME", "BELLWETHER_WRITE_KEY"):
        del os.environ[name]
    settings.cache_clear()


@pytest.fixture(scope="module")
def served(client):
    client.serve(told("1", client.champion), told("2", client.challenger, "refused"))
    return client


def test_a_decision(served):
    r = served.observe(8)
    print(r.status_code, r.text)
    print(served.decide())
    print(served.http.get("/ready").text)
    print(served.http.get("/readyz").status_code)
    print(served.http.get("/docs.json").json()["paths"].keys())
    print(json.dumps(served.http.get("/docs.json").json())[:3000])
    b = served.bars(1)
    b[0]["close"] = None
    b[0]["x"] = 1
    r = served.call("/observe", {"symbol": SYMBOL, "bars": b})
    print(r.status_code, r.text)
    assert 0
