"""The rows a family trains on: events with their features, outcomes and lives. Serving cannot import this."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData

COLUMNS_OF_VOLATILITY = ("volatility_regime", "log_atr")


@dataclass(frozen=True, slots=True)
class Dataset:
    """m resolved, eligible events in time order. `rows` is (m, k) in the order of `columns`; other arrays are (m,).

    weight        uniqueness × time decay: what an event counts in a fit
    uniqueness    share of an event's information that is its own: what it counts as evidence
    known, ended  epoch seconds at which the event was known, and its label ended
    volatility    (m, 2) volatility percentile and log of the barrier width: the volatility-only baseline's columns
    """

    columns: tuple[str, ...]
    rows: Floats
    y: Floats
    weight: Floats
    uniqueness: Floats
    known: Floats
    ended: Floats
    gross_bps: Floats
    direction: Ints
    atr: Floats
    volatility: Floats

    def __len__(self) -> int:
        return len(self.y)


def load_dataset(labels: Path) -> Dataset:
    """Read what the `labels` stage wrote. Raises NotEnoughData when no event could be labelled."""
    with np.load(labels / "events.npz", allow_pickle=False) as f:
        data = Dataset(
            columns=tuple(f["columns"].tolist()),
            rows=f["rows"],
            y=f["y"],
            weight=f["weight"],
            uniqueness=f["uniqueness"],
            known=f["known"],
            ended=f["ended"],
            gross_bps=f["gross_bps"],
            direction=f["direction"],
            atr=f["atr"],
            volatility=f["volatility"],
        )
    if len(data) == 0:
        raise NotEnoughData(
            "no event whose target reaches the stated multiple of the cost was resolved in this snapshot; "
            "bring a longer history, a coarser data.decision_timeframe, or lower costs in params.yaml"
        )
    return data
