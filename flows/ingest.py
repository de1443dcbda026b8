"""Ingest: fetch, assess, version. What a source gives is checked row by row; the snapshot's hash is the authority."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.support.installation import now, open_installation, workspace_lease
from flows.support.market_access import market_records, market_source
from flows.support.progress import report_progress, step
from pipelines import versioning
from pipelines.clock import Mode, mode_of
from pipelines.contracts import utc
from pipelines.data import records, reference_year, schemas
from pipelines.data.alignment import merge_records
from pipelines.data.quality import QualityReport, assess
from pipelines.data.sources import Records
from pipelines.data.timeframes import infer_timeframe
from pipelines.errors import NotEnoughData, QualityBlocked


@task(retries=3, retry_delay_seconds=[2, 10, 60])
def fetch(
    source: str, symbol: str, path: str | None, through: datetime | None, since: datetime | None, context: list[str]
) -> tuple[pd.DataFrame, Records, dict[str, Any]]:
    """Bars and records of one symbol up to `through`, with their provenance. I/O only, so this may be retried."""
    installation = open_installation()
    at = now()
    origin = market_source(installation, source, path, since)
    frame = origin.fetch(symbol, as_of=through or at, ingested_at=at)
    told = market_records(origin, symbol, context, through or at)
    return frame, told, {**origin.describe(), **({"context": context} if context else {})}


@task
def observed(symbol: str) -> tuple[pd.DataFrame, Records, dict[str, Any]]:
    """The newest snapshot plus everything the service has seen since."""
    installation = open_installation()
    described, data = installation.manifest(), installation.workspace / "data"
    stored = schemas.read_bars(data / described["file"])
    after = stored["open_time"].iloc[-1].timestamp()
    fresh = schemas.to_frame(installation.store.bars(symbol, after=after), described["timeframe"], None)
    (books, feed), (heard, told) = records.read_snapshot(data, described), installation.store.records(symbol)
    everything = merge_records(books, heard), merge_records(feed, told)  # of what is in both, the snapshot's stands
    return pd.concat([stored, fresh], ignore_index=True), everything, described["source"]


@task
def check(frame: pd.DataFrame, as_of: datetime) -> QualityReport:
    return assess(frame, infer_timeframe(schemas.to_matrix(frame)[:, 0]), as_of)


@task
def version(
    symbol: str,
    report: QualityReport,
    told: Records,
    origin: dict[str, Any],
    taken: datetime | None,
    clock: Mode | None = None,
) -> str:
    """Write the snapshot into the private workspace and version it. Rows already stored keep their ingestion time."""
    installation = open_installation()
    with workspace_lease(installation):
        write_snapshot(installation.workspace / "data", symbol, report, origin, told, taken, clock)
        data_hash = versioning.snapshot(installation.workspace)
        versioning.keep_version(installation.workspace, installation.versions)
    return data_hash


def write_snapshot(
    folder: Path,
    symbol: str,
    report: QualityReport,
    origin: dict[str, Any],
    told: Records = (None, None),
    taken: datetime | None = None,
    clock: Mode | None = None,
) -> None:
    """`manifest.json`, bars, books, context, the quarantine with its reasons. The same input gives the same bytes.

    taken  when the records were taken in; None stamps each with the moment it was known, as the bars of a simulated
           market and those the service saw are
    clock  of the market, see pipelines.clock; None = the one its source has
    """
    frame = report.clean
    if len(frame) == 0:
        raise NotEnoughData(f"{symbol}: no usable row of {len(report.quarantined)}; reasons are in the quality report")
    timeframe = infer_timeframe(schemas.to_matrix(frame)[:, 0])
    slug = symbol.replace("/", "-")
    file = Path("bars") / slug / f"{timeframe}.parquet"
    frame = keep_first_ingestion(frame, folder / file, schemas.read_bars, ["open_time"])
    schemas.write_bars(frame, folder / file)
    quarantine = folder / "quarantine" / f"{slug}.parquet"
    if len(report.quarantined):
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        report.quarantined.to_parquet(quarantine, index=False)
    else:
        quarantine.unlink(missing_ok=True)
    books, feed = told
    book, context = (Path(kind) / f"{slug}.parquet" for kind in ("book", "context"))
    if books is None:
        (folder / book).unlink(missing_ok=True)
    else:
        held = records.from_books(books, taken)
        held = keep_first_ingestion(held, folder / book, records.read_book, ["known_at"])
        records.write_book(held, folder / book)
    if feed is None:
        (folder / context).unlink(missing_ok=True)
    else:
        said = records.from_feed(feed, taken).sort_values(["known_at", "field"], kind="stable", ignore_index=True)
        said = keep_first_ingestion(said, folder / context, records.read_context, ["known_at", "field"])
        records.write_context(said, folder / context)
    described = {
        "symbol": symbol,
        "timeframe": timeframe,
        "file": str(file),
        "book": None if books is None else str(book),
        "context": None if feed is None else str(context),
        "rows": len(frame),
        "first": frame["open_time"].iloc[0].isoformat(),
        "last": frame["open_time"].iloc[-1].isoformat(),
        "source": origin,
        "clock": clock or mode_of({"source": origin}),
        "quality": {"score": report.score, "counts": report.counts, "quarantined": len(report.quarantined)},
    }
    (folder / "manifest.json").write_text(json.dumps(described, indent=1, sort_keys=True, default=str) + "\n")


def keep_first_ingestion(
    frame: pd.DataFrame, stored: Path, read: Callable[[Path], pd.DataFrame], key: list[str]
) -> pd.DataFrame:
    """Rows we had before keep the time we first had them: a second ingest of the same data gives the same hash.

    read, key  of the file `stored`: its reader, and the columns that name a row
    """
    if not stored.is_file():
        return frame
    earlier = read(stored).drop_duplicates(key)[[*key, "ingested_at"]]
    first = frame[key].merge(earlier, on=key, how="left")["ingested_at"].set_axis(frame.index)
    return frame.assign(ingested_at=first.where(first.notna(), frame["ingested_at"]).astype(frame["ingested_at"].dtype))


@flow(name="ingest", log_prints=True)
def ingest(
    source: str = "simulator",
    symbol: str | None = None,
    path: str | None = None,
    through: datetime | None = None,
    since: datetime | None = None,
    context: list[str] | None = None,
) -> str:
    """Market data → checked, versioned snapshot. Returns the data hash.

    source   simulator | files | exchange | observed (the newest snapshot plus what the service saw since)
    through  last moment to take, for a history that leaves a live tail; None = everything known by now
    since    first bar asked of an exchange; None = data.retention_days ago
    context  files of context beside the bars (funding, fear and greed …), or the folder of a recorded book
    """
    installation = open_installation()
    name = symbol or installation.params.simulator.symbol
    with step(f"ingest: fetch {name} from {source}"):
        frame, told, origin = (
            observed(name) if source == "observed" else fetch(source, name, path, through, since, context or [])
        )
    with step(f"ingest: check {len(frame):,} bars"):
        report = check(frame, now())
    tell_quality(name, report)
    if report.score < installation.params.data.quality_floor:
        raise QualityBlocked(
            f"{name}: quality {report.score:.3f} is under the floor {installation.params.data.quality_floor} "
            f"({dict(report.counts)}); mend the source or lower data.quality_floor in params.yaml"
        )
    with step("ingest: version with DVC"):
        at = None if source in ("observed", "simulator") else now()
        clock = mode_of(installation.manifest()) if source == "observed" else None  # what was said at ingest stands
        data_hash: str = version(name, report, told, origin, at, clock)
    last = utc(schemas.to_matrix(report.clean)[-1, 0])
    report_progress(
        f"data {data_hash[:12]}: {len(report.clean):,} bars of {name} to {last:%F %H:%M} UTC, "
        f"quality {report.score:.3f}, {len(report.quarantined)} quarantined{matches_pointer(data_hash, report.clean)}"
    )
    return data_hash


def matches_pointer(data_hash: str, bars: pd.DataFrame) -> str:
    """Return a note if these bars are the market that the repository's own `data.dvc` describes, else ""."""
    match = reference_year.compare(data_hash, schemas.to_matrix(bars))
    return f" ({match})" if match else ""


def tell_quality(symbol: str, report: QualityReport) -> None:
    rows = [{"check": k, "rows": v} for k, v in report.counts.items()]
    create_table_artifact(
        key=f"quality-{symbol.replace('/', '-').lower()}",
        table=[{"check": "score", "rows": round(report.score, 4)}, *rows],
        description=f"Quality of {symbol}: {len(report.clean):,} clean rows, {len(report.quarantined):,} quarantined",
    )
