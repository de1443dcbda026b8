"""The stream of decisions: real sockets behind the guard, from a real ledger, in its order, without gap or double."""

import asyncio
import json
import threading
import time
from dataclasses import replace
from itertools import islice

import httpx
import pytest
import uvicorn
from pydantic import SecretStr
from support.records import DECISION

from bellwether.cli import history
from benchmarks.ports import free_ports
from pipelines.errors import BadValues, InputError, ServiceDown, StoredAlready
from pipelines.settings import Settings
from pipelines.store import Store
from serving import stream_client
from serving.client import Client
from serving.service import decision_stream
from serving.service.answers import decision_json
from serving.service.connection_limits import GuardedProtocol
from serving.service.decision_stream import PATH, DecisionStream, StreamRoute
from serving.service.http_guard import Guard
from serving.service.http_rules import HttpRules
from serving.service.json_logs import RequestLog
from serving.state.ledger import Ledger
from serving.stream_client import read_stream

KEY = {"Authorization": "Bearer test-key"}
SOON_S = 10.0  # of a busy machine; what is waited for would otherwise never come


class Service:
    """A ledger and its stream, served on a port that stays the same; `append` needs no server."""

    def __init__(self, home):
        self.store, self.stream = Store.open(f"sqlite:///{home / 'store.db'}"), DecisionStream()
        self.ledger, (self.port,), self.made = Ledger(self.store, self.stream.publish), free_ports(1), 0
        where = Settings(home=home, write_key=SecretStr("test-key"), store_url="", decision_port=self.port)
        self.where = where
        route = HttpRules(StreamRoute(self.other, self.stream), "", "", (), ())
        self.app = RequestLog(Guard(route, tool="decision", where=where))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=KEY, timeout=SOON_S)
        self.server = self.thread = None

    async def other(self, scope, receive, send):
        """What is behind the route: the start and the end of the service."""
        await receive()
        self.stream.open(self.store)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.stream.close()
        await send({"type": "lifespan.shutdown.complete"})

    def start(self):
        protocol = type("Protocol", (GuardedProtocol,), {"on_shutdown": [self.stream.end]})
        config = uvicorn.Config(
            self.app, port=self.port, http=protocol, log_config=None, timeout_graceful_shutdown=int(SOON_S / 2)
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(SOON_S)
        assert not self.thread.is_alive()

    def append(self, n=1):
        """Make n decisions durable; return their futures."""
        found = [self.ledger.append(replace(DECISION, id=str(self.made + i)), b"f", b"s") for i in range(n)]
        self.made += n
        return found


@pytest.fixture
def service(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_client, "PAUSE_S", 0.05)
    service = Service(tmp_path)
    service.start()
    yield service
    service.http.close()
    service.stop()
    service.ledger.close()
    service.store.close()


def test_without_the_key_nothing_is_streamed(service):
    refused = httpx.get(f"{service.http.base_url}{PATH}")
    assert (refused.status_code, refused.json()["kind"]) == (401, "Unauthorized")


def test_decisions_come_in_the_order_of_the_ledger_as_decide_answers_them(service):
    service.append(10)
    with Client(service.where) as client:
        read = list(islice(client.stream(after=0), 10))
    assert [seq for seq, _ in read] == list(range(1, 11))
    stored = service.store.decisions_after(0, 100)
    assert [one.decision.id for _, one in stored] == [decision["id"] for _, decision in read]
    assert read[3].decision == json.loads(decision_json(stored[3][1].decision))
    assert read[3].decision["api"] == 1


def test_a_reader_that_connects_again_while_the_service_restarts_has_no_gap_and_no_double(service):
    service.append(5)[-1].result(SOON_S)
    seen, wanted = [], 65

    def read():
        seen.extend(seq for seq, _ in islice(read_stream(service.http, 2), wanted - 2))

    reader = threading.Thread(target=read)
    reader.start()
    for part in range(6):
        if part == 2:
            service.stop()  # with the reader's stream open: it ends
        if part == 4:
            service.start()
        for done in service.append(10):
            done.result(SOON_S)
    reader.join(SOON_S)
    assert seen == list(range(3, wanted + 1))


def test_a_reader_without_a_place_begins_with_the_next_decision(service):
    service.append(3)[-1].result(SOON_S)
    with service.http.stream("GET", PATH) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert list(islice(lines, 2)) == ["retry: 1000", "id: 3"]
        service.append()
        assert list(islice(lines, 3)) == ["", "id: 4", "event: decision"]


def test_the_command_follows_a_market_a_line_each_until_it_is_interrupted(service, monkeypatch, capsys):
    def until_interrupted(http, after):
        yield from islice(read_stream(http, after), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr("serving.client.read_stream", until_interrupted)
    monkeypatch.setattr(history, "settings", lambda: service.where)
    service.append(3)[-1].result(SOON_S)
    history.decisions(DECISION.symbol, follow=True, after=0, as_json=True)
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 3]
    history.decisions("BTC/USDT", follow=True, after=0)
    assert capsys.readouterr().out == ""
    for wrong in ({"follow": True, "since": "2024-01-01"}, {"after": 3}):
        with pytest.raises(BadValues, match="--follow"):
            history.decisions(**wrong)


def test_a_place_that_is_none_is_refused_with_what_to_send(service):
    for url, headers in ((f"{PATH}?after=x", {}), (f"{PATH}?since=3", {}), (PATH, {"Last-Event-ID": "-1"})):
        refused = service.http.get(url, headers=headers)
        assert (refused.status_code, refused.json()["fields"][0]["field"]) == (400, "after"), url
    with pytest.raises(InputError, match="9 is no decision yet, the newest is 0"):
        next(read_stream(service.http, 9))
    assert service.http.post(PATH, json={}).status_code == 405


def test_one_stream_too_many_is_refused_and_a_reader_that_leaves_makes_room(service, monkeypatch):
    monkeypatch.setattr(decision_stream, "MAX_STREAMS", 1)
    with service.http.stream("GET", PATH) as response:
        lines = response.iter_lines()
        next(lines)
        refused = service.http.get(PATH)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        with pytest.raises(ServiceDown, match="429"):
            next(read_stream(service.http, None, give_up_s=0.0))
    ends = time.monotonic() + SOON_S
    while service.stream.readers and time.monotonic() < ends:
        time.sleep(0.01)
    assert service.stream.readers == 0


def test_a_reader_that_is_too_slow_is_dropped_and_resumes_without_a_gap(tmp_path):
    async def read():
        store, stream = Store.open(f"sqlite:///{tmp_path / 'store.db'}"), DecisionStream(recent=5)
        stream.open(store)
        gone = asyncio.get_running_loop().create_future()
        slow = stream.follow(None, gone)
        await anext(slow)
        started = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0.05)
        ledger = Ledger(store, stream.publish)
        ledger.append(replace(DECISION, id="0"), b"f", b"s").result(SOON_S)
        assert (await started).startswith(b"id: 1\nevent: decision\n")
        for i in range(1, 9):  # it reads nothing meanwhile
            ledger.append(replace(DECISION, id=str(i)), b"f", b"s").result(SOON_S)
        await asyncio.sleep(0.05)
        last = [text async for text in slow]
        assert len(last) == 1
        assert last[0].startswith(b"id: 1\nevent: dropped\n")
        assert json.loads(last[0].split(b"data: ")[1])["resume_after"] == 1
        assert (stream.readers, stream._recent) == (0, {})
        again = stream.follow(1, gone)
        await anext(again)
        rest = (await anext(again)).count(b"event: decision")
        await again.aclose()
        stream.close()
        ledger.close()
        store.close()
        return rest

    assert asyncio.run(read()) == 8


def test_a_quiet_stream_shows_that_it_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(decision_stream, "HEARTBEAT_S", 0.02)

    async def read():
        store, stream = Store.open(f"sqlite:///{tmp_path / 'store.db'}"), DecisionStream()
        stream.open(store)
        events = stream.follow(None, asyncio.get_running_loop().create_future())
        found = [await anext(events) for _ in range(3)]
        stream.close()
        assert [text async for text in events] == []
        store.close()
        return found

    assert asyncio.run(read())[1:] == [b": nothing new\n\n"] * 2


def test_numbers_follow_each_other_whatever_was_refused_in_between(service):
    service.append(2)[-1].result(SOON_S)
    with service.store.writing():  # what follows is one group of the writer
        waiting = [service.ledger.append(replace(DECISION, id=name), b"f", b"s") for name in ("a", "1", "b")]
    assert waiting[0].result(SOON_S) == 3
    with pytest.raises(StoredAlready):
        waiting[1].result(SOON_S)
    assert waiting[2].result(SOON_S) == 4
    assert service.store.newest_sequence() == 4
