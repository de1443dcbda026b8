"""HTTP/1.1 connections with limits: how many, how long a request may take to arrive and an answer to be taken.

uvicorn waits as long as a caller likes for the rest of a request, for the first byte of one, and for an answer to be
read. Here each of them ends after TRANSFER_TIMEOUT_S, headers end at MAX_HEAD bytes, and connection MAX_CONNECTIONS + 1 is
told 503 and closed. A connection between two requests is closed by uvicorn's own keep-alive timeout (5 s in BentoML's
worker) and counts as one of MAX_CONNECTIONS until then; a WebSocket counts too.
"""

import asyncio
import json
import os
import sys

import uvicorn.config
from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_CONNECTIONS = 256
MAX_HEAD = 1 << 16  # bytes of request line and headers
TRANSFER_TIMEOUT_S = 10.0  # from a request's first byte (of the first one: from the connection) to its last
LEAVE_WITHIN_S = 1.0  # how long a refused caller may go on sending
WORKER = "_bentoml_impl.worker.service"  # the module that BentoML runs in the process that answers


class _HeadTooLarge(HttpParserError):
    """Ends the parsing of a request whose headers do not end."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with those limits: `uvicorn.Config(app, http=GuardedProtocol)`."""

    max_connections = MAX_CONNECTIONS
    transfer_timeout_s = TRANSFER_TIMEOUT_S

    _waiting: asyncio.TimerHandle | None = None  # runs while a request is on its way
    _taking: asyncio.TimerHandle | None = None  # runs while an answer is not taken
    _leaving: asyncio.TimerHandle | None = None  # runs from a refusal to the end of the connection
    _in_head = True
    _head_bytes = 0

    # ---- how many ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        full = len(self.connections) >= self.max_connections
        super().connection_made(transport)
        if full:
            limit = f"{self.max_connections} connections are open, which is the limit; close some, or try again"
            self._refuse(503, "TooManyConnections", limit, "retry-after: 1\r\n")
        else:
            self._await_whole()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._taken()
        if self._leaving is not None:
            self._leaving.cancel()
        super().connection_lost(exc)

    # ---- how long a request may take --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._leaving is not None:  # refused already: what still comes is thrown away
            return
        if self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._await_whole()
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD and self._leaving is None:
            self._refuse_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        if self._waiting is None:
            self._await_whole()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:  # sent in one piece
            self._refuse_head()
            raise _HeadTooLarge
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arrived()
        self._in_head, self._head_bytes = True, 0  # of the next one
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._arrived()
        super().handle_websocket_upgrade()

    def _await_whole(self) -> None:
        self._waiting = self.loop.call_later(self.transfer_timeout_s, self._too_slow)

    def _arrived(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        if (
            self.flow.read_paused
        ):  # it is us who do not read: an earlier answer or a part of the body is being worked on
            self._waiting = self.loop.call_later(1.0, self._too_slow)
            return
        why = f"the request was not whole after {self.transfer_timeout_s:g} s; send it at once"
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.abort()  # an answer is half out: nothing may be written into it
        elif self.cycle is None or self.cycle.response_complete or not self._in_head:
            self._refuse(408, "RequestTimeout", why)
        else:
            self.transport.abort()

    # ---- how long an answer may take --------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def on_response_complete(self) -> None:
        if self.transport.get_write_buffer_size() > 0:
            self._await_taken()
        super().on_response_complete()

    def _await_taken(self) -> None:
        if self._taking is None:
            self._taking = self.loop.call_later(self.transfer_timeout_s, self._not_taken)

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _not_taken(self) -> None:
        self._taking = None
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed as HTTP, in the words and shape of every other refusal."""
        if self._leaving is None:
            self._refuse(400, "BadRequest", f"{msg.rstrip('.')}: this is not HTTP/1.1 as RFC 9112 has it")

    def _refuse_head(self) -> None:
        self._refuse(431, "HeadersTooLarge", f"request line and headers are limited to {MAX_HEAD} bytes; send less")

    def _refuse(self, status: int, kind: str, error: str, more: str = "") -> None:
        self._arrived()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its answer would be written after ours
            self.cycle.message_event.set()
        body = json.dumps({"error": error, "kind": kind, "fields": []}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{more}\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.connections.discard(self)  # it takes nobody's place while it goes
        # closed with bytes of the caller unread, the connection would be reset, and our answer lost with it
        self.flow.resume_reading()
        self._leaving = self.loop.call_later(LEAVE_WITHIN_S, self.transport.abort)


def in_worker() -> bool:
    """Whether this process is the worker of `bentoml serve`, not its parent, a test, or a command that reads a name."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == WORKER


def guard_worker() -> None:
    """Have the uvicorn that a worker is about to build speak GuardedProtocol and trust no proxy; elsewhere do nothing.

    BentoML builds `uvicorn.Config` itself, after it has imported the service, and passes no `http`: uvicorn then reads
    the entry `auto` of its table of protocols.
    """
    if in_worker():
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
        # uvicorn would believe what any local caller says of its address and scheme; who has a proxy names it
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
