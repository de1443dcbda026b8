"""What the client sends is what the service reads: nothing is lost on the wire, and no body is over the limit."""

import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from pipelines.context_layout import TAPE_WIDTH
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, HALF_SPREAD, Books, ContextFeed
from pipelines.settings import ROOT, Settings, settings
from serving.client import BATCH_SIZE, Client
from serving.service.schemas import MAX_BODY, ObserveRequest

START = 1_704_067_200.0


@pytest.fixture
def sent(tmp_path):
    """(client, the requests a service would have read)."""
    requests = []

    def answer(request):
        assert len(request.content) < MAX_BODY
        requests.append(ObserveRequest.model_validate(json.loads(request.content)))
        return httpx.Response(200, json={})

    with Client(Settings(home=tmp_path)) as client:
        client._http.close()
        client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answer))
        yield client, requests


def records(n):
    """n books and context values with digits to lose: odd microseconds, some counts not recorded."""
    rng = np.random.default_rng(5)
    known = np.round(START + np.sort(rng.uniform(0, 3600, n)), 6)
    away = np.cumsum(rng.lognormal(size=(n, 2, BOOK_LEVELS)), axis=2) * np.array([[-1.0], [1.0]])
    levels = np.stack([40_000.0 + away, rng.lognormal(size=away.shape), rng.integers(1, 9, away.shape)], axis=3)
    levels[rng.random(away.shape) < 0.1, 2] = np.nan
    levels[::3, 0, 3:] = np.nan  # a side with fewer levels
    tape = rng.normal(size=(n, TAPE_WIDTH))
    tape[::7, 0], tape[:, 2:8] = np.nan, np.nan
    return Books(known, levels, tape), ContextFeed(known, rng.integers(0, 6, n), rng.normal(size=n))


def bars(n):
    rows = np.full((n, BAR_WIDTH), 100.0)
    rows[:, HALF_SPREAD] = np.where(np.arange(n) % 2, np.nan, 0.25)
    rows[:, 0] = START + 60.0 * np.arange(n)
    return rows


def test_books_and_context_arrive_bit_for_bit(sent):
    client, requests = sent
    books, feed = records(40)
    client.observe("BTC/USDT", bars(15), books, feed)
    (request,) = requests
    got, context = request.records()
    for name in ("known", "levels", "tape"):
        assert getattr(got, name).tobytes() == getattr(books, name).tobytes()
    for name in ("known", "field", "value"):
        assert getattr(context, name).tobytes() == getattr(feed, name).tobytes()
    np.testing.assert_array_equal(request.matrix(), bars(15))


def test_many_records_go_ahead_of_the_bars_in_pieces(sent):
    client, requests = sent
    books, feed = records(2 * BATCH_SIZE + 1)
    client.observe("BTC/USDT", bars(1440), books, feed)
    assert [len(request.bars) for request in requests] == [0, 0, 1440]
    known = [request.records()[0].known for request in requests]
    np.testing.assert_array_equal(np.concatenate(known), books.known)


def test_the_client_is_imported_from_bellwether_and_only_at_its_first_use():
    code = (
        "import sys, bellwether; assert 'httpx' not in sys.modules; "
        "from bellwether import Client; print(Client.__module__, 'httpx' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["serving.client", "True"]


def test_without_settings_it_connects_to_the_installation_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    monkeypatch.setenv("BELLWETHER_DECISION_PORT", "3123")
    settings.cache_clear()
    with Client() as client:
        assert client.url.endswith(":3123")
    settings.cache_clear()
    assert (tmp_path / "write_key").exists()
