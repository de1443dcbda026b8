"""Access control for every server we start: one ASGI guard for HTTP and WebSocket.

It checks, in this order: the Host (a foreign name may resolve to this machine: DNS rebinding), the Origin that a
browser reports (another site, or another port of this machine), and the key: as a bearer token, as the password of
Basic, or as the session cookie of a browser. The key of the home opens everything, that of a client what its scopes say
(`scopes.ROWS`). The server behind it never sees the key or the cookie.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.settings import Settings, settings
from serving.service import client_keys, keys, scopes
from serving.service.client_keys import ClientKey, ClientKeys, key_name
from serving.service.lasting import run_while
from serving.service.pages import PRIVATE_HEADERS, login_page

COOKIE_PREFIX = "bellwether_"
CLIENT_PREFIX = keys.CLIENT_PREFIX.encode()
SCOPE_MISSING = "ScopeMissing"
MAX_FORM_BYTES = 4096
SAFE_METHODS = ("GET", "HEAD")
CLOSE_CODES = {400: 4400, 401: 4401, 403: 4403}  # HTTP status → close code of a refused WebSocket
# Set where the server behind sets none. No other site may frame a page, embed a response or read its address; and a
# tool's page may connect to its own server only, so its telemetry goes nowhere.
SECURITY_HEADERS = (
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


def json_response(content: object, status: int = 200) -> Response:
    """Return the content as JSON. Raises ValueError for NaN, which JSON does not have."""
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), status, media_type="application/json")


def error_response(status: int, kind: str, error: str, fields: list[dict[str, str]] | None = None) -> Response:
    """Return an error in our format: {"error", "kind", "fields"}."""
    return json_response({"error": error, "kind": kind, "fields": fields or []}, status)


@dataclass(frozen=True)
class Refusal:
    """Hold why a request is refused: HTTP status, error kind and message."""

    status: int
    kind: str
    error: str

    def response(self) -> Response:
        """Return the refusal as an HTTP response."""
        response = error_response(self.status, self.kind, self.error)
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"  # not Basic: no browser should store the key
        return response


class HomeKey:
    """Stand for the holder of the home's key, who may do everything."""


HOME = HomeKey()
Holder = HomeKey | ClientKey  # of a key or a session


class Guard:
    """Protect one server, as ASGI middleware. Reads the home's key when it is built; a request writes nothing.

    Keys of clients are known as they are in their file, see `ClientKeys`.

    tool            name of the server in `bellwether open`, and the audience of its sessions
    open_paths      paths that need no key; without `/` among them, `/` shows the login page
    open_folders    path prefixes that need no key
    probes          path → path of the tool's own health check; GET needs no key
    clock           the time of day, by which a client's key ends
    """

    def __init__(
        self,
        app: ASGIApp,
        tool: str,
        open_paths: Collection[str] = (),
        open_folders: tuple[str, ...] = (),
        probes: Mapping[str, str] | None = None,
        where: Settings | None = None,
        clock: Callable[[], datetime] = client_keys.now_utc,
    ) -> None:
        """Read the key, and create it if there is none. `where` None: the settings of this process.

        Raises BadValues and StateError as `keys.home_key`.
        """
        self._app, self._tool, self._where = app, tool, where or settings()
        self._open_paths, self._open_folders = frozenset(open_paths), open_folders
        self._probes = dict(probes or {})
        self._key, self._clients, self._clock = keys.home_key(self._where), ClientKeys(self._where), clock
        self._host_names = _host_names(self._where.host)
        self._proxy_hosts = frozenset(self._where.proxy_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check Host and Origin, then the key where the path needs it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            send = _with_security_headers(send)
        hosts = self._allowed_hosts(scope)
        refusal = _check_host(scope, hosts) or _check_origin(scope, hosts)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._handle_websocket(scope, receive, send)
        elif scope["path"] == keys.SESSION_PATH:
            response = await self._handle_session(scope, receive)
            await response(scope, receive, send)
        else:
            await self._handle_http(scope, receive, send)

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its path is open or its key opens it."""
        path = scope["path"]
        if scope["method"] in SAFE_METHODS and path in self._probes:
            path = self._probes[path]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        elif not (path in self._open_paths or path.startswith(self._open_folders)):
            holder = self._check_key(scope)
            if isinstance(holder, Refusal):
                await self._refusal_or_login(holder, scope)(scope, receive, send)
                return
            row = scopes.row_of(self._tool, path)
            if isinstance(holder, ClientKey) and row is not None and row.lasting:
                await self._run_while_valid(holder, scope, receive, send)
                return
        await self._app(self._without_credentials(scope), receive, send)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on if its key opens it, for as long as it does."""
        holder = self._check_key(scope)
        if isinstance(holder, Refusal):
            await _refuse(holder, scope, receive, send)
        elif isinstance(holder, ClientKey):
            await self._run_while_valid(holder, scope, receive, send)
        else:
            await self._app(self._without_credentials(scope), receive, send)

    async def _run_while_valid(self, client: ClientKey, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what lasts, until it ends or the client's key does."""
        await run_while(
            lambda: self._clients.is_valid(client, self._clock()),
            self._app,
            self._without_credentials(scope),
            receive,
            send,
        )

    # ---- the key ------------------------------------------------------------------------------------------------

    def _check_key(self, scope: Scope) -> Holder | Refusal:
        """Return who sent a request if their key opens its path, else the refusal. The log lines of it have the name
        of a client from here on."""
        holder = self._holder(scope)
        if isinstance(holder, ClientKey):
            row = scopes.row_of(self._tool, scope["path"])
            if row is None or row.scope not in holder.scopes:
                return self._forbidden(holder, scope["path"][:100], [row.scope] if row else [])
        return holder

    def _holder(self, scope: Scope) -> Holder | Refusal:
        """Return whose key a request carries, or whose session, if it comes from our own page; else the refusal."""
        credentials = _header(scope, b"authorization")
        if credentials:
            found = self._holder_of(_secret(credentials[0])) if len(credentials) == 1 else "wrong key"
            return self._unauthorized(scope, found) if isinstance(found, str) else found
        name = _cookie_name(self._tool, scope)
        held = (self._session_holder(value) for cookie, value in _cookies(scope) if cookie == name)
        holder = next((one for one in held if one is not None), None)
        if holder is None:
            return self._unauthorized(scope, "the key is missing")
        if not _is_same_origin(scope):
            return Refusal(403, "ForeignOrigin", "a browser session is valid for requests of its own page only")
        return holder

    def _holder_of(self, secret: bytes) -> Holder | str:
        """Return whose key this is; what is wrong with it if it opens nothing."""
        if keys.is_equal(secret, self._key):
            return HOME
        if not secret.startswith(CLIENT_PREFIX):
            return "wrong key"
        client = self._clients.find(secret)
        if client is None:
            fault = "the file of client keys is not in order; `bellwether doctor` where this server runs names the fix"
            return fault if self._clients.fault else "no client has this key, or it was revoked"
        key_name.set(client.name)
        if client.has_ended(self._clock()):
            return (
                f"the key of client {client.name} ended at {client.ends:%F %H:%M} UTC. Fix, where this server runs: "
                f"`bellwether key revoke {client.name}`, then `bellwether key add {client.name}`"
            )
        return client

    def _session_holder(self, token: str) -> Holder | None:
        """Return who opened a session; None if it is none, or if their key ended."""
        name = keys.session_holder(token)
        if not name:
            return HOME if keys.is_session(token, self._key, self._tool) else None
        client = self._clients.named(name)
        if client is None or not keys.is_session(token, self._key, self._tool, client.digest):
            return None
        if client.has_ended(self._clock()):
            return None
        key_name.set(client.name)
        return client

    def _forbidden(self, client: ClientKey, what: str, needed: list[str]) -> Refusal:
        """Return the refusal of a client whose scopes do not open `what`; `needed` empty = no scope does."""
        if not needed:
            return Refusal(403, SCOPE_MISSING, f"{what}: no scope opens it, only the key of the home does")
        return Refusal(
            403,
            SCOPE_MISSING,
            f"{what}: needs scope {' or '.join(needed)}; the key of client {client.name} has {', '.join(client.scopes)}"
            f". The operator grants it: `bellwether key add NAME --scope {needed[0]}` makes a key that has it",
        )

    def _unauthorized(self, scope: Scope, reason: str) -> Refusal:
        """Return the refusal of a request without the key, with what to do."""
        file = keys.key_file(self._where)
        return Refusal(
            401,
            "Unauthorized",
            f"{scope['path'][:100]}: {reason}. Send `Authorization: Bearer <key>`; the key is BELLWETHER_WRITE_KEY or "
            f"in {file.parent.name}/{file.name}. In a browser: `bellwether open {self._tool}`.",
        )

    def _refusal_or_login(self, refusal: Refusal, scope: Scope) -> Response:
        """Return the login page for a browser (status 200 at `/`), the refusal for everything else."""
        if "/" not in self._open_paths and scope["method"] in SAFE_METHODS and refusal.kind != SCOPE_MISSING:
            if scope["path"] == "/":
                return login_page(self._tool, reload=_header(scope, b"sec-fetch-site") == [b"cross-site"])
            if any(b"text/html" in value for value in _header(scope, b"accept")):
                return login_page(self._tool, status=refusal.status)
        return refusal.response()

    def _without_credentials(self, scope: Scope) -> Scope:
        """Return the request without our cookies and our keys; other cookies and credentials stay."""
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"cookie" and not (name == b"authorization" and self._is_ours(_secret(value)))
        ]
        cookies = "; ".join(f"{n}={value}" for n, value in _cookies(scope) if not n.startswith(COOKIE_PREFIX))
        if cookies:
            headers.append((b"cookie", cookies.encode("latin-1")))
        return {**scope, "headers": headers}

    def _is_ours(self, secret: bytes) -> bool:
        """Return whether this is the key of the home or looks like that of a client."""
        return keys.is_equal(secret, self._key) or secret.startswith(CLIENT_PREFIX)

    # ---- sessions -----------------------------------------------------------------------------------------------

    async def _handle_session(self, scope: Scope, receive: Receive) -> Response:
        """Open a session: GET with the ticket of a one-time link, or POST with the key from the login form.

        GET without a ticket checks the caller's credentials: 204 or 401.
        """
        if scope["method"] == "POST":
            return await self._login(scope, receive)
        if scope["method"] != "GET":
            return error_response(405, "MethodNotAllowed", f"{keys.SESSION_PATH} takes GET and POST")
        ticket = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])[0]
        if not ticket:
            holder = self._holder(scope)
            if isinstance(holder, ClientKey) and not scopes.opens(self._tool, holder.scopes):
                holder = self._forbidden(holder, self._tool, scopes.scopes_of(self._tool))
            return holder.response() if isinstance(holder, Refusal) else Response(status_code=204)
        try:
            is_valid = await asyncio.to_thread(keys.redeem_ticket, self._where, self._tool, ticket)
        except OSError as error:
            return error_response(503, "Unavailable", f"cannot check the link: {error.strerror}. Try again.")
        if not is_valid:
            return login_page(self._tool, 401, "This link was used already or has expired.")
        return self._open_session(scope, HOME)

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        """Open a session for the key in the form of the login page."""
        if not (_header(scope, b"origin") or _header(scope, b"sec-fetch-site") == [b"same-origin"]):
            return error_response(403, "ForeignOrigin", "send the form from the login page")
        if _header(scope, b"content-type") != [b"application/x-www-form-urlencoded"]:
            return error_response(415, "UnsupportedMediaType", "send the form of the login page")
        length = b"".join(_header(scope, b"content-length"))
        if not length.isdigit() or int(length) > MAX_FORM_BYTES:
            return error_response(413, "BodyTooLarge", f"send the form with its length, at most {MAX_FORM_BYTES} bytes")
        form = parse_qs((await _read_body(receive)).decode("utf-8", "replace"))
        holder = self._holder_of(form.get("key", [""])[0].strip().encode())
        if isinstance(holder, str):
            return login_page(self._tool, 401, "Wrong key." if holder == "wrong key" else f"{holder}.")
        if isinstance(holder, ClientKey) and not scopes.opens(self._tool, holder.scopes):
            refusal = self._forbidden(holder, self._tool, scopes.scopes_of(self._tool))
            return login_page(self._tool, refusal.status, f"{refusal.error}.")
        return self._open_session(scope, holder)

    def _open_session(self, scope: Scope, holder: Holder) -> Response:
        """Return a redirect to `/` that sets the session cookie; a client's session opens what its key opens."""
        of_client = (holder.name, holder.digest) if isinstance(holder, ClientKey) else ()
        response = RedirectResponse("/", 303, headers=PRIVATE_HEADERS)
        response.set_cookie(
            _cookie_name(self._tool, scope),
            keys.create_session(self._key, self._tool, *of_client),
            max_age=keys.SESSION_SECONDS,
            secure=scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    # ---- Host ---------------------------------------------------------------------------------------------------

    def _allowed_hosts(self, scope: Scope) -> frozenset[str]:
        """Return the accepted values of Host in lower case: our names with the port of this server, and the proxy's."""
        server = scope.get("server")
        port = server[1] if server else None
        if port is None:  # a Unix socket: only a proxy connects
            return self._proxy_hosts
        bare_names = self._host_names if port == 80 else frozenset()
        return self._proxy_hosts | {f"{name}:{port}" for name in self._host_names} | bare_names


def _host_names(host: str) -> frozenset[str]:
    """Return the names of this machine that a Host header may carry, without port."""
    return frozenset({"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()})


def _check_host(scope: Scope, allowed: Collection[str]) -> Refusal | None:
    """Return None if the request has exactly one Host and it is allowed."""
    values = [value.decode("latin-1") for value in _header(scope, b"host")]
    if len(values) == 1 and values[0].lower() in allowed:
        return None
    found = "no Host" if not values else "several Hosts" if len(values) > 1 else f"unknown Host {values[0][:100]!r}"
    return Refusal(
        400,
        "UnknownHost",
        f"{found}; this server accepts {', '.join(sorted(allowed))}. If a proxy uses another name, add it to "
        "BELLWETHER_ALLOWED_HOSTS.",
    )


def _check_origin(scope: Scope, allowed_hosts: Collection[str]) -> Refusal | None:
    """Return None if the request has no Origin, or one of our own."""
    values = [value.decode("latin-1") for value in _header(scope, b"origin")]
    if not values or (len(values) == 1 and values[0] in _origins(allowed_hosts)):
        return None
    return Refusal(403, "ForeignOrigin", f"foreign Origin {' and '.join(v[:100] for v in values[:3])!r}")


def _origins(hosts: Collection[str]) -> set[str]:
    """Return the origins of these hosts, http and https."""
    return {f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")}


def _is_same_origin(scope: Scope) -> bool:
    """Return whether a request with our cookie comes from a page of this server; its Origin, if any, was checked.

    SameSite=Strict is not enough: pages of other ports of this machine count as the same site. Opening a page is
    allowed from anywhere; everything else must come from our own page.
    """
    if _header(scope, b"origin"):
        return True
    if scope["type"] == "websocket":  # browsers always send Origin here
        return False
    site = b"".join(_header(scope, b"sec-fetch-site"))
    if site in (b"same-origin", b"none"):
        return True
    if scope["method"] not in SAFE_METHODS:
        return False
    mode, destination = _header(scope, b"sec-fetch-mode"), _header(scope, b"sec-fetch-dest")
    return site == b"" or (mode == [b"navigate"] and destination == [b"document"])


# ---- requests and responses ---------------------------------------------------------------------------------------


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with the refusal, or close a WebSocket with its code and reason."""
    if scope["type"] != "websocket":
        await refusal.response()(scope, receive, send)
        return
    await receive()  # websocket.connect
    reason = refusal.error.encode()[:120].decode("utf-8", "ignore")  # a close frame holds 123 bytes
    await send({"type": "websocket.close", "code": CLOSE_CODES[refusal.status], "reason": reason})


def _header(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value of a header."""
    return [value for key, value in scope["headers"] if key == name]


def _secret(authorization: bytes) -> bytes:
    """Return the key of a header: of Bearer, or the password of Basic whatever the user's name; empty without one."""
    scheme, _, secret = authorization.partition(b" ")
    secret = secret.strip()
    if scheme.lower() == b"bearer":
        return secret
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(secret, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _cookies(scope: Scope) -> list[tuple[str, str]]:
    """Return the cookies, (name, value)."""
    pairs = b";".join(_header(scope, b"cookie")).decode("latin-1").split(";")
    parts = [pair.strip().partition("=") for pair in pairs if pair.strip()]
    return [(name, value) for name, _, value in parts]


def _cookie_name(tool: str, scope: Scope) -> str:
    """Return the cookie's name, with the port: browsers share cookies between ports, also of two installations."""
    server = scope.get("server")
    return f"{COOKIE_PREFIX}{tool}_{server[1]}" if server and server[1] else f"{COOKIE_PREFIX}{tool}"


async def _read_body(receive: Receive) -> bytes:
    """Return the whole body of a request whose length was checked."""
    body = b""
    while True:
        message = await receive()
        chunk: bytes = message.get("body", b"")
        body += chunk
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return body


def _with_security_headers(send: Send) -> Send:
    """Return a send that adds SECURITY_HEADERS and drops CORS headers: every page of ours is same-origin."""

    async def send_hardened(message: Message) -> None:
        """Send a message; add our headers where it starts a response."""
        if message["type"] == "http.response.start":
            headers = [(n, v) for n, v in message.get("headers", ()) if not n.lower().startswith(b"access-control-")]
            present = {name.lower() for name, _ in headers}
            missing = [header for header in SECURITY_HEADERS if header[0] not in present]
            message = {**message, "headers": [*headers, *missing]}
        await send(message)

    return send_hardened
