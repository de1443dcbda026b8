"""Mutations of files of bars: the same bars, or the obstacle named; never a third value and no traceback.

Form mutations change how a file is written (separator, header, order, encoding, cut, doubled or exchanged lines, unit
of the times, rubbish bytes). What is read afterwards must be rows of the known history, each with all its values, or
one of the four errors of the readers. A value mutation changes one digit: what is read must be what the file says then.
Bytes of archives and tables are changed as well: those are read or refused.

    python -m benchmarks.file_mutations 20000
"""

import gzip
import json
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data.readers.files import FileOptions, read
from pipelines.data.schemas import PRICES
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile

TAKEN = datetime(2026, 1, 1, tzinfo=UTC)
START = datetime(2024, 1, 2, tzinfo=UTC)
ROWS = 24
FIELDS = (*PRICES, "volume")
EXPECTED = (UnreadableFile, BadColumns, BadTimes, BadValues)


@dataclass
class Outcome:
    """Count what became of mutated files; `faults` describes each that broke the promise."""

    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def history(rng: np.random.Generator) -> pd.DataFrame:
    """Return hourly bars with two decimals, no flat bar, and a volume of three decimals."""
    closes = 100 + np.cumsum(rng.integers(-40, 41, ROWS)) / 100
    opens = np.concatenate([[100.0], closes[:-1]])
    highs = np.maximum(opens, closes) + rng.integers(1, 20, ROWS) / 100
    lows = np.minimum(opens, closes) - rng.integers(1, 20, ROWS) / 100
    prices = {name: values.round(2) for name, values in zip(PRICES, (opens, highs, lows, closes), strict=True)}
    times = [START + timedelta(hours=i) for i in range(ROWS)]
    return pd.DataFrame({"time": times, **prices, "volume": (rng.integers(1000, 9999, ROWS) / 1000).round(3)})


STAMPS: tuple[Callable[[datetime], str], ...] = (
    lambda at: str(round(at.timestamp())),
    lambda at: str(round(at.timestamp()) * 1000),
    lambda at: str(round(at.timestamp()) * 10**6),
    lambda at: str(round(at.timestamp()) * 10**9),
    lambda at: f"{at.timestamp():.1f}",
    lambda at: at.isoformat(),
    lambda at: at.strftime("%d.%m.%Y %H:%M:%S UTC"),
)


def lines_of(bars: pd.DataFrame, rng: np.random.Generator) -> tuple[list[str], str]:
    """Return the lines of a file of `bars` in one of many forms, header first, and its separator."""
    separator = str(rng.choice([",", ";", "\t"]))
    stamp = STAMPS[rng.integers(len(STAMPS))]
    comma = separator != "," and rng.random() < 0.4
    rows = []
    for row in bars.itertuples():
        cells = [f"{row.open:.2f}", f"{row.high:.2f}", f"{row.low:.2f}", f"{row.close:.2f}", f"{row.volume:.3f}"]
        rows.append(separator.join([stamp(row.time), *(cell.replace(".", ",") if comma else cell for cell in cells)]))
    return [separator.join(["time", *FIELDS]), *rows], separator


def mutated(lines: list[str], separator: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return the bytes of a file after one to three mutations of its form, and their names."""
    names, encoding, cut, spoiled = [], "utf-8", None, False
    end = "\n"
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice([
            "newest first", "no header", "repeat header", "double line", "exchange lines", "drop line", "comment",
            "blank line", "encoding", "line end", "cut", "rubbish", "no end", "short line", "separators", "NULs",
        ]))  # fmt: skip
        names.append(name)
        at = int(rng.integers(1, max(len(lines), 2)))
        if name == "newest first":
            lines = [lines[0], *lines[:0:-1]]
        elif name == "no header" and "time" in lines[0]:
            lines = lines[1:]
        elif name == "repeat header":
            lines = [*lines[:at], separator.join(["time", *FIELDS]), *lines[at:]]
        elif name == "double line":
            lines = [*lines[:at], *lines[at - 1 :]]
        elif name == "exchange lines" and at + 1 < len(lines):
            lines[at], lines[at + 1] = lines[at + 1], lines[at]
        elif name == "drop line":
            lines = [*lines[:at], *lines[at + 1 :]]
        elif name == "comment":
            lines = [*lines[:at], "# made by hand", *lines[at:]]
        elif name == "blank line":
            lines = [*lines[:at], str(rng.choice(["", "  ", separator * 5])), *lines[at:]]
        elif name == "encoding":
            encoding = str(rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]))
        elif name == "line end":
            end = str(rng.choice(["\r\n", "\r"]))
        elif name == "short line" and at < len(lines):
            lines[at] = lines[at][: int(rng.integers(0, max(len(lines[at]), 1)))]
        elif name == "separators" and at < len(lines):
            lines[at] += separator * int(rng.integers(1, 3))
        elif name == "cut":
            cut = rng.random()
        spoiled |= name in ("rubbish", "NULs")
    data = bytearray((end.join(lines) + ("" if "no end" in names else end)).encode(encoding))
    if cut is not None:
        data = data[: int(cut * len(data))]
    if spoiled and data:
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = 0 if "NULs" in names else int(rng.integers(256))
    return bytes(data), " + ".join(names)


def cells_of(bars: pd.DataFrame) -> set[tuple[int, str, float]]:
    """Return every (epoch second, field, value) of a history."""
    seconds = [round(at.timestamp()) for at in bars["time"]]
    return {(at, name, value) for name in FIELDS for at, value in zip(seconds, bars[name].tolist(), strict=True)}


def foreign(frame: pd.DataFrame, known: set[tuple[int, str, float]]) -> list[tuple[int, str, float]]:
    """Return the values of a frame that the history does not have at that time; NaN is not recorded and no value."""
    seconds = (frame["open_time"].astype("int64") // 10**6).tolist()
    cells = [(at, name, value) for name in FIELDS for at, value in zip(seconds, frame[name].tolist(), strict=True)]
    return [cell for cell in cells if cell[2] == cell[2] and cell not in known]


def try_form(path: Path, known: set[tuple[int, str, float]], data: bytes, names: str, outcome: Outcome) -> None:
    """Read one mutated file and count what became of it."""
    path.write_bytes(data)
    try:
        reading = read([path], TAKEN, FileOptions(timeframe="1h"))
    except EXPECTED as error:
        outcome.refused[type(error).__name__] += 1
        return
    except Exception:  # noqa: BLE001 - this is what is looked for
        outcome.faults.append(f"{names}: {traceback.format_exc()}")
        return
    outcome.read += 1
    strange = foreign(reading.frame, known)
    spoiled = "rubbish" in names or "NULs" in names  # there the file itself says something else
    # so does a line that ends inside its last cell; at the end of the file a note says so
    shortened = "short line" in names or any("taken as whole" in note for note in reading.read_as.notes)
    if strange and not spoiled and not (shortened and len(strange) <= 1 + names.count("short line")):
        outcome.faults.append(
            f"{names}: {strange[:3]} notes {reading.read_as.notes} bytes {data[:300]!r} … {data[-60:]!r}"
        )


def try_value(path: Path, lines: list[str], separator: str, rng: np.random.Generator, outcome: Outcome) -> None:
    """Change one digit of one cell and compare what is read with what the file says."""
    at, column = int(rng.integers(1, len(lines))), int(rng.integers(1, 6))
    cells = lines[at].split(separator)
    digits = [i for i, sign in enumerate(cells[column]) if sign.isdigit()]
    i = int(rng.choice(digits))
    cells[column] = cells[column][:i] + str(rng.integers(10)) + cells[column][i + 1 :]
    changed = [*lines[:at], separator.join(cells), *lines[at + 1 :]]
    path.write_text("\n".join(changed) + "\n")
    frame = read([path], TAKEN).frame
    expected = float(cells[column].replace(",", "."))
    if frame[FIELDS[column - 1]].iloc[at - 1] != expected:
        outcome.faults.append(f"value {cells[column]} was read as {frame[FIELDS[column - 1]].iloc[at - 1]}")
    outcome.read += 1


def containers(bars: pd.DataFrame, folder: Path) -> list[bytes]:
    """Return the bars as CSV, Parquet, Feather, zip and gzip."""
    table = bars.set_index("time")
    table.to_parquet(folder / "a.parquet")
    table.reset_index().to_feather(folder / "a.feather")
    text = table.to_csv().encode()
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", text)
    made = [(folder / name).read_bytes() for name in ("a.parquet", "a.feather", "a.zip")]
    return [text, gzip.compress(text), *made]


def try_bytes(path: Path, data: bytes, rng: np.random.Generator, outcome: Outcome) -> None:
    """Read a container with bytes changed, cut or put in; it is read or refused, whatever it says."""
    spoiled = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        at, how = int(rng.integers(len(spoiled) + 1)), rng.random()
        if how < 0.7 and at < len(spoiled):
            spoiled[at] = int(rng.integers(256))
        elif how < 0.85:
            spoiled[at:at] = rng.bytes(int(rng.integers(1, 40)))
        elif how < 0.95:
            del spoiled[at : at + int(rng.integers(1, 200))]
        if not spoiled:
            break
    path.write_bytes(bytes(spoiled))
    try:
        read([path], TAKEN, FileOptions(timeframe="1h", timezone="UTC"))
    except EXPECTED as error:
        outcome.refused[type(error).__name__] += 1
    except Exception:  # noqa: BLE001 - this is what is looked for
        outcome.faults.append(f"bytes: {bytes(spoiled)[:200]!r} {traceback.format_exc()}")
    else:
        outcome.read += 1


def run(n: int, seed: int = 0) -> dict[str, Outcome]:
    """Return what became of n mutated forms, n / 5 mutated values and n / 5 containers of mutated bytes."""
    rng = np.random.default_rng(seed)
    outcomes = {"form": Outcome(), "value": Outcome(), "bytes": Outcome()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.csv"
        packed = containers(history(rng), Path(folder))
        for bars, i in _histories(rng, n):
            lines, separator = lines_of(bars, rng)
            data, names = mutated(list(lines), separator, rng)
            try_form(path, cells_of(bars), data, names, outcomes["form"])
            if i % 5 == 0:
                try_value(path, lines, separator, rng, outcomes["value"])
                try_bytes(path, packed[i // 5 % len(packed)], rng, outcomes["bytes"])
    return outcomes


def _histories(rng: np.random.Generator, n: int) -> Iterator[tuple[pd.DataFrame, int]]:
    """Yield n histories, each for a hundred mutations."""
    bars = history(rng)
    for i in range(n):
        if i % 100 == 0:
            bars = history(rng)
        yield bars, i


def main(n: int) -> None:
    """Print what became of n mutations; exit 1 if one broke the promise."""
    begun = time.perf_counter()
    outcomes = run(n)
    for name, outcome in outcomes.items():
        print(
            json.dumps(
                {
                    "mutations": name,
                    "read": outcome.read,
                    "refused": dict(outcome.refused),
                    "faults": len(outcome.faults),
                }
            )
        )
    for fault in [fault for outcome in outcomes.values() for fault in outcome.faults][:10]:
        print(fault)
    print(f"{time.perf_counter() - begun:.0f} s")
    sys.exit(any(outcome.faults for outcome in outcomes.values()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
