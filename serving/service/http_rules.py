"""HTTP rules of our two services: JSON bodies of a known length, GET for read-only calls, our page at `/`, the key in
`docs.json`, and error bodies in our own format."""

import json
from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.contracts import JsonObject
from serving.service.field_errors import field_errors, sentence
from serving.service.http_guard import error_response, json_response
from serving.service.openapi import NOTHING_ADDED, complete_spec
from serving.service.pages import page
from serving.service.schemas import MAX_BODY

NO_LARGER: Mapping[str, int] = {}
PROBES = ("/", "/livez", "/healthz", "/readyz", "/docs.json", "/schema.json", "/metrics")  # need no key, as `reads`


class HttpRules:
    """Apply the rules behind the guard, as ASGI middleware: GET for reads, the page, `docs.json`, JSON bodies."""

    def __init__(
        self,
        app: ASGIApp,
        title: str,
        text: str,
        protected_paths: tuple[str, ...],
        reads: tuple[str, ...],
        max_body: int = MAX_BODY,
        larger_bodies: Mapping[str, int] = NO_LARGER,
        queries: tuple[str, ...] = (),
        added: Mapping[str, JsonObject] = NOTHING_ADDED,
    ) -> None:
        """Wrap `app`.

        title, text      of the page at `/`
        protected_paths  paths that need the key, as `docs.json` says
        reads            paths that also take GET
        max_body         bytes
        larger_bodies    path → bytes, where a call takes more
        queries          reads whose fields a GET has in its query
        added            path → its operations in `docs.json`, of calls that BentoML does not know
        """
        self._app, self._protected, self._reads, self._queries = app, protected_paths, reads, queries
        self._max_body, self._larger_bodies = max_body, larger_bodies
        self._page, self._added = page(title, text), added
        self._docs: Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the page and `docs.json`, refuse bad bodies, pass everything else on."""
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
            body = _query(scope) if path in self._queries else b""
            await self._app(_posted(scope), _with_body(receive, body), _FieldErrors(send))  # BentoML routes POST only
        elif method not in ("GET", "HEAD") and (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, _FieldErrors(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return why a request with a body is refused (411, 413, 415); None if it is not."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers or not (length.isdigit() or length == b""):
            return error_response(411, "LengthRequired", "send the body with a Content-Length, not in chunks")
        limit = self._larger_bodies.get(scope["path"], self._max_body)
        if int(length or 0) > limit:
            return error_response(
                413, "BodyTooLarge", f"body of {int(length)} bytes, limit {limit}; send less at a time"
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
                """Append a part of the body."""
                nonlocal body
                body += message.get("body", b"")

            await self._app(scope, receive, collect)
            self._docs = json_response(complete_spec(json.loads(body), needs_key=self._protected, added=self._added))
        return self._docs


def _is_json(content_type: bytes) -> bool:
    """Return whether it is `application/json`, alone or with charset utf-8."""
    media, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return media == b"application/json" and parameters in ([], [b"charset=utf-8"], [b'charset="utf-8"'])


def _posted(scope: Scope) -> Scope:
    """Return a GET as the POST that BentoML routes, without what it says of a body."""
    of_a_body = (b"content-type", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in of_a_body]
    return {**scope, "method": "POST", "headers": headers}


def _query(scope: Scope) -> bytes:
    """Return the query of a GET as the JSON body of the same call; a field given twice is a list, which none takes."""
    fields = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="replace")
    return json.dumps({name: given[0] if len(given) == 1 else given for name, given in fields.items()}).encode()


def _with_body(receive: Receive, body: bytes) -> Receive:
    """Return a receive that gives this body first, whatever was sent; then what `receive` gives (a disconnect)."""
    is_sent = False

    async def read() -> Message:
        """Return the body once."""
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


class BufferedJsonBody:
    """Read a body whole before anything waits or works for it, and pass it on as JSON; ASGI middleware.

    Whatever the content type says, BentoML never parses a form, a file or a pickle, by a call or a header of a GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then call the app with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:  # the caller went away: no answer can reach it
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            """Return the whole body once, then what the server receives."""
            return pending.pop() if pending else await receive()

        await self._app({**scope, "headers": [*headers, (b"content-type", b"application/json")]}, received, send)


async def _whole(receive: Receive) -> bytes | None:
    """Return the whole body; None if the caller went away before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


class _FieldErrors:
    """Pass a response on; the body of a 400 is read whole and written in our own format."""

    def __init__(self, send: Send) -> None:
        """Wrap `send`."""
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Send the message, or hold it until the body of a 400 is whole."""
        if message["type"] == "http.response.start" and message["status"] == 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                body = _with_field_errors(self._body)
                headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
                await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                await self._send({"type": "http.response.body", "body": body})


def _with_field_errors(body: bytes) -> bytes:
    """Return the body of a 400 in our format: the first three fields in the sentence, up to 50 in `fields`."""
    content = json.loads(body)
    if not (isinstance(content, dict) and isinstance(content.get("detail"), list)):
        return body
    fields = field_errors(content["detail"])
    return bytes(error_response(400, "BadRequest", sentence(fields), fields[:50]).body)
