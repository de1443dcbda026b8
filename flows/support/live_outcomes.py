"""What became of what the service decided: outcomes of its events, and of the label of every family, by market."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from flows.support.installation import Installation, now
from flows.support.observed_bars import snapshot_now
from pipelines.contracts import OPEN_TIME, Arm, Floats, utc
from pipelines.costs import NO_FUNDING, costs_of, funding_rates, venue_of
from pipelines.data import schemas
from pipelines.data.alignment import merge_records
from pipelines.data.data_version import read_records
from pipelines.data.embargo import windows_in
from pipelines.data.sessions import grid_of
from pipelines.data.timeframes import Grid, decision_timeframe, resample
from pipelines.errors import UnreadableFile
from pipelines.families import FAMILIES
from pipelines.family_labels import Sources, horizon_bars
from pipelines.monitoring.family_outcomes import LiveLoss, family_outcomes, live_loss, settled_decisions
from pipelines.monitoring.loss import pooled_until
from pipelines.monitoring.outcomes import resolve
from pipelines.renamed_keys import current_names
from pipelines.store import DecisionRecord


class Resolved(NamedTuple):
    """Count the outcomes that one run found: of decisions on events, and of the families' own labels."""

    events: int
    families: int


def resolve_market(installation: Installation, symbol: str) -> Resolved:
    """Store what became of a market's decisions since the last run, by the labels' own definition.

    Reads only decisions that have no outcome yet, and all bars: the volatility a regime is scored with is that of the
    whole history.
    """
    store = installation.store
    newest = store.newest_close(symbol)
    until = now() if newest is None else max(now(), utc(newest))  # a fast market outruns the time of day
    pending = [record.decision for record in store.unresolved(until=until, symbol=symbol)]
    through = store.family_outcomes_through(symbol)
    unscored = [r for r in store.decisions(symbol, since=through) if through is None or r.decision.as_of > through]
    if not pending and not unscored:
        return Resolved(0, 0)
    market = market_known(installation, symbol)
    costs = market.costs(installation.params)
    found = resolve(pending, market.base, market.base_grid, costs, market.funding)
    events = sum(store.add_outcome(outcome, now()) for outcome in found)
    return Resolved(events, _score(installation, symbol, market, unscored))


def _score(installation: Installation, symbol: str, market: Sources, records: Sequence[DecisionRecord]) -> int:
    """Store the outcomes of the families at those decisions whose labels are final; return how many."""
    params, until = installation.params, market.base_grid.next_close(float(market.base[-1, OPEN_TIME]))
    ready = settled_decisions(records, market, until, params)
    if not ready:
        return 0

    @cache
    def loss_params(digest: str) -> Mapping[str, Any] | None:
        """Return the constants of a bundle's loss; None where it is not here."""
        schema = schema_of(installation, digest)
        return None if schema is None else schema.get("loss_params", {})

    found = family_outcomes(ready, market, params, loss_params)
    return installation.store.add_family_outcomes(symbol, found, ready[-1].decision.as_of, now())


def market_known(installation: Installation, symbol: str) -> Sources:
    """Return the bars of a market as they are read now, those observed since the data version included; no features.

    Raises  StateError before the first ingest, UnknownName for a symbol that the data version does not hold
    """
    facts = installation.manifest(symbol)
    bars = schemas.to_matrix(snapshot_now(installation, symbol))
    base = np.concatenate([bars, installation.store.bars(symbol, after=bars[-1, OPEN_TIME])])
    base_grid = grid_of(facts, bars[:, OPEN_TIME])
    grid = decision_grid(installation, base_grid)
    venue, market = venue_of(facts)
    pays = costs_of(installation.params.costs, venue, market).funding_hours is not None
    rates, nothing = funding_known(installation, symbol) if pays else NO_FUNDING, np.empty((0, 0))
    return Sources(
        base, resample(base, base_grid, grid), nothing, nothing, nothing, grid, base_grid, venue, market, rates,
        windows_in(facts),
    )  # fmt: skip


def decision_grid(installation: Installation, base_grid: Grid) -> Grid:
    """Return where the decision bars of a market open and close, by the grid of its base bars."""
    return base_grid.at(decision_timeframe(base_grid.timeframe, installation.params.data.decision_timeframe))


def funding_known(installation: Installation, symbol: str) -> Floats:
    """Return the funding rates of the data version and those observed since, as `costs.funding_rates`."""
    _, feed = read_records(installation.data, installation.manifest(symbol))
    return funding_rates(merge_records(feed, installation.store.records(symbol)[1]))


def schema_of(installation: Installation, digest: str) -> Mapping[str, Any] | None:
    """Return the schema of a bundle of this home by its digest; None where the bundle is not here."""
    path = installation.settings.bundles / digest / "schema.json"
    if not digest or not path.is_file():
        return None
    try:
        return current_names("bundle schema", json.loads(path.read_text()))
    except ValueError as error:
        raise UnreadableFile(f"{path} is damaged: {error}. `bellwether promote` fetches the version again.") from error


# ---- live losses ----------------------------------------------------------------------------------------------------


def live_losses(installation: Installation, symbols: Sequence[str]) -> list[LiveLoss]:
    """Return the loss of each champion and challenger on the outcomes of its own label since its training.

    symbols  markets whose outcomes count. A version whose bundle is not here served nothing, and is left out
    """
    through = [installation.store.family_outcomes_through(symbol) for symbol in symbols]
    looked_at = [moment.timestamp() for moment in through if moment is not None]
    found = []
    for family in FAMILIES if looked_at else ():
        served = _served_versions(installation, family)
        if not served:
            continue
        first = min(utc(since) for *_, since in served)
        outcomes = [o for o in installation.store.family_outcomes(family, since=first) if o.symbol in symbols]
        horizon_s = longest_horizon_s(installation, family, symbols)
        until = pooled_until(looked_at, horizon_s) + horizon_s
        for arm, version, digest, since in served:
            later = [one for one in outcomes if one.as_of.timestamp() >= since]
            found.append(
                live_loss(
                    later, family, arm, version, digest, origin_s=since, until_s=until, horizon_s=horizon_s,
                    horizons=installation.params.drift.edge_block_horizons,
                )
            )  # fmt: skip
    return found


def longest_horizon_s(installation: Installation, family: str, symbols: Sequence[str]) -> float:
    """Return the longest time from a decision to the end of the family's label in any of these markets, seconds."""
    grids = [decision_grid(installation, installation.base_grid(symbol)) for symbol in symbols]
    return max(grid.span_s(horizon_bars(family, grid, installation.params)) for grid in grids)


def _served_versions(installation: Installation, family: str) -> list[tuple[Arm, str, str, float]]:
    """Return (arm, version, digest, end of training in epoch seconds) of the versions in the slots of a family."""
    slots, found = installation.store.slots(family), []
    arms: tuple[tuple[Arm, Any], ...] = (("champion", slots.champion), ("challenger", slots.challenger))
    for arm, line in arms:
        if line is not None and (schema := schema_of(installation, str(line.digest))) is not None:
            found.append((arm, str(line.to_version), str(line.digest), float(schema["trained_through"])))
    return found
