"""Build a small real installation once per session: a seeded market, its features, a warm start, a bundle."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import OPEN_TIME, Floats, History
from pipelines.data.alignment import align
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import validator_columns
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.warm_start import _seal as seal
from pipelines.warm_start import publish_warm_start, write_warm_start

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

T0 = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
HISTORY = 15 * 800 + 7  # base bars: 800 closed decision bars and 7 minutes of the next
SYMBOL = "SIM/USDT"


def market(n: int, seed: int = 7) -> Floats:
    """Return (n, 9) one-minute bars of a seeded random walk with volume and taker flow."""
    rng = np.random.default_rng(seed)
    close = 40_000.0 * np.exp(np.cumsum(rng.normal(0.0, 0.0012, n)))
    opened = np.concatenate([[40_000.0], close[:-1]])
    high = np.maximum(opened, close) * (1 + rng.exponential(4e-4, n))
    low = np.minimum(opened, close) * (1 - rng.exponential(4e-4, n))
    volume = rng.lognormal(2.0, 0.5, n)
    times = T0 + 60.0 * np.arange(n)
    taker = volume * rng.beta(5, 5, n)
    return np.column_stack([times, opened, high, low, close, volume, np.full(n, 50.0), taker, np.full(n, np.nan)])


def onnx_bytes(width: int, bias: float = 0.1, broken: bool = False) -> bytes:
    """Return a logistic model of `width` columns as ONNX: (n, width) float32 → probabilities (n, 2).

    broken  it loads, and raises at every row
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = np.linspace(-0.2, 0.2, width, dtype=np.float32).reshape(width, 1)
    nodes = [
        helper.make_node("MatMul", ["rows", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["shifted"]),
        helper.make_node("Sigmoid", ["shifted"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["zero"]),
        helper.make_node("Concat", ["zero", "one"], ["both"], axis=1),
        helper.make_node("Gather", ["both", "places"], ["probabilities"], axis=1),
    ]
    constants = {"places": np.array([0, 7 if broken else 1])} | {
        "w": weights,
        "b": np.float32([bias]),
        "unit": np.float32([1.0]),
    }
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(model.SerializeToString())


def tree_bytes(width: int, bias: float) -> bytes:
    """Return compiled trees of `width` columns, (n, width) → (n, 1): three tests of the first two columns."""
    from pipelines.models.export import npz_bytes

    return npz_bytes(
        feature=np.array([0, 1, -1, -1, -1, width, -1, -1], np.int32), roots=np.array([0, 5], np.int32),
        threshold=np.array([0.1, 0.0, 0, 0, 0, -0.1, 0, 0], np.float32), base=np.float32(bias),
        value=np.array([0, 0, 0.3, -0.2, 0.1, 0, -0.4, 0.2], np.float32), link=np.array("logistic"),
        columns=np.array(width),
    )  # fmt: skip


def make_bundle(
    bundles: Path,
    columns: tuple[str, ...],
    rows: Floats,
    bias: float = 0.1,
    symbol: str = SYMBOL,
    broken: bool = False,
    miss_atr: float | None = None,
    symbols: tuple[str, ...] = (),
    trees: bool = False,
) -> str:
    """Write a real bundle under its digest and return the digest.

    symbols  it was trained on; empty: a bundle up to release 0.10, of `symbol` alone
    miss_atr  what its training rows returned that missed the target; None: a bundle of release 0.5.0 has none
    trees  its model are compiled trees; else an ONNX graph, in a bundle that names no runtime, as up to 0.13.0
    broken  it passes every check and fails at predict, since its golden rows are too novel to reach the model
    """
    from pipelines.models.base import Export
    from pipelines.models.calibration_and_novelty import Calibration, Novelty, as_json
    from pipelines.models.export import json_bytes, write_bundle
    from pipelines.models.scorers import model_entry

    draft = bundles / f"draft-{bias}"
    novelty = Novelty(rows.mean(axis=0), np.linalg.pinv(np.cov(rows.T) + 1e-9 * np.eye(len(columns))), 100.0)
    digest = write_bundle(
        draft,
        family="validator",
        export=Export(
            "tabular",
            {
                **(
                    {"model.npz": tree_bytes(len(columns), bias)}
                    if trees
                    else {"model.onnx": onnx_bytes(len(columns), bias, broken)}
                ),
                "calibration.json": json_bytes(as_json(Calibration(1.0, 0.0, np.eye(2) * 1e-6))),
            },
            {"classes": ["target_first"], "steps": 1, **({"model": model_entry("model.npz")} if trees else {})},
        ),
        novelty=novelty,
        schema={"columns": list(columns), "dropped": {}, "decision_timeframe": "15m"}
        | ({"symbols": list(symbols)} if symbols else {"symbol": symbol})
        | ({} if miss_atr is None else {"miss_atr": miss_atr}),
        card="# test model\n",
        inputs=rows + 1e9 if broken else rows,
    )
    if (bundles / digest).exists():
        shutil.rmtree(draft)
    else:
        draft.rename(bundles / digest)
    return digest


@dataclass(frozen=True)
class Stand:
    """Hold all bars (base), those after the history (live), and features and signals of every decision bar."""

    base: Floats
    live: Floats
    decision: Floats
    features: Floats
    signals: Floats
    stage: Path
    columns: tuple[str, ...]
    rows: Floats


@pytest.fixture(scope="session")
def stand(tmp_path_factory) -> Stand:
    """Return the session's market with its warm start and the rows a bundle is made of."""
    base = market(HISTORY + 15 * 200)
    decision = resample(base, MINUTES, QUARTERS)
    history = base[:HISTORY]
    closed = resample(history, MINUTES, QUARTERS)
    feature_state, signal_state = FEATURES.fresh(), SIGNALS.fresh()
    features, signals = FEATURES.run(closed, state=feature_state), SIGNALS.run(closed, state=signal_state)
    stage = tmp_path_factory.mktemp("stage") / "warm"
    levels, context = align(closed[:, OPEN_TIME], QUARTERS, None, None)
    write_warm_start(
        stage, symbol=SYMBOL, base_grid=MINUTES, grid=QUARTERS, feature_state=feature_state,
        signal_state=signal_state, base=history, history=History(closed, features, signals, levels, context),
        category_scores=CategoryScores.fit(signals), clock="market", venue="simulator", market="spot",
    )  # fmt: skip
    rows = validator_columns(features, signals)[600:]
    present = ~np.isnan(rows).any(axis=0)
    columns = tuple(name for name, here in zip(VALIDATOR_COLUMNS, present, strict=True) if here)
    return Stand(
        base, base[HISTORY:], decision, FEATURES.run(decision), SIGNALS.run(decision), stage, columns, rows[:, present]
    )


def on_wall_clock(stand: Stand, folder: Path, clock: str | None = "wall") -> Stand:
    """Return the same market as one that trades now; None: the warm start of a release that named no clock."""
    shutil.copytree(stand.stage, folder)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["clock"]
    seal(folder, meta if clock is None else meta | {"clock": clock})
    return replace(stand, stage=folder)


def _write_warm_start(folder: Path, base: Floats, symbol: str, clock: str) -> None:
    """Write the warm start of the history of these bars."""
    history, states = base[:HISTORY], (FEATURES.fresh(), SIGNALS.fresh())
    closed = resample(history, MINUTES, QUARTERS)
    features, signals = FEATURES.run(closed, state=states[0]), SIGNALS.run(closed, state=states[1])
    levels, context = align(closed[:, OPEN_TIME], QUARTERS, None, None)
    write_warm_start(
        folder, symbol=symbol, base_grid=MINUTES, grid=QUARTERS, feature_state=states[0],
        signal_state=states[1], base=history, history=History(closed, features, signals, levels, context),
        category_scores=CategoryScores.fit(signals), clock=clock, venue="simulator", market="spot",
    )  # fmt: skip


def trading_now(stand: Stand, folder: Path) -> Stand:
    """Return the same bars moved to now, on a wall clock: 23 live minutes, the last closed less than 15 minutes ago."""
    live = stand.base[HISTORY:]
    base = stand.base.copy()
    base[:, OPEN_TIME] += np.floor(time.time() / 900.0) * 900.0 - live[22, OPEN_TIME] - 60.0
    _write_warm_start(folder, base, SYMBOL, "wall")
    return replace(stand, base=base, live=base[HISTORY:], stage=folder)


def another_stand(stand: Stand, folder: Path, symbol: str, seed: int) -> Stand:
    """Return another seeded market of the same length, with a warm start of its own."""
    base = market(len(stand.base), seed)
    _write_warm_start(folder, base, symbol, "market")
    return replace(stand, base=base, live=base[HISTORY:], decision=resample(base, MINUTES, QUARTERS), stage=folder)


@pytest.fixture
def home(stand, tmp_path) -> Path:
    """Return the home of an installation with a published warm start and no generation file."""
    (tmp_path / "bundles").mkdir()
    publish(stand, tmp_path)
    return tmp_path


def publish(stand: Stand, home: Path) -> dict[str, str]:
    """Publish the warm start and return its entry in a generation file."""
    return publish_warm_start(stand.stage, home / "serving" / "warm", data_hash="d" * 32, hits=230, n=500)


def slot_entry(version: str, digest: str, verdict: str = "passed") -> dict[str, str]:
    """Return the entry of one arm in a generation file."""
    return {
        "version": version, "digest": digest, "run_id": f"run{version}", "data_hash": "d" * 32, "git_commit": "c" * 40,
        "verdict": verdict,
    }  # fmt: skip


def last_close(bars: Floats) -> float:
    """Return the close time of the last closed 15-minute bar of these base bars, epoch seconds."""
    return float(resample(bars, MINUTES, QUARTERS)[-1, OPEN_TIME] + 900.0)
