"""Years, months and days as numbers or names → days; whether the day or the month comes first."""

import numpy as np
import numpy.typing as npt
import pyarrow

from pipelines.contracts import Ints
from pipelines.errors import BadTimes

Stamps = npt.NDArray[np.datetime64]
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def not_times(where: str, name: str, cell: object, line: int, count: int) -> BadTimes:
    """Return the error for cells that are no times."""
    return BadTimes(
        f"{where}: saw: {count} cells of column {name} that are not times; still missing: a time in each row; for "
        "example: "
        f"line {line} holds {str(cell)[:40]!r}. It is neither epoch ms nor µs, s or ns, nor a date: write epoch ms, "
        "or 2024-01-02T00:00:00Z."
    )


def month(
    values: npt.NDArray[np.int64] | npt.NDArray[np.str_], text: pyarrow.StringArray, name: str, lines: Ints, where: str
) -> npt.NDArray[np.int64]:
    """Return (n,) month numbers of digits or English names. Raises BadTimes."""
    if values.dtype.kind == "i":
        return values.astype(np.int64)
    words, index = np.unique(values.astype(str), return_inverse=True)
    number = np.asarray([MONTHS.index(word[:3].lower()) + 1 if word[:3].lower() in MONTHS else 0 for word in words])
    if (number == 0).any():
        at = int(np.argmax(number[index] == 0))
        raise not_times(where, name, text[at].as_py(), int(lines[at]), int((number[index] == 0).sum()))
    return np.asarray(number[index], dtype=np.int64)


def calendar(year: npt.NDArray[np.int64], month: npt.NDArray[np.int64], day: npt.NDArray[np.int64]) -> Stamps:
    """Return (n,) midnights as datetime64[us]; NaT where there is no such day."""
    sane = (year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    months = np.where(sane, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(sane, day - 1, 0)
    there = sane & (days.astype("datetime64[M]") == months)
    return np.where(there, days.astype("datetime64[us]"), np.datetime64("NaT", "us"))


def is_day_first(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], year: npt.NDArray[np.int64], form: str, stated: bool | None,
    name: str, lines: Ints, where: str, text: pyarrow.StringArray,
) -> tuple[bool, str]:  # fmt: skip
    """Return whether the first number of dates is the day, and why, for people. Raises BadTimes where it could be both.

    Dots mean day first. With slashes or hyphens a number above 12 shows it, or else that under one reading dates step
    by days and under the other by months.
    """
    by_day, by_month = bool((a > 12).any()), bool((b > 12).any())
    if by_day and by_month:
        at = int(np.argmax(b > 12))
        other = int(np.argmax(a > 12))
        raise BadTimes(
            f"{where}: saw: dates with the day first (line {int(lines[other])}: {text[other].as_py()!r}) and with the "
            f"month first (line {int(lines[at])}: {text[at].as_py()!r}); still missing: one order; for example: write "
            "all as "
            "2024-01-02."
        )
    if stated is not None:
        if by_month if stated else by_day:
            at = int(np.argmax(b > 12 if stated else a > 12))
            raise BadTimes(
                f"{where}: saw: line {int(lines[at])} holds {text[at].as_py()!r}, where the "
                f"{'day' if stated else 'month'} "
                f"cannot come first; still missing: the right order; for example: state it the other way."
            )
        return stated, " (day first, as stated)" if stated else " (month first, as stated)"
    if by_day or by_month:
        return by_day, ""
    if form == "DD.MM.YYYY" or bool((a == b).all()):
        return True, ""
    steps = []
    for month, day in ((b, a), (a, b)):
        days = np.abs(np.diff(calendar(year, month, day).astype("datetime64[D]").astype(np.int64)))
        steps.append(days[days > 0])
    daily = [len(step) > 0 and float(np.median(step)) <= 7 for step in steps]
    if daily[0] != daily[1]:
        return daily[0], f" ({'day' if daily[0] else 'month'} first: else its dates would step by months)"
    raise BadTimes(
        f"{where}: saw: column {name} with dates such as {text[0].as_py()!r} that have the day or the month first; "
        "still "
        "missing: which; for example: write them as 2024-01-02, or give a file with a day above 12."
    )
