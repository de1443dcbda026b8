"""The guard around a small app: who comes in over HTTP and WebSocket, and what the app behind it gets to see."""

import base64
import json
import os
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.websockets import WebSocketDisconnect

from pipelines.errors import BadValues, StateError
from pipelines.settings import Settings
from serving.service import keys
from serving.service.http_guard import Guard
from serving.service.http_rules import HttpRules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would rather have a client that is not in the lock
    from starlette.testclient import TestClient

PORT = 4200
US = f"127.0.0.1:{PORT}"
PAGE = {"Origin": f"http://{US}"}


@pytest.fixture
def where(tmp_path):
    return Settings(_env_file=None, home=tmp_path / "home", write_key=None)


@pytest.fixture
def key(where):
    return keys.write_key(where)


async def tool(scope, receive, send):
    """Echo the request; any origin may read it, as in Prefect's API. A socket gets its headers."""
    headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(headers)})
        await send({"type": "websocket.close", "code": 1000})
        return
    sent = [(b"content-type", b"application/json"), (b"access-control-allow-origin", b"*"),
            (b"access-control-allow-credentials", b"true")]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": sent})
    echo = {"method": scope["method"], "path": scope["path"], "headers": headers}
    await send({"type": "http.response.body", "body": json.dumps(echo).encode()})


@pytest.fixture
def guarded(where, key):
    """A browser's or client's side of a guarded tool; no redirect is followed by itself."""
    app = Guard(tool, tool="prefect", probes={"/readyz": "/api/ready"}, where=where)
    return TestClient(app, base_url=f"http://{US}", follow_redirects=False)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def signed_in(client, where, key):
    """The same client as a browser that came by `bellwether open`."""
    answer = client.get("/session", params={"ticket": keys.create_ticket(where, "prefect")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return client


def closed_with(client, path="/api/events/out", **headers):
    with (
        pytest.raises(WebSocketDisconnect) as ended,
        client.websocket_connect(f"ws://{US}{path}", headers=headers) as socket,
    ):
        socket.receive_text()
    return ended.value.code


# ---- Host and Origin

HOSTILE_HOSTS = [
    "evil.example", f"evil.example:{PORT}", f"127.0.0.1.evil.example:{PORT}", "127.0.0.1", "localhost", "127.0.0.1:80",
    "127.0.0.1:4201", f"localhost.:{PORT}", f"127.1:{PORT}", f"2130706433:{PORT}", f"0.0.0.0:{PORT}", f"[::]:{PORT}",
    "", f"user@127.0.0.1:{PORT}", f"127.0.0.1:{PORT}, evil.example", f"127.0.0.1:0{PORT}", f"127.0.0.1:{PORT}/", "*",
]  # fmt: skip
HOSTILE_ORIGINS = [
    "null", "https://evil.example", f"http://evil.example:{PORT}", "http://127.0.0.1", "http://localhost", "",
    "http://localhost:5000", "http://127.0.0.1:4201", f"http://{US}.evil.example", f"http://{US}/", f"ftp://{US}",
    f"http://{US}, http://evil.example", f"http://evil.example@{US}", f"HTTP://{US}", "file://", US, "*",
    "chrome-extension://abc",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTILE_HOSTS)
def test_an_unknown_host_is_refused_even_with_the_key(guarded, key, host):
    answer = guarded.get("/api/flows", headers={"Host": host, **bearer(key)})
    assert (answer.status_code, answer.json()["kind"]) == (400, "UnknownHost")
    assert "BELLWETHER_ALLOWED_HOSTS" in answer.json()["error"]
    assert closed_with(guarded, Host=host, **bearer(key)) == 4400


@pytest.mark.parametrize("origin", HOSTILE_ORIGINS)
def test_a_foreign_origin_is_refused_even_with_the_key_or_a_session(guarded, where, key, origin):
    signed_in(guarded, where, key)
    for method in ("GET", "POST", "PATCH", "OPTIONS", "DELETE"):
        answer = guarded.request(method, "/api/deployments/x", headers={"Origin": origin, **bearer(key)})
        assert (answer.status_code, answer.json()["kind"]) == (403, "ForeignOrigin")
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert closed_with(guarded, Origin=origin, **bearer(key)) == 4403
    assert closed_with(guarded, Origin=origin) == 4403


@pytest.mark.parametrize("host", [US, f"localhost:{PORT}", f"LocalHost:{PORT}", f"[::1]:{PORT}"])
def test_our_own_names_and_pages_are_let_in(guarded, key, host):
    assert guarded.get("/", headers={"Host": host, "Origin": f"http://{host.lower()}", **bearer(key)}).is_success


def raw(app, headers, kind="http", method="GET", path="/api/flows", server=("127.0.0.1", PORT)):
    """Status or close code of a request with exactly these headers, which no client library would send."""
    import asyncio

    sent = []

    async def receive():
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
             "server": server, "headers": [(n.encode(), v.encode("latin-1")) for n, v in headers]}  # fmt: skip
    asyncio.run(app(scope | ({"method": method} if kind == "http" else {}), receive, send))
    return sent[0].get("status") or sent[0].get("code")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 400),
        ([("host", US), ("host", US)], 400),
        ([("host", US), ("host", "evil.example")], 400),
        ([("host", US), ("origin", f"http://{US}"), ("origin", "http://evil.example")], 403),
        ([("host", US), ("origin", f"http://{US}"), ("origin", f"http://{US}")], 403),
        ([("host", "\xe9")], 400),
        ([("host", US), ("authorization", "Bearer \xe9")], 401),
        ([("host", US), ("cookie", "bellwether_prefect_4200=\xe9.\xe9.\xe9; ;=;a")], 401),
    ],
)
def test_headers_that_are_missing_doubled_or_no_ascii_are_refused_and_break_nothing(where, key, headers, status):
    app = Guard(tool, tool="prefect", where=where)
    assert raw(app, headers) == status
    assert raw(app, headers, "websocket") == 4000 + status


def test_two_keys_at_once_are_refused(where, key):
    app = Guard(tool, tool="prefect", where=where)
    one, other = ("authorization", f"Bearer {key}"), ("authorization", "Bearer wrong")
    assert raw(app, [("host", US), one]) == 200
    assert raw(app, [("host", US), other, one]) == raw(app, [("host", US), one, other]) == 401


def test_names_of_a_proxy_are_let_in_when_they_are_listed_and_only_those(where, key):
    proxied = where.model_copy(update={"allowed_hosts": " Desk.example, desk:8443 "})
    client = TestClient(Guard(tool, tool="prefect", where=proxied), base_url=f"http://{US}")
    for host in ("desk.example", "desk:8443", US):
        assert client.get("/api", headers={"Host": host, "Origin": f"https://{host}", **bearer(key)}).is_success
    for host in ("desk", "desk.example:8443", "www.desk.example"):
        assert client.get("/api", headers={"Host": host, **bearer(key)}).status_code == 400


def test_on_port_80_no_port_is_named_and_a_server_on_another_address_answers_to_it(where, key):
    app = Guard(tool, tool="prefect", where=where.model_copy(update={"host": "10.1.2.3"}))
    for host, server, status in [("localhost", 80, 200), ("localhost:80", 80, 200), ("10.1.2.3:4200", PORT, 200),
                                 ("localhost:80", PORT, 400), ("10.1.2.4:4200", PORT, 400)]:  # fmt: skip
        given = [("host", host), ("authorization", f"Bearer {key}")]
        assert raw(app, given, server=("10.1.2.3", server)) == status
    assert raw(app, [("host", "localhost:4200")], server=None) == 400


# ---- the key


@pytest.mark.parametrize(
    "headers",
    [
        {}, bearer("wrong"), bearer(""), bearer("test"), basic("bellwether", "wrong"), basic("KEY", ""),
        {"Authorization": "Basic no-base64"}, {"Authorization": "Basic"}, {"Authorization": "Bearer"},
        {"Authorization": "Token KEY"}, {"Authorization": "KEY"}, {"Authorization": "Bearer KEYx"}, {"X-Key": "KEY"},
        {"Cookie": "bellwether_prefect_4200=KEY"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/api/flows", "/readyz/", "/session", "/assets/x.js", "/api/health"])
def test_nobody_comes_in_without_the_key(guarded, key, headers, path):
    sent = {name: value.replace("KEY", key) for name, value in headers.items()}
    if "Authorization" in sent and sent["Authorization"].startswith("Basic ") and "KEY" in str(headers):
        sent = basic(key, "")
    answer = guarded.get(path, headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"  # no browser prompts for a password it would store
    assert "bellwether open prefect" in answer.json()["error"]
    assert key not in answer.text
    assert closed_with(guarded, path, **sent) == 4401


def test_the_key_is_taken_as_bearer_and_as_the_password_of_basic_and_goes_no_further(guarded, key):
    for headers in (bearer(key), {"authorization": f"bearer  {key}"}, basic("bellwether", key), basic("", key)):
        echo = guarded.patch("/api/x", headers={**headers, "Cookie": "theme=dark; bellwether_mlflow_5000=abc"}).json()
        assert (echo["method"], echo["path"]) == ("PATCH", "/api/x")
        assert key not in str(echo)
        assert [v for n, v in echo["headers"] if n in ("cookie", "authorization")] == ["theme=dark"]
        with guarded.websocket_connect(f"ws://{US}/api/events/in", headers=headers) as socket:
            assert "authorization" not in socket.receive_text()


def test_without_the_key_there_is_a_login_page_and_an_open_probe(guarded):
    page = guarded.get("/")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "bellwether open prefect" in page.text
    assert guarded.get("/runs", headers={"Accept": "text/html,*/*"}).status_code == 401
    assert guarded.get("/<script>", headers={"Accept": "*/*"}).headers["x-content-type-options"] == "nosniff"
    assert "<form" in guarded.get("/runs", headers={"Accept": "text/html,*/*"}).text
    assert guarded.get("/readyz").json()["path"] == "/api/ready"
    assert guarded.post("/readyz").status_code == guarded.post("/").status_code == 401


def test_a_browser_that_a_page_of_another_site_led_here_requests_once_more_by_itself(guarded):
    """A strict cookie does not come along then; sent from our own page it does."""
    assert 'http-equiv="refresh"' in guarded.get("/", headers={"Sec-Fetch-Site": "cross-site"}).text
    assert 'http-equiv="refresh"' not in guarded.get("/", headers={"Sec-Fetch-Site": "same-origin"}).text


def test_what_a_tool_allows_every_origin_is_allowed_to_none(guarded, key):
    answer = guarded.get("/api/flows", headers={**PAGE, **bearer(key)})
    assert answer.is_success
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_session_path_shows_whether_the_key_is_right(guarded, key):
    assert guarded.get("/session", headers=bearer(key)).status_code == 204
    assert guarded.get("/session", headers=bearer("no")).status_code == 401


# ---- sessions


def test_a_one_time_link_opens_a_session_once(guarded, where, key):
    ticket = keys.create_ticket(where, "prefect")
    answer = guarded.get("/session", params={"ticket": ticket})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert key not in cookie
    assert guarded.get("/api/flows").is_success
    assert guarded.post("/api/flows/filter", headers=PAGE).is_success
    guarded.cookies.clear()
    again = guarded.get("/session", params={"ticket": ticket})
    assert (again.status_code, "set-cookie" in again.headers) == (401, False)


def test_of_many_who_use_a_link_at_once_one_comes_in(where, key):
    ticket = keys.create_ticket(where, "prefect")
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: keys.redeem_ticket(where, "prefect", ticket), range(64))) == 1


def test_a_link_of_another_tool_an_old_one_and_a_made_up_one_open_nothing(guarded, where, key, monkeypatch):
    other, old = keys.create_ticket(where, "mlflow"), keys.create_ticket(where, "prefect")
    assert guarded.get("/session", params={"ticket": other}).status_code == 401
    for made_up in ("x", "../../write_key", "%00", "é" * 3000):
        assert guarded.get("/session", params={"ticket": made_up}).status_code == 401
    now = time.time()
    monkeypatch.setattr(keys.time, "time", lambda: now + keys.TICKET_SECONDS + 1)
    assert guarded.get("/session", params={"ticket": old}).status_code == 401


def test_a_ticket_is_a_file_that_only_we_can_read_and_that_does_not_hold_it(where, key):
    ticket = keys.create_ticket(where, "prefect")
    folder = where.home / "run" / "tickets"
    assert (folder.stat().st_mode & 0o777, [f.stat().st_mode & 0o777 for f in folder.iterdir()]) == (0o700, [0o600])
    assert not any(ticket in file.name + file.read_text() for file in folder.iterdir())


def test_the_login_page_takes_the_key_from_itself_only(guarded, key):
    form = {"key": f" {key}\n"}
    assert guarded.post("/session", data=form).status_code == 403
    assert guarded.post("/session", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
    assert guarded.post("/session", data={"key": "wrong"}, headers=PAGE).status_code == 401
    assert guarded.post("/session", data={}, headers=PAGE).status_code == 415
    assert guarded.post("/session", json=form, headers=PAGE).status_code == 415
    assert guarded.post("/session", data={"key": "x" * 5000}, headers=PAGE).status_code == 413
    assert guarded.delete("/session", headers=PAGE).status_code == 405
    assert not guarded.cookies
    assert guarded.post("/session", data=form, headers=PAGE).status_code == 303
    assert guarded.get("/api/flows").is_success


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 403),
        ("POST", PAGE, 200),
        ("PATCH", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("DELETE", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", {}, 200),
        ("GET", {"Authorization": "Bearer wrong"}, 401),
    ],
)
def test_a_session_serves_pages_of_ours_only(guarded, where, key, method, headers, status):
    signed_in(guarded, where, key)
    assert guarded.request(method, "/api/x", headers=headers).status_code == status


def test_a_socket_with_a_session_needs_an_origin_of_ours(guarded, where, key):
    signed_in(guarded, where, key)
    with guarded.websocket_connect(f"ws://{US}/api/events/out", headers=PAGE) as socket:
        assert "bellwether_" not in socket.receive_text()
    assert closed_with(guarded) == 4403


def test_a_session_is_for_one_tool_for_a_while_and_for_this_key(where, key, monkeypatch):
    token = keys.create_session(key, "prefect")
    assert keys.is_session(token, key, "prefect")
    payload, _, signature = token.rpartition(".")
    later = f"{int(payload.partition('.')[0]) + 9}.{payload.partition('.')[2]}.{signature}"
    for bad in ("", ".", "..", "a.b.c", later, token[:-1], token + "0", f"{payload}.", f"-1.{token}", "é" + token):
        assert not keys.is_session(bad, key, "prefect")
    assert not keys.is_session(token, key, "mlflow")
    assert not keys.is_session(token, "another key", "prefect")
    now = time.time()
    monkeypatch.setattr(keys.time, "time", lambda: now + keys.SESSION_SECONDS + 1)
    assert not keys.is_session(token, key, "prefect")


# ---- the key's file


def test_the_key_is_made_once_and_never_written_again(where):
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: keys.write_key(where), range(32)))) == 1
    file = keys.key_file(where)
    before = (file.stat().st_mtime_ns, file.stat().st_ino, sorted(os.listdir(where.home)))
    assert file.stat().st_mode & 0o777 == 0o600
    assert before[2] == ["write_key"]
    where.home.chmod(0o500)  # nothing can be written: nothing needs to be
    try:
        assert keys.write_key(where) == file.read_text()
    finally:
        where.home.chmod(0o700)
    assert (file.stat().st_mtime_ns, file.stat().st_ino, sorted(os.listdir(where.home))) == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o666, 0o777])
def test_a_key_that_others_may_read_or_write_is_refused_with_the_remedy(where, key, mode):
    keys.key_file(where).chmod(mode)
    with pytest.raises(StateError, match=re.escape(f"chmod 600 {keys.key_file(where)}")):
        keys.write_key(where)


@pytest.mark.parametrize("content", ["", "  \n", "two words", "ключ"])
def test_an_empty_or_impossible_key_lets_nobody_in(where, key, content):
    keys.key_file(where).write_text(content)
    with pytest.raises(StateError, match="holds no valid key"):
        Guard(tool, tool="prefect", where=where)


def test_an_empty_variable_is_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_WRITE_KEY", " ")
    assert len(keys.write_key(Settings(_env_file=None, home=tmp_path / "home"))) == 48
    monkeypatch.setenv("BELLWETHER_WRITE_KEY", "two words")
    with pytest.raises(BadValues, match="BELLWETHER_WRITE_KEY"):
        keys.write_key(Settings(_env_file=None, home=tmp_path / "home"))


def test_a_new_key_ends_the_old_one_and_its_sessions(where, key, monkeypatch):
    token = keys.create_session(key, "prefect")
    keys.rotate_key(where)
    new = keys.write_key(where)
    assert new != key
    assert not keys.is_session(token, new, "prefect")
    assert keys.key_file(where).stat().st_mode & 0o777 == 0o600
    assert os.listdir(where.home) == ["write_key"]
    monkeypatch.setenv("BELLWETHER_WRITE_KEY", "given")
    with pytest.raises(BadValues, match="Set another there"):
        keys.rotate_key(Settings(_env_file=None, home=where.home))


# ---- calls of our services


@pytest.fixture
def called(where, key):
    app = HttpRules(tool, title="t", text="t", protected_paths=("/decide",), reads=("/status",), max_body=100)
    return TestClient(Guard(app, tool="decision", open_paths=("/", "/status"), where=where), base_url=f"http://{US}")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", "*/*",
     "application/xml", "text/json", "application/json; charset=latin-1", "application/json, text/plain", "", "json",
     "application/json; boundary=x", "application/vnd.api+json", "application/jsonx", "text/plain; application/json"],
)  # fmt: skip
def test_what_is_not_json_is_415(called, key, kind):
    for body in (b"{}", b""):
        answer = called.post("/decide", content=body, headers={**bearer(key), "Content-Type": kind})
        assert (answer.status_code, answer.json()["kind"]) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; Charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_in_any_spelling_is_taken(called, key, kind):
    assert called.post("/decide", content=b"{}", headers={**bearer(key), "Content-Type": kind}).is_success


def test_a_body_without_a_kind_is_415_and_a_call_without_a_body_is_not(called, key):
    assert called.post("/decide", content=b"{}", headers=bearer(key)).status_code == 415
    assert called.post("/status").is_success
    assert called.post("/decide", json=["x" * 200], headers=bearer(key)).status_code == 413
    assert called.post("/decide", content=iter([b"{}"]), headers=bearer(key)).status_code == 411


def test_a_read_by_get_reaches_the_service_without_what_came_with_it(called):
    echo = called.request("GET", "/status", content=b"x", headers={"Content-Type": "multipart/form-data"}).json()
    assert (echo["method"], echo["path"]) == ("POST", "/status")
    assert not {"content-type", "content-length"} & {name for name, _ in echo["headers"]}


def test_what_is_open_is_listed_and_all_else_needs_the_key(called, key):
    assert called.get("/status").is_success
    assert called.get("/").is_success
    for path in ("/decide", "/decide/", "/status/../decide", "/new", "//status"):
        assert called.post(f"http://{US}{path}", json={}).status_code == 401
