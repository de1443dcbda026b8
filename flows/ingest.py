"""Ingest: fetch, assess, version. Every row of a source is checked; the hash of the data version is the authority.

All markets of the universe are one data version. One whose data are unfit is left out by name; the others go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import universe
from flows.support import checked_out
from flows.support.data_writer import CheckedMarket, Provenance, require_rows, write_version
from flows.support.holdings import held_market, held_markets, with_held_bars
from flows.support.home_copy import bring, keep_version
from flows.support.installation import Installation, now, open_installation, workspace_lease
from flows.support.live_feed import live_from
from flows.support.market_access import MarketOffer, grid_of_market, market_records, market_source, placed
from flows.support.market_left_out import UNFIT, each_usable, report_left_out
from flows.support.observed_bars import snapshot_now
from flows.support.progress import part_done, report_progress, run_progress, step
from flows.support.run_names import rename_run, run_name
from pipelines import versioning
from pipelines.clock import Mode, mode_of
from pipelines.contracts import utc
from pipelines.data import data_version, reference_year, schemas
from pipelines.data.alignment import merge_records
from pipelines.data.embargo import to_json
from pipelines.data.quality import REASONS, QualityReport, assess
from pipelines.data.readers.events import read_events
from pipelines.data.series import series_of
from pipelines.data.series import to_json as series_json
from pipelines.data.sources import Records
from pipelines.data.symbols import slug_of
from pipelines.data.timeframes import Grid, decision_timeframe, seconds
from pipelines.errors import BellwetherError, NotEnoughData, QualityBlocked

SHOWN = 5  # bars named one by one
MarketData = tuple[pd.DataFrame, Records, Provenance, Grid]  # bars, records, provenance, where bars open and close


@dataclass(frozen=True, slots=True)
class Ingested:
    """Hold what came of one market.

    ingested_at  when its records were ingested; None stamps each with the moment it was known, as the bars of a
                 simulated market and those the service saw are
    clock        of the market, see pipelines.clock; None = the one its source has
    observed     whether it is what this home held, with what the service saw since
    """

    symbol: str
    frame: pd.DataFrame
    known: Records
    provenance: Provenance
    grid: Grid
    ingested_at: datetime | None
    clock: Mode | None
    observed: bool


def may_pass(_task: "Task[..., Any]", _run: TaskRun, state: "State[Any]") -> bool:
    """Return whether a fetch that failed may succeed in a while: not one whose data are unfit."""
    return not isinstance(state.result(raise_on_failure=False), UNFIT)


@task(retries=3, retry_delay_seconds=[2, 10, 60], retry_condition_fn=may_pass)
def fetch(offer: MarketOffer, through: datetime | None) -> MarketData:
    """Return bars and records of one market up to `through`, with their provenance. I/O only, so it may be retried.

    Bars of a file come with those that this installation holds of the same market.
    """
    installation = open_installation()
    at = now()
    origin = market_source(installation, offer)
    frame = origin.fetch(offer.symbol, as_of=through or at, ingested_at=at)
    known = market_records(origin, offer.symbol, offer.context, through or at, offer.series)
    grid = grid_of_market(installation.workspace, origin, offer.symbol, frame, offer.sessions)
    frame = placed(origin, frame, grid)
    named = series_json(series_of(offer.series))
    extra = {"context": list(offer.context)} if offer.context else {}
    provenance = {**origin.describe(), **extra, **({"series": named} if named else {})}
    held = held_market(installation.workspace, offer.symbol)
    if offer.source_of_history == "files" and held is not None:
        joined = with_held_bars(held, frame)
        if joined is not frame:
            frame, provenance = joined, {**provenance, "joined_to": held.facts["source"]}
    return frame, known, provenance, grid


@task
def embargo_windows(events: str, symbol: str) -> list[dict[str, str]]:
    """Return the windows of a calendar of events for one market, as a manifest holds them."""
    return to_json(read_events(Path(events), symbol))


@task
def observed(symbol: str) -> MarketData:
    """Return a market of the newest data version plus everything the service has seen since, with its provenance.

    Both as they are read now, corrections applied and quarantined bars left out.
    """
    installation = open_installation()
    facts = installation.manifest(symbol)
    stored = snapshot_now(installation, symbol), data_version.read_records(installation.data, facts)
    return with_observed(installation, symbol, (*stored, facts["source"], installation.base_grid(symbol)))


def with_observed(installation: Installation, symbol: str, market: MarketData) -> MarketData:
    """Return a market with the bars and records that the service saw after its last bar."""
    stored, (books, feed), provenance, grid = market
    after = stored["open_time"].iloc[-1].timestamp()
    newer = schemas.to_frame(installation.store.bars(symbol, after=after), grid, None)
    newer_books, newer_feed = installation.store.records(symbol)
    # where both hold a record, the one stored first is used
    merged = merge_records(books, newer_books), merge_records(feed, newer_feed)
    return pd.concat([stored, newer], ignore_index=True), merged, provenance, grid


def gather(offer: MarketOffer, installation: Installation, from_home: bool, through: datetime | None) -> Ingested:
    """Return one market: what this home holds of it and saw since, or what its source gives up to `through`."""
    held = held_market(installation.workspace, offer.symbol)
    if held is not None and (from_home or not offer.gives_bars):
        frame, known, provenance, grid = observed(offer.symbol)
        stamp, clock = None, mode_of(held.facts)
    else:
        frame, known, provenance, grid = fetch(offer, through)
        stamp, clock = None if offer.source == "simulator" else now(), None
        if from_home and len(frame):  # left out before, or new to this home
            frame, known, provenance, grid = with_observed(installation, offer.symbol, (frame, known, provenance, grid))
            require_days(offer, frame, grid, installation.params.data.live_days)
    if offer.events is not None and (clock is None or Path(offer.events).is_file()):
        provenance = {**provenance, "events": embargo_windows(offer.events, offer.symbol)}
    part_done(f"fetch {offer.symbol}")
    return Ingested(offer.symbol, frame, known, provenance, grid, stamp, clock, clock is not None)


def require_days(offer: MarketOffer, frame: pd.DataFrame, grid: Grid, live_days: int) -> None:
    """Raise NotEnoughData if a market new to this home is too short for a turn of its own; see `live_from`."""
    if offer.source != "simulator":
        opens = schemas.epoch_seconds(frame["open_time"])
        live_from(opens[np.isfinite(opens)], grid, live_days, offer.symbol, ", ".join(offer.paths) or offer.source)


def as_it_was(symbol: str, why: str, floor: float) -> CheckedMarket:
    """Return a market as the newest data version holds it, where what came since is unfit and no source has it again.

    why  it is unfit. Raises as `checked`
    """
    installation = open_installation()
    facts, grid = installation.manifest(symbol), installation.base_grid(symbol)
    known = data_version.read_records(installation.data, facts)
    kept = Ingested(
        symbol, snapshot_now(installation, symbol), known, facts["source"], grid, None, mode_of(facts), True
    )
    report_progress(f"{symbol} goes on as it was, without what the service saw since: {why}")
    return checked(kept, floor)


@task
def check(frame: pd.DataFrame, grid: Grid, as_of: datetime) -> QualityReport:
    """Return the clean rows, the quarantined ones with their reasons, flags with place and cause, and the score."""
    return assess(frame, grid, as_of, rules=open_installation().params.data.quality)


def checked(market: Ingested, floor: float) -> CheckedMarket:
    """Return a market whose data may be trained on. Raises QualityBlocked, NotEnoughData."""
    report = check(market.frame, market.grid, now())
    if market.observed and len(report.quarantined):
        report_progress(bars_left_out(market.symbol, report))
    show_quality(market.symbol, report)
    require_quality(market.symbol, report, floor)
    require_rows(market.symbol, report)
    part_done(f"check {market.symbol}")
    return CheckedMarket(
        symbol=market.symbol,
        report=report,
        known=market.known,
        provenance=market.provenance,
        ingested_at=market.ingested_at,
        clock=market.clock,
    )


def checked_or_held(installation: Installation, market: Ingested, offers: Mapping[str, MarketOffer]) -> CheckedMarket:
    """Return a market as `checked`; one that is unfit now and that no source can give again, as it was held."""
    floor = installation.params.data.quality_floor
    try:
        return checked(market, floor)
    except (QualityBlocked, NotEnoughData) as fault:
        if len(offers) == 1 or not market.observed or offers[market.symbol].gives_bars:
            raise
        return as_it_was(market.symbol, str(fault), floor)


def other_timeframes(installation: Installation, markets: Mapping[str, CheckedMarket]) -> dict[str, str]:
    """Return symbol → why of the markets that do not decide on the timeframe of this universe.

    It is that of the markets held so far, else the finest of those given: all of a home share one.
    """
    wanted = installation.params.data.decision_timeframe
    own = {symbol: decision_timeframe(each.report.grid.timeframe, wanted) for symbol, each in markets.items()}
    before = [own[symbol] for symbol in own if held_market(installation.workspace, symbol) is not None]
    shared = min(before or own.values(), key=seconds)
    return {
        symbol: f"its bars are {markets[symbol].report.grid.timeframe}, so it would decide on {timeframe}; this "
        f"universe decides on {shared}, as all of a home do. Give finer bars, or begin another home with it"
        for symbol, timeframe in own.items()
        if timeframe != shared
    }


@task
def version(markets: Sequence[CheckedMarket], left_out: Mapping[str, str]) -> str:
    """Write the data version into the private workspace and version it. Return its data hash.

    Rows already stored keep their ingestion time. Arguments as of `write_version`.
    """
    installation = open_installation()
    with workspace_lease(installation):
        write_version(installation.data, markets, left_out)
        data_hash = versioning.snapshot(installation.workspace)
        keep_version(installation, made_now=True)
        if (older := checked_out.checked_out(installation.settings)) is not None:
            report_progress(f"data {older.data_hash[:12]} is no longer checked out: this newer version takes its place")
            checked_out.clear(installation.settings)
    return data_hash


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


def show_markets(markets: Sequence[CheckedMarket], left_out: Mapping[str, str], data_hash: str) -> None:
    """Write what the data version holds of each market, and why it goes without one, to the flow run's artifacts."""
    rows = [
        {
            "market": market.symbol,
            "bars": len(market.report.clean),
            "last bar": f"{utc(schemas.to_matrix(market.report.clean)[-1, 0]):%F %H:%M} UTC",
            "quality": round(market.report.score, 4),
            "quarantined": len(market.report.quarantined),
            "left out": "",
        }
        for market in markets
    ]
    rows += [{"market": symbol, "left out": why} for symbol, why in left_out.items()]
    create_table_artifact(key="ingest-markets", table=rows, description=f"Markets of data version {data_hash}")


def market_line(market: CheckedMarket) -> str:
    """Return one line on a market of a data version: bars, last bar, quality."""
    report = market.report
    last = utc(schemas.to_matrix(report.clean)[-1, 0])
    return (
        f"{market.symbol}: {len(report.clean):,} bars to {last:%F %H:%M} UTC, quality {report.score:.3f}, "
        f"{len(report.quarantined)} quarantined"
    )


def bars_left_out(symbol: str, report: QualityReport) -> str:
    """Return one line on the observed bars that this data version leaves out, with the reason of each."""
    rows = report.quarantined
    shown = [f"{at:%F %T} UTC {why}" for at, why in zip(rows["open_time"], rows["reason"], strict=True)][:SHOWN]
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return (
        f"{len(rows):,} observed bar(s) of {symbol} are left out of this data version: {', '.join(shown)}{more}. The "
        "turn goes on without them; `bellwether data quarantine set-aside` takes one out of live state too"
    )


def matches_pointer(data_hash: str, bars: Mapping[str, pd.DataFrame]) -> str:
    """Return a note if these bars are the markets that the repository's own `data.dvc` describes, else "".

    bars  symbol → frame (schemas.BARS)
    """
    try:
        match = reference_year.compare(data_hash, {symbol: schemas.to_matrix(each) for symbol, each in bars.items()})
    except BellwetherError as error:  # a note only: nothing else rests on it
        return f" (not compared with data.dvc: {error})"
    return f" ({match})" if match else ""


def remember(installation: Installation, whole: list[MarketOffer], added: list[MarketOffer]) -> None:
    """Write who is in the universe; where it is written already only what was added: people change it meanwhile."""
    if not universe.file_of(installation).is_file():
        universe.write(installation, whole)
    elif added:
        universe.add(installation, added)


def present(installation: Installation) -> datetime | None:
    """Return up to when a market new to this home is read: as far as those it holds; None = everything known by now.

    That is now where markets trade now, and before the first data version.
    """
    held = held_markets(installation.workspace)
    if not held or any(mode_of(each.facts) == "wall" for each in held.values()):
        return None
    return max(universe.present_moment(installation, symbol) for symbol in held)


@flow(name="ingest", flow_run_name=run_name("ingest"), log_prints=True)
def ingest(
    offers: list[MarketOffer] | None = None,
    through: datetime | dict[str, datetime] | None = None,
    observed: bool = False,
    left_out: dict[str, str] | None = None,
) -> str:
    """Turn the market data of the universe into one checked data version. Return the data hash.

    Args:
        offers: Markets added to the universe of this home, or in place of what it holds of them; empty = as it is.
        through: Last moment to ingest, of all or by symbol, for a history that leaves a live tail; empty = now.
        observed: Of a held market take what this home holds and the service saw since, unless `through` names it.
        left_out: Symbols that this version goes without, each with the reason.

    Raises  as the source and the checks of the only market; NotEnoughData if none of several is usable
    """
    installation = open_installation()
    bring(installation)
    whole = universe.merged(installation, offers or [])
    wanted = {offer.symbol: offer for offer in whole if offer.symbol not in (left_out or {})}
    if not wanted:
        raise NotEnoughData(f"every market is left out: {left_out}")
    until = through if isinstance(through, dict) else dict.fromkeys(wanted, through) if through else {}
    new_until = present(installation) if observed else None
    with run_progress("ingest", [*(f"fetch {s}" for s in wanted), *(f"check {s}" for s in wanted), "version with DVC"]):
        with step(f"ingest: fetch {', '.join(wanted)}"):
            fetched, unread = each_usable(
                wanted,
                lambda offer: gather(
                    offer, installation, observed and offer.symbol not in until, until.get(offer.symbol, new_until)
                ),
            )
        with step(f"ingest: check {sum(len(market.frame) for market in fetched.values()):,} bars"):
            usable, unfit = each_usable(fetched, lambda market: checked_or_held(installation, market, wanted))
            coarse = other_timeframes(installation, usable)
        markets = [market for symbol, market in usable.items() if symbol not in coarse]
        without = {**(left_out or {}), **unread, **unfit, **coarse}
        with step("ingest: version with DVC"):
            data_hash: str = version(markets, without)
    remember(installation, whole, offers or [])
    report_left_out(installation.store, installation.data_version(), now())
    show_markets(markets, without, data_hash)
    for market in markets:
        report_progress(market_line(market))
    note = matches_pointer(data_hash, {market.symbol: market.report.clean for market in markets})
    report_progress(f"data {data_hash[:12]}: {len(markets)} of {len(whole)} markets{note}")
    rename_run(f"ingest {len(markets)} of {len(whole)} markets", installation)
    return data_hash
