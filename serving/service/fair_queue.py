"""No kind of call waits behind another kind: each has a lane of its own, so many at work and so many waiting.

The service answers on one event loop, where 200 `decide` at work make every step of an `observe` wait for 200 others.
So few of a kind are at work at a time, whatever number asks; the rest wait in the order they came. A full lane, or a
turn that does not come within WAIT_S, is a 429 with Retry-After.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.schemas import error_response

WAIT_S = 2.0


@dataclass
class Lane:
    """max_running: requests worked on at a time; max_waiting: how many may wait for that."""

    max_running: int
    max_waiting: int
    _busy: int = 0
    _waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)

    async def enter(self, wait_s: float) -> bool:
        """Whether the turn came; a lane that was entered has to be left."""
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
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # our place is theirs
                return
        self._busy -= 1

    def _give_up(self, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():  # the place was ours at the very moment we went
            self.leave()
        elif turn in self._waiting:
            self._waiting.remove(turn)


def decision_lanes() -> dict[str, Lane]:
    """Path → its lane. What writes never waits for what decides, nor for what only reads; probes wait for nothing."""
    decide, reads = Lane(max_running=8, max_waiting=128), Lane(max_running=2, max_waiting=32)
    return {
        "/observe": Lane(max_running=8, max_waiting=64),
        "/outcome": Lane(max_running=8, max_waiting=64),
        "/fill": Lane(max_running=8, max_waiting=64),
        "/decide": decide,
        **dict.fromkeys(("/status", "/risk", "/models", "/schema.json"), reads),
    }


class FairQueue:
    """ASGI middleware, the innermost of ours: what was refused at the door, or is still on its way, takes no place."""

    def __init__(self, app: ASGIApp, lanes: Mapping[str, Lane], wait_s: float = WAIT_S) -> None:
        self._app, self._lanes, self._wait_s = app, lanes, wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane = self._lanes.get(scope["path"]) if scope["type"] == "http" else None
        if lane is None:
            await self._app(scope, receive, send)
            return
        if not await lane.enter(self._wait_s):
            busy = f"{lane.max_running} of this kind are at work and {lane.max_waiting} wait, which is the limit; ask again in 1 s"
            answer = error_response(429, "TooManyRequests", busy)
            answer.headers["retry-after"] = "1"
            await answer(scope, receive, send)
            return
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                lane.leave()

        async def sent(message: Message) -> None:
            leave()  # the work is done: a caller that reads slowly holds no place
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            leave()
