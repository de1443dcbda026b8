"""Ingest: fetch, assess, version. Every row of a source is checked; the snapshot's hash is the authority."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.support.holdings import held_market, with_held_bars
from flows.support.installation import Installation, now, open_installation, workspace_lease
from flows.support.market_access import grid_of_market, market_records, market_source, placed
from flows.support.observed_bars import snapshot_now
from flows.support.progress import report_progress, step
from pipelines import versioning
from pipelines.clock import Mode, mode_of
from pipelines.contracts import utc
from pipelines.costs import venue_of
from pipelines.data import records, reference_year, schemas
from pipelines.data.alignment import merge_records
from pipelines.data.embargo import to_json
from pipelines.data.quality import REASONS, QualityReport, assess
from pipelines.data.readers.events import read_events
from pipelines.data.readers.reading import FileOptions
from pipelines.data.series import SeriesFile, series_of
from pipelines.data.series import to_json as series_json
from pipelines.data.sources import Records
from pipelines.data.symbols import slug_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BellwetherError, NotEnoughData, QualityBlocked

Provenance = Mapping[str, Any]  # what a source says of itself; it goes into the manifest
SHOWN = 5  # bars named one by one
MarketData = tuple[pd.DataFrame, Records, Provenance, Grid]  # bars, records, provenance, where bars open and close


@task(retries=3, retry_delay_seconds=[2, 10, 60])
def fetch(
    source: str, symbol: str, path: str | list[str] | None, through: datetime | None, since: datetime | None,
    context: list[str], venue: str | None = None, market: str | None = None,
    series: list[SeriesFile] | None = None, sessions: str | None = None, options: FileOptions | None = None,
) -> MarketData:  # fmt: skip
    """Return bars and records of one symbol up to `through`, with their provenance. I/O only, so it may be retried.

    Bars of a file come with those that this installation holds of the same market. Arguments as of `ingest`.
    """
    installation = open_installation()
    at = now()
    origin = market_source(installation, source, path, since, venue, market, options)
    frame = origin.fetch(symbol, as_of=through or at, ingested_at=at)
    known = market_records(origin, symbol, context, through or at, series or [])
    grid = grid_of_market(installation.workspace, origin, symbol, frame, sessions)
    frame = placed(origin, frame, grid)
    named = series_json(series_of(series or []))
    extra = {"context": context} if context else {}
    provenance = {**origin.describe(), **extra, **({"series": named} if named else {})}
    held = held_market(installation.workspace)
    if source == "files" and held is not None:
        joined = with_held_bars(held, frame)
        if joined is not frame:
            frame, provenance = joined, {**provenance, "joined_to": installation.manifest()["source"]}
    return frame, known, provenance, grid


@task
def embargo_windows(events: str, symbol: str) -> list[dict[str, str]]:
    """Return the windows of a calendar of events for one market, as a manifest holds them."""
    return to_json(read_events(Path(events), symbol))


@task
def observed(symbol: str) -> MarketData:
    """Return the newest snapshot plus everything the service has seen since, with the snapshot's provenance.

    Both as they are read now, corrections applied and quarantined bars left out.
    """
    installation = open_installation()
    manifest, data = installation.manifest(), installation.workspace / "data"
    stored = snapshot_now(installation)
    after = stored["open_time"].iloc[-1].timestamp()
    newer = schemas.to_frame(installation.store.bars(symbol, after=after), installation.base_grid(), None)
    books, feed = records.read_snapshot(data, dict(manifest))
    newer_books, newer_feed = installation.store.records(symbol)
    # where both hold a record, the snapshot's is used
    merged = merge_records(books, newer_books), merge_records(feed, newer_feed)
    return pd.concat([stored, newer], ignore_index=True), merged, manifest["source"], installation.base_grid()


@task
def check(frame: pd.DataFrame, grid: Grid, as_of: datetime) -> QualityReport:
    """Return the clean rows, the quarantined ones with their reasons, flags with place and cause, and the score."""
    return assess(frame, grid, as_of, rules=open_installation().params.data.quality)


@task
def version(
    symbol: str,
    report: QualityReport,
    known: Records,
    provenance: Provenance,
    ingested_at: datetime | None,
    clock: Mode | None = None,
) -> str:
    """Write the snapshot into the private workspace and version it. Return its data hash.

    Rows already stored keep their ingestion time. Arguments as of `write_snapshot`.
    """
    installation = open_installation()
    with workspace_lease(installation):
        write_snapshot(installation.workspace / "data", symbol, report, provenance, known, ingested_at, clock)
        data_hash = versioning.snapshot(installation.workspace)
        versioning.keep_version(installation.workspace, installation.versions)
    return data_hash


def write_snapshot(
    folder: Path,
    symbol: str,
    report: QualityReport,
    provenance: Provenance,
    known: Records = (None, None),
    ingested_at: datetime | None = None,
    clock: Mode | None = None,
) -> None:
    """Write `manifest.json`, bars, books, context, the quarantine with its reasons. Same input, same bytes.

    known        books and context; what is None is removed from the folder
    ingested_at  when the records were ingested; None stamps each with the moment it was known, as the bars of a
                 simulated market and those the service saw are
    clock        of the market, see pipelines.clock; None = the one its source has
    Raises       NotEnoughData without a usable row
    """
    frame = report.clean
    if len(frame) == 0:
        raise NotEnoughData(
            f"{symbol}: no usable row of {len(report.quarantined)}; the quality report names the reason of each. "
            "Correct the source and ingest it again."
        )
    timeframe = report.grid.timeframe
    slug = slug_of(symbol)
    file = Path("bars") / slug / f"{timeframe}.parquet"
    frame = retain_first_ingestion(frame, folder / file, schemas.read_bars, ["open_time", *schemas.VALUES])
    schemas.write_bars(frame, folder / file)
    write_quarantine(report.quarantined, folder / "quarantine" / f"{slug}.parquet")
    books, feed = known
    book, context = (Path(kind) / f"{slug}.parquet" for kind in ("book", "context"))
    if books is None:
        (folder / book).unlink(missing_ok=True)
    else:
        rows = records.from_books(books, ingested_at)
        records.write_book(retain_first_ingestion(rows, folder / book, records.read_book, ["known_at"]), folder / book)
    if feed is None:
        (folder / context).unlink(missing_ok=True)
    else:
        key = ["known_at", "field"]
        rows = records.from_feed(feed, ingested_at).sort_values(key, kind="stable", ignore_index=True)
        records.write_context(
            retain_first_ingestion(rows, folder / context, records.read_context, key), folder / context
        )
    venue, market = venue_of({"symbol": symbol, "source": provenance})
    manifest = {
        "symbol": symbol,
        "timeframe": timeframe,
        "grid": report.grid.to_dict(),
        "file": str(file),
        "book": None if books is None else str(book),
        "context": None if feed is None else str(context),
        "rows": len(frame),
        "first": frame["open_time"].iloc[0].isoformat(),
        "last": frame["open_time"].iloc[-1].isoformat(),
        "source": provenance,
        "clock": clock or mode_of({"source": provenance}),
        "venue": venue,
        "market": market,
        "quality": {"score": report.score, "counts": report.counts, "quarantined": len(report.quarantined)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True, default=str) + "\n")


def write_quarantine(rows: pd.DataFrame, file: Path) -> None:
    """Write the quarantined rows, or remove the file where there are none."""
    if len(rows):
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(file, index=False)
    else:
        file.unlink(missing_ok=True)


def retain_first_ingestion(
    frame: pd.DataFrame, stored: Path, read: Callable[[Path], pd.DataFrame], key: list[str]
) -> pd.DataFrame:
    """Return the frame in which rows stored before have their first ingestion time: the same data gives the same hash.

    read, key  of the file `stored`: its reader, and the columns that name a row
    """
    if not stored.is_file():
        return frame
    earlier = read(stored).drop_duplicates(key)[[*key, "ingested_at"]]
    first = frame[key].merge(earlier, on=key, how="left")["ingested_at"].set_axis(frame.index)
    return frame.assign(ingested_at=first.where(first.notna(), frame["ingested_at"]).astype(frame["ingested_at"].dtype))


def require_quality(symbol: str, report: QualityReport, floor: float) -> None:
    """Raise QualityBlocked if the score of the data is under the floor, or a finding forbids training on them."""
    if report.blocked is not None:
        raise QualityBlocked(f"{symbol}: {report.blocked}.")
    if report.score < floor:
        raise QualityBlocked(f"{symbol}: quality {report.score:.3f} is under the floor {floor}. {worst_flag(report)}")


def worst_flag(report: QualityReport) -> str:
    """Return in words what costs the most score: rows, first place and cause."""
    scored = [one for one in report.flags if one.code in (*REASONS, "GAP", "STALE", "DISORDERED")]
    if not scored:
        return "The quality report names every row. Correct the source and ingest it again."
    rows = {"GAP": report.counts["missing"], "STALE": report.counts["stale"]}
    worst = max(scored, key=lambda one: rows.get(one.code, one.rows))
    return f"Most of it: {rows.get(worst.code, worst.rows):,} {worst.code}, first at {worst.moments[0]}: {worst.cause}."


def artifact_slug(symbol: str) -> str:
    """Return a symbol in the key of an artifact, which holds small letters, digits and dashes alone."""
    return slug_of(symbol).lower().replace("_", "--").replace(".", "---").replace("~", "-u")


def show_quality(symbol: str, report: QualityReport) -> None:
    """Write score, counts and flags of the checks to the flow run's artifacts."""
    found = [
        {"check": one.code, "rows": one.rows, "first": ", ".join(one.moments[:3]), "cause": one.cause}
        for one in report.flags
    ]
    rows = [{"check": name, "rows": count} for name, count in report.counts.items()]
    create_table_artifact(
        key=f"quality-{artifact_slug(symbol)}",
        table=[{"check": "score", "rows": round(report.score, 4)}, *found, *rows],
        description=f"Quality of {symbol}: {len(report.clean):,} clean rows, {len(report.quarantined):,} quarantined",
    )


def ingestion_stamp(installation: Installation, source: str) -> tuple[datetime | None, Mode | None]:
    """Return (time of ingestion, clock of the market) as `write_snapshot` reads them.

    Simulated and observed records keep the moment each was known, and observed ones the clock of the first ingest.
    """
    at = None if source in ("observed", "simulator") else now()
    return at, mode_of(installation.manifest()) if source == "observed" else None


def snapshot_line(symbol: str, report: QualityReport, data_hash: str) -> str:
    """Return one line on a snapshot: hash, bars, last bar, quality."""
    last = utc(schemas.to_matrix(report.clean)[-1, 0])
    return (
        f"data {data_hash[:12]}: {len(report.clean):,} bars of {symbol} to {last:%F %H:%M} UTC, "
        f"quality {report.score:.3f}, {len(report.quarantined)} quarantined{matches_pointer(data_hash, report.clean)}"
    )


def left_out(symbol: str, report: QualityReport) -> str:
    """Return one line on the observed bars that this data version leaves out, with the reason of each."""
    rows = report.quarantined
    shown = [f"{at:%F %T} UTC {why}" for at, why in zip(rows["open_time"], rows["reason"], strict=True)][:SHOWN]
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return (
        f"{len(rows):,} observed bar(s) of {symbol} are left out of this data version: {', '.join(shown)}{more}. The "
        "turn goes on without them; `bellwether data quarantine set-aside` takes one out of live state too"
    )


def matches_pointer(data_hash: str, bars: pd.DataFrame) -> str:
    """Return a note if these bars are the market that the repository's own `data.dvc` describes, else ""."""
    try:
        match = reference_year.compare(data_hash, schemas.to_matrix(bars))
    except BellwetherError as error:  # a note only: nothing else rests on it
        return f" (not compared with data.dvc: {error})"
    return f" ({match})" if match else ""


@flow(name="ingest", log_prints=True)
def ingest(
    source: str = "simulator",
    symbol: str | None = None,
    path: str | list[str] | None = None,
    through: datetime | None = None,
    since: datetime | None = None,
    context: list[str] | None = None,
    venue: str | None = None,
    market: str | None = None,
    series: list[SeriesFile] | None = None,
    events: str | None = None,
    sessions: str | None = None,
    options: FileOptions | None = None,
) -> str:
    """Turn market data into a checked, versioned snapshot. Return the data hash.

    source   simulator | files | exchange | observed (the newest snapshot plus what the service saw since)
    through  last moment to ingest, for a history that leaves a live tail; None = everything known by now
    since    first bar requested from an exchange; None = data.retention_days ago
    context  files of context next to the bars (funding, fear and greed …), or the folder of a recorded book
    venue, market  where files were recorded, such as binance and spot; the row of `costs` that the market pays
    series   files of named series; the data version names them
    events   calendar of events; the data version holds its windows. None = those of the newest one, where observed
    sessions  when the market is open: a name of calendars.CALENDARS or a file of hours; None = as the bars show it
    options  what files do not show: time zone, timeframe, what a time stamps
    """
    installation = open_installation()
    name = symbol or installation.params.simulator.symbol
    with step(f"ingest: fetch {name} from {source}"):
        frame, known, provenance, grid = (
            observed(name)
            if source == "observed"
            else fetch(source, name, path, through, since, context or [], venue, market, series, sessions, options)
        )
    if events is not None:
        provenance = {**provenance, "events": embargo_windows(events, name)}
    with step(f"ingest: check {len(frame):,} bars"):
        report = check(frame, grid, now())
    if source == "observed" and len(report.quarantined):
        report_progress(left_out(name, report))
    show_quality(name, report)
    require_quality(name, report, installation.params.data.quality_floor)
    with step("ingest: version with DVC"):
        ingested_at, clock = ingestion_stamp(installation, source)
        data_hash: str = version(name, report, known, provenance, ingested_at, clock)
    report_progress(snapshot_line(name, report, data_hash))
    return data_hash
