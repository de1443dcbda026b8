"""Connections that take their time, or are too many: real sockets on a real uvicorn with GuardedProtocol."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
import uvicorn

from pipelines.settings import ROOT
from serving.service.connection_limits import MAX_CONNECTIONS, MAX_HEAD, TRANSFER_TIMEOUT_S, GuardedProtocol, in_worker

LIMIT, WITHIN_S = 5, 0.4  # what the services have as 256 and 10 s
SOON_S = 5.0  # of a busy machine; what is waited for would otherwise never come
BIG = 20 << 20


class Quick(GuardedProtocol):
    max_connections, transfer_timeout_s = LIMIT, WITHIN_S


async def app(scope, receive, send):
    """/big answers more than any buffer takes; /early answers before the body; the rest says how long the body was."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    size, more = 0, scope["path"] != "/early"
    if scope["path"] == "/busy":
        await asyncio.sleep(3 * WITHIN_S)  # before it reads: the protocol has stopped reading from the wire
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = b"x" * BIG if scope["path"] == "/big" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, http=Quick, log_config=None, timeout_keep_alive=2)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            yield running, listening.getsockname()
        finally:
            running.should_exit = True
            thread.join(10)


@pytest.fixture
def connect(server):
    """Connections that are closed when the test is over; it begins when those of the test before it are gone."""
    running, address = server
    until(lambda: not running.server_state.connections)
    with ExitStack() as opened:

        def connect():
            connection = opened.enter_context(socket.create_connection(address, timeout=2 * SOON_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection

        yield connect


def until(holds, seconds=SOON_S):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)


def rest(connection):
    """What comes until the connection ends, and after how many seconds it did."""
    began, received = time.monotonic(), b""
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return received, time.monotonic() - began


def drip(connection, text, every=0.05):
    """A byte now and then for as long as the other side listens."""

    def send():
        try:
            for byte in text:
                connection.sendall(bytes([byte]))
                time.sleep(every)
        except OSError:
            return

    threading.Thread(target=send, daemon=True).start()


POST = b"POST / HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"PO",
        b"GET / HTTP/1.1\r\nhost: a\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-long: " + b"y" * 1000,
        POST + b"content-length: 100\r\n\r\n",
        POST + b"content-length: 100\r\n\r\nhalf",
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhel",
        POST + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_a_request_that_is_not_whole_in_time_is_refused_and_closed(connect, sent):
    connection = connect()
    connection.sendall(sent)
    received, after = rest(connection)
    assert b"HTTP/1.1 408 Request Timeout" in received
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["kind"] == "RequestTimeout"
    assert WITHIN_S * 0.8 < after < SOON_S


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\n", POST + b"content-length: 999999\r\n\r\n", POST + b"transfer-encoding: chunked\r\n\r\n"],
)
def test_a_byte_now_and_then_does_not_keep_a_connection(connect, head):
    connection = connect()
    connection.sendall(head)
    drip(connection, b"1" * 200 if b"chunked" in head else b"x-a: b\r\n" * 100)
    assert rest(connection)[1] < SOON_S


def test_a_second_request_has_its_own_time_and_an_idle_connection_ends_by_keep_alive(connect):
    connection = connect()
    for _ in range(4):
        time.sleep(WITHIN_S / 2)
        connection.sendall(POST + b"content-length: 2\r\n\r\n{}")
        assert connection.recv(1 << 16).endswith(b"\r\n\r\n2")
    received, after = rest(connection)
    assert (received, 1.0 < after < 2 * SOON_S) == (b"", True)  # uvicorn's own timeout, here 2 s
    again = connect()
    again.sendall(POST + b"content-length: 2\r\n\r\n{}")
    again.recv(1 << 16)
    again.sendall(POST)
    assert b"408" in rest(again)[0]


def test_blank_lines_do_not_keep_an_idle_connection(connect):
    connection = connect()
    connection.sendall(POST + b"content-length: 2\r\n\r\n{}")
    connection.recv(1 << 16)
    drip(connection, b"\r\n" * 100)
    assert rest(connection)[1] < SOON_S


def test_the_rest_of_a_body_that_was_answered_early_has_no_more_time(connect):
    connection = connect()
    connection.sendall(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n")
    drip(connection, b"x" * 200)
    received, after = rest(connection)
    assert (received.startswith(b"HTTP/1.1 200"), after < SOON_S) == (True, True)


def test_time_in_which_the_service_itself_does_not_read_is_not_the_callers(connect):
    connection = connect()
    connection.sendall(b"POST /busy HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\nconnection: close\r\n\r\n")
    threading.Thread(target=connection.sendall, args=(b"x" * 900_000,), daemon=True).start()
    connection.settimeout(10)
    assert rest(connection)[0].endswith(b"\r\n\r\n900000")


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
def test_a_response_that_is_not_read_is_given_up(server, connect, close):
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n" + close + b"\r\n")
    until(lambda: len(server[0].server_state.connections) == 1)
    until(lambda: not server[0].server_state.connections, SOON_S)


def test_one_connection_more_than_the_limit_is_refused_and_one_that_ends_makes_room(server, connect):
    connections = [connect() for _ in range(LIMIT)]
    until(lambda: len(server[0].server_state.connections) == LIMIT)
    received, after = rest(connect())
    assert (received[:12], after < SOON_S) == (b"HTTP/1.1 503", True)
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["kind"] == "TooManyConnections"
    assert b"retry-after: 1" in received
    connections[0].sendall(POST + b"content-length: 2\r\n\r\n{}")  # those that are in are served
    assert connections[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
    connections[1].close()
    until(lambda: len(server[0].server_state.connections) < LIMIT)
    late = connect()
    late.sendall(POST + b"content-length: 2\r\n\r\n{}")
    assert late.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", [b"x-a: ", b"", b"GET /"])
def test_headers_that_do_not_end_are_cut_off(connect, name):
    connection = connect()
    head = b"" if name.startswith(b"GET") else b"GET / HTTP/1.1\r\n"
    connection.sendall(head + name)
    try:
        for _ in range(64):
            connection.sendall(b"y" * (MAX_HEAD // 16))
            time.sleep(0.001)
    except OSError:
        pass
    received, after = rest(connection)
    assert after < SOON_S
    assert received[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")  # who sends on for long is cut off before it reads


def test_many_headers_sent_whole_are_cut_off(connect):
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(MAX_HEAD // 8)) + b"\r\n")
    received, _ = rest(connection)
    assert received[:12] == b"HTTP/1.1 431"


def test_a_refusal_reaches_a_caller_that_is_still_sending(connect):
    """Closed with bytes unread, the connection would be reset and the answer lost."""
    for _ in range(20):
        connection = connect()
        head = b"POST / HTTP/1.1\r\ncontent-length: 400000\r\nx-long: " + b"y" * (MAX_HEAD + 1) + b"\r\n\r\n"
        connection.sendall(head + b"x" * 400_000)
        assert rest(connection)[0].startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01"]
)
def test_what_is_not_http_is_a_400_in_our_format(connect, sent):
    connection = connect()
    connection.sendall(sent)
    received, _ = rest(connection)
    assert received.startswith(b"HTTP/1.1 400")
    assert json.loads(received.rpartition(b"\r\n\r\n")[2]).keys() == {"error", "kind", "fields"}


def test_the_limits_are_those_the_documentation_names():
    assert (MAX_CONNECTIONS, TRANSFER_TIMEOUT_S) == (256, 10.0)
    assert (GuardedProtocol.max_connections, GuardedProtocol.transfer_timeout_s) == (256, 10.0)


def test_only_bentomls_worker_has_uvicorns_table_changed():
    """In the worker's module `auto` is ours; in any other process it is uvicorn's."""
    code = (
        "import serving.service.connection_limits as p, uvicorn.config as c; p.guard_worker(); "
        "print(c.HTTP_PROTOCOLS['auto'])"
    )
    worker = (
        "import sys, types, importlib.machinery as m;"
        "sys.modules['__main__'].__spec__ = m.ModuleSpec('_bentoml_impl.worker.service', None);" + code
    )
    received = [
        subprocess.run(
            [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for text in (code, worker)
    ]
    assert received == [
        "uvicorn.protocols.http.auto:AutoHTTPProtocol",
        "serving.service.connection_limits:GuardedProtocol",
    ]
    assert not in_worker()
