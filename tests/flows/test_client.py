"""What the client sends is what the service reads: nothing is lost on the wire, and no body is over the limit."""

import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from pipelines.context_layout import TAPE_WIDTH
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, HALF_SPREAD, Books, ContextFeed, Outcome, utc
from pipelines.errors import BellwetherError
from pipelines.settings import ROOT, Settings, settings
from serving.client import BATCH_SIZE, Client
from serving.service.schemas import (
    MAX_BARS,
    MAX_BATCH_RECORDS,
    MAX_BODY,
    MAX_OBSERVE_BODY,
    MAX_OUTCOMES,
    MAX_SYMBOLS,
    ObserveBatchRequest,
    ObserveRequest,
    OutcomeBatchRequest,
)

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


@pytest.fixture
def batches(tmp_path):
    """(client, the batches a service would have read); it refuses BAD/USDT and answers for every other symbol."""
    read = []

    def answer(request):
        assert len(request.content) <= MAX_OBSERVE_BODY
        body = json.loads(request.content)
        if "symbols" in body:
            read.append(body)
            return httpx.Response(200, json={"decisions": [{"symbol": name} for name in body["symbols"]]})
        if "outcomes" in body:
            outcomes = OutcomeBatchRequest.model_validate(body).outcomes
            read.append(outcomes)
            return httpx.Response(200, json={"outcomes": [{"decision_id": one.decision_id} for one in outcomes]})
        batch = ObserveBatchRequest.model_validate(body).observations
        read.append(batch)
        return httpx.Response(200, json={"observations": [answer_of(one) for one in batch]})

    def answer_of(one):
        if one.symbol == "BAD/USDT":
            return {"symbol": one.symbol, "error": "no", "kind": "BadValues", "fields": []}
        counts = {"received": len(one.bars), "new": len(one.bars), "records": len(one.books) + len(one.context)}
        return {"symbol": one.symbol, **counts, "closed": [], "quarantined": [], "reason": None}

    with Client(Settings(home=tmp_path)) as client:
        client._http.close()
        client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answer))
        yield client, read


def test_many_symbols_are_one_request_that_the_service_reads(batches):
    client, read = batches
    books, feed = records(15)
    found = client.observe_all([(f"S{i}X/USDT", bars(15), books, feed) for i in range(16)])["observations"]
    (batch,) = read
    assert [one.symbol for one in batch] == [one["symbol"] for one in found] == [f"S{i}X/USDT" for i in range(16)]
    assert {one["new"] for one in found} == {15}
    np.testing.assert_array_equal(batch[3].matrix(), bars(15))
    assert batch[3].records()[0].levels.tobytes() == books.levels.tobytes()


def test_what_no_request_may_hold_is_split_in_order_and_its_answers_are_summed(batches):
    client, read = batches
    books, feed = records(2 * BATCH_SIZE + 1)
    observed = [(f"S{i}X/USDT", bars(MAX_BARS + 500), None, None) for i in range(5)]
    observed += [("BOOK/USDT", bars(1), books, feed), ("BAD/USDT", bars(MAX_BARS + 1), None, None)]
    found = client.observe_all(observed)["observations"]
    assert all(sum(len(o.bars) + len(o.books) + len(o.context) for o in batch) <= MAX_BATCH_RECORDS for batch in read)
    assert [one.get("received") for one in found] == [MAX_BARS + 500] * 5 + [1, None]
    assert found[5]["records"] == 2 * (2 * BATCH_SIZE + 1)
    assert found[6]["kind"] == "BadValues"  # and nothing more of it was sent
    assert sum(one.symbol == "BAD/USDT" for batch in read for one in batch) == 1
    sent = [one.matrix() for batch in read for one in batch if one.symbol == "S0X/USDT"]
    np.testing.assert_array_equal(np.concatenate(sent), bars(MAX_BARS + 500))


def test_decisions_on_more_symbols_than_a_request_may_name_come_in_their_order(batches):
    client, read = batches
    names = [f"S{i}X/USDT" for i in range(MAX_SYMBOLS + 3)]
    assert [one["symbol"] for one in client.decide_all(names, view="brief")["decisions"]] == names
    assert [(len(body["symbols"]), body["view"]) for body in read] == [(MAX_SYMBOLS, "brief"), (3, "brief")]
    assert client.decide_all([]) == {"decisions": []}
    assert client.observe_all([]) == {"observations": []}


def test_more_outcomes_than_a_request_may_hold_are_reported_in_their_order(batches):
    client, read = batches
    outcomes = [Outcome(f"d{i}", utc(START + i), i % 2, "time", 1.5, -0.5, 2.0) for i in range(MAX_OUTCOMES + 2)]
    found = client.outcome_all(outcomes)["outcomes"]
    assert [one["decision_id"] for one in found] == [one.decision_id for one in outcomes]
    assert [len(batch) for batch in read] == [MAX_OUTCOMES, 2]
    assert [Outcome(**one.model_dump()) for batch in read for one in batch] == outcomes
    assert client.outcome_all([]) == {"outcomes": []}


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


def test_an_answer_that_is_no_json_is_named_with_its_text(tmp_path):
    with Client(Settings(home=tmp_path)) as client:
        client._http.close()
        page = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>a proxy</html>"))
        client._http = httpx.Client(base_url=client.url, transport=page)
        with pytest.raises(BellwetherError, match=r"/status answered no JSON .*a proxy"):
            client.status()
