"""Logs of both services: one JSON object a line, one line a refused request, and an id on every response.

A line has `time`, `level`, `logger`, `message`, `request_id` while a request is answered, `key_name` if a client's key
came with it, and `traceback` where a fault of ours was raised. JSON escapes what comes from outside, so no key, path or
header can end a line or begin one. Bodies, headers and query strings are not written: a key could be in them.
"""

import contextvars
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from uuid import uuid4

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.client_keys import key_name
from serving.service.connection_limits import in_worker
from serving.service.http_guard import error_response

REFUSALS_A_SECOND = 10
SHOWN = 200  # characters of a path or an error; the response has all of it
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("bellwether.requests")
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


# ---- lines ----------------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON; `extra={"fields": {...}}` adds fields to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        if (name := key_name.get()) is not None:
            line["key_name"] = name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RateLimitFilter:
    """Let `limit` records a second through; the first one after that carries how many were dropped.

    Faults always pass: only what a caller can cause at any rate is limited.
    """

    def __init__(self, limit: int = REFUSALS_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        """Start counting now. limit: records a second; clock: seconds."""
        self._limit, self._clock = limit, clock
        self._since, self._passed, self._dropped = clock(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes."""
        if record.levelno >= logging.ERROR:
            return True
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._passed = now, 0
            if self._dropped:
                record.fields = getattr(record, "fields", {}) | {"dropped_before": self._dropped}
                self._dropped = 0
        if self._passed >= self._limit:
            self._dropped += 1
            return False
        self._passed += 1
        return True


def is_server_fault(record: logging.LogRecord) -> bool:
    """Return whether a record of BentoML is a fault of ours: it logs a caller's mistakes as such, with a traceback."""
    raised = record.exc_info[1] if record.exc_info else None
    code = getattr(raised, "error_code", HTTPStatus.INTERNAL_SERVER_ERROR)
    return not isinstance(raised, ValidationError) and int(code) >= 500


_AT_MOST = RateLimitFilter()


def configure() -> None:
    """Filter what a caller can cause; in a worker of BentoML also write every logger's records as JSON lines."""
    logging.getLogger("bentoml._internal.server.http_app").addFilter(is_server_fault)
    for name in (log.name, "uvicorn.error"):  # uvicorn warns of every request that is no HTTP
        logging.getLogger(name).addFilter(_AT_MOST)
    if not in_worker():
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("bellwether").setLevel(logging.INFO)
    for name in ("bentoml", "uvicorn.error", "circus"):  # had handlers of their own, set by BentoML before it loads us
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


# ---- requests -------------------------------------------------------------------------------------------------------


class RequestLog:
    """Log requests: the outermost of our ASGI middleware. Every response carries `x-request-id`, the caller's if valid.

    A response of 400 and above is logged in one line, and is {"error", "kind", "fields"} whatever produced it. An
    unforeseen error is a 500 with that id, its traceback in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        current = given if SANE_ID.fullmatch(given) else uuid4().hex
        token, no_name = request_id.set(current), key_name.set(None)  # the guard sets the name
        response = _Response(scope, current, send)
        try:
            await self._app(scope, receive, response)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"][:SHOWN])
            if response.started:
                raise  # half a response is sent: the connection has to end
            await error_response(500, "ServerFault", UNFORESEEN)(scope, receive, response)
        finally:
            request_id.reset(token)
            key_name.reset(no_name)


UNFORESEEN = "this is a fault of the service, not of the request; the log has it under this response's x-request-id"


class _Response:
    """Pass a response on with its id; the body of an error is read whole, put into our format, and logged."""

    def __init__(self, scope: Scope, current_id: str, send: Send) -> None:
        """Wrap `send`."""
        self._scope, self._id, self._send = scope, current_id, send
        self._refusal: Message | None = None  # the start of a response of 400 and above
        self._body = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        """Send the message, or hold it until the body of an error is whole."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self._id.encode())]}
            if message["status"] >= 400:
                self._refusal = message
                return
        elif self._refusal is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._refusal)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        """Send the error in our format and log it; a probe that answers 503 refused nothing and is not logged."""
        status, content = start["status"], _json_object(self._body)
        body, headers = self._body, start["headers"]
        if "kind" not in content and "checks" not in content:  # of BentoML or starlette
            reason = _PLAIN.get(status, HTTPStatus(status).phrase)
            error = UNFORESEEN if status == 500 else str(content.get("error", reason))
            content = {"error": error, "kind": _kind(status)}
            body = bytes(error_response(status, _kind(status), error).body)
            other = [(n, v) for n, v in headers if n.lower() not in (b"content-length", b"content-type")]
            headers = [*other, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if "checks" not in content:
            client = self._scope.get("client") or ("", 0)
            line = {
                "method": self._scope["method"], "path": self._scope["path"][:SHOWN], "status": status,
                "kind": content["kind"], "error": str(content.get("error"))[:SHOWN], "client": client[0],
            }  # fmt: skip
            log.warning("refused", extra={"fields": line})
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_PLAIN = {
    404: "no such path; the API page at / lists the calls",
    405: "this path takes another method; calls are POST, what only reads is GET too",
}


def _kind(status: int) -> str:
    """Return the kind of an error that has none: the phrase of its status in one word."""
    return "ServerFault" if status == 500 else HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _json_object(body: bytes) -> dict[str, object]:
    """Return the JSON object in a body, an empty one if it holds none."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
