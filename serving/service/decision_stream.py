"""The stream of decisions: each one, once it is durable, as a server-sent event in the order of the ledger.

    id: 4711             its sequence number in the ledger; a reader resumes behind it by `Last-Event-ID` or `?after=`
    event: decision
    data: {"api":1,…}    the decision as `/decide` answers it

A reader reads the ledger until it meets what was published last, then follows. Recent decisions are in one buffer that
all readers share: publishing is one append, whoever reads and however slowly. A reader that follows and falls more than
RECENT decisions behind is sent the event `dropped`, which says where to resume, and its response ends.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.contracts import Decision
from pipelines.errors import BadValues, BellwetherError, ServiceDown
from pipelines.store import Store, StoreFault
from serving.service.answers import decision_json
from serving.service.http_guard import error_response
from serving.service.store_executor import StoreExecutor

log = logging.getLogger("bellwether.stream")
PATH = "/decisions/stream"
RECENT = 1000  # decisions that are kept for readers, and how far behind one may fall
MAX_STREAMS = 16  # of MAX_CONNECTIONS: streams leave the others to calls
HEARTBEAT_S = 15.0
RETRY_MS = 1000  # how long a browser waits before it connects again
TOGETHER = 16  # decisions in one write, and read from the ledger at a time
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy must not hold events back
]
OPERATION = {
    "summary": "Follow decisions as they become durable",
    "description": "Server-sent events in the order of the ledger. `id` is the decision's sequence number in the "
    "ledger, `event` is `decision`, `data` is the decision as /decide answers it. With Last-Event-ID, or `after`, the "
    "stream begins behind that number and leaves nothing out; without, with the next decision. A reader more than "
    f"{RECENT:,} decisions behind is sent `dropped` with the number to resume after, and the stream ends. A comment "
    f"comes every {HEARTBEAT_S:.0f} s. At most {MAX_STREAMS} streams at a time. Needs the bearer key.",
    "tags": ["Decisions"],
    "parameters": [
        {"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0}},
        {"name": "after", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 0}},
    ],
    "responses": {"200": {"description": "events, until one side ends it", "content": {"text/event-stream": {
        "schema": {"type": "string"}, "example": 'id: 4711\nevent: decision\ndata: {"api":1,"action":"NO_TRADE"}\n\n',
    }}}},
}  # fmt: skip


class DecisionStream:
    """Hold the decisions published last, for readers. `publish` is for any thread, everything else for one loop."""

    def __init__(self, recent: int = RECENT) -> None:
        """Start closed. recent: how far behind a reader may fall."""
        self.readers = 0
        self._limit = recent
        self._recent: dict[int, Decision | bytes] = {}  # by sequence number, ascending; text once a reader wanted it
        self._newest = 0
        self._store: Store | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor: StoreExecutor | None = None
        self._closing: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Return whether readers are taken."""
        return self._loop is not None

    def open(self, store: Store) -> None:
        """Take readers from here on, in the running loop; they read older decisions from `store`."""
        self._store, self._loop = store, asyncio.get_running_loop()
        self._executor = StoreExecutor()  # of its own: a reader's slow page stops no decision
        self._closing, self._news = self._loop.create_future(), self._loop.create_future()

    def end(self) -> None:
        """End every stream and take no other, until it is opened again."""
        self._loop = None
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def close(self) -> None:
        """End every stream, and read the ledger no more."""
        self.end()
        if self._executor is not None:
            self._executor.close()

    def publish(self, seq: int, decision: Decision) -> None:
        """Offer a decision that is durable to the readers; returns at once. Without readers it does nothing."""
        loop = self._loop
        if loop is not None and self.readers:
            loop.call_soon_threadsafe(self._add, seq, decision)

    def _add(self, seq: int, decision: Decision) -> None:
        """Keep a decision and wake who waits."""
        self._recent[seq], self._newest = decision, max(seq, self._newest)
        if len(self._recent) > self._limit:
            del self._recent[next(iter(self._recent))]
        if self._loop is not None and self._news is not None:
            news, self._news = self._news, self._loop.create_future()
            news.set_result(None)

    async def follow(self, after: int | None, gone: "asyncio.Future[None]") -> AsyncIterator[bytes]:
        """Yield the text of events behind sequence number `after` (None: from now on) until `gone`, or closed.

        Raises, before it yields anything, BadValues for a number that no decision has yet, ServiceDown or a StoreFault.
        """
        self.readers += 1  # before the ledger is read: what becomes durable from here on is kept
        try:
            place = await self._start(after)
            yield f"retry: {RETRY_MS}\nid: {place}\n\n".encode()
            follows = False  # it has met what was published last
            while self.is_open and not gone.done():
                if follows and (behind := self._newest - place) > self._limit:
                    yield dropped(place, behind)
                    return
                found = self._kept(place)
                if found is None and not (follows and self._newest <= place):
                    found = await self._stored(place)
                    if found is None:  # nothing is stored in between: numbers of rows that were pruned
                        place = next((seq for seq in self._recent if seq > place), place + 1) - 1
                        follows = True
                        continue
                elif found is not None:
                    follows = True
                if found is not None:
                    place, text = found
                    yield text
                elif not await self._news_or(gone):
                    yield b": nothing new\n\n"
        finally:
            self.readers -= 1
            if not self.readers:
                self._recent.clear()

    async def _start(self, after: int | None) -> int:
        """Return the sequence number behind which a reader begins."""
        assert self._executor is not None
        assert self._store is not None
        newest = await self._executor.run(self._store.newest_sequence)
        if after is not None and after > newest:
            raise BadValues(
                f"after: {after} is no decision yet, the newest is {newest}. Leave it out to follow from now"
            )
        return newest if after is None else after

    def _kept(self, place: int) -> tuple[int, bytes] | None:
        """Return the next events of those that are kept, and their newest number; None if the next one is not there."""
        texts: list[bytes] = []
        while len(texts) < TOGETHER and (kept := self._recent.get(place + 1)) is not None:
            place += 1
            if not isinstance(kept, bytes):
                kept = self._recent[place] = event_of(place, kept)
            texts.append(kept)
        return (place, b"".join(texts)) if texts else None

    async def _stored(self, place: int) -> tuple[int, bytes] | None:
        """Return the same of the ledger; None if it has nothing behind `place`."""
        assert self._executor is not None
        return await self._executor.run(self._page, place)

    def _page(self, place: int) -> tuple[int, bytes] | None:
        """Read and encode decisions behind `place`; runs in a thread."""
        assert self._store is not None
        found = self._store.decisions_after(place, TOGETHER)
        return (found[-1][0], b"".join(event_of(seq, each.decision) for seq, each in found)) if found else None

    async def _news_or(self, gone: "asyncio.Future[None]") -> bool:
        """Wait for a decision, for `gone` or for the end; return False if none of them came within HEARTBEAT_S."""
        assert self._news is not None
        assert self._closing is not None
        waited = {self._news, self._closing, gone}
        done, _ = await asyncio.wait(waited, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)


def event_of(seq: int, decision: Decision) -> bytes:
    """Return a decision as one server-sent event; its JSON has no line breaks."""
    return b"id: %d\nevent: decision\ndata: %b\n\n" % (seq, decision_json(decision))


def dropped(place: int, behind: int) -> bytes:
    """Return the last event of a reader that fell behind."""
    content = {
        "error": f"{behind:,} decisions behind: read faster. Resume with Last-Event-ID {place}; nothing is lost",
        "kind": "TooSlow", "resume_after": place, "fields": [],
    }  # fmt: skip
    return f"id: {place}\nevent: dropped\ndata: {json.dumps(content)}\n\n".encode()


class StreamRoute:
    """Answer GET of PATH, as ASGI middleware behind the guard; pass everything else on."""

    def __init__(self, app: ASGIApp, stream: DecisionStream) -> None:
        """Wrap `app`."""
        self._app, self._stream = app, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the reader goes away or is too slow, or the service stops."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "GET":
            await error_response(405, "MethodNotAllowed", f"{PATH} takes GET")(scope, receive, send)
            return
        if self._stream.readers >= MAX_STREAMS:
            refusal = error_response(429, "TooManyStreams", f"{MAX_STREAMS} streams are open, which is the limit")
            refusal.headers["retry-after"] = "1"
            await refusal(scope, receive, send)
            return
        try:
            after = _place_of(scope)
        except BadValues as error:
            problem = {"field": "after", "problem": str(error), "remedy": "send the id of the last event you have"}
            await error_response(400, "BadRequest", str(error), [problem])(scope, receive, send)
            return
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await self._send_events(after, gone, scope, receive, send)
        finally:
            gone.cancel()

    async def _send_events(
        self, after: int | None, gone: "asyncio.Future[None]", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the events; the first one is ready before the response starts, so a refusal has a status of its own."""
        events, is_started = self._stream.follow(after, gone), False
        try:
            if not self._stream.is_open:
                raise ServiceDown("this process is shutting down or starting; retry")
            async for text in events:
                if not is_started:
                    is_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await send({"type": "http.response.body", "body": text, "more_body": True})
        except (BellwetherError, StoreFault, OSError) as error:
            if not is_started:
                status = 400 if isinstance(error, BadValues) else 503
                await error_response(status, type(error).__name__, str(error))(scope, receive, send)
                return
            log.warning("a stream ended, its reader will resume: %s", error)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    """Return when the reader went away; a body that it sent is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _place_of(scope: Scope) -> int | None:
    """Return where a reader resumes: Last-Event-ID, which a browser sends when it connects again, else `after`.

    Raises  BadValues for what is no number, and for other fields
    """
    headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"last-event-id"]
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if unknown := sorted(query.keys() - {"after"}):
        raise BadValues(f"{unknown[0][:100]}: no such field; the stream takes `after`")
    given: Sequence[str] = headers or query.get("after", [])
    if not given:
        return None
    name = "Last-Event-ID" if headers else "after"
    if len(given) > 1 or not (given[0].isascii() and given[0].isdigit() and len(given[0]) <= 18):
        raise BadValues(f"{name}: {' and '.join(given)[:100]!r} is no sequence number of a decision")
    return int(given[0])
