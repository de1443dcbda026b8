"""Bytes of a text → its form (encoding, separator, header, signs of numbers) and the columns that are wanted.

A sample of lines shows the form; the whole body is then read by pyarrow in one go. Only where that fails are the lines
looked at one by one (vectorised): comments and repeated headers are left out with their line, a line with too few or
too many cells is named.
"""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.csv

from pipelines.contracts import Ints
from pipelines.data.readers.columns import key_of, known_names
from pipelines.data.readers.numerals import MISSING, Signs, is_number, is_plain, signs_of
from pipelines.data.readers.times import kind_of
from pipelines.errors import BadColumns, UnreadableFile

SEPARATORS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'", " ": "blank"}
HEAD_BYTES, HEAD_LINES, TAIL_LINES = 2**16, 120, 24
MAX_HEADER = 40  # lines that may stand above the first row
LEAST_CELLS = 4
COMMENTS = ("#", "//", "--")
FLAGS = ("true", "false", "buy", "sell")


@dataclass(frozen=True, slots=True)
class Form:
    """Describe how a text is written. Line numbers start at 1.

    names         of its columns; empty without a header line
    skipped       lines above the body that are neither header nor data
    """

    encoding: str
    separator: str
    signs: Signs
    header_line: int | None
    names: tuple[str, ...]
    width: int
    skipped: tuple[int, ...] = ()

    def saw(self) -> str:
        """Return what was recognised, for messages."""
        header = f"header in line {self.header_line}" if self.header_line else "no header"
        comma = ", decimal comma" if self.signs.decimal == "," else ""
        return f"saw: {self.encoding} text, separator {SEPARATORS[self.separator]}{comma}, {header}"


@dataclass(frozen=True, slots=True)
class Text:
    """Hold a text member after a look at its first and last lines.

    data    UTF-8, lines end in LF or CRLF;  start: where its body begins;  first_line: the line number there
    sample  cells of some body lines from top and end
    above   the lines above the body, header included
    """

    name: str
    data: bytes
    form: Form
    start: int
    first_line: int
    sample: tuple[tuple[str, ...], ...]
    above: tuple[str, ...]
    notes: tuple[str, ...]


def sniff(data: bytes, name: str) -> Text:
    """Return a text's form and sample. Raises UnreadableFile or BadColumns."""
    text, encoding, notes = _decoded(data, name)
    head = _lines(text[:HEAD_BYTES], whole=len(text) <= HEAD_BYTES)
    if not any(line.strip() for line in head):
        raise UnreadableFile(f"{name}: the file is empty but for blank lines. Fetch it again.")
    tail = _lines(text[-HEAD_BYTES // 4 :], whole=True)[1:][-TAIL_LINES:] if len(text) > HEAD_BYTES else []
    separator, width = _separator(head, name)
    rows = [_cells(line, separator) for line in head]
    begin = _first_row(rows, width)
    header, skipped = _header(rows[: begin if begin is not None else len(rows)], width)
    names = tuple(cell.strip().strip("\ufeff") for cell in rows[header]) if header is not None else ()
    if begin is None:
        raise UnreadableFile(
            f"{name}: saw: {encoding} text, separator {SEPARATORS[separator]}; still missing: data, there are no rows, "
            f"only columns {', '.join(names)[:200] or head[0][:80]}; for example: a line of times and prices below "
            "the names."
        )
    body = [
        row for row in (*rows[begin:], *(_cells(line, separator) for line in tail)) if any(cell.strip() for cell in row)
    ]
    names, width = _fitted(names, width, body, name, separator, header)
    sample = tuple(tuple(row[:width]) for row in body if len(row) >= width and _like_data(row))
    signs = signs_of((cell for row in sample for cell in row if is_number(cell) and kind_of(cell) is None), separator)
    form = Form(encoding, separator, signs, None if header is None else header + 1, names, width,
                tuple(i + 1 for i in skipped if head[i].strip()))  # fmt: skip
    start = _offset(text, begin)
    made = Text(name, text, form, start, begin + 1, sample, tuple(head[:begin]), tuple(notes))
    return replace(made, notes=(*made.notes, *_ending(made)))


def _decoded(data: bytes, name: str) -> tuple[bytes, str, list[str]]:
    """Return UTF-8 bytes, the encoding found, and notes. Raises UnreadableFile."""
    notes: list[str] = []
    encoding, body = "UTF-8", data
    even, odd = data[0:4096:2], data[1:4096:2]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-16 with a byte-order mark"
        body = _recoded(data[2:], "utf-16-le" if data[0] == 0xFF else "utf-16-be", name)
    elif data.startswith(b"\xef\xbb\xbf"):
        encoding, body = "UTF-8 with a byte-order mark", data[3:]
    elif len(data) > 8 and odd.count(0) > 0.8 * len(odd) and even.count(0) < 0.1 * len(even):
        encoding, body = "UTF-16 LE", _recoded(data, "utf-16-le", name)
    elif len(data) > 8 and even.count(0) > 0.8 * len(even) and odd.count(0) < 0.1 * len(odd):
        encoding, body = "UTF-16 BE", _recoded(data, "utf-16-be", name)
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            encoding = "Windows-1252"
            body = body.decode("cp1252", errors="replace").encode()
        if b"\n\xef\xbb\xbf" in body:
            body = body.replace(b"\n\xef\xbb\xbf", b"\n")
            notes.append("byte-order marks inside: left out")
    if b"\0" in body:
        body = _without_nuls(body, name, notes)
    if b"\r" in body and body.count(b"\r") != body.count(b"\r\n"):
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    control = sum(body[:4096].count(i) for i in (*range(1, 9), *range(14, 32)))
    if control:
        raise UnreadableFile(
            f"{name}: saw: {control} control characters in its first lines; still missing: text or Parquet; for "
            "example: "
            "save it as CSV. If it was CSV, its bytes are damaged or cut off: fetch it again."
        )
    return body, encoding, notes


def _recoded(data: bytes, encoding: str, name: str) -> bytes:
    """Return UTF-8. Raises UnreadableFile where UTF-16 is cut or damaged."""
    try:
        return data.decode(encoding).encode()
    except UnicodeError as error:
        raise UnreadableFile(f"{name}: UTF-16 that is cut off or damaged ({error}). Fetch it again.") from error


def _without_nuls(body: bytes, name: str, notes: list[str]) -> bytes:
    """Return text without NUL bytes where they fill whole lines. Raises UnreadableFile where they stand in a row."""
    lines = body.split(b"\n")
    hit = [i for i, line in enumerate(lines) if b"\0" in line]
    for i in hit:
        if lines[i].strip(b"\0\r \t"):
            raise UnreadableFile(
                f"{name}: line {i + 1} holds NUL bytes: it is damaged or cut off. Fetch it again, or delete that line."
            )
        lines[i] = b""
    notes.append(f"line {hit[0] + 1} holds only NUL bytes: left out ({len(hit)} such)")
    return b"\n".join(lines)


def _lines(data: bytes, whole: bool) -> list[str]:
    """Return up to HEAD_LINES lines of a piece of text; without `whole` the last, partial one is left out."""
    lines = data.decode("utf-8", errors="replace").split("\n")
    if not whole and len(lines) > 1:
        lines = lines[:-1]
    return (
        [line.rstrip("\r") for line in lines[:HEAD_LINES]] if whole is False else [line.rstrip("\r") for line in lines]
    )


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of a line; a blank separator may stand several times."""
    if separator == " ":
        return [cell for cell in line.split(" ") if cell]
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=False), [])
    except csv.Error:
        return [line]


def _kinds(row: Sequence[str]) -> int:
    """Return how many cells of a row hold a number, a time or a flag."""
    return sum(
        bool(cell.strip()) and (is_number(cell) or kind_of(cell) is not None or cell.strip().lower() in FLAGS)
        for cell in row
    )


def _like_data(row: Sequence[str]) -> bool:
    """Return whether a row is data: most of its cells hold a number or a time."""
    filled = sum(bool(cell.strip()) for cell in row)
    if row and known_names(row[:1]):
        return False  # a name, as of the line of tickers that may stand under a header
    hits = _kinds(row)
    return hits >= 1 and 2 * hits >= filled


def _separator(head: Sequence[str], name: str) -> tuple[str, int]:
    """Return the separator and the commonest number of cells. Raises BadColumns."""
    lines = [line for line in head if line.strip() and not line.startswith(COMMENTS)]
    stated = head[0].strip().lower()
    if stated.startswith("sep=") and len(stated) == 5 and head[0].strip()[4] in SEPARATORS:
        lines = lines[1:]
    best: tuple[float, int, str, int] = (0.0, 0, "", 0)
    for rank, separator in enumerate(SEPARATORS):
        rows = [_cells(line, separator) for line in lines]
        counts = Counter(len(row) for row in rows[len(rows) // 3 :])
        if not counts:
            continue
        width = max(counts, key=lambda n: (counts[n], n))
        if width < 2:
            continue
        own = [row for row in rows if len(row) == width]
        good = sum(_kinds(row) / max(len(row), 1) for row in own if _like_data(row))
        named = max((known_names(row) for row in rows), default=0)
        if separator == " " and best[3] >= LEAST_CELLS and best[0] > 0.5:
            continue  # blanks stand inside times
        score = (round(good / len(rows), 3) + min(named, 4) * 0.01, -rank, separator, width)
        best = max(best, score)
    if not best[2]:
        raise BadColumns(
            f"{name}: saw: text without columns, line 1 is {head[0].strip()[:60]!r}; still missing: a separator "
            "(comma, "
            "semicolon, tab); for example: 1704067200000,1.1,1.2,1.0,1.1,5."
        )
    return best[2], best[3]


def _first_row(rows: Sequence[Sequence[str]], width: int) -> int | None:
    """Return the position of the first row of data; None where there is none."""
    fits = [abs(len(row) - width) <= 1 and _like_data(row) for row in rows[: MAX_HEADER + 2]]
    for i, fit in enumerate(fits):
        if fit and (i + 1 >= len(fits) or any(fits[i + 1 : i + 4]) or i + 2 >= len(rows)):
            return i
    return None


def _header(rows: Sequence[Sequence[str]], width: int) -> tuple[int | None, list[int]]:
    """Return the position of the header line, if there is one, and of the other lines above the body."""
    scored = [
        (known_names(row), i)
        for i, row in enumerate(rows)
        if (abs(len(row) - width) <= 1 or known_names(row) > 2)
        and len(row) > 1
        and not (row[0].startswith(COMMENTS) and known_names(row) < 2)
    ]
    if not scored:
        return None, list(range(len(rows)))
    known, at = max(scored, key=lambda one: (one[0], -one[1]))
    if known == 0:
        at = scored[-1][1]
    return at, [i for i in range(len(rows)) if i != at]


def _fitted(
    names: tuple[str, ...], width: int, body: Sequence[Sequence[str]], name: str, separator: str, header: int | None
) -> tuple[tuple[str, ...], int]:
    """Return names and width after a separator at the end of lines is allowed for. Raises BadColumns."""
    widths = Counter(len(row) for row in body)
    width = len(names) if names and (len(names) in widths or len(body) == 1) else widths.most_common(1)[0][0]
    if not names or len(names) == width:
        return tuple(cell.lstrip("#").strip() for cell in names), width
    if len(names) == width + 1 and not names[-1]:
        return names[:-1], width
    if len(names) == width - 1 and all(not row[-1].strip() for row in body if len(row) == width):
        return (*names, ""), width
    first = next(i for i, row in enumerate(body) if len(row) == width)
    hint = ", as decimal commas between commas do" if separator == "," and width >= 2 * len(names) - 2 else ""
    raise BadColumns(
        f"{name}: saw: separator {SEPARATORS[separator]}, {len(names)} names in line {(header or 0) + 1} and {width} "
        "cells "
        f"in the rows{hint}; still missing: as many cells as names; for example: row {first + 1} below it. Save the "
        "file "
        "with another separator, or correct the header."
    )


def _offset(text: bytes, lines: int) -> int:
    """Return where line `lines` (from 0) begins."""
    at = 0
    for _ in range(lines):
        at = text.index(b"\n", at) + 1
    return at


def _ending(text: Text) -> list[str]:
    """Return a note where the last line has no line break. Raises UnreadableFile where it is cut."""
    if text.data.endswith(b"\n"):
        return []
    last = text.data[text.data.rfind(b"\n") + 1 :].decode("utf-8", errors="replace").rstrip("\r")
    if not last.strip() or last.startswith(COMMENTS):
        return []
    cells, form = _cells(last, text.form.separator), text.form
    number = text.data.count(b"\n") + 1
    if len(cells) < form.width or last.count('"') % 2:
        raise UnreadableFile(
            f"{text.name}: {form.saw()}; still missing: the rest of line {number}, the last: {len(cells)} of "
            f"{form.width} "
            "cells, so the file is cut off; for example: fetch it again, or delete that line."
        )
    others = [row for row in text.sample if tuple(cells[: form.width]) != row and len(row) == form.width][-TAIL_LINES:]
    if _looks_cut(cells[form.width - 1], [row[-1] for row in others], form.signs.decimal):
        raise UnreadableFile(
            f"{text.name}: {form.saw()}; still missing: the end of line {number}, the last: "
            f"{cells[form.width - 1][-20:]!r} "
            "is shorter than the cells above it, so the file may be cut off; for example: fetch it again, or end it "
            "with "
            "a line break if it is whole."
        )
    return [
        f"line {number}, the last, has no line break: its last cell {cells[form.width - 1].strip()[:24]!r} was taken "
        "as whole"
    ]


def _looks_cut(cell: str, others: Sequence[str], decimal: str) -> bool:
    """Return whether the last cell of a file is shorter than all others of its column in a way they never are."""
    text, known = cell.strip().strip('"'), [other.strip().strip('"') for other in others]
    known = [other for other in known if other]
    if not known:
        return False
    if not text or text[-1] in (decimal, "-", "+", "e", "E"):
        return all(other[-1] not in (decimal, "-") for other in known)
    if len(known) < 4:
        return False
    places = {len(other.partition(decimal)[2]) for other in known}
    if len(places) == 1 and len(text.partition(decimal)[2]) < next(iter(places)):
        return True
    lengths = {len(other) for other in known}
    return len(lengths) == 1 and len(text) < next(iter(lengths)) and next(iter(lengths)) > 3


# ---- the body


def load(text: Text, kinds: Mapping[int, str]) -> tuple[pyarrow.Table, Ints, list[str]]:
    """Return the wanted columns by their positions ("0", "4", …), the line of each row, and notes of what was left out.

    kinds  position → "number" (float64 where its cells are plain), "time" (int64 where they are whole), "text",
           or "inferred": as pyarrow does
    Raises UnreadableFile naming the line whose cells are too few or too many
    """
    body = memoryview(text.data)[text.start :]
    signs = text.form.signs
    types = {i: None if kind == "inferred" else _type_of(text, i, kind) for i, kind in kinds.items()}
    if text.form.separator != " ":
        try:
            table = _parsed(body, text.form, types, signs)
            lines = _row_lines(text, table.num_rows)
            if lines is not None:
                return table, lines, []
        except pyarrow.ArrowInvalid:
            pass  # comments, repeated headers, cells in another notation: line by line
    kept, lines, notes = _cleaned(text)
    try:
        table = _parsed(kept, text.form, types, signs)
    except pyarrow.ArrowInvalid:
        try:
            table = _parsed(kept, text.form, dict.fromkeys(types, pyarrow.string()), signs)
        except pyarrow.ArrowInvalid as error:
            raise UnreadableFile(
                f"{text.name}: {text.form.saw()}; still missing: rows of {text.form.width} cells, the table is "
                f"malformed; for example: {str(error)[:160]}"
            ) from error
    if table.num_rows != len(lines):
        raise UnreadableFile(
            f"{text.name}: {text.form.saw()}; still missing: one row a line, there are {table.num_rows} rows in "
            f"{len(lines)} lines, so a quoted cell is malformed; for example: look for a single quotation mark."
        )
    return table, lines, notes


def _type_of(text: Text, i: int, kind: str) -> pyarrow.DataType:
    """Return the type to read a column as."""
    cells = [row[i] for row in text.sample]
    if kind == "text":
        return pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    if kind == "time":
        whole = all(cell.strip().isdigit() and cell.isascii() and len(cell.strip()) < 19 for cell in cells)
        return (
            pyarrow.int64() if whole and cells and all(kind_of(cell) == "epoch" for cell in cells) else pyarrow.string()
        )
    plain = all(is_plain(cell.replace(",", ".") if text.form.signs.decimal == "," else cell) for cell in cells)
    return pyarrow.float64() if plain and text.form.signs.thousands is None else pyarrow.string()


def _parsed(
    body: bytes | memoryview, form: Form, types: Mapping[int, pyarrow.DataType | None], signs: Signs
) -> pyarrow.Table:
    """Return columns of a body. Raises ArrowInvalid."""
    names = [str(i) for i in range(form.width)]
    separator = "\t" if form.separator == " " else form.separator
    pyarrow.set_cpu_count(os.cpu_count() or 1)  # Arrow too obeys OMP_NUM_THREADS, which bootstrap sets to 1 for BLAS
    return pyarrow.csv.read_csv(
        pyarrow.BufferReader(pyarrow.py_buffer(body)),
        read_options=pyarrow.csv.ReadOptions(column_names=names),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={str(i): kind for i, kind in types.items() if kind is not None},
            include_columns=[str(i) for i in types],
            decimal_point=signs.decimal,
            null_values=["", *(word for word in MISSING if word.isalpha()), "NaN", "NA", "N/A", "NULL", "None", "#N/A"],
        ),
    )


def _row_lines(text: Text, rows: int) -> Ints | None:
    """Return the line of each row, where blank lines alone were left out; None where rows and lines do not agree."""
    count = text.data.count(b"\n", text.start) + (not text.data.endswith(b"\n"))
    if count == rows:
        return np.arange(text.first_line, text.first_line + rows, dtype=np.int64)
    filled = np.flatnonzero([bool(line.strip(b"\r")) for line in _split(text)])
    return (filled + text.first_line).astype(np.int64) if len(filled) == rows else None


def _split(text: Text) -> list[bytes]:
    """Return the lines of the body without their ends."""
    return text.data[text.start :].split(b"\n")


def _cleaned(text: Text) -> tuple[bytes, Ints, list[str]]:
    """Return the body without comments, repeated headers and empty rows, the line of each row left, and notes.

    Raises UnreadableFile for a line of too few or too many cells, BadColumns for a header of other columns
    """
    form = text.form
    lines = pc.utf8_rtrim(pyarrow.array(_split(text), pyarrow.binary()).cast(pyarrow.string()), "\r")
    number = np.arange(text.first_line, text.first_line + len(lines), dtype=np.int64)
    bare = pc.utf8_trim_whitespace(lines)
    empty = _mask(pc.match_substring_regex(bare, rf'^[{_escaped(form.separator)}\s"]*$'))
    comment = np.zeros(len(lines), dtype=bool)
    for sign in COMMENTS[:2]:
        comment |= _mask(pc.starts_with(bare, sign))
    above = [line.strip() for line in text.above if line.strip()]
    repeated = (
        _mask(pc.is_in(bare, pyarrow.array(above, pyarrow.string()))) if above else np.zeros(len(lines), dtype=bool)
    )
    wordy = ~_mask(pc.match_substring_regex(bare, r"\d")) & ~empty & ~comment
    header = np.zeros(len(lines), dtype=bool)
    for at in np.flatnonzero(wordy | repeated):
        row = _cells(bare[at].as_py(), form.separator)
        if repeated[at] or (known_names(row) >= 2 and 2 * known_names(row) >= len(row)):
            _same_columns(row, text, int(number[at]))
            header[at] = True
    gone = empty | comment | header
    notes = [
        f"line {int(number[np.argmax(mask)])} {what}: left out"
        + (f" ({int(mask.sum())} such lines)" if mask.sum() > 1 else "")
        for mask, what in ((header, "repeats a header"), (comment, "is a comment"))
        if mask.any()
    ]
    kept, number = lines.filter(pyarrow.array(~gone)), number[~gone]
    if form.separator == " ":
        kept = pc.replace_substring_regex(pc.utf8_trim_whitespace(kept), " +", "\t")
    _same_width(kept, number, text)
    return "\n".join(kept.to_pylist()).encode() + b"\n", number, notes


def _same_columns(row: Sequence[str], text: Text, line: int) -> None:
    """Raise BadColumns if a header inside names other columns than the rows above it have."""
    own = [key_of(cell) for cell in row]
    if text.form.names and known_names(row) >= 2 and own != [key_of(name) for name in text.form.names]:
        raise BadColumns(
            f"{text.name}: {text.form.saw()}; still missing: one table, line {line} is the header of another: "
            f"{', '.join(row)[:120]}; for example: cut the file above line {line} and give both parts."
        )


def _same_width(kept: pyarrow.Array, number: Ints, text: Text) -> None:
    """Raise UnreadableFile at the first line that has another number of cells than the rest."""
    form = text.form
    separator = "\t" if form.separator == " " else form.separator
    plain = pc.replace_substring_regex(kept, r'"[^"]*"', "") if _mask(pc.match_substring(kept, '"')).any() else kept
    counts = pc.count_substring(plain, separator).to_numpy(zero_copy_only=False) + 1
    if (counts == form.width).all():
        return
    at = int(np.argmax(counts != form.width))
    last = at == len(counts) - 1 and counts[at] < form.width
    cure = "fetch it again, or delete that line." if last else "correct or delete that line."
    raise UnreadableFile(
        f"{text.name}: {form.saw()}; still missing: {form.width} cells in each row, the table is malformed"
        f"{' or cut off' if last else ''}; for example: line {int(number[at])} has {int(counts[at])}: "
        f"{kept[at].as_py()[:60]!r}; {cure}"
    )


def _escaped(separator: str) -> str:
    """Return a separator for a character class."""
    return {"|": r"\|", "\t": r"\t"}.get(separator, separator)


def _mask(values: pyarrow.Array) -> np.ndarray:
    """Return booleans as numpy."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)
