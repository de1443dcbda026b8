"""FEATURES: every feature column in one fold, those that follow from others, and those watched for drift."""

from collections.abc import Iterable

from pipelines.features import averages, book, clock, indicators, price, regime, sentiment, technical, volume
from pipelines.features import series as named_series
from pipelines.features.fold import Column, StreamingFold

FEATURES = StreamingFold(
    "features",
    (
        price.GROUP,
        volume.GROUP,
        book.GROUP,
        technical.GROUP,
        averages.GROUP,
        indicators.OSCILLATORS,
        indicators.BANDS,
        clock.GROUP,
        regime.GROUP,
        sentiment.GROUP,
        named_series.GROUP,
    ),
)

CORE_COLUMNS = tuple(c.name for c in FEATURES.catalogue if c.category in ("price", "volume", "book", "technical"))
COPIES = {c.name: tuple(c.copy_of.split(" and ")) for c in FEATURES.catalogue if c.copy_of is not None}
# Watched for drift: the clock does not drift, copies add nothing, and no model reads the traditional set.
# Columns whose input the training data lacks (`needs`) are left out by the drift reference itself.
WATCHED_COLUMNS = tuple(
    c.name
    for c in FEATURES.catalogue
    if c.copy_of is None and c.category != "traditional" and not c.name.startswith(("time_of_day_", "session_"))
)


def absent_columns(catalogue: Iterable[Column], given: set[str]) -> dict[str, str]:
    """Return the columns that stay missing where only `given` was recorded besides prices, each with its needs.

    given  of "volume", "taker", "book" and "context:<field>"
    """
    return {
        column.name: column.needs
        for column in catalogue
        if column.needs and not any(set(way.split(" and ")) <= given for way in column.needs.split(" or "))
    }
