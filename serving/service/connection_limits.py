"""HTTP/1.1 connections with limits: how many, how long a request may take to arrive and a response to be read.

uvicorn waits as long as a caller likes for the first byte of a request, for the rest of it, and for its response to be
read. Here each of them ends after TRANSFER_TIMEOUT_S, headers end at MAX_HEAD bytes, and connection number
MAX_CONNECTIONS + 1 is answered 503 and closed. A connection between two requests is closed by uvicorn's own keep-alive
timeout (5 s in BentoML's worker) and counts as one of MAX_CONNECTIONS until then; a WebSocket and a stream count too.
A stream may last as long as its reader reads: only what is sent and not read for TRANSFER_TIMEOUT_S ends it.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import ClassVar

import uvicorn.config
from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_CONNECTIONS = 256
MAX_HEAD = 1 << 16  # bytes of request line and headers
TRANSFER_TIMEOUT_S = 10.0  # from a request's first byte (of the first one: from the connection) to its last
CLOSE_WITHIN_S = 1.0  # how long a refused caller may go on sending
WORKER = "_bentoml_impl.worker.service"  # the module that BentoML runs in the process that serves


class _HeadTooLarge(HttpParserError):
    """End the parsing of a request whose headers do not end."""


class GuardedProtocol(HttpToolsProtocol):
    """Apply those limits to uvicorn's protocol: `uvicorn.Config(app, http=GuardedProtocol)`."""

    # called when the server begins to stop, which then waits for every response: what ends a response that has no end
    on_shutdown: ClassVar[list[Callable[[], None]]] = []
    max_connections = MAX_CONNECTIONS
    transfer_timeout_s = TRANSFER_TIMEOUT_S

    _arrival_timer: asyncio.TimerHandle | None = None  # runs while a request arrives
    _read_timer: asyncio.TimerHandle | None = None  # runs while a response is not read
    _close_timer: asyncio.TimerHandle | None = None  # runs from a refusal to the end of the connection
    _in_head = True
    _head_bytes = 0

    # ---- how many ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection over the limit; time the first request of every other."""
        full = len(self.connections) >= self.max_connections
        super().connection_made(transport)
        if full:
            limit = f"{self.max_connections} connections are open, which is the limit; close some, or try again"
            self._refuse(503, "TooManyConnections", limit, "retry-after: 1\r\n")
        else:
            self._start_arrival_timer()

    def shutdown(self) -> None:
        """End what has no end of its own, then as uvicorn: idle connections close, others after their response."""
        for end in self.on_shutdown:
            end()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        self._stop_arrival_timer()
        self._stop_read_timer()
        if self._close_timer is not None:
            self._close_timer.cancel()
        super().connection_lost(exc)

    # ---- how long a request may take --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Time the request and count the bytes of its head."""
        if self._close_timer is not None:  # refused already: what still arrives is dropped
            return
        if self._arrival_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start_arrival_timer()
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD and self._close_timer is None:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """Begin a request and time its arrival."""
        self._in_head = True
        if self._arrival_timer is None:
            self._start_arrival_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Refuse a head over MAX_HEAD that came in one piece."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:  # sent in one piece
            self._refuse_head()
            raise _HeadTooLarge
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Mark a request as complete and stop timing it."""
        self._stop_arrival_timer()
        self._in_head, self._head_bytes = True, 0  # of the next one
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """End the timing: a WebSocket may stay open."""
        self._stop_arrival_timer()
        super().handle_websocket_upgrade()

    def _start_arrival_timer(self) -> None:
        """Give the request TRANSFER_TIMEOUT_S to arrive."""
        self._arrival_timer = self.loop.call_later(self.transfer_timeout_s, self._arrived_too_slowly)

    def _stop_arrival_timer(self) -> None:
        """Stop timing the request."""
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _arrived_too_slowly(self) -> None:
        """Refuse or end a request that does not arrive completely in time."""
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # we do not read: an earlier request or a part of the body is being worked on
            self._arrival_timer = self.loop.call_later(1.0, self._arrived_too_slowly)
            return
        why = f"the request was not whole after {self.transfer_timeout_s:g} s; send it at once"
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.abort()  # a response is half sent: nothing may be written into it
        elif self.cycle is None or self.cycle.response_complete or not self._in_head:
            self._refuse(408, "RequestTimeout", why)
        else:
            self.transport.abort()

    # ---- how long a response may take ------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Time the response: the caller does not read."""
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        """Stop timing the response."""
        super().resume_writing()
        self._stop_read_timer()

    def on_response_complete(self) -> None:
        """Time what is left in the buffer."""
        if self.transport.get_write_buffer_size() > 0:
            self._start_read_timer()
        super().on_response_complete()

    def _start_read_timer(self) -> None:
        """Give the caller TRANSFER_TIMEOUT_S to read."""
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.transfer_timeout_s, self._read_too_slowly)

    def _stop_read_timer(self) -> None:
        """Stop timing the response."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_too_slowly(self) -> None:
        """Abort a connection whose response is not read."""
        self._read_timer = None
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed as HTTP, in the format of every other refusal."""
        if self._close_timer is None:
            self._refuse(400, "BadRequest", f"{msg.rstrip('.')}: this is not HTTP/1.1 as RFC 9112 has it")

    def _refuse_head(self) -> None:
        """Answer 431."""
        self._refuse(431, "HeadersTooLarge", f"request line and headers are limited to {MAX_HEAD} bytes; send less")

    def _refuse(self, status: int, kind: str, error: str, more: str = "") -> None:
        """Write an error in our format and close; `more`: further header lines."""
        self._stop_arrival_timer()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its response would be written after ours
            self.cycle.message_event.set()
        body = json.dumps({"error": error, "kind": kind, "fields": []}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{more}\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.connections.discard(self)  # it takes no place while it closes
        # closed with bytes of the caller unread, the connection would be reset, and our response lost with it
        self.flow.resume_reading()
        self._close_timer = self.loop.call_later(CLOSE_WITHIN_S, self.transport.abort)


def in_worker() -> bool:
    """Return whether this process is the worker of `bentoml serve`, not its parent, a test or a command."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == WORKER


def guard_worker() -> None:
    """Make the uvicorn that a worker is about to build use GuardedProtocol and trust no proxy; elsewhere do nothing.

    BentoML builds `uvicorn.Config` itself, after it has imported the service, and passes no `http`: uvicorn then reads
    the entry `auto` of its table of protocols.
    """
    if in_worker():
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
        # uvicorn would trust what any local caller sends as its address and scheme; an operator with a proxy names it
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
