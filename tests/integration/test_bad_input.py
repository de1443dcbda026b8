"""Bad input over HTTP and on the command line: a clear error naming field and remedy, and nothing stored is lost."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pandas as pd
import pytest

from pipelines.contracts import OPEN_TIME
from serving.client import bars_json
from serving.service.keys import write_key

pytestmark = pytest.mark.stack
SYMBOL = "SIM/USDT"


@pytest.fixture(scope="module")
def bars(stack):
    """The last stored minute and two that were not seen yet, as JSON."""
    last = stack.store.bars(SYMBOL)[-1]
    later = [last.copy(), last.copy()]
    for i, bar in enumerate(later, 1):
        bar[OPEN_TIME] += 60.0 * i
    return bars_json(np.stack([last, *later]))


def one(**changes):
    return lambda stored, new, newer: {"symbol": SYMBOL, "bars": [{**new, **changes}]}


def without_close(stored, new, newer):
    return {"symbol": SYMBOL, "bars": [{name: value for name, value in new.items() if name != "close"}]}


@pytest.mark.parametrize(
    ("body", "status", "field", "remedy"),
    [
        (lambda stored, new, newer: '{"symbol": ', 400, "body", "send one valid JSON object"),
        (one(colour="red"), 400, "bars.0.colour", "remove it"),
        (one(high=float("nan")), 400, "bars.0.high", "finite number"),
        (without_close, 400, "bars.0.close", "add it"),
        (one(open_time="2025-01-12T00:00:00"), 400, "bars.0.open_time", "add the zone"),
        (one(open_time="2099-01-01T00:00:00Z"), 400, "bars.0.open_time", "send closed bars only"),
        (lambda stored, new, newer: {"symbol": SYMBOL, "bars": [newer, new]}, 400, "bars.1.open_time", "sort them"),
        (lambda stored, new, newer: {"symbol": SYMBOL, "bars": [new, new]}, 400, "bars.1.open_time", "sort them"),
        (lambda stored, new, newer: {"symbol": SYMBOL, "bars": [{**stored, "volume": 0.5 + stored["volume"]}]},
         400, "volume=", "The first one stands"),
        (lambda stored, new, newer: {"symbol": "DOGE/USDT", "bars": [new]}, 404, "symbol", SYMBOL),
    ],
    ids=["malformed", "unknown field", "NaN", "missing field", "naive time", "from the future", "out of order",
         "duplicate", "conflict with the past", "unknown symbol"],
)  # fmt: skip
def test_a_bad_bar_is_refused_with_field_and_remedy_and_nothing_changes(stack, bars, body, status, field, remedy):
    before, content = stack.counts(), body(*bars)
    answer = observe(stack, content if isinstance(content, str) else json.dumps(content))
    assert answer.status_code == status, answer.text
    assert field in answer.json()["error"]
    assert remedy in answer.json()["error"]
    assert stack.counts() == before


def test_a_write_without_the_right_key_is_refused_and_the_error_names_where_the_key_is(stack, bars):
    before = stack.counts()
    answer = observe(stack, json.dumps(one()(*bars)), key="wrong")
    assert answer.status_code == 401
    assert "BELLWETHER_WRITE_KEY" in answer.json()["error"]
    assert stack.counts() == before


def observe(stack, content, key=None):
    headers = {"Authorization": f"Bearer {key or write_key(stack.settings)}", "Content-Type": "application/json"}
    return httpx.post(f"{stack.settings.decision_url}/observe", content=content, headers=headers, timeout=30)


# ---- files


def market():
    opened = pd.date_range("2024-01-01", periods=2880, freq="1min", tz="UTC")
    frame = pd.DataFrame({"open_time": opened, "open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0})
    return frame.assign(volume=1.0)


@pytest.fixture(scope="module")
def answers(stack, tmp_path_factory):
    """What `bellwether run` answers to each broken file, run two at a time; and the state before."""
    folder = tmp_path_factory.mktemp("files")
    good = market()
    good.drop(columns="close").to_parquet(folder / "column.parquet")
    good.assign(open_time=good["open_time"].dt.tz_localize(None)).to_parquet(folder / "naive.parquet")
    good.to_parquet(folder / "cut.parquet")
    os.truncate(folder / "cut.parquet", (folder / "cut.parquet").stat().st_size // 2)
    before = stack.json("status"), stack.counts()

    def run(name):
        return stack.cli("run", "--once", "--source", "files", "--path", str(folder / name), "--symbol", SYMBOL)

    names = ["cut.parquet", "column.parquet", "naive.parquet"]
    with ThreadPoolExecutor(2) as pool:
        return before, dict(zip(names, pool.map(run, names), strict=True))


@pytest.mark.parametrize(
    ("name", "kind", "field", "remedy"),
    [
        ("cut.parquet", "UnreadableFile", "cut off or not Parquet", "Fetch it again"),
        ("column.parquet", "BadColumns", "no column close", "rename the columns to open_time"),
        ("naive.parquet", "BadTimes", "column open_time has no time zone", "--timezone UTC"),
    ],
)
def test_a_broken_file_is_one_clear_line(answers, name, kind, field, remedy):
    done = answers[1][name]
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{kind}: ")
    assert field in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_broken_files_change_nothing_that_is_stored_or_served(stack, answers):
    (before, counts), after = answers[0], stack.json("status")
    assert stack.counts() == counts
    assert all(after[name] == before[name] for name in ("families", "data_hash", "tier"))
    assert all(service["state"] == "up" for service in after["services"].values())
