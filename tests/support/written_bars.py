"""One known history of bars and the ways in which files write it."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from pipelines.data.readers.files import FileOptions, read
from pipelines.data.schemas import check

START = datetime(2024, 1, 2, tzinfo=UTC)
TAKEN = datetime(2026, 1, 1, tzinfo=UTC)


def history(n=40, step_s=3600, start=START, places=2, level=100.0, seed=3):
    """Return n bars: time (aware datetimes), open … close with `places` decimals and no flat bar, volume with three."""
    rng = np.random.default_rng(seed)
    tick = 10.0**-places
    closes = level + np.cumsum(rng.integers(-40, 41, n)) * tick
    opens = np.concatenate([[level], closes[:-1]])
    highs = np.maximum(opens, closes) + rng.integers(1, 20, n) * tick
    lows = np.minimum(opens, closes) - rng.integers(1, 20, n) * tick
    times = [start + timedelta(seconds=step_s * i) for i in range(n)]
    prices = {
        name: values.round(places)
        for name, values in (("open", opens), ("high", highs), ("low", lows), ("close", closes))
    }
    return pd.DataFrame({"time": times, **prices, "volume": (rng.integers(1, 9000, n) / 1000).round(3)})


def written(bars, cells, header="", separator=",", end="\n"):
    """Return the text of `bars`: `cells` makes one line's cells of a row."""
    lines = [header] if header else []
    lines += [separator.join(str(cell) for cell in cells(row)) for row in bars.itertuples()]
    return end.join(lines) + end


def epoch(row, unit=1000):
    """Return the time of a row as an epoch of `unit` a second."""
    return round(row.time.timestamp() * unit)


def same_bars(frame, bars, fields=("open", "high", "low", "close", "volume"), shift_s=0):
    """Assert that a bars frame holds exactly `bars`, their times moved by `shift_s`."""
    expected = pd.to_datetime(bars["time"], utc=True) + pd.Timedelta(seconds=shift_s)
    assert frame["open_time"].tolist() == expected.tolist()
    for field in fields:
        np.testing.assert_array_equal(frame[field].to_numpy(), bars[field].to_numpy(), err_msg=field)


def ohlc(row):
    """Return the four prices of a row."""
    return [row.open, row.high, row.low, row.close]


def place(text, tmp_path, name="f.csv"):
    """Write a file and return its path."""
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def reading_of(text, tmp_path, options=None, name="f.csv"):
    """Return the reading of a file of `text`, its bars clean."""
    reading = read(place(text, tmp_path, name), TAKEN, options or FileOptions())
    check(reading.frame)
    return reading
