"""Named series: any dated numbers next to a market, each in one of the spare fields of context (D7).

Options flow, insider filings, dark-pool prints, social sentiment: a file with a time and a value, and what a person has
to state of it, since no file shows it: its name, its unit and how long after its time a value could be known (L3). The
data version names them, so a model is used only where its fields hold the series it was trained on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipelines.context_layout import CONTEXT_FIELDS, SERIES_FIELDS
from pipelines.contracts import DAY_S
from pipelines.errors import BadValues

MAX_AGE_S = 7 * DAY_S  # where none is stated
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


@dataclass(frozen=True, slots=True)
class SeriesFile:
    """Name a file of a series."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"use_attribute_docstrings": True}

    file: str
    """Whole path of the file."""
    name: str
    """Name of the series, such as options_flow."""
    unit: str
    """Unit of its values, such as contracts."""
    lag_s: float
    """Seconds until a value could be known."""
    max_age_s: float = MAX_AGE_S
    """Seconds for which a value counts."""


@dataclass(frozen=True, slots=True)
class Series:
    """Describe a series of a data version. field: the one of SERIES_FIELDS that holds it; the rest as SeriesFile."""

    field: str
    name: str
    unit: str
    lag_s: float
    max_age_s: float


def duration_s(text: str, option: str) -> float:
    """Return the seconds of `90s`, `15m`, `2h` or `1d`. Raises BadValues."""
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())) is None:
        raise BadValues(f"{option} {text!r} is no duration. Write it as 0s, 15m, 2h or 1d.")
    return float(found[1]) * _UNITS[found[2]]


def named_files(
    context: Sequence[Path], names: Sequence[str], units: Sequence[str], lags: Sequence[str], max_ages: Sequence[str]
) -> tuple[list[Path], list[SeriesFile]]:
    """Return the context files that have a layout of their own, and the last ones, which are named, as series.

    names     of the last files of context, in their order; units, lags and max_ages one for each of them, or none of
              the last, for a week
    Raises    BadValues where they are not as many, or a name is taken or no name
    """
    if not (len(names) == len(units) == len(lags)) or len(max_ages) not in (0, len(names)) or len(names) > len(context):
        raise BadValues(
            f"{len(context)} --context, {len(names)} --name, {len(units)} --unit, {len(lags)} --lag, {len(max_ages)} "
            "--max-age: a named series needs a file, its unit and its lag (0s where a value is known at its time). "
            "The names are those of the last files, in order."
        )
    first = len(context) - len(names)
    found = [
        SeriesFile(
            str(file), name, unit, duration_s(lag, "--lag"),
            duration_s(max_ages[i], "--max-age") if max_ages else MAX_AGE_S,
        )
        for i, (file, name, unit, lag) in enumerate(zip(context[first:], names, units, lags, strict=True))
    ]  # fmt: skip
    series_of(found)
    return list(context[:first]), found


def series_of(files: Sequence[SeriesFile]) -> tuple[Series, ...]:
    """Return the series of these files with the field of each: in the order of their names, whatever theirs.

    Raises BadValues for more than there are fields, a name given twice, no name, or one of a field of context
    """
    names = sorted(each.name for each in files)
    if wrong := [
        name for name in names if not _NAME.fullmatch(name) or name in CONTEXT_FIELDS or names.count(name) > 1
    ]:
        raise BadValues(
            f"--name {wrong[0]!r} cannot name a series: small letters, digits and _, up to 32, each name once, and no "
            f"field that has a layout of its own ({', '.join(CONTEXT_FIELDS[:6])} …). Choose another."
        )
    if len(files) > len(SERIES_FIELDS):
        raise BadValues(f"{len(files)} named series, at most {len(SERIES_FIELDS)}. Keep those that matter most.")
    by_name = {each.name: each for each in files}
    return tuple(
        Series(field, name, by_name[name].unit, by_name[name].lag_s, by_name[name].max_age_s)
        for field, name in zip(SERIES_FIELDS, names, strict=False)
    )


def series_in(described: Mapping[str, Any]) -> tuple[Series, ...]:
    """Return the named series of a data version by its manifest, or of a warm start; none before they existed."""
    stored = described.get("series") or (described.get("source") or {}).get("series") or ()
    return tuple(Series(**each) for each in stored)


def require_same(described: Mapping[str, Any], files: Sequence[SeriesFile]) -> None:
    """Raise BadValues if files name other series than the data version that the live service continues."""
    held, given = series_in(described), series_of(files)
    if files and held != given:
        says = [", ".join(f"{each.name} in {each.unit}" for each in some) or "none" for some in (held, given)]
        raise BadValues(
            f"the service continues a data version whose named series are {says[0]}; given are {says[1]}, or with "
            "another lag or age. State them as before, or start another installation (BELLWETHER_HOME)."
        )


def to_json(series: Sequence[Series]) -> list[dict[str, str | float]]:
    """Return the series as a manifest holds them."""
    return [asdict(each) for each in series]


def ages_of(series: Sequence[Series]) -> dict[str, float]:
    """Return field → seconds for which a value of it counts, as `alignment.align` takes them."""
    return {each.field: each.max_age_s for each in series}


def names_of(series: Sequence[Series]) -> dict[str, str]:
    """Return field → name of the series: what a model was trained on."""
    return {each.field: each.name for each in series}
