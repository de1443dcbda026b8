"""The decision service in this process, with an installation of its own, called over HTTP."""

import os
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
from prometheus_client import REGISTRY

from benchmarks.fixture import serve_arms
from pipelines.contracts import BAR_FIELDS
from pipelines.settings import settings
from pipelines.store import Store
from serving.inference.generation import acknowledged
from support.serving_fixture import SYMBOL, last_close, make_bundle, publish

AT = datetime(2024, 1, 1, tzinfo=UTC)
KEY = {"Authorization": "Bearer test-key"}


class Client:
    """Call the service over HTTP; it has a home, a warm start and two bundles of its own."""

    def __init__(self, http, home, stand):
        self.http, self.home, self.stand = http, home, stand
        self.warm = publish(stand, home)
        self.champion = make_bundle(home / "bundles", stand.columns, stand.rows, 0.1)
        self.challenger = make_bundle(home / "bundles", stand.columns, stand.rows, 0.9)
        self.sent = 0
        self._store = None

    def call(self, path, body=None, headers=KEY):
        """POST a body with the key; return the response."""
        return self.http.post(path, json=body if body is not None else {}, headers=headers)

    def serve(self, champion=None, challenger=None, assignments=None):
        """Write a generation and wait, as an operator would, until this process acknowledges it."""
        families = {"validator": {"champion": champion, "challenger": challenger}}
        generation = serve_arms(settings(), families, self.warm, AT, assignments)
        for _ in range(2000):  # a machine that compiles its kernels first takes a while
            if acknowledged(self.home / "serving") == {os.getpid(): generation}:
                return generation
            time.sleep(0.02)
        raise AssertionError(f"generation {generation} was never served")

    def bars(self, n):
        """Return the next n live minutes as JSON."""
        rows = self.stand.live[self.sent : self.sent + n]
        self.sent += n
        return [as_json(row) for row in rows]

    def observe(self, n):
        """Send the next n live minutes."""
        return self.call("/observe", {"symbol": SYMBOL, "bars": self.bars(n)})

    def close(self):
        """Return the close time of the last closed decision bar, epoch s."""
        known = np.vstack(
            [self.stand.base[: len(self.stand.base) - len(self.stand.live)], self.stand.live[: self.sent]]
        )
        return last_close(known)

    def store(self):
        """Return the store, on a connection of the test's own."""
        return self._store or self._open()

    def _open(self):
        """Open the store."""
        self._store = Store.open(settings().store)
        return self._store

    def decide(self):
        """Return the decision on the newest closed bar."""
        return self.call("/decide", {"symbol": SYMBOL}).json()


def as_json(row):
    """Return a bar as /observe reads it."""
    bar = {name: value for name, value in zip(BAR_FIELDS, row.tolist(), strict=True) if value == value}
    return bar | {"open_time": datetime.fromtimestamp(bar["open_time"], tz=UTC).isoformat()}


@contextmanager
def running_service(stand, home, **env):
    """Yield a client of the service in this process on a home of its own; `env` overrides settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette recommends a client that is not in the lock
        from starlette.testclient import TestClient
    from serving.service.decision_service import DecisionService

    for collector, names in list(REGISTRY._collector_to_names.items()):  # BentoML registers its own once a process
        if any(name.startswith("bentoml_service") for name in names):
            REGISTRY.unregister(collector)
    variables = {"BELLWETHER_HOME": str(home), "BELLWETHER_WRITE_KEY": "test-key"} | env
    os.environ |= variables
    settings.cache_clear()
    try:
        with TestClient(DecisionService.to_asgi(), base_url="http://127.0.0.1:3000") as http:
            yield Client(http, home, stand)
    finally:
        for name in variables:
            del os.environ[name]
        settings.cache_clear()
