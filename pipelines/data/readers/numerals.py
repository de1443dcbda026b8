"""Numbers as text gives them: decimal sign, thousands, K/M/B endings, currency signs → float64.

What is read is what the cell says: one that does not fit the signs of its file is refused by its line, never guessed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as pc

from pipelines.contracts import Floats, Ints
from pipelines.errors import BadValues

BLANKS = " \t\u00a0\u202f\u2009"
MISSING = ("", "-", "--", "—", "–", "n/a", "na", "nan", "null", "none", "#n/a", "nil", "-nan")
ENDINGS = {"k": "e3", "m": "e6", "b": "e9", "t": "e12"}
CURRENCY = "$€£¥₿₹"
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_ROUGH = re.compile(
    r"[+-]?[$€£¥₿₹]?(\d{1,3}([.,'\u00a0\u202f\u2009 ]\d{3})+([.,]\d*)?|\d+[.,]?\d*|[.,]\d+)"
    r"([eE][+-]?\d+)?\s?[KkMmBbTt%]?$"
)


class Signs(NamedTuple):
    """Name the decimal sign and the thousands sign of a file; thousands None where no number has one."""

    decimal: str = "."
    thousands: str | None = None


def is_number(cell: str) -> bool:
    """Return whether a cell looks like a number in any notation known here; a missing value counts as one."""
    text = cell.strip(BLANKS)
    return _PLAIN.match(text) is not None or text.lower() in MISSING or _ROUGH.match(text) is not None


def is_plain(cell: str) -> bool:
    """Return whether a cell is a number as programs write it, or empty."""
    text = cell.strip()
    return not text or _PLAIN.match(text) is not None


def signs_of(cells: Iterable[str], separator: str | None) -> Signs:
    """Return the decimal and thousands sign that number cells of one file show together.

    A comma followed by three digits only ("1,234") is a decimal in a file separated by semicolons or tabs, as
    spreadsheets of decimal-comma countries write, and a thousands sign in one separated by commas (the cell is quoted).
    """
    both, commas_sure, points, lone = Counter[str](), 0, 0, 0  # decimal signs next to a thousands sign; and alone
    grouped: Counter[str] = Counter()
    for cell in cells:
        text = cell.strip(BLANKS).strip("+-" + CURRENCY).rstrip("KkMmBbTt% ")
        comma, point = text.count(","), text.count(".")
        if comma and point:
            both["," if text.rfind(",") > text.rfind(".") else "."] += 1
            grouped["." if text.rfind(",") > text.rfind(".") else ","] += 1
        elif comma > 1 or point > 1:
            grouped["," if comma > 1 else "."] += 1
        elif comma == 1:
            whole, _, part = text.partition(",")
            commas_sure += len(part) != 3 or whole in ("", "0") or len(whole) > 3
            lone += 1
        else:
            points += point
        grouped.update(sign for sign in "'\u00a0\u202f\u2009 " if sign in text.strip())
    if both:
        decimal = both.most_common(1)[0][0]
    elif commas_sure or points:
        decimal = "," if commas_sure > points else "."
    else:
        decimal = "," if lone and separator != "," and not grouped[","] else "."
    thousands = next((sign for sign, _ in grouped.most_common() if sign != decimal), None)
    if thousands is None and lone and not commas_sure and decimal == ".":
        thousands = ","
    return Signs(decimal, thousands)


def places_of(cells: Sequence[str], decimal: str) -> int:
    """Return the most decimal places written in some number cells."""
    return max((len(cell.strip().partition(decimal)[2]) for cell in cells), default=0)


def to_floats(column: pyarrow.ChunkedArray, signs: Signs, name: str, lines: Ints, where: str) -> Floats:
    """Return (n,) float64, NaN where a cell is empty. Raises BadValues with line and cell.

    column  numbers of any type, or text in the notation of `signs`
    lines   (n,) line of each cell, for messages
    """
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_null(kind):
        return np.asarray(column.cast(pyarrow.float64(), safe=False).to_numpy(), dtype=np.float64)
    if pyarrow.types.is_decimal(kind):  # by way of text: a direct cast is off in the last place
        return np.asarray(column.cast(pyarrow.string()).cast(pyarrow.float64()).to_numpy(), dtype=np.float64)
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise BadValues(
            f"{where}: saw: column {name} holds {kind}; still missing: numbers; for example: write the column as "
            "numbers."
        )
    text = pc.replace_substring_regex(
        pc.fill_null(column, ""), r"^[\s\x{a0}\x{202f}\x{2009}]+|[\s\x{a0}\x{202f}\x{2009}]+$", ""
    )
    text = pc.if_else(pc.is_in(pc.utf8_lower(text), pyarrow.array(MISSING)), pyarrow.scalar(None, text.type), text)
    if signs == Signs():
        try:
            return np.asarray(text.cast(pyarrow.float64()).to_numpy(), dtype=np.float64)
        except pyarrow.ArrowInvalid:
            pass  # endings, currency signs, or a cell that is no number: below
    return _noted(text, signs, name, lines, where)


def _noted(text: pyarrow.ChunkedArray, signs: Signs, name: str, lines: Ints, where: str) -> Floats:
    """Return (n,) float64 of stripped text in the notation of `signs`, NaN where null. Raises BadValues."""
    decimal = re.escape(signs.decimal)
    sign = signs.thousands or ""
    groups = rf"|\d{{1,3}}({_class(sign)}\d{{3}})+" if sign else ""
    shape = rf"^[+-]?[{CURRENCY}]?((\d+{groups})({decimal}\d*)?|{decimal}\d+)([eE][+-]?\d+)?\s?[KkMmBbTt]?$"
    fits = pc.fill_null(pc.match_substring_regex(text, shape), True).to_numpy(zero_copy_only=False).astype(bool)
    if not fits.all():
        at = int(np.argmin(fits))
        raise BadValues(
            f"{where}: saw: {len(fits) - int(fits.sum())} cells of column {name} that are not numbers, decimal sign "
            f"{signs.decimal!r}{f', thousands sign {sign!r}' if sign else ''}; still missing: numbers in all of them; "
            f"for example: line {int(lines[at])} holds {text[at].as_py()[:40]!r}. Correct that cell, or leave it empty."
        )
    plain = pc.replace_substring_regex(text, rf"[{CURRENCY}\s+]", "")  # an exponent needs no plus sign
    for letter, exponent in ENDINGS.items():
        plain = pc.replace_substring_regex(plain, f"(?i){letter}$", exponent)
    if sign:
        plain = pc.replace_substring_regex(plain, _class(sign), "")
    plain = pc.replace_substring(plain, signs.decimal, ".")
    return np.asarray(plain.cast(pyarrow.float64()).to_numpy(), dtype=np.float64)


def _class(sign: str) -> str:
    """Return a character class of one sign for RE2; any blank stands for all blanks."""
    return r"[\x{20}\x{a0}\x{202f}\x{2009}]" if sign in BLANKS else f"[{re.escape(sign)}]"
