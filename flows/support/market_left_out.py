"""A market whose data are unfit is left out by name, and the others go on."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

from flows.support.alarms import keep_alarm
from flows.support.progress import report_progress
from pipelines.data.data_version import DataVersion
from pipelines.errors import BellwetherError, InputError, NotEnoughData, QualityBlocked, VenueDown
from pipelines.store import Store

LEFT_OUT = "market_left_out"  # kind of the alarm
Market = TypeVar("Market")
Made = TypeVar("Made")
UNFIT = (InputError, QualityBlocked, NotEnoughData, VenueDown)  # what its own data do to a market


def each_usable(markets: Mapping[str, Market], act: Callable[[Market], Made]) -> tuple[dict[str, Made], dict[str, str]]:
    """Do something with each market. Return symbol → result, and symbol → why of those whose data refuse it.

    Raises  the error of the only market as it is; NotEnoughData with every reason if none of several is usable
    """
    made: dict[str, Made] = {}
    faults: dict[str, BellwetherError] = {}
    for symbol, market in markets.items():
        try:
            made[symbol] = act(market)
        except UNFIT as fault:
            faults[symbol] = fault
    if faults and not made:
        if len(faults) == 1:
            raise next(iter(faults.values()))
        reasons = "; ".join(f"{symbol}: {fault}" for symbol, fault in faults.items())
        raise NotEnoughData(f"none of {len(faults)} markets is usable: {reasons}")
    return made, {symbol: str(fault) for symbol, fault in faults.items()}


def report_left_out(store: Store, version: DataVersion, at: datetime) -> None:
    """Print and alarm what a data version left out; clear the alarms of every other market."""
    for symbol, why in version.left_out.items():
        report_progress(f"{symbol} is left out of this data version: {why}")
        keep_alarm(store, LEFT_OUT, "warning", symbol, why, at)
    for alarm in store.alarms():
        if alarm.kind == LEFT_OUT and alarm.detail.partition(": ")[0] not in version.left_out:
            store.clear_alarm(alarm.id, at)
