"""Context of a market: series that are not its own bars, each value with the moment it could first be known (D7).

A source of context is a file with one of the layouts below. A value dated D is not known on D: each reader says from
when on, and errs on the late side. What nobody gives stays missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from pipelines.contracts import CONTEXT_FIELDS, CONTEXT_INDEX, ContextFeed, Floats, Ints
from pipelines.data.schemas import epoch_seconds
from pipelines.errors import BadColumns, UnknownName, UnreadableFile

DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Layout:
    """needs  the columns that tell it; read  frame → known (n,) epoch s, name, value (n,)."""

    needs: tuple[str, ...]
    read: Callable[[pd.DataFrame], tuple[Floats, str, Floats]]
    told: str


def _funding(frame: pd.DataFrame) -> tuple[Floats, str, Floats]:
    return epoch_seconds(frame["funding_time"]), "funding_rate", frame["funding_rate"].to_numpy(np.float64)


def _fear_greed(frame: pd.DataFrame) -> tuple[Floats, str, Floats]:
    # published early on its day; the hour is not recorded, so the day must be over
    return epoch_seconds(frame["date"]) + DAY_S, "fear_greed", frame["fear_greed_value"].to_numpy(np.float64)


def _open_interest(frame: pd.DataFrame) -> tuple[Floats, str, Floats]:
    return epoch_seconds(frame["known_at"]), "open_interest", frame["open_interest"].to_numpy(np.float64)


def _reference(frame: pd.DataFrame) -> tuple[Floats, str, Floats]:
    opened = epoch_seconds(frame["open_time"])
    step = float(np.median(np.diff(opened))) if len(opened) > 1 else 0.0
    return opened + step, "reference_close", frame["close"].to_numpy(np.float64)


# the first layout whose columns are there is the one
LAYOUTS: dict[str, Layout] = {
    "funding": Layout(("funding_time", "funding_rate"), _funding, "funding rate, known when it was settled"),
    "fear_greed": Layout(("date", "fear_greed_value"), _fear_greed, "fear and greed index, known when its day is over"),
    "open_interest": Layout(("known_at", "open_interest"), _open_interest, "open interest, known as stamped"),
    "reference": Layout(("open_time", "close"), _reference, "bars of the reference symbol, known at their close"),
}


def read_context(path: Path) -> ContextFeed:
    """The context of one Parquet or CSV file, in the order it became known; which layout it is, its columns tell.

    Raises UnreadableFile, or BadColumns naming the layouts known.
    """
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path).to_pandas()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UnreadableFile(f"{path}: no whole Parquet or CSV file ({error}). Fetch it again.") from error
    layout = next((one for one in LAYOUTS.values() if set(one.needs) <= set(frame.columns)), None)
    if layout is None:
        layouts = "; ".join(f"{', '.join(one.needs)} ({one.told})" for one in LAYOUTS.values())
        raise BadColumns(f"{path}: columns {', '.join(map(str, frame.columns))} are no context. Known: {layouts}.")
    for name in layout.needs:
        if frame[name].dtype == object:
            frame[name] = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]")
    known, name, value = layout.read(frame)
    return ordered(known, np.full(len(known), CONTEXT_INDEX[name], dtype=np.int64), value)


def ordered(known: Floats, field: Ints, value: Floats) -> ContextFeed:
    """A feed in the order it became known; values that are not finite are left out: they say nothing."""
    there = np.isfinite(value) & np.isfinite(known)
    order = np.argsort(known[there], kind="stable")
    return ContextFeed(known[there][order], field[there][order], value[there][order])


def combined(feeds: list[ContextFeed]) -> ContextFeed | None:
    """Several feeds as one; None of none."""
    if not feeds:
        return None
    return ordered(*(np.concatenate([getattr(feed, name) for feed in feeds]) for name in ("known", "field", "value")))


def only(feed: ContextFeed, fields: tuple[str, ...]) -> ContextFeed:
    """The named fields of a feed. Raises UnknownName naming those there are."""
    if unknown := set(fields) - set(CONTEXT_FIELDS):
        raise UnknownName(f"no context {', '.join(sorted(unknown))}; known: {', '.join(CONTEXT_FIELDS)}")
    kept = np.isin(feed.field, [CONTEXT_INDEX[name] for name in fields])
    return ContextFeed(feed.known[kept], feed.field[kept], feed.value[kept])
