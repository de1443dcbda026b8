"""Time columns → (n,) datetime64[us], and how they were written.

Read are: epoch seconds, ms, µs and ns, distinguished by size row by row, also as floats; ISO 8601; dates with the year
or the day first or the month's English name; compact YYYYMMDD HHMMSS; date and time apart; offsets, and names of zones
that mean one offset. A time without an offset is a local one: `localise` needs its zone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import pyarrow.compute as pc

from pipelines.contracts import Ints
from pipelines.data.readers import dates, zones
from pipelines.errors import BadTimes

Stamps = npt.NDArray[np.datetime64]

UNITS = {"s": 1_000_000, "ms": 1_000, "µs": 1, "ns": 0}  # µs in one; 0: divided by 1000
EARLIEST_US = -2_208_988_800_000_000  # 1900
EARLIEST_S, LATEST_S = 10**8, 4_102_444_800  # epochs of 1973 to 2100, so that no unit can be taken for another
SIZES = {"s": 1, "ms": 10**3, "µs": 10**6, "ns": 10**9}
COMPACT = {8: "YYYYMMDD", 12: "YYYYMMDDHHMM", 14: "YYYYMMDDHHMMSS"}
_TIME = (
    r"(?:[T\s,;]+(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,:](?P<f>\d{1,9}))?)?|"
    r"[T\s,;]+(?P<H2>\d{2})(?P<M2>\d{2})(?:(?P<S2>\d{2})(?P<f2>\d{3})?)?|"
    r"[T\s,;-]+(?P<H3>\d{1,2})(?P<ampm3>-?[AaPp][Mm]))?"
    r"(?:\s*(?P<ampm>[AaPp][Mm]))?"
)
_ZONE = r"\s*(?P<zone>Z|[A-Z]{2,5}|[A-Z][A-Za-z]+/[A-Za-z_/+-]+\d*|(?:UTC|GMT)?[+-]\d{1,2}(?::?\d{2})?(?:\s?UTC)?)?"
_DATES = {
    "YYYY-MM-DD": r"(?P<Y>\d{4})[-/.](?P<a>\d{1,2})[-/.](?P<b>\d{1,2})",
    "YYYYMMDD": r"(?P<Y>\d{4})(?P<a>\d{2})(?P<b>\d{2})",
    "DD.MM.YYYY": r"(?P<a>\d{1,2})\.(?P<b>\d{1,2})\.(?P<Y>\d{4}|\d{2})",
    "DD/MM/YYYY": r"(?P<a>\d{1,2})[-/](?P<b>\d{1,2})[-/](?P<Y>\d{4}|\d{2})",
    "DD Mon YYYY": r"(?P<b>\d{1,2})[-\s/]?(?P<a>[A-Za-z]{3,9})\.?[-,\s/]+(?P<Y>\d{4}|\d{2})",
    "Mon DD YYYY": r"(?:[A-Za-z]{3,9},?\s+)?(?P<a>[A-Za-z]{3,9})\.?\s+(?P<b>\d{1,2}),?\s+(?P<Y>\d{4})",
}
FORMATS = {name: f"{date}{_TIME}{_ZONE}" for name, date in _DATES.items()}
_PATTERNS = {name: re.compile(pattern) for name, pattern in FORMATS.items()}
_EPOCH = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$")
_SHORT = re.compile(r"\d(\.\d{0,6})?[eE]\+?1\d$")  # a spreadsheet's 1.70415E+12: its last digits are gone


@dataclass(frozen=True, slots=True)
class Times:
    """Describe a time column. micros (n,): UTC where aware, else the clock on the wall.

    dated  it holds dates without a time of day: sessions, not moments
    form   how the times are written, for people
    midnights  (n,) the days of their own zone where all times are its midnights; None elsewhere
    """

    micros: Stamps
    aware: bool
    dated: bool
    form: str
    midnights: Stamps | None = None


def kind_of(cell: str) -> str | None:
    """Return how a cell holds a time: "epoch", "aware", "naive", "date" or "clock"; None if it holds none read here."""
    text = cell.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        value = int(text.partition(".")[0] or 0)
        if _compact_like(value):
            return "date" if len(str(value)) == 8 else "naive"
        return "epoch" if any(EARLIEST_S <= value / size <= LATEST_S for size in SIZES.values()) else None
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\s?[AaPp][Mm])?", text):
        return "clock"
    for pattern in _PATTERNS.values():
        if (found := pattern.fullmatch(text)) is not None:
            if found["zone"]:
                return "aware"
            return "naive" if any(found[key] for key in ("H", "H2", "H3")) else "date"
    return None


def _compact_like(value: int) -> bool:
    """Return whether digits are a date of 1900 to 2100 written without signs."""
    text = str(value)
    return (
        len(text) in COMPACT
        and 1900 <= int(text[:4]) <= 2100
        and 1 <= int(text[4:6]) <= 12
        and 1 <= int(text[6:8]) <= 31
    )


def parse(
    columns: Sequence[pyarrow.ChunkedArray], name: str, lines: Ints, where: str, day_first: bool | None = None
) -> Times:
    """Return one time column, or a date and a time column, as (n,) stamps.

    name       of the column in the file; "UTC" or "GMT" in it is an offset
    lines      (n,) line of each cell, for messages
    day_first  None: as the file shows
    Raises     BadTimes: an empty or unreadable cell, a date that could be two, an abbreviation that is two zones
    """
    column = columns[0]
    if len(columns) == 2:
        column = _joined(columns)
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pyarrow.types.is_timestamp(kind):
        stamps = _typed(column, name, lines, where)
        form = _zone_form(kind.tz)
        return _named(Times(stamps, kind.tz is not None, False, form, _midnights(stamps, kind.tz)), name)
    if column.null_count:
        empty = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise BadTimes(
            f"{where}: saw: {column.null_count} empty cells in column {name}; still missing: a time in each row; for "
            f"example: line {int(lines[empty])}. Find out which bars these are, or delete the lines."
        )
    if pyarrow.types.is_date32(kind):
        days = column.cast(pyarrow.int32()).to_numpy().astype(np.int64)
        return Times(_bounded(days * 86_400_000_000, name, lines, where), False, True, "dates")
    if pyarrow.types.is_integer(kind):
        return _named(_epochs(column.cast(pyarrow.int64()).to_numpy(), name, lines, where), name)
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind):
        return _float_epochs(column.cast(pyarrow.float64()).to_numpy(), name, lines, where)
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return _named(_texts(column, name, lines, where, day_first), name)
    raise BadTimes(
        f"{where}: saw: column {name} holds {kind}; still missing: times; for example: 2024-01-02T00:00:00Z or epoch "
        "ms."
    )


def _typed(column: pyarrow.ChunkedArray, name: str, lines: Ints, where: str) -> Stamps:
    """Return typed stamps as datetime64[us], NaT where empty. Raises BadTimes for one of no century."""
    unit = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}[column.type.unit]
    empty = column.is_null().to_numpy(zero_copy_only=False)
    values = pc.fill_null(column.cast(pyarrow.int64()), 0).to_numpy()
    micros = values // 1000 if unit == 0 else np.clip(values, -(2**62) // unit, 2**62 // unit) * unit
    return np.where(empty, np.datetime64("NaT", "us"), _bounded(micros, name, lines, where))


def _bounded(micros: npt.NDArray[np.int64], name: str, lines: Ints, where: str) -> Stamps:
    """Return epoch µs as stamps. Raises BadTimes outside the years 1900 to 2100."""
    odd = (micros < EARLIEST_US) | (micros > LATEST_S * 1_000_000)
    if odd.any():
        at = int(np.argmax(odd))
        raise dates.not_times(where, name, f"{int(micros[at]) / 1e6:g} s since 1970", int(lines[at]), int(odd.sum()))
    return micros.astype("datetime64[us]")


def _named(times: Times, name: str) -> Times:
    """Return `times` as UTC where their column's name says so."""
    if times.aware or times.dated or not re.search(r"(?<![a-z])(utc|gmt)(?![a-z+-])", name.lower()):
        return times
    return replace(times, aware=True, form=f"{times.form}, UTC by the name of the column")


def _midnights(stamps: Stamps, zone: str | None) -> Stamps | None:
    """Return the days in a zone other than UTC where all typed stamps are its midnights; None elsewhere."""
    if zone is None or zone in ("UTC", "GMT", "Z", "+00:00") or not len(stamps) or np.isnat(stamps).any():
        return None
    try:
        local = pd.DatetimeIndex(stamps).tz_localize("UTC").tz_convert(zone).tz_localize(None)
    except (KeyError, ValueError, OSError):  # a zone unknown here; its stamps are in UTC all the same
        return None
    days = np.asarray(local, dtype="datetime64[us]")
    return days if (days.astype(np.int64) % 86_400_000_000 == 0).all() else None


def _zone_form(zone: str | None) -> str:
    """Return how typed stamps are written."""
    return "stamps without a zone" if zone is None else f"stamps in {zone}"


def _joined(columns: Sequence[pyarrow.ChunkedArray]) -> pyarrow.ChunkedArray:
    """Return a date and a time column as one of text; a time of digits is padded to HHMMSS."""
    date, clock = (_as_text(column) for column in columns)
    if pc.all(pc.match_substring_regex(clock, r"^\d{1,6}$")).as_py():
        clock = pc.utf8_lpad(clock, 6 if pc.max(pc.utf8_length(clock)).as_py() > 4 else 4, "0")
    date = pc.replace_substring_regex(date, r"[T\s]+00:00(:00(\.0+)?)?$", "")
    return pc.binary_join_element_wise(date, clock, " ")


def _as_text(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Return a column as stripped text."""
    return pc.utf8_trim_whitespace(column.cast(pyarrow.string()))


def _epochs(values: npt.NDArray[np.int64], name: str, lines: Ints, where: str) -> Times:
    """Return integers as stamps: epochs, or digits of dates. Raises BadTimes."""
    if len(values) and _compact_like(int(values[0])) and (digits := _digits(values)) is not None:
        return digits
    owns = [(values >= EARLIEST_S * size) & (values <= LATEST_S * size) for size in SIZES.values()]
    for unit, own in zip(UNITS, owns, strict=True):
        if own.all():
            return Times(_micros(values, unit).view("datetime64[us]"), True, False, f"epoch {unit}")
    micros = np.zeros(len(values), dtype=np.int64)
    unit_of = np.full(len(values), -1, dtype=np.int8)
    for i, (unit, own) in enumerate(zip(UNITS, owns, strict=True)):
        micros[own] = _micros(values[own], unit)
        unit_of[own] = i
    if (odd := unit_of < 0).any():
        at = int(np.argmax(odd))
        raise dates.not_times(where, name, int(values[at]), int(lines[at]), int(odd.sum()))
    return Times(micros.astype("datetime64[us]"), True, False, _unit_form(unit_of, lines))


def _micros(values: npt.NDArray[np.int64], unit: str) -> npt.NDArray[np.int64]:
    """Return epochs of one unit in microseconds."""
    return values * UNITS[unit] if UNITS[unit] else values // 1000


def _unit_form(unit_of: npt.NDArray[np.int8], lines: Ints) -> str:
    """Return "epoch s, from line 745 on ms"; where units change more than three times, only which there are."""
    names = list(SIZES)
    changes = np.flatnonzero(np.diff(unit_of)) + 1
    if len(changes) > 3:
        return f"epoch {' and '.join(names[i] for i in np.unique(unit_of))}, mixed"
    later = [f"from line {int(lines[at])} on {names[unit_of[at]]}" for at in changes]
    return ", ".join([f"epoch {names[unit_of[0]]}", *later])


def _digits(values: npt.NDArray[np.int64]) -> Times | None:
    """Return dates written as digits; None where a row is no date of the same length."""
    width = len(str(int(values[0])))
    if (values < 10 ** (width - 1)).any() or (values >= 10**width).any():
        return None
    date = values // 10 ** (width - 8)
    clock = values % 10 ** (width - 8) * (100 if width == 12 else 1)
    micros = dates.calendar(date // 10000, date // 100 % 100, date % 100)
    hour, minute, second = clock // 10000, clock // 100 % 100, clock % 100
    if np.isnat(micros).any() or (hour > 23).any() or (minute > 59).any() or (second > 59).any():
        return None
    micros = micros + ((hour * 60 + minute) * 60 + second) * np.timedelta64(1_000_000, "us")
    return Times(micros, False, width == 8, COMPACT[width])


def _float_epochs(values: npt.NDArray[np.float64], name: str, lines: Ints, where: str) -> Times:
    """Return floats as epochs. Raises BadTimes."""
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise dates.not_times(where, name, values[at], int(lines[at]), int((~np.isfinite(values)).sum()))
    whole = np.abs(values) < 2.0**62
    if not whole.all():
        raise dates.not_times(where, name, values[np.argmin(whole)], int(lines[np.argmin(whole)]), int((~whole).sum()))
    if (values == np.floor(values)).all():
        return _epochs(values.astype(np.int64), name, lines, where)
    micros = np.zeros(len(values), dtype=np.int64)
    unit_of = np.full(len(values), -1, dtype=np.int8)
    for i, size in enumerate(SIZES.values()):
        own = (values >= EARLIEST_S * size) & (values <= LATEST_S * size)
        micros[own] = np.rint(values[own] * (1e6 / size)).astype(np.int64)
        unit_of[own] = i
    if (odd := unit_of < 0).any():
        at = int(np.argmax(odd))
        raise dates.not_times(where, name, values[at], int(lines[at]), int(odd.sum()))
    return Times(micros.astype("datetime64[us]"), True, False, _unit_form(unit_of, lines) + ", with a fraction")


def _texts(column: pyarrow.ChunkedArray, name: str, lines: Ints, where: str, day_first: bool | None) -> Times:
    """Return text as stamps. Raises BadTimes."""
    text = _as_text(column).combine_chunks()
    if isinstance(text, pyarrow.ChunkedArray):
        text = text.chunk(0) if text.num_chunks else pyarrow.array([], pyarrow.string())
    first = text[0].as_py() if len(text) else ""
    if _EPOCH.match(first):
        return _text_epochs(text, name, lines, where)
    for form, pattern in _PATTERNS.items():
        if (found := pattern.fullmatch(first)) is not None:
            parts = _fixed_parts(text, found) or _parts(text, FORMATS[form], name, lines, where)
            return _assembled(parts, form, text, name, lines, where, day_first)
    raise dates.not_times(where, name, first, int(lines[0]) if len(lines) else 0, 1)


def _text_epochs(text: pyarrow.StringArray, name: str, lines: Ints, where: str) -> Times:
    """Return epochs written as text, exactly where they are whole. Raises BadTimes."""
    if _SHORT.match(text[0].as_py()):
        raise BadTimes(
            f"{where}: saw: column {name} written like {text[0].as_py()!r}, as spreadsheets shorten long numbers; "
            "still "
            f"missing: the last digits of its times; for example: give the file that was not saved by a spreadsheet."
        )
    whole = pc.match_substring_regex(text, r"^[+]?\d{1,18}$")
    try:
        if pc.all(whole).as_py():
            return _epochs(text.cast(pyarrow.int64()).to_numpy(), name, lines, where)
        return _float_epochs(text.cast(pyarrow.float64()).to_numpy(), name, lines, where)
    except pyarrow.ArrowInvalid:
        fits = pc.match_substring_regex(text, r"^[+-]?\d{1,18}(\.\d*)?([eE][+-]?\d+)?$").to_numpy(zero_copy_only=False)
        at = int(np.argmin(fits))
        raise dates.not_times(where, name, text[at].as_py(), int(lines[at]), int((~fits).sum())) from None


Parts = dict[str, npt.NDArray[np.int64] | npt.NDArray[np.str_]]


def _fixed_parts(text: pyarrow.StringArray, found: re.Match[str]) -> Parts | None:
    """Return the parts of stamps of one width, read by position; None where some row differs in more than digits.

    Twenty times faster than a pattern: a year of minutes is half a million rows.
    """
    n, width = len(text), found.end()
    raw = text.buffers()[2]
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int32)[text.offset : text.offset + n + 1]
    if raw is None or offsets[-1] - offsets[0] != n * width or (np.diff(offsets) != width).any():
        return None
    cells = np.frombuffer(raw, dtype=np.uint8)[offsets[0] : offsets[-1]].reshape(n, width)
    parts: Parts = {}
    constant = np.ones(width, dtype=bool)
    for key, value in found.groupdict().items():
        if value is None:
            continue
        start, end = found.span(key)
        if key == "zone" or key.startswith("ampm") or not value.isdigit():
            if not (cells[:, start:end] == cells[0, start:end]).all():
                parts[key] = _words(cells[:, start:end])
                constant[start:end] = False
            else:
                parts[key] = np.array([value])  # one for all rows
            continue
        constant[start:end] = False
        number = np.zeros(n, dtype=np.int64)
        for i in range(start, end):
            digit = cells[:, i] - np.uint8(48)  # below "0" wraps to above 9
            if (digit > 9).any():
                return None
            number = number * 10 + digit
        parts[key] = number * 10 ** (6 - (end - start)) if key in ("f", "f2") and end - start <= 6 else number
        if key in ("f", "f2") and end - start > 6:
            parts[key] = number // 10 ** (end - start - 6)
    fixed = np.flatnonzero(constant)
    return parts if all((cells[:, i] == cells[0, i]).all() for i in fixed) else None


def _words(cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.str_]:
    """Return (n,) text of (n, w) bytes."""
    flat = np.ascontiguousarray(cells)
    return np.char.decode(flat.view(f"S{flat.shape[1]}")[:, 0], "ascii", "replace")


def _parts(text: pyarrow.StringArray, pattern: str, name: str, lines: Ints, where: str) -> Parts:
    """Return the parts of stamps by pattern. Raises BadTimes."""
    found = pc.extract_regex(text, f"^{pattern}$")
    if found.null_count:
        at = int(np.argmax(found.is_null().to_numpy(zero_copy_only=False)))
        raise dates.not_times(where, name, text[at].as_py(), int(lines[at]), found.null_count)
    parts: Parts = {}
    for i, field in enumerate(found.type):
        words = found.field(i)
        if pc.all(pc.equal(words, "")).as_py():
            continue
        if field.name in ("f", "f2"):
            words = pc.utf8_slice_codeunits(pc.utf8_rpad(words, 6, "0"), 0, 6)
        if pc.all(pc.match_substring_regex(words, r"^\d*$")).as_py():
            whole = pc.if_else(pc.equal(words, ""), "0", words)
            parts[field.name] = np.asarray(whole.cast(pyarrow.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
        else:
            parts[field.name] = np.asarray(words.to_numpy(zero_copy_only=False), dtype=str)
    return parts


def _assembled(
    parts: Parts, form: str, text: pyarrow.StringArray, name: str, lines: Ints, where: str, day_first: bool | None
) -> Times:
    """Return stamps of their parts. Raises BadTimes."""
    n = len(text)
    zero = np.zeros(n, dtype=np.int64)
    year = parts["Y"].astype(np.int64)
    year = np.where(year < 100, np.where(year < 70, year + 2000, year + 1900), year)
    a, b = dates.month(parts["a"], text, name, lines, where), parts["b"].astype(np.int64)
    note = ""
    written = form
    if form in ("DD.MM.YYYY", "DD/MM/YYYY"):
        first_is_day, note = dates.is_day_first(a, b, year, form, day_first, name, lines, where, text)
        month, day = (b, a) if first_is_day else (a, b)
        if not first_is_day:
            form = form.replace("DD", "?").replace("MM", "DD").replace("?", "MM")
        written = form
    else:
        month, day = a, b
    days = dates.calendar(year, month, day)
    hour = sum((parts[key].astype(np.int64) for key in ("H", "H2", "H3") if key in parts), zero)
    minute = sum((parts[key].astype(np.int64) for key in ("M", "M2") if key in parts), zero)
    second = sum((parts[key].astype(np.int64) for key in ("S", "S2") if key in parts), zero)
    fraction = sum((parts[key].astype(np.int64) for key in ("f", "f2") if key in parts), zero)
    wrong = np.isnat(days) | (minute > 59) | (second > 59) | (hour > 23)
    for key in ("ampm", "ampm3"):
        if key in parts:
            half = np.char.lower(np.char.strip(parts[key].astype(str), "- "))
            wrong |= (half != "") & ((hour < 1) | (hour > 12))
            hour = np.where(half == "pm", hour % 12 + 12, np.where(half == "am", hour % 12, hour))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise dates.not_times(where, name, text[at].as_py(), int(lines[at]), int(wrong.sum()))
    micros = days + (((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction) * np.timedelta64(1, "us")
    timed = any(key in parts for key in ("H", "H2", "H3"))
    first = text[0].as_py()
    if form == "YYYY-MM-DD":
        written = form.replace("-", first[4])
    elif "/" in form and "-" in first[:3]:
        written = form.replace("/", "-")
    shown = written + (" HH:MM" if timed else "") + (":SS" if "S" in parts or "S2" in parts else "") + note
    if "zone" not in parts:
        return Times(micros, False, not timed, shown)
    shift = _offsets(parts["zone"].astype(str), micros, text, name, lines, where)
    local = micros if shift.any() and not (hour.any() or minute.any() or second.any() or fraction.any()) else None
    return Times(micros - shift * np.timedelta64(1_000_000, "us"), True, False, f"{shown} with offset", local)


def _offsets(
    words_of: npt.NDArray[np.str_], micros: Stamps, text: pyarrow.StringArray, name: str, lines: Ints, where: str
) -> npt.NDArray[np.int64]:
    """Return offsets from UTC in seconds. Raises BadTimes for an unknown zone, and where only some rows have one."""
    if len(words_of) == 1 < len(micros) and "/" not in words_of[0] and zones.offset_s(str(words_of[0])) is not None:
        return np.array([zones.offset_s(str(words_of[0]))])
    words_of = np.broadcast_to(words_of, micros.shape)
    words, index = np.unique(words_of, return_inverse=True)
    if "" in words and len(words) > 1:
        at = int(np.argmax(words_of == ""))
        raise BadTimes(
            f"{where}: saw: {int((words_of == '').sum())} of {len(words_of)} times in column {name} without an "
            "offset; still "
            f"missing: an offset in each; for example: line {int(lines[at])} holds {text[at].as_py()!r}."
        )
    shift = np.zeros(len(words_of), dtype=np.int64)
    for i, word in enumerate(words):
        own = index == i
        if "/" in word:
            utc = zones.to_utc(micros[own], str(word), lines[own], where)
            shift[own] = (micros[own] - utc).astype("timedelta64[s]").astype(np.int64)
            continue
        seconds = zones.offset_s(str(word))
        if seconds is None:
            at = int(np.argmax(own))
            raise BadTimes(
                f"{where}: saw: times with {word!r} (line {int(lines[at])}: {text[at].as_py()!r}), which is no one "
                "offset; still missing: the offset; for example: leave the word out and state --timezone "
                "America/Chicago."
            )
        shift[own] = seconds
    return shift


def localise(times: Times, timezone: str, lines: Ints, where: str) -> Times:
    """Return local times as UTC; `timezone` and errors as of zones.to_utc."""
    form = f"{times.form} in {timezone}"
    return replace(times, micros=zones.to_utc(times.micros, timezone, lines, where), aware=True, form=form)
