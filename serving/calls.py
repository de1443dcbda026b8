"""What a call of our two services must look like, and how they say that it does not: JSON of a known length, GET for
what only reads, our own page at `/`, `docs.json` that knows about the key, errors in our own words."""

import json

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import MAX_BODY, explained
from serving.guard import error_answer, json_answer
from serving.openapi import completed
from serving.page import page

PROBES = ("/", "/livez", "/healthz", "/readyz", "/docs.json", "/schema.json", "/metrics")  # open, beside `reads`


class Calls:
    """ASGI middleware: JSON bodies only and not too long, GET for `reads`, our page, errors in our own words."""

    def __init__(
        self,
        app: ASGIApp,
        title: str,
        text: str,
        keyed: tuple[str, ...],
        reads: tuple[str, ...],
        max_body: int = MAX_BODY,
    ) -> None:
        self._app, self._keyed, self._reads, self._max_body = app, keyed, reads, max_body
        self._page = page(title, text)
        self._docs: Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/readyz":  # the probe's own path, in our words: tier, reason and every check
            scope = {**scope, "path": "/ready", "raw_path": b"/ready"}
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and path == "/":
            await self._page(scope, receive, send)
        elif method == "GET" and path == "/docs.json":
            await (await self._documented(scope, receive))(scope, receive, send)
        elif method == "GET" and path in self._reads:
            await self._app(_posted(scope), _without_body(receive), _Reworded(send))  # BentoML routes POST only
        elif method not in ("GET", "HEAD") and (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, _Reworded(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers or not (length.isdigit() or length == b""):
            return error_answer(411, "LengthRequired", "send the body with a Content-Length, not in chunks")
        if int(length or 0) > self._max_body:
            return error_answer(
                413, "BodyTooLarge", f"body of {int(length)} bytes, limit {self._max_body}; send less at a time"
            )
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if (kinds or int(length or 0)) and not (len(kinds) == 1 and _is_json(kinds[0])):
            told = b" and ".join(kinds)[:100].decode("latin-1") or "no Content-Type"
            return error_answer(415, "UnsupportedMediaType", f"{told}: send JSON, with Content-Type: application/json")
        return None

    async def _documented(self, scope: Scope, receive: Receive) -> Response:
        """BentoML's `docs.json`, completed, read once."""
        if self._docs is None:
            read = _Read()
            await self._app(scope, receive, read)
            self._docs = json_answer(completed(json.loads(read.body), needs_key=self._keyed))
        return self._docs


def _is_json(kind: bytes) -> bool:
    """`application/json`, alone or with the one charset JSON has."""
    media, *parameters = (part.strip().lower() for part in kind.split(b";"))
    return media == b"application/json" and parameters in ([], [b"charset=utf-8"], [b'charset="utf-8"'])


def _posted(scope: Scope) -> Scope:
    """A GET as the POST without a body that BentoML routes."""
    kept = [(n, v) for n, v in scope["headers"] if n not in (b"content-type", b"content-length", b"transfer-encoding")]
    return {**scope, "method": "POST", "headers": kept}


def _without_body(receive: Receive) -> Receive:
    """An empty body first, whatever was sent; then what `receive` says, such as that the caller left."""
    told = False

    async def read() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return read


class JsonOnly:
    """ASGI middleware, next to BentoML: every body it parses is JSON, whatever the content type says. Its forms, files
    and pickles are never reached, by a call or by the header of a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*kept, (b"content-type", b"application/json")]}
        await self._app(scope, receive, send)


class _Read:
    """Keeps the body of a response."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, message: Message) -> None:
        self.body += message.get("body", b"")


class _Reworded:
    """Passes a response on; the body of a 400 is read whole and said in our own words."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                body = _reworded(self._body)
                kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
                await self._send({**self._start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                await self._send({"type": "http.response.body", "body": body})


def _reworded(body: bytes) -> bytes:
    content = json.loads(body)
    if not (isinstance(content, dict) and isinstance(content.get("detail"), list)):
        return body
    fields = explained(content["detail"])
    error = "; ".join(f"{f['field']}: {f['problem']} ({f['remedy']})" for f in fields[:3])
    more = f"; and {len(fields) - 3} more" if len(fields) > 3 else ""
    return bytes(error_answer(400, "BadRequest", error + more, fields[:50]).body)
