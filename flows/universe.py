"""The universe of an installation: which symbols it trades, and where the data of each come from.

`<home>/universe.json` names them once a run or a person has said so. Before, they are the markets of the newest data
version (a home of a release up to 0.10 is a universe of one), and in a new home the simulated ones of `params.yaml`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.support.holdings import held_market
from flows.support.installation import Installation, now
from flows.support.market_access import MarketOffer
from pipelines.clock import mode_of
from pipelines.contracts import utc
from pipelines.data.data_version import MANIFEST
from pipelines.errors import BlockedError, StateError, UnknownName, UnreadableFile
from pipelines.families import FAMILIES

APPROVAL_WAITS = "approval_waits"  # kind of the alarm of a version that waits for a person
FILE = "universe.json"


def symbols(installation: Installation) -> tuple[str, ...]:
    """Return the symbols of the universe, in its order. Raises UnreadableFile for a damaged file."""
    return tuple(offer.symbol for offer in offers(installation))


def offers(installation: Installation) -> list[MarketOffer]:
    """Return where each market of the universe comes from. Raises UnreadableFile for a damaged file."""
    path = file_of(installation)
    if path.is_file():
        return _read(path)
    if (installation.data / MANIFEST).is_file():
        return [_held(symbol, facts) for symbol, facts in installation.data_version().markets.items()]
    return [MarketOffer(symbol=symbol) for symbol in installation.params.universe.symbols]


def named(installation: Installation) -> bool:
    """Return whether this home has a universe of its own, rather than that of `params.yaml`."""
    return file_of(installation).is_file() or (installation.data / MANIFEST).is_file()


def merged(installation: Installation, added: Iterable[MarketOffer]) -> list[MarketOffer]:
    """Return the offers of the universe with these: in place of those of the same symbol, new ones last.

    In a home without a universe of its own they are the whole of it.
    """
    given = {offer.symbol: offer for offer in added}
    if given and not named(installation):
        return list(given.values())
    return list(({offer.symbol: offer for offer in offers(installation)} | given).values())


def add(installation: Installation, added: Iterable[MarketOffer]) -> list[MarketOffer]:
    """Put markets into the universe, a new home's own first, and return all of it."""
    known = {offer.symbol: offer for offer in offers(installation)}
    return write(installation, (known | {offer.symbol: offer for offer in added}).values())


def remove(installation: Installation, symbol: str) -> list[MarketOffer]:
    """Take a symbol out of the universe, and return the rest. Raises as `without`."""
    return write(installation, without(installation, symbol))


def without(installation: Installation, symbol: str) -> list[MarketOffer]:
    """Return the universe without a symbol; changes nothing.

    Raises  UnknownName for one it does not hold; StateError for the last one; BlockedError while `holding_back`
    """
    present = offers(installation)
    if symbol not in (names := [offer.symbol for offer in present]):
        raise UnknownName(f"{symbol} is not in the universe, which holds {', '.join(names)}")
    if len(present) == 1:
        raise StateError(f"{symbol} is the only symbol of this home; add another one first: `bellwether symbols add`")
    if reasons := holding_back(installation, symbol):
        raise BlockedError(f"{symbol} stays for now: {'; '.join(reasons)}. Nothing was changed")
    return [offer for offer in present if offer.symbol != symbol]


def holding_back(installation: Installation, symbol: str) -> list[str]:
    """Return what forbids removing a symbol now, each with when it ends: open positions, and what a model waits for."""
    store, at = installation.store, present_moment(installation, symbol)
    open_now = [
        record.decision
        for record in store.unresolved(at)
        if record.decision.symbol == symbol and record.decision.action != "NO_TRADE"
    ]
    found = [
        f"position {one.id} is open until {one.expiry:%F %H:%M} UTC at the latest" if one.expiry else
        f"position {one.id} is open until its stop or target"
        for one in open_now
        if one.expiry is None or one.expiry > at
    ]  # fmt: skip
    found += [
        f"a retrain of {request.family} on this universe runs until {request.lease_until:%F %H:%M} UTC at the latest"
        for request in store.retrain_requests(last=len(FAMILIES) * 2)
        if request.state == "running" and request.lease_until is not None and request.lease_until > now()
    ]
    return found + [alarm.detail for alarm in store.alarms() if alarm.kind == APPROVAL_WAITS]


def present_moment(installation: Installation, symbol: str) -> datetime:
    """Return now by the clock of a market: the close of its newest bar, or the wall's where it trades now."""
    held = held_market(installation.workspace, symbol)
    if held is None or mode_of(held.facts) == "wall":
        return now()
    newest = installation.store.newest_bar(symbol)
    return utc(held.grid.next_close(held.last.timestamp() if newest is None else newest))


def write(installation: Installation, present: Iterable[MarketOffer]) -> list[MarketOffer]:
    """Write the universe, whole or not at all, and return it."""
    kept = list(present)
    path = file_of(installation)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"symbols": {offer.symbol: offer.model_dump(mode="json", exclude_defaults=True) for offer in kept}}
    draft = path.with_name(f".{FILE}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
    return kept


def file_of(installation: Installation) -> Path:
    """Return the file that names the universe of an installation."""
    return installation.settings.home / FILE


def _read(path: Path) -> list[MarketOffer]:
    """Return the offers in a file. Raises UnreadableFile."""
    try:
        stored = json.loads(path.read_text())["symbols"]
        return [MarketOffer.model_validate({"symbol": symbol, **offer}) for symbol, offer in stored.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableFile(
            f"{path} is damaged: {error}. Delete it: the universe is then that of the newest data version."
        ) from error


def _held(symbol: str, facts: Mapping[str, Any]) -> MarketOffer:
    """Return the offer of a market that a data version holds; where its files lie is not known."""
    origin = facts.get("source") or {}
    source = str(origin.get("source", "files"))
    if source != "files":
        return MarketOffer(symbol=symbol, source=source)
    return MarketOffer(symbol=symbol, source=source, venue=origin.get("venue"), market=origin.get("market"))
