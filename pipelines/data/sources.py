"""Where bars come from: one Protocol, one dict. A source gives bars as it has them; quality.assess judges them."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from pipelines.data import files
from pipelines.data.schemas import to_frame
from pipelines.data.simulator import DESIGN, Design, Market, simulate
from pipelines.errors import BadTimes, UnknownName
from pipelines.settings import SimulatorParams

QUOTES = (
    "USDT", "USDC", "FDUSD", "TUSD", "BUSD", "DAI", "USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "NZD",
    "TRY", "BRL", "BTC", "ETH", "BNB",
)  # fmt: skip


class MarketSource(Protocol):
    """One way to get bars."""

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        """Bars of `symbol` known at `as_of` (aware), columns and types of schemas.LAYOUT, not yet judged.

        ingested_at  when they are taken in (aware); None stamps each bar with the moment it was known (a simulated
                     snapshot made twice is then the same, byte for byte)
        Raises       UnknownName for a symbol the source does not hold
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Provenance, JSON-ready and the same for the same data wherever it lies: what a data version is made from."""
        ...


def normalise_symbol(symbol: str) -> str:
    """`BTCUSDT`, `btc-usdt`, `BTC_USDT` → `BTC/USDT`. Raises UnknownName if it is no pair or can be split in two ways."""
    text = symbol.strip().upper()
    if pair := re.fullmatch(r"([A-Z0-9]{2,15})[/_-]([A-Z0-9]{2,6})", text):
        return f"{pair[1]}/{pair[2]}"
    splits = [
        f"{text.removesuffix(quote)}/{quote}"
        for quote in QUOTES
        if text.endswith(quote) and re.fullmatch(r"[A-Z0-9]{2,15}", text.removesuffix(quote))
    ]
    if len(splits) == 1:
        return splits[0]
    why = f"could be {' or '.join(splits)}" if splits else f"is no pair with a quote we know ({', '.join(QUOTES)})"
    raise UnknownName(f"symbol {symbol!r} {why}. Write it as BASE/QUOTE, e.g. BTC/USDT.")


def _held(symbol: str, known: Sequence[str], source: str) -> str:
    name = normalise_symbol(symbol)
    if name not in known:
        raise UnknownName(
            f"source {source!r} has no {name}; it holds {', '.join(known)}. Ask for one of these or add its data."
        )
    return name


def _aware(as_of: datetime) -> pd.Timestamp:
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    return pd.Timestamp(as_of)


class SimulatorSource:
    """The embedded market of data.simulator: 1-minute bars of one symbol, and their truth for those who may see it."""

    def __init__(self, spec: SimulatorParams, design: Design = DESIGN) -> None:
        self.spec, self.design = spec, design

    @cached_property
    def market(self) -> Market:
        return simulate(self.spec, self.design)

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        _held(symbol, (normalise_symbol(self.spec.symbol),), "simulator")
        closed = int((_aware(as_of) - pd.Timestamp(self.spec.start)) // timedelta(minutes=1))  # bars closed at as_of
        return to_frame(self.market.bars[: max(closed, 0)], "1m", ingested_at)

    def describe(self) -> dict[str, Any]:
        return {"source": "simulator", "spec": self.spec.model_dump(mode="json"), "design": asdict(self.design)}


class FileSource:
    """Recorded files. Several files of one symbol follow each other in the order given (monthly archives)."""

    def __init__(
        self, paths: Mapping[str, Path | Sequence[Path]], timeframe: str | None = None, name: str = "files"
    ) -> None:
        """paths: symbol → file or files (see data.files for the layouts); timeframe None: the commonest spacing of each."""
        self.paths = {
            normalise_symbol(symbol): (given,) if isinstance(given, Path) else tuple(given)
            for symbol, given in paths.items()
        }
        self.timeframe, self.name = timeframe, name

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        moment = _aware(as_of)
        paths = self.paths[_held(symbol, tuple(self.paths), self.name)]
        taken = ingested_at or as_of
        frame = pd.concat([files.read(path, taken, self.timeframe) for path in paths], ignore_index=True)
        if ingested_at is None:
            frame["ingested_at"] = frame["known_at"]
        # Bars between as_of and the taking are for a later fetch. A bar from after its own taking is a false stamp, one
        # without a time a broken row: both stay, so that quality.assess quarantines them in the open.
        later = (frame["known_at"] > moment) & (frame["known_at"] <= pd.Timestamp(taken))
        return frame[~later].reset_index(drop=True)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "timeframe": self.timeframe,
            "files": {symbol: [_fingerprint(path) for path in paths] for symbol, paths in self.paths.items()},
        }


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "sha256": digest, "bytes": path.stat().st_size}


SOURCES: dict[str, Callable[..., MarketSource]] = {"simulator": SimulatorSource, "files": FileSource}


def make_source(name: str, **arguments: Any) -> MarketSource:
    """The source registered as `name`. Raises UnknownName with the known ones."""
    if name not in SOURCES:
        raise UnknownName(f"no market source {name!r}; known: {', '.join(SOURCES)}.")
    return SOURCES[name](**arguments)
