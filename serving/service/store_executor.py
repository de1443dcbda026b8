"""Calls of the store off the event loop that nobody waits for without end: a database may be there and not answer."""

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
    """Threads of its own, so that a database that hangs stops nothing else. One event loop owns it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "store")
        self._hung = 0  # calls that nobody waits for any more and that have not come back

    async def run(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`ask` in a thread. Raises ServiceDown after STUCK_S, and at once while an earlier call still hangs."""
        return await self._ask(STUCK_S, functools.partial(ask, *args, **kwargs))

    async def run_long(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, but LONG_S are waited for: a large answer takes its time."""
        return await self._ask(LONG_S, functools.partial(ask, *args, **kwargs))

    async def _ask(self, patience_s: float, ask: Callable[[], T]) -> T:
        if self._hung:
            raise ServiceDown("the database has not answered an earlier call yet")
        asked = asyncio.get_running_loop().run_in_executor(self._pool, ask)
        await asyncio.wait({asked}, timeout=patience_s)
        if asked.done():
            return asked.result()
        self._hung += 1
        asked.add_done_callback(self._back)
        raise ServiceDown(f"the database has not answered for {patience_s:.1f} s")

    def _back(self, asked: "asyncio.Future[Any]") -> None:
        self._hung -= 1
        if not asked.cancelled():
            asked.exception()  # nobody is left to hear it

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


async def wait_for_write(ledger: Ledger, work: Awaitable[T]) -> T:
    """What `work` gives, which waits for the ledger's writer; it goes on if its caller goes away.

    Raises ServiceDown once the writer is stuck. The work is not called back: it is finished when the database is.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # heard, whoever still waits
    while not (await asyncio.wait({task}, timeout=0.1))[0]:
        if (why := ledger.stuck()) is not None:
            raise ServiceDown(why)
    return task.result()
