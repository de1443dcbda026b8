"""Calls of the store off the event loop, each with a limit on waiting: a database may be there and not answer."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from pipelines.errors import ServiceDown
from serving.state.ledger import STUCK_S, Ledger

THREADS = 4
LONG_S = 60.0  # reads of a whole history, at a start or with a new warm start
P = ParamSpec("P")
T = TypeVar("T")


class StoreExecutor:
    """Run store calls in own threads, so that a hanging database stops nothing else. One event loop owns it."""

    def __init__(self) -> None:
        """Start without threads; they start with the first calls."""
        self._pool = ThreadPoolExecutor(THREADS, "store")
        self._hung = 0  # calls that were given up and have not returned

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` in a thread and return its result. ServiceDown after STUCK_S, or at once while one hangs."""
        return await self._wait(STUCK_S, functools.partial(call, *args, **kwargs))

    async def run_long(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` as `run` does, but wait up to LONG_S: a large result takes time."""
        return await self._wait(LONG_S, functools.partial(call, *args, **kwargs))

    async def _wait(self, limit_s: float, call: Callable[[], T]) -> T:
        """Return the result of `call`, or count it as hung after `limit_s` and raise ServiceDown."""
        if self._hung:
            raise ServiceDown("the database has not answered an earlier call yet")
        running = asyncio.get_running_loop().run_in_executor(self._pool, call)
        await asyncio.wait({running}, timeout=limit_s)
        if running.done():
            return running.result()
        self._hung += 1
        running.add_done_callback(self._returned)
        raise ServiceDown(f"the database has not answered for {limit_s:.1f} s")

    def _returned(self, running: "asyncio.Future[Any]") -> None:
        """Count a hung call as returned."""
        self._hung -= 1
        if not running.cancelled():
            running.exception()  # read, so that asyncio does not log it: no caller is left

    def close(self) -> None:
        """Start no further call and wait for none."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def wait_for_write(ledger: Ledger, work: Awaitable[T]) -> T:
    """Return the result of `work`, which waits for the ledger's writer; it goes on if its caller goes away.

    Raises ServiceDown once the writer is stuck. The work is not cancelled: it ends when the database does.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # read: the caller may be gone
    while not (await asyncio.wait({task}, timeout=0.1))[0]:
        if (why := ledger.stuck()) is not None:
            raise ServiceDown(why)
    return task.result()
