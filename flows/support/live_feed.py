"""The live tail of a market, sent to the service bar by bar: what comes after the history it was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from flows.support.holdings import held_bars, held_market, overlap
from flows.support.installation import Installation, now
from flows.support.market_access import grid_of_market, history_end, market_records, market_source, placed
from flows.support.progress import report_progress, track
from pipelines.contracts import OPEN_TIME, Decision, Floats, utc
from pipelines.costs import costs_of, funding_rates, venue_of
from pipelines.data import schemas
from pipelines.data.alignment import known_between
from pipelines.data.quality import assess
from pipelines.data.readers.reading import FileOptions
from pipelines.data.series import SeriesFile
from pipelines.data.sources import Records
from pipelines.data.timeframes import Grid, decision_timeframe
from pipelines.errors import NotEnoughData, StateError
from pipelines.monitoring.outcomes import resolve
from pipelines.store import decision_of
from serving.client import Client


def live_tail(
    installation: Installation,
    source: str,
    symbol: str,
    path: str | list[str] | None,
    since: datetime | None = None,
    context: Sequence[str] = (),
    series: Sequence[SeriesFile] = (),
    sessions: str | None = None,
    options: FileOptions | None = None,
) -> tuple[datetime, Floats, Records]:
    """Return (end of the history, base bars (n, 9) after it, all records known now).

    The tail is the simulator's live days, or the last data.live_days trading days of a file or exchange; where the
    service has begun, everything it has not seen.

    since    first bar requested from an exchange; None = data.retention_days ago
    context  files of context next to the bars, or the folder of a recorded book; series: files of named series
    sessions  when the market is open, as stated; options: what files do not show
    Raises   NotEnoughData where no history is left before the tail; as grid_of_market for another market than the held
    """
    origin = market_source(installation, source, path, since, options=options)
    frame = origin.fetch(symbol, as_of=now(), ingested_at=now())
    known = market_records(origin, symbol, context, now(), series)
    grid = grid_of_market(installation.workspace, origin, symbol, frame, sessions)
    bars = schemas.to_matrix(assess(placed(origin, frame, grid), grid, now()).clean)
    params, held = installation.params, held_market(installation.workspace)
    begun = already_ingested(installation, symbol)
    if held is not None and source == "files":
        stored = held_bars(installation, held)
        found = overlap(stored, bars)
        report_progress(found.describe(past_is_taken=not begun))
        bars = np.concatenate([stored, bars[found.new]])
        bars = bars[np.argsort(bars[:, OPEN_TIME], kind="stable")]
    newest = installation.store.newest_bar(symbol)
    if source == "simulator":
        cut = params.simulator.start + timedelta(days=params.simulator.history_days)
    elif begun and newest is not None:
        cut = utc(newest)  # the market went on while the service was stopped
    else:
        cut = utc(live_from(bars[:, OPEN_TIME], grid, params.data.live_days, symbol, str(path or source)))
    return cut, bars[bars[:, OPEN_TIME] >= cut.timestamp()], known


def live_from(opens: Floats, grid: Grid, live_days: int, symbol: str, where: str) -> float:
    """Return history_end of a market's bars (n,).

    Raises NotEnoughData where not one whole trading day is left before it, with the number of days that suffice.
    """
    cut = history_end(opens, grid, live_days)
    if not len(opens) or cut <= opens[0]:
        days = len(np.unique(grid.at("1d").slots(opens)))
        raise NotEnoughData(
            f"{symbol}: {where} has {len(opens):,} usable bars on {days:,} trading days, no history before the last "
            f"{live_days}, which are for the live service. Give a longer file (or --days): {live_days + 2:,} days."
        )
    return cut


def already_ingested(installation: Installation, symbol: str) -> bool:
    """Return whether the newest snapshot is of this market and the service has seen bars after it."""
    try:
        manifest = installation.manifest()
    except StateError:
        return False
    return bool(manifest["symbol"] == symbol and installation.store.newest_bar(symbol) is not None)


def send_live_bars(
    client: Client, installation: Installation, symbol: str, bars: Floats, known: Records = (None, None)
) -> list[Mapping[str, Any]]:
    """Send base bars with the records known by then, and request a decision at each decision bar's close.

    bars     (n, 9) in time order; those already stored are not sent again, nor what was known when the last one closed
    Returns  the decisions, as the service sends them
    """
    newest, manifest = installation.store.newest_bar(symbol), installation.manifest()
    last = datetime.fromisoformat(manifest["last"]).timestamp() if newest is None else newest
    if newest is not None:
        bars = bars[bars[:, OPEN_TIME] > last]
    if len(bars) == 0:
        return []
    base_grid, costs = installation.base_grid(), costs_of(installation.params.costs, *venue_of(manifest))
    rates = funding_rates(known[1])
    grid = base_grid.at(decision_timeframe(base_grid.timeframe, installation.params.data.decision_timeframe))
    groups = list(by_decision_bar(bars, grid))
    answers: list[Mapping[str, Any]] = []
    pending: dict[str, Decision] = {}  # decisions on an event whose outcome is not known yet
    # what became known while the market was closed comes with its next bar
    seen, sent_until = 0, base_grid.next_close(last)
    for close, group in track(groups, f"live: {len(groups):,} decision bars of {symbol}", len(groups)):
        client.observe(symbol, group, *known_between(*known, sent_until, close))
        sent_until = close
        seen += len(group)
        for outcome in resolve(list(pending.values()), bars[:seen], base_grid, costs, rates):
            client.outcome(outcome)  # at once, so that the account the next decision rests on is the real one
            del pending[outcome.decision_id]
        answer = client.decide(symbol)
        if answer["event"] is not None and answer["stop"] is not None:
            pending[answer["id"]] = decision_of({key: value for key, value in answer.items() if key != "api"})
        answers.append(answer)
    return answers


def by_decision_bar(bars: Floats, grid: Grid) -> Iterator[tuple[float, Floats]]:
    """Yield (close time in epoch seconds, its base bars) of each decision bar in `bars`, in time order."""
    opens = grid.holding(bars[:, OPEN_TIME])
    edges = np.flatnonzero(np.diff(opens)) + 1
    for opened, part in zip(opens[np.r_[0, edges]], np.split(bars, edges), strict=True):
        yield grid.next_close(opened), part
