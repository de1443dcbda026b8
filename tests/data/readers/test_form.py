"""The form of a text: one known history in every combination of encoding, separator, header, order, epoch and sign."""

from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.written_bars import TAKEN, epoch, history, same_bars, written

from pipelines.data.readers.files import FileOptions, read
from pipelines.errors import BadColumns, BadTimes, BadValues, InputError, UnreadableFile

BARS = history(30)
HEADER = "time,open,high,low,close,volume"
TEXT = written(BARS, lambda row: [epoch(row), row.open, row.high, row.low, row.close, row.volume], HEADER)
NAMES = ["open", "high", "low", "close", "volume"]
STYLES = [str.lower, str.upper, str.capitalize, "<{}>".format, " {} ".format, '"{}"'.format]
TIMES = {
    "s": lambda time: str(round(time.timestamp())),
    "s float": lambda time: f"{time.timestamp():.3f}",
    "ms": lambda time: str(round(time.timestamp() * 10**3)),
    "µs": lambda time: str(round(time.timestamp() * 10**6)),
    "ns": lambda time: str(round(time.timestamp()) * 10**9),
    "ISO with offset": lambda time: time.isoformat(),
    "ISO, Z": lambda time: time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "dots": lambda time: time.strftime("%d.%m.%Y %H:%M %z"),
    "naive": lambda time: time.strftime("%Y-%m-%d %H:%M:%S"),
    "compact": lambda time: time.strftime("%Y%m%d %H%M%S"),
}
NAIVE = ("naive", "compact")
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]


@st.composite
def forms(draw):
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    comma = draw(st.booleans()) and separator != ","
    time = draw(st.sampled_from(sorted(TIMES)))
    offset = timedelta(hours=draw(st.sampled_from([-5, 0, 1, 9])))
    return {
        "separator": separator,
        "comma": comma,
        "time": time,
        "offset": offset,
        "encoding": draw(st.sampled_from(ENCODINGS)),
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "newest_first": draw(st.booleans()),
        "final": draw(st.booleans()),
        "header": draw(st.sampled_from([None, *range(len(STYLES))])),
        "preamble": draw(st.sampled_from([[], ["# exported by hand"], ["https://www.example.org/data"], ["", ""]])),
        "trailing": draw(st.booleans()),
        "swap": draw(st.permutations(range(5))),
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=forms())
def test_one_history_reads_the_same_in_every_form(form, tmp_path):
    order = form["swap"] if form["header"] is not None else range(5)
    rows = BARS[::-1] if form["newest_first"] else BARS

    def line(row):
        local = row.time.astimezone(timezone(form["offset"]))
        cells = [f"{getattr(row, NAMES[i])}" for i in order]
        cells = [cell.replace(".", ",") if form["comma"] else cell for cell in cells]
        return [TIMES[form["time"]](local), *cells, *([""] if form["trailing"] else [])]

    lines = [*form["preamble"]]
    if form["header"] is not None:
        style = STYLES[form["header"]]
        lines.append(form["separator"].join(style(name) for name in ["time", *(NAMES[i] for i in order)]))
    lines += [form["separator"].join(line(row)) for row in rows.itertuples()]
    if form["header"] is None and form["trailing"]:
        lines = [one.removesuffix(form["separator"]) for one in lines]
    text = form["end"].join(lines) + (form["end"] if form["final"] else "")
    (tmp_path / "f.csv").write_bytes(text.encode(form["encoding"]))
    hours = form["offset"].total_seconds() / 3600
    zone = f"{'+' if hours >= 0 else '-'}{abs(int(hours)):02d}:00"
    reading = read(tmp_path / "f.csv", TAKEN, FileOptions(timezone=zone if form["time"] in NAIVE else None))
    same_bars(reading.frame, BARS)
    assert reading.read_as.order == ("descending" if form["newest_first"] else "ascending")
    assert reading.read_as.decimal == ("," if form["comma"] else ".")
    assert reading.read_as.separator == form["separator"]


def read_text(text, tmp_path, options=None):
    (tmp_path / "f.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(tmp_path / "f.csv", TAKEN, options or FileOptions())


LINES = TEXT.splitlines()
SAME = {
    "repeated header": ("\n".join([*LINES[:12], LINES[0], *LINES[12:]]) + "\n", "line 13 repeats a header: left out"),
    "comments": ("\n".join([*LINES[:5], "# a comment", *LINES[5:]]) + "\n", "line 6 is a comment: left out"),
    "blank lines": ("\n".join([*LINES[:5], "", "  ", ",,,,,", *LINES[5:], "", ""]) + "\n", None),
    "quoted cells": ("\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in LINES) + "\n", None),
    "blanks around cells": ("\n".join(line.replace(",", " , ") for line in LINES) + "\n", None),
    "sep= above": ("sep=,\n" + TEXT, "line 1 is no header and no row"),
    "no final newline": (TEXT.rstrip("\n"), "line 31, the last, has no line break"),
    "NUL lines at the end": (TEXT + "\0" * 512, "line 32 holds only NUL bytes"),
    "columns apart by blanks": (TEXT.replace(",", "   "), None),
    "a byte-order mark inside": (
        "\ufeff" + TEXT[: TEXT.index("\n", 400) + 1] + "\ufeff" + LINES[0] + TEXT[TEXT.index("\n", 400) :],
        "repeats a header",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_no_row_is_left_out_with_its_line(name, tmp_path):
    text, note = SAME[name]
    reading = read_text(text, tmp_path)
    same_bars(reading.frame, BARS)
    assert note is None or any(note in one for one in reading.read_as.notes), reading.read_as.notes


def test_lines_are_those_of_the_text(tmp_path):
    text = "\n".join(["https://example.org", *LINES[:6], "", *LINES[6:8], "# x", *LINES[8:]]) + "\n"
    lines = read_text(text, tmp_path).lines.tolist()
    assert lines == [*range(3, 8), 9, 10, *range(12, 35)]


REFUSED = {
    "a line too short": (TEXT.replace(LINES[9], LINES[9][:30]), UnreadableFile, r"line 10 has \d: .*correct or delete"),
    "a line too long": (TEXT.replace(LINES[9], LINES[9] + ",5"), UnreadableFile, "line 10 has 7"),
    "cut in a row": (TEXT[:-25], UnreadableFile, "line 31, the last: . of 6 cells.*cut off.*fetch it again"),
    "a word": (
        TEXT.replace(LINES[9], LINES[9].rpartition(",")[0] + ",many"),
        BadValues,
        "column volume.*line 10 holds 'many'",
    ),
    "no time": (TEXT.replace(LINES[9], "," + LINES[9].partition(",")[2]), BadTimes, "line 10"),
    "a time of no unit": (TEXT.replace(LINES[9][:13], "170"), BadTimes, "line 10 holds '170'"),
    "another header inside": (
        "\n".join([*LINES[:12], "time,low,high,open,close,volume", *LINES[12:]]) + "\n",
        BadColumns,
        "line 13 is the header of another",
    ),
    "a decimal comma in one cell": (
        TEXT.replace(LINES[9], LINES[9].rpartition(",")[0] + ',"1,5"'),
        BadValues,
        "line 10 holds '1,5'",
    ),
    "decimal commas between commas": (TEXT.replace(".", ","), InputError, "decimal commas between commas"),
    "NUL bytes in a row": (
        TEXT.replace(LINES[9][5:9], "\0\0\0\0"),
        UnreadableFile,
        "line . holds NUL|line 10 holds NUL",
    ),
    "two order of dates": (
        HEADER + "\n13/02/2024,1,2,1,1,1\n02/14/2024,1,2,1,1,1\n",
        BadTimes,
        "day first .line 2.*month first .line 3",
    ),
    "a day that is none": (
        HEADER + "\n2024-02-29,1,2,1,1,1\n2024-02-30,1,2,1,1,1\n",
        BadTimes,
        "line 3 holds '2024-02-30'",
    ),
    "two zones": (
        HEADER + "\n2024-02-29 01:00 CST,1,2,1,1,1\n2024-02-29 02:00 CST,1,2,1,1,1\n",
        BadTimes,
        "no one offset",
    ),
    "offsets in some rows": (
        HEADER + "\n2024-02-29T01:00Z,1,2,1,1,1\n2024-02-29T02:00,1,2,1,1,1\n",
        BadTimes,
        "line 3 holds",
    ),
    "numbers shortened": (
        HEADER + "\n1.70415E+12,1,2,1,1,1\n1.70416E+12,1,2,1,1,1\n",
        BadTimes,
        "last digits of its times",
    ),
    "UTF-16 cut in a letter": (b"\xff\xfe" + TEXT.encode("utf-16-le")[:-1], UnreadableFile, "UTF-16 that is cut off"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_obstacle_is_named_with_its_line(name, tmp_path):
    text, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        read_text(text, tmp_path, FileOptions(timezone="UTC"))


def test_a_last_cell_that_may_be_cut_is_noted_and_one_that_is_cut_is_refused(tmp_path):
    fixed = "\n".join(f"{line.rpartition(',')[0]},{float(line.rpartition(',')[2]):.3f}" for line in LINES[1:])
    assert "taken as whole" in " ".join(read_text(HEADER + "\n" + fixed, tmp_path).read_as.notes)
    with pytest.raises(UnreadableFile, match=r"line 31, the last.*shorter than the cells above"):
        read_text(HEADER + "\n" + fixed[:-1], tmp_path)


@pytest.mark.parametrize(
    ("jitter_ms", "step_s", "fits"),
    [(90, 60, True), (590, 60, True), (610, 60, False), (990, 3600, True), (1010, 3600, False), (-40, 60, True)],
)
def test_stamps_off_the_minute_are_rounded_under_the_limit(jitter_ms, step_s, fits, tmp_path):
    bars = history(40, step_s)
    text = written(
        bars,
        lambda row: [epoch(row) + (jitter_ms if row.Index == 20 else 0), row.open, row.high, row.low, row.close],
        "time,open,high,low,close",
    )
    if fits:
        reading = read_text(text, tmp_path)
        same_bars(reading.frame, bars, ("close",))
        assert any(f"up to {abs(jitter_ms)} ms (line 22)" in note for note in reading.read_as.notes)
    else:
        with pytest.raises(BadTimes, match="off the minute, line 22 the furthest"):
            read_text(text, tmp_path)


def test_a_copied_line_stays_for_quality_and_is_named(tmp_path):
    reading = read_text("\n".join([*LINES[:12], LINES[11], *LINES[12:]]) + "\n", tmp_path)
    assert len(reading.frame) == 31
    assert any(note.startswith("line 13 has the time of the row before it") for note in reading.read_as.notes)


def test_swapped_lines_stay_and_are_named(tmp_path):
    lines = [*LINES]
    lines[10], lines[11] = lines[11], lines[10]
    reading = read_text("\n".join(lines) + "\n", tmp_path)
    assert reading.read_as.order == "mixed"
    assert any(note.startswith("line 12 is earlier than the row before it") for note in reading.read_as.notes)


def test_an_hour_that_the_clock_showed_twice_is_told_apart_by_the_order_or_refused(tmp_path):
    header, prices = "time,open,high,low,close\n", ",1,2,1,1\n"
    both = [
        "2024-11-03 00:30",
        "2024-11-03 01:00",
        "2024-11-03 01:30",
        "2024-11-03 01:00",
        "2024-11-03 01:30",
        "2024-11-03 02:00",
    ]
    here = FileOptions(timezone="America/New_York", timeframe="15m")
    opened = read_text(header + "".join(one + prices for one in both), tmp_path, here).frame["open_time"]
    assert (opened.diff().dropna().dt.total_seconds() == 1800).all()
    with pytest.raises(BadTimes, match=r"01:00 twice .line 3.*export times with their offset"):
        read_text(header + "".join(one + prices for one in [*both[:2], "2024-11-03 05:00"]), tmp_path, here)
    with pytest.raises(BadTimes, match=r"clock of America/New_York skipped.*line 3"):
        read_text(header + f"2024-03-10 01:30{prices}2024-03-10 02:30{prices}", tmp_path, here)
    with pytest.raises(BadTimes, match="no time zone 'Mars/Olympus'"):
        read_text(header + f"2024-03-10 01:30{prices}", tmp_path, FileOptions(timezone="Mars/Olympus"))
