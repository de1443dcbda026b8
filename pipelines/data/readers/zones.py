"""Zones of local times: offsets, abbreviations that mean one offset, IANA names, and the hour a clock shows twice."""

import re
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.contracts import Ints
from pipelines.errors import BadTimes

Stamps = npt.NDArray[np.datetime64]

ZONES_S = {
    "": 0, "Z": 0, "UTC": 0, "GMT": 0, "UT": 0, "EST": -18000, "EDT": -14400, "MST": -25200, "MDT": -21600,
    "PST": -28800, "PDT": -25200, "CDT": -18000, "CET": 3600, "CEST": 7200, "EET": 7200, "EEST": 10800,
    "MSK": 10800, "JST": 32400, "KST": 32400, "HKT": 28800, "SGT": 28800,
}  # fmt: skip
_CUSTOM_ZONE = re.compile(r"(?P<name>[A-Za-z_]+(?:/[A-Za-z_]+)*)?(?P<sign>[+-])(?P<h>\d{1,2}):?(?P<m>\d{2})$")


def offset_s(word: str) -> int | None:
    """Return an offset or abbreviation as seconds from UTC; None if it is neither."""
    text = re.sub(r"\s?UTC$", "", word) if word not in ZONES_S else word
    if text in ZONES_S:
        return ZONES_S[text]
    found = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?", text)
    if found is None or int(found[2]) > 15 or int(found[3] or 0) > 59:
        return None
    return (1 if found[1] == "+" else -1) * (int(found[2]) * 3600 + int(found[3] or 0) * 60)


def to_utc(local: Stamps, timezone: str, lines: Ints, where: str) -> Stamps:
    """Return local times as UTC. They must ascend where the clock was set back, so that both hours differ.

    timezone  IANA name (America/New_York), fixed offset (-05:00), or both: America/New_York+07:00 is seven hours ahead
              of New York all year, as servers whose day ends at 17:00 New York run
    Raises    BadTimes: an unknown zone, a time the clock skipped, or one it showed twice that stands once
    """
    name, ahead = _zone(timezone, where)
    wall = local - ahead
    if name is None:
        return np.asarray(wall)
    index = pd.DatetimeIndex(wall)
    early, late = (
        index.tz_localize(name, ambiguous=np.full(len(index), dst), nonexistent="NaT")
        .tz_convert("UTC")
        .tz_localize(None)
        for dst in (True, False)
    )
    micros, other = (np.asarray(one, dtype="datetime64[us]") for one in (early, late))
    if np.isnat(micros).any():
        at = int(np.argmax(np.isnat(micros)))
        raise BadTimes(
            f"{where}: saw: {int(np.isnat(micros).sum())} local times that the clock of {timezone} skipped; still "
            "missing: "
            f"the right zone; for example: line {int(lines[at])} at {str(local[at])[:16]}. State another --timezone."
        )
    twice = np.flatnonzero(micros != other)
    for block in np.split(twice, np.flatnonzero(np.diff(twice) > 1) + 1) if len(twice) else []:
        micros[block] = _twice(micros, other, block, wall, local, timezone, lines, where)
    return micros


def _twice(
    early: Stamps, late: Stamps, block: Ints, wall: Stamps, local: Stamps, timezone: str, lines: Ints, where: str
) -> Stamps:
    """Return a run of rows in an hour that the clock showed twice: the second time from where it steps back on."""
    back = np.flatnonzero(np.diff(wall[block]) <= np.timedelta64(0, "us")) + 1
    if len(back) == 1:
        return np.concatenate([early[block[: back[0]]], late[block[back[0] :]]])
    # whole hours: the hour stands once, so the neighbours must show which of the two it was
    before = early[block[0] - 1] if block[0] > 0 else None
    after = early[block[-1] + 1] if block[-1] + 1 < len(wall) else None
    step = np.diff(wall[block]).min() if len(block) > 1 else None
    if not len(back) and step is not None and before is not None and after is not None:
        joined = (
            [one[block[0]] - before == step for one in (early, late)],
            [after - one[block[-1]] == step for one in (early, late)],
        )
        if joined[0][0] and not joined[1][0]:
            return early[block]
        if joined[1][1] and not joined[0][1]:
            return late[block]
    raise BadTimes(
        f"{where}: saw: the clock of {timezone} showed {str(local[block[0]])[:16]} twice (line "
        f"{int(lines[block[0]])}); "
        "still missing: which of the two it is; for example: export times with their offset, or in UTC."
    )


def _zone(timezone: str, where: str) -> tuple[str | None, np.timedelta64]:
    """Return a zone's IANA name (None for a fixed offset) and how far its clock is ahead of that. Raises BadTimes."""
    text = timezone.strip()
    if text in ("UTC", "GMT", "Z"):
        return None, np.timedelta64(0, "us")
    found, name, ahead = _CUSTOM_ZONE.fullmatch(text), text, 0
    if found is not None and (found["name"] is None or "/" in found["name"] or found["name"] in ("UTC", "GMT")):
        ahead = (int(found["h"]) * 60 + int(found["m"])) * (60 if found["sign"] == "+" else -60)
        if found["name"] in (None, "UTC", "GMT"):
            return None, np.timedelta64(ahead * 1_000_000, "us")
        name = found["name"]
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise BadTimes(
            f"{where}: no time zone {timezone!r}. State an IANA name such as Europe/Athens, or an offset such as "
            "-05:00."
        ) from None
    return name, np.timedelta64(ahead * 1_000_000, "us")
