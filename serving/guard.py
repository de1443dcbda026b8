"""Who may come in: one ASGI guard around every server we start, over HTTP and WebSocket.

In this order: is the Host one of ours (a page of another name may point that name at this machine); is the Origin,
where a browser tells it, ours; and is there the key, as a bearer token, as the password of Basic, or as a session
cookie of a browser that came by `bellwether open` or by the login page. What is let in reaches the tool without our
secrets.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.settings import Settings, settings
from serving import keys
from serving.page import NO_STORE, login_page

COOKIE = "bellwether_"  # of every server of this machine: cookies know no port
SESSION_PATH = "/session"
MAX_FORM = 4096  # bytes of the login form
READS = ("GET", "HEAD")
CLOSE_CODES = {400: 4400, 401: 4401, 403: 4403}  # how a refused WebSocket is closed
# Added where the tool says nothing itself: no other page may frame it, embed what it answers, or learn where one was,
# and a tool's own page talks to its own server only, whatever telemetry it has.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
        b"object-src 'none'; base-uri 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Headers = list[tuple[bytes, bytes]]


def json_answer(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), status, media_type="application/json")


def error_answer(status: int, kind: str, error: str, fields: list[dict[str, str]] | None = None) -> Response:
    return json_answer({"error": error, "kind": kind, "fields": fields or []}, status)


@dataclass(frozen=True)
class Refusal:
    status: int
    kind: str
    error: str

    def answer(self) -> Response:
        answer = error_answer(self.status, self.kind, self.error)
        if self.status == 401:
            answer.headers["www-authenticate"] = "Bearer"  # not Basic: no browser shall keep the key
        return answer


class Guard:
    """ASGI middleware around one server.

    tool          its name for `bellwether open`, and whom a session is for
    open_paths    answered to anybody with a Host and Origin of ours; with `/` among them there is no login page
    open_folders  the same for all that begins so
    probes        path → the tool's own path that a GET of it asks, for anybody
    """

    def __init__(
        self,
        app: ASGIApp,
        tool: str,
        open_paths: Collection[str] = (),
        open_folders: tuple[str, ...] = (),
        probes: Mapping[str, str] | None = None,
        where: Settings | None = None,
    ) -> None:
        self._app, self._tool, self._where = app, tool, where or settings()
        self._open_paths, self._open_folders = frozenset(open_paths), open_folders
        self._probes = dict(probes or {})
        self._has_login = "/" not in self._open_paths
        self._key = keys.write_key(self._where)  # once, when the server starts: a request writes nothing
        self._names = _names(self._where.host)
        self._proxied = _listed(self._where.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        hosts = self._hosts(scope)
        refusal = _of_host(scope, hosts) or _of_origin(scope, hosts)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["path"] == SESSION_PATH:
            await (await self._session(scope, receive))(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, reads = scope["path"], scope["method"] in READS
        if reads and path in self._probes:
            path = self._probes[path]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        elif not (path in self._open_paths or path.startswith(self._open_folders)):
            refusal = self._of_key(scope)
            if refusal is not None:
                await self._without_key(refusal, scope)(scope, receive, send)
                return
        await self._app(self._without_secrets(scope), receive, _Hardened(send))

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._of_key(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        else:
            await self._app(self._without_secrets(scope), receive, send)

    # ---- the key ------------------------------------------------------------------------------------------------

    def _of_key(self, scope: Scope) -> Refusal | None:
        """None if the caller has the key or a session, and a browser sends the latter from a page of ours."""
        given = _header(scope, b"authorization")
        if given:
            return None if len(given) == 1 and self._is_key(given[0]) else self._no_key(scope, "this is not the key")
        if not any(keys.is_session(token, self._key, self._tool) for token in self._tokens(scope)):
            return self._no_key(scope, "it needs the key")
        return None if _is_same_origin(scope) else Refusal(403, "ForeignOrigin", "a session serves pages of ours only")

    def _no_key(self, scope: Scope, what: str) -> Refusal:
        file = keys.key_file(self._where)
        return Refusal(
            401,
            "Unauthorized",
            f"{scope['path'][:100]}: {what}. Send `Authorization: Bearer <key>`; the key is BELLWETHER_WRITE_KEY or in "
            f"{file.parent.name}/{file.name}. In a browser: `bellwether open {self._tool}`.",
        )

    def _is_key(self, given: bytes) -> bool:
        """Bearer with the key, or Basic with any name and the key as password."""
        scheme, _, secret = given.partition(b" ")
        secret = secret.strip()
        if scheme.lower() == b"basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return keys.same(secret, self._key)

    def _tokens(self, scope: Scope) -> list[str]:
        return [value for name, value in _cookies(scope) if name == _cookie_name(self._tool, scope)]

    def _without_key(self, refusal: Refusal, scope: Scope) -> Response:
        """The login page for a person, with 200 at `/`; else the refusal."""
        if self._has_login and scope["method"] in READS:
            if scope["path"] == "/":
                return login_page(self._tool, again=_header(scope, b"sec-fetch-site") == [b"cross-site"])
            if any(b"text/html" in value for value in _header(scope, b"accept")):
                return login_page(self._tool, status=refusal.status)
        return refusal.answer()

    def _without_secrets(self, scope: Scope) -> Scope:
        """The request as the tool sees it: no cookie of ours, and not our key."""
        kept: Headers = [(n, v) for n, v in scope["headers"] if n != b"cookie" and not self._holds_key(n, v)]
        others = "; ".join(f"{n}={v}" for n, v in _cookies(scope) if not n.startswith(COOKIE))
        if others:
            kept.append((b"cookie", others.encode("latin-1")))
        return {**scope, "headers": kept}

    def _holds_key(self, name: bytes, value: bytes) -> bool:
        return name == b"authorization" and self._is_key(value)

    # ---- sessions -----------------------------------------------------------------------------------------------

    async def _session(self, scope: Scope, receive: Receive) -> Response:
        """Open one: GET with the ticket of a one-time link, or POST with the key in the form of the login page.

        GET without a ticket says whether the caller is let in: 204, or 401.
        """
        if scope["method"] == "GET":
            ticket = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])[0]
            if not ticket:
                refusal = self._of_key(scope)
                return Response(status_code=204) if refusal is None else refusal.answer()
            try:
                good = await asyncio.to_thread(keys.use_ticket, self._where, self._tool, ticket)
            except OSError as error:
                return error_answer(503, "Unavailable", f"the link cannot be looked up: {error.strerror}; try again")
            return self._opened(scope) if good else login_page(self._tool, 401, "This link was used or has expired.")
        if scope["method"] != "POST":
            return error_answer(405, "NotAllowed", f"{SESSION_PATH} takes GET and POST")
        if not (_header(scope, b"origin") or _header(scope, b"sec-fetch-site") == [b"same-origin"]):
            return error_answer(
                403, "ForeignOrigin", "a session is opened from the login page, or by its one-time link"
            )
        if _header(scope, b"content-type") != [b"application/x-www-form-urlencoded"]:
            return error_answer(415, "UnsupportedMediaType", "send the form of the login page")
        length = b"".join(_header(scope, b"content-length"))
        if not length.isdigit() or int(length) > MAX_FORM:
            return error_answer(413, "BodyTooLarge", f"send the form with its length, at most {MAX_FORM} bytes")
        form = parse_qs((await _body(receive)).decode("utf-8", "replace"))
        if not keys.same(form.get("key", [""])[0].strip(), self._key):
            return login_page(self._tool, 401, "This is not the key.")
        return self._opened(scope)

    def _opened(self, scope: Scope) -> Response:
        answer = RedirectResponse("/", 303, headers=NO_STORE)
        answer.set_cookie(
            _cookie_name(self._tool, scope),
            keys.session(self._key, self._tool),
            max_age=keys.SESSION_SECONDS,
            secure=scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    # ---- Host ---------------------------------------------------------------------------------------------------

    def _hosts(self, scope: Scope) -> frozenset[str]:
        """What Host may say, in small letters: our names with the port that was asked, and those of a proxy."""
        server = scope.get("server")
        port = server[1] if server else None
        if port is None:  # a socket in the file system: only a proxy comes here
            return self._proxied
        return self._proxied | {f"{name}:{port}" for name in self._names} | (self._names if port == 80 else frozenset())


def _names(host: str) -> frozenset[str]:
    return frozenset({"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()})


def _listed(hosts: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in hosts.split(",") if name.strip())


def _of_host(scope: Scope, hosts: Collection[str]) -> Refusal | None:
    given = _header(scope, b"host")
    if len(given) == 1 and given[0].decode("latin-1").lower() in hosts:
        return None
    told = (
        "no Host" if not given else "several Hosts" if len(given) > 1 else f"Host {given[0][:100].decode('latin-1')!r}"
    )
    return Refusal(
        400,
        "UnknownHost",
        f"{told}: this server answers to {', '.join(sorted(hosts))}. Names it has behind a proxy go into "
        "BELLWETHER_ALLOWED_HOSTS.",
    )


def _of_origin(scope: Scope, hosts: Iterable[str]) -> Refusal | None:
    given = _header(scope, b"origin")
    if not given or (len(given) == 1 and given[0].decode("latin-1") in _origins(hosts)):
        return None
    told = " and ".join(origin[:100].decode("latin-1") for origin in given[:3])
    return Refusal(403, "ForeignOrigin", f"a page of {told} may not talk to this server")


def _origins(hosts: Iterable[str]) -> set[str]:
    return {f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")}


def _is_same_origin(scope: Scope) -> bool:
    """Whether a request with our cookie comes from a page of ours: a cookie also goes to, and from, other ports.

    Its Origin, if any, is known to be ours. A page is opened from anywhere; all else is asked for by a page of ours.
    """
    if _header(scope, b"origin"):
        return True
    if scope["type"] == "websocket":  # browsers always tell the Origin here
        return False
    site = b"".join(_header(scope, b"sec-fetch-site"))
    if site in (b"same-origin", b"none"):
        return True
    if scope["method"] not in READS:
        return False
    opens_page = _header(scope, b"sec-fetch-mode") == [b"navigate"] and _header(scope, b"sec-fetch-dest") == [
        b"document"
    ]
    return site == b"" or opens_page


# ---- small parts ------------------------------------------------------------------------------------------------


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send(
            {
                "type": "websocket.close",
                "code": CLOSE_CODES[refusal.status],
                "reason": refusal.error.encode()[:120].decode("utf-8", "ignore"),
            }
        )
    else:
        await refusal.answer()(scope, receive, send)


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _cookies(scope: Scope) -> list[tuple[str, str]]:
    pairs = ";".join(value.decode("latin-1") for value in _header(scope, b"cookie")).split(";")
    parts = [pair.strip().partition("=") for pair in pairs if pair.strip()]
    return [(name, value) for name, _, value in parts]


def _cookie_name(tool: str, scope: Scope) -> str:
    """With the port, since browsers keep one jar for all ports: two installations do not end each other's sessions."""
    server = scope.get("server")
    return f"{COOKIE}{tool}_{server[1]}" if server and server[1] else f"{COOKIE}{tool}"


async def _body(receive: Receive) -> bytes:
    """The whole body of a request whose length was checked."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return body


class _Hardened:
    """Passes a response on with _HEADERS, and without leave for other pages to read it: ours are same-origin."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            said = [(n, v) for n, v in message.get("headers", ()) if not n.lower().startswith(b"access-control-")]
            names = {name.lower() for name, _ in said}
            message = {**message, "headers": [*said, *(h for h in _HEADERS if h[0] not in names)]}
        await self._send(message)
