"""The newest snapshot as its rows are read now: with the corrections that were made since each was ingested."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from flows.support.installation import Installation
from pipelines.data import schemas
from pipelines.data.data_version import read_bars
from pipelines.data.timeframes import Grid
from pipelines.store import Correction


def snapshot_now(installation: Installation, symbol: str | None = None) -> pd.DataFrame:
    """Return the bars of a market of the newest data version as they are read now; None = the first.

    Raises  StateError before the first ingest, UnknownName for a symbol it does not hold
    """
    facts = installation.manifest(symbol)
    stored = read_bars(installation.data, facts)
    corrections = installation.store.corrections(facts["symbol"])
    return corrected(stored, corrections, installation.base_grid(facts["symbol"])) if corrections else stored


def corrected(stored: pd.DataFrame, corrections: Sequence[Correction], grid: Grid) -> pd.DataFrame:
    """Return a bars frame with the corrections, oldest first, made since its rows were ingested.

    A row that was ingested after its correction came from a source that a person chose later, and stays. A bar that is
    put in counts as ingested when the one before it was. Bars after the last row belong to no snapshot yet.
    """
    newest = {one.open_time: one for one in corrections}
    times = schemas.epoch_seconds(stored["open_time"])
    ingested = schemas.epoch_seconds(stored["ingested_at"])
    later = []
    for opened, one in newest.items():
        at = int(np.searchsorted(times, opened, "right")) - 1
        if at >= 0 and opened <= times[-1] and one.at.timestamp() > ingested[at]:
            later.append(one)
    if not later:
        return stored
    kept = stored[~np.isin(times, [one.open_time for one in later])]
    put = [schemas.to_frame(one.after[np.newaxis], grid, one.at) for one in later if one.after is not None]
    whole = pd.concat([kept, *put], ignore_index=True)
    return whole.sort_values("open_time", kind="stable", ignore_index=True)
