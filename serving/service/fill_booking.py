"""Book the ledger's own fills: an emitted decision at the next base bar's open, its exit with its outcome."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime

import numpy as np

from pipelines.errors import InputError
from pipelines.market_params import CostParams
from pipelines.store import Fill, Store
from serving.risk.ledger_fills import entry_of, exit_of
from serving.service.store_executor import StoreExecutor
from serving.service.system_clock import utc_now
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")


class FillBooking:
    """Write fills of the ledger, each once; one whose write failed is written at the next bar or poll.

    Where the account rests on what a venue reports, nothing is booked.
    """

    def __init__(
        self, store: Store, executor: StoreExecutor, ledger: Ledger, account: Account, costs: CostParams
    ) -> None:
        """Take the collaborators; nothing is read or written yet."""
        self._store, self._executor, self._ledger, self._account, self._costs = store, executor, ledger, account, costs

    async def book_all_entries(self, symbols: Sequence[Symbol]) -> None:
        """Fill the decisions on each of these symbols, side by side, as `book_entries`."""
        waiting = {decision.symbol for decision in self._account.unfilled.values()}
        await asyncio.gather(*(self.book_entries(symbol) for symbol in symbols if symbol.name in waiting))

    async def book_entries(self, symbol: Symbol) -> None:
        """Fill the decisions on a symbol whose next base bar came before their time was over.

        Raises ServiceDown or a StoreFault.
        """
        if self._account.source == "reported":
            return
        reading = datetime.fromisoformat(symbol.reading) if symbol.reading else None
        for decision in [d for d in self._account.unfilled.values() if d.symbol == symbol.name]:
            as_of = decision.as_of.timestamp()
            if symbol.last_open_time < as_of:
                continue
            ends = np.inf if decision.expiry is None else np.nextafter(decision.expiry.timestamp(), -np.inf)
            span = float(np.nextafter(as_of, -np.inf)), float(min(symbol.last_open_time, ends))
            bars = await self._executor.run(self._store.bars, symbol.name, *span, reading)
            if len(bars):
                fill = entry_of(decision, bars[0], symbol.costs(self._costs), utc_now())
                await self._count(fill, self._ledger.fill(fill))

    async def book_exits(self) -> None:
        """Store the exits of the positions whose outcome came. Raises ServiceDown or a StoreFault."""
        exits = [exit_of(*ended, utc_now()) for ended in self._account.exits.values()]
        for fill, written in zip(exits, self._ledger.fill_all(exits), strict=True):
            await self._count(fill, written)

    async def _count(self, fill: Fill, written: "Future[bool]") -> None:
        """Count a fill once it is stored."""
        try:
            await asyncio.wrap_future(written)
        except InputError as error:  # its decision never became durable, or an earlier process booked another price
            log.warning("fill %s was not booked: %s", fill.id, error)
        self._account.apply_fill(fill)
