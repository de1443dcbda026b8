"""HTTP rules of our two services: JSON bodies of a known length, GET for read-only calls, our page at `/`, the key in
`docs.json`, and error bodies in our own format."""

import json

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.http_guard import error_response, json_response
from serving.service.openapi import complete_spec
from serving.service.pages import page
from serving.service.schemas import MAX_BODY, field_errors

PROBES = ("/", "/livez", "/healthz", "/readyz", "/docs.json", "/schema.json", "/metrics")  # need no key, as `reads`


class HttpRules:
    """ASGI middleware inside the guard. `protected_paths`: paths that `docs.json` marks; `reads`: paths that also take GET."""

    def __init__(
        self,
        app: ASGIApp,
        title: str,
        text: str,
        protected_paths: tuple[str, ...],
        reads: tuple[str, ...],
        max_body: int = MAX_BODY,
    ) -> None:
        self._app, self._keyed, self._reads, self._max_body = app, protected_paths, reads, max_body
        self._page = page(title, text)
        self._docs: Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/readyz":  # the probe path of BentoML, answered with tier, reason and every check
            scope = {**scope, "path": "/ready", "raw_path": b"/ready"}
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and path == "/":
            await self._page(scope, receive, send)
        elif method == "GET" and path == "/docs.json":
            await (await self._documentation(scope, receive))(scope, receive, send)
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
            return error_response(411, "LengthRequired", "send the body with a Content-Length, not in chunks")
        if int(length or 0) > self._max_body:
            return error_response(
                413, "BodyTooLarge", f"body of {int(length)} bytes, limit {self._max_body}; send less at a time"
            )
        content_types = [value for name, value in scope["headers"] if name == b"content-type"]
        if (content_types or int(length or 0)) and not (len(content_types) == 1 and _is_json(content_types[0])):
            found = b" and ".join(content_types)[:100].decode("latin-1") or "no Content-Type"
            return error_response(
                415, "UnsupportedMediaType", f"{found}: send JSON with Content-Type: application/json"
            )
        return None

    async def _documentation(self, scope: Scope, receive: Receive) -> Response:
        """Return BentoML's `docs.json` as valid OpenAPI that knows the key, built once."""
        if self._docs is None:
            body = b""

            async def collect(message: Message) -> None:
                nonlocal body
                body += message.get("body", b"")

            await self._app(scope, receive, collect)
            self._docs = json_response(complete_spec(json.loads(body), needs_key=self._keyed))
        return self._docs


def _is_json(content_type: bytes) -> bool:
    """Accept `application/json`, alone or with charset utf-8."""
    media, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return media == b"application/json" and parameters in ([], [b"charset=utf-8"], [b'charset="utf-8"'])


def _posted(scope: Scope) -> Scope:
    """Turn a GET into the POST without a body that BentoML routes."""
    kept = [(n, v) for n, v in scope["headers"] if n not in (b"content-type", b"content-length", b"transfer-encoding")]
    return {**scope, "method": "POST", "headers": kept}


def _without_body(receive: Receive) -> Receive:
    """Return an empty body first, whatever was sent; then what `receive` returns, such as a disconnect."""
    is_sent = False

    async def read() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return read


class BufferedJsonBody:
    """ASGI middleware: a body is whole before anybody waits or works for it, and JSON to BentoML whatever its content
    type says: the forms, files and pickles of BentoML are never reached, by a call or by the header of a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:  # the caller went away: nobody is there to answer
            return
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return pending.pop() if pending else await receive()

        await self._app({**scope, "headers": [*kept, (b"content-type", b"application/json")]}, received, send)


async def _whole(receive: Receive) -> bytes | None:
    """The body; None if the caller went away before it was whole."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


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
    fields = field_errors(content["detail"])
    error = "; ".join(f"{f['field']}: {f['problem']} ({f['remedy']})" for f in fields[:3])
    more = f"; and {len(fields) - 3} more" if len(fields) > 3 else ""
    return bytes(error_response(400, "BadRequest", error + more, fields[:50]).body)
