"""Keys of clients: what each scope opens on every server, when a key ends, and what a file that is not ours opens."""

import asyncio
import json
import logging
import threading
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import uvicorn
import websockets.sync.client
from pydantic import SecretStr
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from benchmarks.ports import free_ports
from pipelines.errors import BadValues, InputError, StateError
from pipelines.settings import ROOT, Settings
from serving.client import Client
from serving.service import client_keys, decision_stream, json_logs, keys, lasting
from serving.service.client_keys import add_client, registry_file, revoke_client
from serving.service.http_guard import Guard
from serving.service.http_rules import PROBES
from serving.service.json_logs import JsonLines, RequestLog
from serving.service.scopes import EVERY_PATH, ROWS, SCOPES, row_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would rather have a client that is not in the lock
    from starlette.testclient import TestClient

PORT = 4200
US = f"127.0.0.1:{PORT}"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SERVERS = ("decision", "models", "mlflow", "prefect", "evidently")
PLACES = [(row.server, "/api/any" if row.path == EVERY_PATH else row.path) for row in ROWS]
SOON_S = 10.0  # of a busy machine; what is waited for would otherwise never come


@pytest.fixture
def where(tmp_path):
    return Settings(_env_file=None, home=tmp_path / "home", write_key=None)


@pytest.fixture
def real_pace():
    """A server looks at the file once a second, as it does."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch, request):
    """A server looks at the file with each request."""
    if "real_pace" not in request.fixturenames:
        monkeypatch.setattr(client_keys, "LOOK_S", 0.0)
        monkeypatch.setattr(lasting, "CHECK_S", 0.02)


@pytest.fixture
def made(where):
    """Make a key of these scopes; return it."""
    return lambda *scopes, name="desk", days=None, now=NOW: add_client(where, name, scopes, now, days)[1]


async def tool(scope, receive, send):
    """Answer what came through; a socket and /decisions/stream go on for ever."""
    headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(headers)})
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    lasts = scope["path"] == "/decisions/stream" and b"last" in scope["query_string"]
    await send({"type": "http.response.body", "body": json.dumps(headers).encode(), "more_body": lasts})
    if lasts:
        await asyncio.Event().wait()


def guarded(where, server, clock=lambda: NOW, app=tool):
    guard = Guard(app, tool=server, open_paths=("/status",), where=where, clock=clock)
    whole = RequestLog(guard) if server in ("decision", "models") else guard
    return TestClient(whole, base_url=f"http://{US}", follow_redirects=False)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def closed_with(client, **headers):
    with (
        pytest.raises(WebSocketDisconnect) as ended,
        client.websocket_connect(f"ws://{US}/api/any", headers=headers) as socket,
    ):
        socket.receive_text()
    return ended.value.code


# ---- scopes


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_its_rows_and_no_other_place_of_any_server(where, made, scope):
    key = made(scope)
    for server in SERVERS:
        client = guarded(where, server)
        for at, path in PLACES:
            opened = row_of(server, path)
            answer = client.post(path, headers=bearer(key))
            if opened is not None and opened.scope == scope:
                assert answer.status_code == 200, (server, at, path)
                continue
            content = answer.json()
            assert (answer.status_code, content["kind"], content["fields"]) == (403, "ScopeMissing", [])
            assert (
                "key of the home" in content["error"] if opened is None else f"--scope {opened.scope}" in str(content)
            )
            assert key not in answer.text


def test_the_key_of_the_home_opens_everything_as_before(where, made):
    made("read")
    for server in SERVERS:
        for path in ("/no/row", *(path for _, path in PLACES)):
            assert guarded(where, server).post(path, headers=bearer(keys.write_key(where))).is_success


@pytest.mark.parametrize("name", ["decision", "models"])
def test_every_call_of_our_services_has_a_row_or_needs_no_key(name):
    from serving.service import decision_service, model_service

    module, service = {
        "decision": (decision_service, decision_service.DecisionService),
        "models": (model_service, model_service.ModelService),
    }[name]
    paths = {api.route for api in service.apis.values()} | {*module.PROTECTED}
    paths |= {decision_stream.PATH} if name == "decision" else set()
    assert len(paths) >= 4
    assert {path for path in paths - {*PROBES, *module.READS} if row_of(name, path) is None} == set()
    assert {row.path for row in ROWS if row.server == name} == paths - {*PROBES, *module.READS}


def test_the_table_of_the_page_on_security_is_that_of_the_code():
    text = (ROOT / "docs" / "security.md").read_text()
    for scope, opened in SCOPES.items():
        places = [f"`{r.path}` of `{r.server}`" if r.path != EVERY_PATH else f"all of `{r.server}`" for r in ROWS
                  if r.scope == scope]  # fmt: skip
        assert f"| `{scope}` | {opened} | {', '.join(places)} |" in text


@pytest.mark.parametrize(
    "path",
    ["/decide/", "//decide", "/Decide", "/decide;x", "/decide%00", "/./decide", "/observe/../decide", "/decide%2f",
     "/decide%20", "/%64ecide%0a", "/decide.json", "/", "/session/", "/debug", "/decisions/stream"],
)  # fmt: skip
def test_no_spelling_of_a_path_is_taken_for_another(where, made, path):
    from urllib.parse import unquote

    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": unquote(path), "raw_path": path.encode(), "query_string": b"",
             "scheme": "http", "server": ("127.0.0.1", PORT),
             "headers": [(b"host", US.encode()), (b"authorization", f"Bearer {made('decide')}".encode())]}  # fmt: skip
    asyncio.run(Guard(tool, tool="decision", where=where, clock=lambda: NOW)(scope, receive, send))
    assert sent[0]["status"] == 403


def test_basic_and_sockets_take_a_key_of_the_tools_scope_and_the_tool_sees_no_key(where, made):
    key, other = made("prefect"), made("mlflow", name="other")
    client = guarded(where, "prefect")
    given = httpx.BasicAuth("any", key)
    assert key not in client.get("/api/any", auth=given).text
    assert "authorization" not in client.get("/api/any", headers=bearer(key)).text
    with client.websocket_connect(f"ws://{US}/api/events/in", headers=bearer(key)) as socket:
        assert "authorization" not in socket.receive_text()
    assert closed_with(client, **bearer(other)) == 4403
    assert closed_with(client, **bearer(key + "0")) == 4401


def test_where_no_key_is_needed_that_of_a_client_goes_no_further(where, made):
    for key in (made("read"), client_keys.keys.CLIENT_PREFIX + "0" * 64):
        answer = guarded(where, "decision").get("/status", headers=bearer(key))
        assert (answer.status_code, "authorization" in answer.text) == (200, False)


# ---- without a valid key


def test_a_key_that_nobody_has_or_had_is_401(where, made):
    key = made("decide")
    client = guarded(where, "decision")
    wrong = [key[:-1], key + "0", key.upper(), key[:-1] + ("0" if key[-1] != "0" else "1"), "bwc_", "bwc_" + "0" * 64,
             client_keys.digest_of(key.encode()), "desk", f"desk:{key}"]  # fmt: skip
    for bad in wrong:
        answer = client.post("/decide", headers=bearer(bad))
        assert (answer.status_code, answer.json()["kind"]) == (401, "Unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/decide", headers=bearer(key)).is_success
    revoke_client(where, "desk")
    answer = client.post("/decide", headers=bearer(key))
    assert (answer.status_code, "revoked" in answer.json()["error"]) == (401, True)


def test_a_key_ends_at_its_moment(where, made):
    at = [NOW]
    client, key = guarded(where, "decision", clock=lambda: at[0]), made("decide", days=7)
    at[0] = NOW + timedelta(days=7) - timedelta(microseconds=1)
    assert client.post("/decide", headers=bearer(key)).is_success
    at[0] = NOW + timedelta(days=7)
    answer = client.post("/decide", headers=bearer(key))
    assert answer.status_code == 401
    assert "the key of client desk ended at 2026-03-08 00:00 UTC" in answer.json()["error"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 2, "clients": []}',
        '{"format": 1}',
        '{"format": 1, "clients": [1]}',
        "[" * 9999,
    ],
)
def test_a_damaged_file_opens_nothing_until_it_is_right_again_and_the_homes_key_goes_on(where, made, caplog, content):
    key = made("decide")
    client, right = guarded(where, "decision"), registry_file(where).read_text()
    assert client.post("/decide", headers=bearer(key)).is_success
    registry_file(where).write_text(content)
    for _ in range(3):
        answer = client.post("/decide", headers=bearer(key))
        assert (answer.status_code, "bellwether doctor" in answer.json()["error"]) == (401, True)
    assert client.post("/decide", headers=bearer(keys.write_key(where))).is_success
    (record,) = [r for r in caplog.records if r.name == "bellwether.keys"]  # once, not with every request
    assert str(registry_file(where)) in record.message
    assert "Fix:" in record.message
    with pytest.raises(StateError, match="damaged"):
        made("decide", name="other")  # nothing is written over it
    registry_file(where).write_text(right)
    assert client.post("/decide", headers=bearer(key)).is_success


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_a_file_that_others_may_read_or_write_opens_nothing(where, made, mode, caplog):
    key, client = made("decide"), guarded(where, "decision")
    registry_file(where).chmod(mode)
    assert client.post("/decide", headers=bearer(key)).status_code == 401
    assert f"chmod 600 {registry_file(where)}" in caplog.text
    registry_file(where).chmod(0o600)
    assert client.post("/decide", headers=bearer(key)).is_success


def test_a_link_or_folder_in_its_place_opens_nothing(where, made):
    key, file = made("decide"), registry_file(where)
    file.unlink()
    file.mkdir()
    assert guarded(where, "decision").post("/decide", headers=bearer(key)).status_code == 401


# ---- sessions


def test_a_client_opens_a_session_of_its_tool_that_ends_with_its_key(where, made):
    key = made("mlflow")
    page = {"Origin": f"http://{US}"}
    client = guarded(where, "mlflow")
    assert client.get("/session", headers=bearer(key)).status_code == 204
    answer = client.post("/session", data={"key": key}, headers=page)
    assert (answer.status_code, key in str(answer.headers)) == (303, False)
    assert client.get("/api/any").is_success
    token = answer.cookies["bellwether_mlflow_4200"]
    revoke_client(where, "desk")
    assert client.get("/api/any").status_code == 401
    made("mlflow")  # of the same name, and it is another key
    assert client.get("/api/any").status_code == 401
    forged = token.replace(".desk.", ".")
    for bad in (forged, token.replace(".desk.", ".other."), token.replace(".desk.", "..")):
        client.cookies.set("bellwether_mlflow_4200", bad)
        assert client.get("/api/any").status_code == 401


def test_a_session_opens_what_the_key_opens_and_ends_when_it_does(where, made):
    at = [NOW]
    client = guarded(where, "decision", clock=lambda: at[0])
    page = {"Origin": f"http://{US}"}
    assert client.post("/session", data={"key": made("decide", days=1)}, headers=page).status_code == 303
    assert client.post("/decide", headers=page).is_success
    assert client.post("/observe", headers=page).status_code == 403
    at[0] = NOW + timedelta(days=1)
    assert client.post("/decide", headers=page).status_code == 401


def test_a_client_opens_no_session_of_a_tool_that_its_scopes_do_not_open(where, made):
    client, key = guarded(where, "prefect"), made("mlflow")
    answer = client.post("/session", data={"key": key}, headers={"Origin": f"http://{US}"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert "needs scope prefect" in answer.text
    assert client.get("/session", headers=bearer(key)).status_code == 403
    assert client.get("/", headers={**bearer(key), "Accept": "text/html"}).status_code == 403


# ---- what is looked at, and logged


def test_a_server_does_not_take_the_key_of_a_client_for_that_of_the_home(where, made):
    taken = where.model_copy(update={"write_key": SecretStr(made("read"))})
    with pytest.raises(BadValues, match="unset BELLWETHER_WRITE_KEY"):
        Guard(tool, tool="decision", where=taken)


def test_the_file_is_looked_at_once_a_second_and_read_when_it_changed(where, made, monkeypatch):
    monkeypatch.setattr(client_keys, "LOOK_S", 1.0)
    at, looks, reads = [0.0], [], []
    version, read = client_keys._version, client_keys.client_keys
    monkeypatch.setattr(client_keys, "_version", lambda file: (looks.append(file), version(file))[1])
    monkeypatch.setattr(client_keys, "client_keys", lambda where: (reads.append(where), read(where))[1])
    known, key = client_keys.ClientKeys(where, monotonic=lambda: at[0]), made("decide").encode()
    reads.clear()
    for i in range(1000):
        at[0] = i / 250  # four seconds
        assert known.find(key).name == "desk"
    assert (len(looks), len(reads)) == (4, 1)
    known.find(b"bwc_short")
    known.find(b"another key")
    assert len(looks) == 4
    revoke_client(where, "desk")
    reads.clear()
    assert known.find(key) is not None
    at[0] += 1.0
    assert known.find(key) is None
    assert len(reads) == 1


def test_a_line_has_the_name_of_the_client_and_no_line_a_key(where, made, monkeypatch):
    monkeypatch.setattr(json_logs._AT_MOST, "_passed", 0)  # each test has a second of its own
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonLines())
    logging.getLogger("bellwether").addHandler(handler)
    try:
        key, unknown = made("read"), "bwc_" + "5" * 64
        client = guarded(where, "decision")
        client.post("/decide", headers=bearer(key))
        client.post("/decide", headers=bearer(unknown))
        client.post("/decide", headers=bearer("wrong"))
        revoke_client(where, "desk")
        client.post("/decide", headers=bearer(key))
    finally:
        logging.getLogger("bellwether").removeHandler(handler)
    found = [(line["status"], line["kind"], line.get("key_name")) for line in map(json.loads, lines)]
    assert found == [(403, "ScopeMissing", "desk"), *[(401, "Unauthorized", None)] * 3]
    assert not any(secret in line for line in lines for secret in (key, unknown))


# ---- on real sockets, at the real pace


@contextmanager
def served(where, server):
    """The guard with the real clock on a port; yields the port."""
    (port,) = free_ports(1)
    app = RequestLog(Guard(tool, tool=server, where=where))
    running = uvicorn.Server(
        uvicorn.Config(app, port=port, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        running.should_exit = True
        thread.join(SOON_S)


def test_a_running_server_takes_a_new_key_and_ends_a_revoked_one_with_its_stream_and_sockets(where, real_pace):
    with served(where, "decision") as port, served(where, "prefect") as tools:
        url, socket_url = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{tools}/api/events/out"
        _, other = add_client(where, "other", ["decide"], datetime.now(UTC))
        assert httpx.post(f"{url}/decide", headers=bearer(other)).status_code == 200
        _, key = add_client(where, "desk", ["read", "prefect"], datetime.now(UTC), days=1)
        deadline = time.monotonic() + SOON_S
        while httpx.get(f"{url}/decisions/stream", headers=bearer(key)).status_code == 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with (
            httpx.stream("GET", f"{url}/decisions/stream?last", headers=bearer(key), timeout=SOON_S) as stream,
            websockets.sync.client.connect(socket_url, additional_headers=bearer(key)) as socket,
        ):
            parts = stream.iter_bytes()
            assert b"authorization" not in next(parts)
            assert "authorization" not in socket.recv()
            revoke_client(where, "desk")
            began = time.monotonic()
            with pytest.raises(ConnectionClosed) as ended:
                socket.recv(timeout=SOON_S)
            assert ended.value.rcvd.code == 4401
            assert list(parts) == []  # the end of the response, not a lost connection
            assert time.monotonic() - began < 5  # two looks, on a busy machine
        assert httpx.get(f"{url}/decisions/stream", headers=bearer(key)).status_code == 401
        with pytest.raises(InvalidStatus):
            websockets.sync.client.connect(socket_url, additional_headers=bearer(key))
        assert httpx.post(f"{url}/decide", headers=bearer(other)).status_code == 200


def test_what_lasts_ends_by_itself_too_and_passes_its_fault_on():
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def short(scope, receive, send):
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body", "body": b""})

    async def failing(scope, receive, send):
        raise ValueError("a fault")

    async def endless(scope, receive, send):
        await asyncio.Event().wait()

    asyncio.run(lasting.run_while(lambda: False, short, {"type": "http"}, None, send))
    assert sent == ["http.response.start", "http.response.body"]
    with pytest.raises(ValueError, match="a fault"):
        asyncio.run(lasting.run_while(lambda: True, failing, {"type": "http"}, None, send))
    sent.clear()
    asyncio.run(lasting.run_while(lambda: False, endless, {"type": "http"}, None, send))
    assert sent == ["http.response.start", "http.response.body"]


def test_our_client_sends_the_key_of_a_client_and_says_which_scope_is_missing(where):
    _, key = add_client(where, "desk", ["decide"], datetime.now(UTC))
    with served(where, "decision") as port:
        at = where.model_copy(update={"write_key": SecretStr(key), "decision_port": port})
        with Client(at) as client:
            with pytest.raises(InputError, match=r"403.*needs scope bars"):
                client.observe_all([("SIM/USDT", np.zeros((0, 9)), None, None)])
            with pytest.raises(InputError, match=r"403.*needs scope read"):
                next(client.stream())
