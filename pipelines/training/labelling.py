"""The labels stage: one file per entry of `family_labels.LABELS`, each with the outcomes of a family's rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats
from pipelines.costs import NO_FUNDING, venue_of
from pipelines.data.embargo import windows_in
from pipelines.errors import BadShape, StateError
from pipelines.family_labels import (
    Sources,
    event_outcomes,
)
from pipelines.labels.misses import miss_atr
from pipelines.models.gaps import DECISIONS, broken
from pipelines.params import Params
from pipelines.signals.events import Events, traditional_events
from pipelines.stage_outputs import facts_of, features_of, grids_of, read_meta


def read_sources(artifacts: Path, symbol: str | None = None) -> Sources:
    """Return the output of the features stage of one market; None = the first."""
    meta = facts_of(read_meta(artifacts), symbol)
    folder = features_of(artifacts, meta["symbol"])
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("base", "decision", "features", "signals", "context")}
    venue, market = venue_of(meta)
    grid, base_grid = grids_of(meta)
    return Sources(
        **arrays, grid=grid, base_grid=base_grid, venue=venue, market=market, funding=read_funding(folder, meta),
        windows=windows_in(meta),
    )  # fmt: skip


def read_funding(folder: Path, meta: Mapping[str, Any]) -> Floats:
    """Return (r, 2) the funding rates in a market's `folder` of the features stage, as `costs.funding_rates`.

    meta    its facts in meta.json. A release before 0.8.0 wrote neither rates nor `has_funding`: none, as figures say
    Raises  StateError if the rates that meta names are not there, BadShape if the file holds something else
    """
    file, named = folder / "funding.npy", meta.get("has_funding")
    again = "`bellwether run --once` computes the features again"
    if not file.is_file():
        if named:
            raise StateError(f"{file} is missing, but the data version has funding rates; {again}")
        return NO_FUNDING
    rates = np.load(file, allow_pickle=False)
    if rates.ndim != 2 or rates.shape[1] != 2 or (named is not None and named != (len(rates) > 0)):
        wanted = {True: "1 or more", False: "0", None: "r"}[named]
        raise BadShape(f"{file} has shape {rates.shape}, wanted ({wanted}, 2): when known, and the rate; {again}")
    return np.asarray(rates, dtype=np.float64)


def traditional_record(sources: Sources, params: Params) -> dict[str, float | None]:
    """Return what tier 3 judges the traditional consensus by.

    hits, n    events whose target was touched first, and resolved events
    effective  independent events these count as: n times their mean uniqueness, as they overlap
    miss_atr   what the others returned, see labels.misses.miss_atr; None where no event missed its target
    """
    found = traditional_events(sources.features, sources.signals)
    whole = ~broken(sources.missing, DECISIONS)[found.index]
    found = Events(found.index[whole], found.direction[whole], found.kind[whole], found.atr[whole])
    outcome = event_outcomes(sources, found, params)
    of = outcome.labelled
    gross_bps = outcome.gross_bps + outcome.target_cost_bps - outcome.cost_bps  # as `models.validator.expected_miss`
    return {
        "hits": int(outcome.label[of].sum()),
        "n": int(of.sum()),
        "effective": float(outcome.uniqueness[of].sum()),
        "miss_atr": miss_atr(outcome.label[of], gross_bps[of], found.atr[of], outcome.uniqueness[of]),
    }
