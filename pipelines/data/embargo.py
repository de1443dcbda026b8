"""Embargo windows of a calendar of events: listings, halts, macro releases. Nothing new is opened inside one (D7).

One rule for training, backtest and live: a decision bar that closes inside a window raises no event to train on, and no
decision on it opens a position. The data version holds the windows of its market.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from pipelines.contracts import Bools, Floats, utc


@dataclass(frozen=True, slots=True)
class Window:
    """Describe one window. since, until: epoch seconds, until not included; kind: what happens, such as CPI."""

    since: float
    until: float
    kind: str

    def __str__(self) -> str:
        """Return the window in words, as a refusal names it."""
        return f"{self.kind}, {utc(self.since):%F %H:%M} to {utc(self.until):%F %H:%M} UTC"


def inside(closes: Floats, windows: Sequence[Window]) -> Bools:
    """Return (n,) whether each close, epoch seconds, falls into a window."""
    found = np.zeros(len(closes), dtype=bool)
    for window in windows:
        found |= (closes >= window.since) & (closes < window.until)
    return found


def window_at(close: float, windows: Sequence[Window]) -> Window | None:
    """Return the first window that a close falls into; None for none."""
    return next((each for each in windows if each.since <= close < each.until), None)


def windows_in(described: Mapping[str, Any]) -> tuple[Window, ...]:
    """Return the windows of a data version by its manifest, or of a warm start; none before they existed."""
    stored = described.get("events") or (described.get("source") or {}).get("events") or ()
    moment = datetime.fromisoformat
    return tuple(
        Window(moment(each["from"]).timestamp(), moment(each["until"]).timestamp(), each["kind"]) for each in stored
    )


def to_json(windows: Sequence[Window]) -> list[dict[str, str]]:
    """Return the windows as a manifest holds them, in order of time."""
    ordered = sorted(windows, key=lambda each: (each.since, each.until, each.kind))
    return [
        {"from": utc(each.since).isoformat(), "until": utc(each.until).isoformat(), "kind": each.kind}
        for each in ordered
    ]
