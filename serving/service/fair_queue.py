"""No kind of call waits behind another kind: each has a lane with a limit on running and on waiting requests.

The service answers on one event loop, where 200 running `decide` make every step of an `observe` wait for 200 others.
So few requests of a kind run at a time, however many arrive; the rest wait in the order they came. A full lane, or a
wait longer than WAIT_S, is a 429 with Retry-After.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.http_guard import error_response

WAIT_S = 2.0


@dataclass
class Lane:
    """Hold one queue of requests. max_running: how many run at a time; max_waiting: how many may wait for that."""

    max_running: int
    max_waiting: int
    _busy: int = 0
    _waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)

    async def enter(self, wait_s: float) -> bool:
        """Wait up to `wait_s` seconds; return whether the request may run. Who may run has to call `leave`."""
        if self._busy < self.max_running:
            self._busy += 1
            return True
        if len(self._waiting) >= self.max_waiting:
            return False
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except TimeoutError:
            self._give_up(turn)
            return False
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        return True

    def leave(self) -> None:
        """Let the next waiting request run, or free the place."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # our place becomes theirs
                return
        self._busy -= 1

    def _give_up(self, turn: "asyncio.Future[None]") -> None:
        """Leave the queue, and pass on a place that was given at the same moment."""
        if turn.done() and not turn.cancelled():
            self.leave()
        elif turn in self._waiting:
            self._waiting.remove(turn)


def decision_lanes() -> dict[str, Lane]:
    """Return path → its lane. Writes never wait for decisions or reads; probes have no lane and never wait."""
    decide, reads = Lane(max_running=8, max_waiting=128), Lane(max_running=2, max_waiting=32)
    return {
        "/observe": Lane(max_running=8, max_waiting=64),
        "/outcome": Lane(max_running=8, max_waiting=64),
        "/fill": Lane(max_running=8, max_waiting=64),
        "/decide": decide,
        **dict.fromkeys(("/features", "/status", "/risk", "/account", "/models", "/schema.json"), reads),
    }


class FairQueue:
    """Queue requests: the innermost of our ASGI middleware. A refused or incomplete request takes no place."""

    def __init__(self, app: ASGIApp, lanes: Mapping[str, Lane], wait_s: float = WAIT_S) -> None:
        """Wrap `app`. lanes: path → its lane; wait_s: the longest wait, seconds."""
        self._app, self._lanes, self._wait_s = app, lanes, wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request when its lane has a place; answer 429 when it has none in time."""
        lane = self._lanes.get(scope["path"]) if scope["type"] == "http" else None
        if lane is None:
            await self._app(scope, receive, send)
            return
        if not await lane.enter(self._wait_s):
            busy = f"{lane.max_running} of this kind run and {lane.max_waiting} wait, which is the limit; retry in 1 s"
            refusal = error_response(429, "TooManyRequests", busy)
            refusal.headers["retry-after"] = "1"
            await refusal(scope, receive, send)
            return
        is_running = True

        def leave() -> None:
            """Leave the lane once."""
            nonlocal is_running
            if is_running:
                is_running = False
                lane.leave()

        async def sent(message: Message) -> None:
            """Leave before sending: the work is done, and a caller that reads slowly takes no place."""
            leave()
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            leave()
