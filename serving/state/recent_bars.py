"""Bars of a live symbol in buffers that are written in place: base bars of the open decision bar, and closed bars."""

from dataclasses import fields

import numpy as np

from pipelines.contracts import BAR_WIDTH, RETAINED_BARS, Floats, History

# When a buffer is full, the newest RETAINED_BARS are copied to a new one, once in SPARE_BARS bars. A row takes over
# 2 kB: with room for as many again a hundred symbols grew by 60 MB and shrank again.
SPARE_BARS = 64
OPEN_ROOM = 64  # base bars of an open decision bar at first; doubled when they are full


class OpenBars:
    """Hold the base bars of the decision bar that is still open: a new bar copies only its own row."""

    def __init__(self, rows: Floats) -> None:
        """Copy the first of them (n, 9)."""
        self._buffer, self._end = np.empty((OPEN_ROOM, BAR_WIDTH)), 0
        self.extend(rows)

    @property
    def rows(self) -> Floats:
        """Return all of them (n, 9), ascending: a view, to be read before the next change."""
        return self._buffer[: self._end]

    def extend(self, rows: Floats) -> None:
        """Add rows (n, 9)."""
        end = self._end + len(rows)
        if end > len(self._buffer):
            grown = np.empty((2 * end, BAR_WIDTH))
            grown[: self._end] = self.rows
            self._buffer = grown
        self._buffer[self._end : end] = rows
        self._end = end

    def restart(self, rows: Floats) -> None:
        """Hold these rows (n, 9) alone."""
        self._end = 0
        self.extend(rows)


class RecentBars:
    """Hold the newest RETAINED_BARS bars as views of rows written once: a new bar copies only its own row."""

    def __init__(self, history: History, spare: int = SPARE_BARS) -> None:
        """Copy the newest bars of the history.

        spare  bars until the first buffer is full: symbols that close together should not copy together
        """
        self._begin(history, spare)

    def with_bar(self, bar: Floats, features: Floats, signals: Floats, levels: Floats, context: Floats) -> History:
        """Return the newest bars, this one the last; earlier results stay unchanged."""
        if self._end == len(self._rows.bars):
            self._begin(self._view(), SPARE_BARS)
        at, rows = self._end, self._rows
        rows.bars[at], rows.features[at], rows.signals[at] = bar, features, signals
        rows.levels[at], rows.context[at] = levels, context
        self._end += 1
        return self._view()

    def _begin(self, history: History, spare: int) -> None:
        """Copy the newest bars into a new buffer, with room for `spare` more than are retained."""
        newest = [getattr(history, part.name)[-RETAINED_BARS:] for part in fields(History)]
        self._end = len(newest[0])
        rooms = [np.empty((RETAINED_BARS + spare, *rows.shape[1:])) for rows in newest]
        for room, rows in zip(rooms, newest, strict=True):
            room[: self._end] = rows
        self._rows = History(*rooms)

    def _view(self) -> History:
        """Return the newest bars as views of the buffer."""
        newest, rows = slice(max(0, self._end - RETAINED_BARS), self._end), self._rows
        return History(
            rows.bars[newest], rows.features[newest], rows.signals[newest], rows.levels[newest], rows.context[newest]
        )
