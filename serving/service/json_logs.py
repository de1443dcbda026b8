"""What the two services say: one JSON object a line, one line a refused request, and an id on every answer.

A line has `time`, `level`, `logger`, `message`, `request_id` where a request is being answered, and `traceback` where
a fault of ours was raised. What comes from outside is escaped by JSON, so no key, path or header can end a line or
begin one. Bodies, headers and query strings are not written: a key could be in them.
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
from typing import Any
from uuid import uuid4

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.connection_limits import in_worker
from serving.service.schemas import error_response

REFUSALS_A_SECOND = 10
SHOWN = 200  # characters of a path or an error; the answer has all of it
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("bellwether.requests")
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


# ---- lines ----------------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what `extra={"fields": {...}}` holds are fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (asked := request_id.get()) is not None:
            line["request_id"] = asked
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RateLimitFilter:
    """Lets `limit` records a second through; the first one after that says how many were dropped. Faults always pass:
    only what a caller can cause as often as he likes is limited."""

    def __init__(self, limit: int = REFUSALS_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._since, self._passed, self._dropped = clock(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
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
    """BentoML logs what a caller got wrong as a fault, with 2 kB of traceback; RequestLog has a line for it."""
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
    """ASGI middleware, the outermost of ours. Every answer carries `x-request-id`, the caller's own where it is sane.
    An answer of 400 and above is a line, and says {"error", "kind", "fields"} whoever made it; what nobody foresaw is
    a 500 with that id, its traceback in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        asked = given if SANE_ID.fullmatch(given) else uuid4().hex
        token = request_id.set(asked)
        answer = _Answer(scope, asked, send)
        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"][:SHOWN])
            if answer.started:
                raise  # half an answer is out: the connection has to end
            await error_response(500, "ServerFault", UNFORESEEN)(scope, receive, answer)
        finally:
            request_id.reset(token)


UNFORESEEN = "this is a fault of the service, not of the request; the log has it under this answer's x-request-id"


class _Answer:
    """Passes an answer on with its id; an error's body is read whole, said in our shape, and told to the log."""

    def __init__(self, scope: Scope, asked: str, send: Send) -> None:
        self._scope, self._asked, self._send = scope, asked, send
        self._refused: Message | None = None
        self._body = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self._asked.encode())]}
            if message["status"] >= 400:
                self._refused = message
                return
        elif self._refused is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._say(self._refused)
            return
        await self._send(message)

    async def _say(self, start: Message) -> None:
        status, told = start["status"], _told(self._body)
        body, headers = self._body, start["headers"]
        if "kind" not in told and "checks" not in told:  # of BentoML or starlette
            said = _PLAIN.get(status, HTTPStatus(status).phrase)
            told = {"error": UNFORESEEN if status == 500 else str(told.get("error", said)), "kind": _kind(status)}
            made = error_response(status, told["kind"], told["error"])
            body = bytes(made.body)
            kept = [(n, v) for n, v in headers if n.lower() not in (b"content-length", b"content-type")]
            headers = [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if "checks" not in told:  # a probe that finds us not ready was not refused anything
            client = self._scope.get("client") or ("", 0)
            line = {
                "method": self._scope["method"], "path": self._scope["path"][:SHOWN], "status": status,
                "kind": told["kind"], "error": str(told.get("error"))[:SHOWN], "client": client[0],
            }  # fmt: skip
            log.warning("refused", extra={"fields": line})
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_PLAIN = {
    404: "no such path; the API page at / lists the calls",
    405: "this path takes another method; calls are POST, what only reads is GET too",
}


def _kind(status: int) -> str:
    return "ServerFault" if status == 500 else HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _told(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
