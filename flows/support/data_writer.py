"""Write checked markets as a data version: rows that were stored before keep the time of their first ingestion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.clock import Mode, mode_of
from pipelines.costs import venue_of
from pipelines.data import data_version, records, schemas
from pipelines.data.data_version import BAR, BOOK, CONTEXT, MANIFEST, DataVersion
from pipelines.data.quality import QualityReport
from pipelines.data.sources import Records
from pipelines.data.symbols import slug_of
from pipelines.errors import NotEnoughData, UnreadableFile

Provenance = Mapping[str, Any]  # what a source says of itself; it goes into the manifest
SAME_ROW = {  # columns by which a row of a kind is the same as one that was stored before
    BAR: ["open_time", *schemas.VALUES],
    BOOK: ["known_at"],
    CONTEXT: ["known_at", "field"],
}


@dataclass(frozen=True, slots=True)
class CheckedMarket:
    """Hold one market that is ready to be written: checked bars, books and context, and as `Ingested` has them."""

    symbol: str
    report: QualityReport
    known: Records
    provenance: Provenance
    ingested_at: datetime | None = None
    clock: Mode | None = None


def write_version(folder: Path, markets: Iterable[CheckedMarket], left_out: Mapping[str, str] | None = None) -> None:
    """Write manifest, months and quarantines of these markets, and remove those of others. Same input, same bytes.

    left_out  symbol → why this version does not hold it
    Raises    NotEnoughData for a market without a usable row
    """
    facts = {market.symbol: write_market(folder, market) for market in markets}
    data_version.write_manifest(folder, DataVersion(facts, left_out or {}))
    data_version.remove_others(folder, facts)


def write_snapshot(
    folder: Path,
    symbol: str,
    report: QualityReport,
    provenance: Provenance,
    known: Records = (None, None),
    ingested_at: datetime | None = None,
    clock: Mode | None = None,
) -> None:
    """Write a data version of one market; arguments as of `CheckedMarket`. Raises as `write_version`."""
    write_version(folder, [CheckedMarket(symbol, report, known, provenance, ingested_at, clock)])


def write_market(folder: Path, market: CheckedMarket) -> dict[str, Any]:
    """Write the months and the quarantine of one market. Return its facts, as the manifest holds them.

    Raises  NotEnoughData without a usable row
    """
    symbol, report, (books, feed) = market.symbol, market.report, market.known
    require_rows(symbol, report)
    book = None if books is None else records.from_books(books, market.ingested_at)
    context = None if feed is None else records.from_feed(feed, market.ingested_at)
    if context is not None:
        context = context.sort_values(SAME_ROW[CONTEXT], kind="stable", ignore_index=True)
    before = stored_facts(folder, symbol)
    rows = {
        kind: None
        if frame is None
        else retain_first_ingestion(frame, stored_rows(folder, before, kind), SAME_ROW[kind])
        for kind, frame in {BAR: report.clean, BOOK: book, CONTEXT: context}.items()
    }
    bars = rows[BAR]
    assert bars is not None
    files = data_version.write_market(folder, symbol, bars, rows[BOOK], rows[CONTEXT])
    write_quarantine(report.quarantined, folder / "quarantine" / f"{slug_of(symbol)}.parquet")
    venue, kind_of_market = venue_of({"symbol": symbol, "source": market.provenance})
    return {
        "symbol": symbol,
        "timeframe": report.grid.timeframe,
        "grid": report.grid.to_dict(),
        "files": files,
        "rows": len(bars),
        "first": bars["open_time"].iloc[0].isoformat(),
        "last": bars["open_time"].iloc[-1].isoformat(),
        "source": dict(market.provenance),
        "clock": market.clock or mode_of({"source": market.provenance}),
        "venue": venue,
        "market": kind_of_market,
        "has_book": book is not None,
        "has_context": context is not None,
        "quality": {"score": report.score, "counts": report.counts, "quarantined": len(report.quarantined)},
    }


def stored_facts(folder: Path, symbol: str) -> Mapping[str, Any] | None:
    """Return the facts of a market in the data version of a folder; None where it holds none, or cannot be read."""
    try:
        return data_version.read_manifest(folder).markets.get(symbol) if (folder / MANIFEST).is_file() else None
    except UnreadableFile:  # it is written again now
        return None


def stored_rows(folder: Path, facts: Mapping[str, Any] | None, kind: str) -> pd.DataFrame | None:
    """Return the rows of a kind that a data version holds; None where it holds none, or a file of it is gone."""
    if facts is None:
        return None
    files = facts.get("files") or [facts.get({BAR: "file"}.get(kind, kind))]  # up to release 0.10: one file a kind
    if not all(name and (folder / name).is_file() for name in files):
        return None
    if "files" in facts:
        return data_version.read_kind(folder, facts, kind)
    return {BAR: schemas.read_bars, BOOK: records.read_book, CONTEXT: records.read_context}[kind](folder / files[0])


def write_quarantine(rows: pd.DataFrame, file: Path) -> None:
    """Write the quarantined rows, or remove the file where there are none."""
    if len(rows):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}")
        rows.to_parquet(draft, index=False)
        draft.replace(file)  # never written in place: it may share its bytes with the cache
    else:
        file.unlink(missing_ok=True)


def retain_first_ingestion(frame: pd.DataFrame, stored: pd.DataFrame | None, key: list[str]) -> pd.DataFrame:
    """Return the frame in which rows stored before have their first ingestion time: the same data gives the same hash.

    stored, key  rows of the data version before, None = none; the columns that name a row
    """
    if stored is None or len(stored) == 0:
        return frame
    earlier = stored.drop_duplicates(key)[[*key, "ingested_at"]]
    first = frame[key].merge(earlier, on=key, how="left")["ingested_at"].set_axis(frame.index)
    return frame.assign(ingested_at=first.where(first.notna(), frame["ingested_at"]).astype(frame["ingested_at"].dtype))


def require_rows(symbol: str, report: QualityReport) -> None:
    """Raise NotEnoughData without a usable row."""
    if len(report.clean) == 0:
        raise NotEnoughData(
            f"{symbol}: no usable row of {len(report.quarantined)}; the quality report names the reason of each. "
            "Correct the source and ingest it again."
        )
