"""The stated ceiling of 100 epochs against the default of params.yaml: evidence part `predictor_100_epochs`.

Both are walked forward on the same rows of candles; a positive gain means that the longer training predicts better.
"""

import contextlib
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from benchmarks.fixture import SIMULATED, listed, recorded, recording, simulated, snapshot
from pipelines.contracts import Estimate, Floats, JsonObject
from pipelines.data.timeframes import Grid
from pipelines.models.base import Dataset
from pipelines.models.predictor import PREDICTOR
from pipelines.params import Params
from pipelines.settings import load_params
from pipelines.training import stages
from pipelines.training.fit import complete_rows
from pipelines.training.walk import out_of_fold

STATED_EPOCHS = 100  # row M4 of the specification: a ceiling under early stopping
MARKETS = {"simulated year": None, "BTC/USDT 2024": "binance_spot_btcusdt_1m_2024.parquet"}
BLOCKS = 20  # of consecutive rows; labels last four bars, so blocks of hundreds of rows hardly touch


def epochs_compared(market: str) -> JsonObject:
    """Return gain, losses, epochs and seconds of 100 epochs, the best one kept, against the default on a market."""
    params, file = load_params(), MARKETS[market]
    bars = simulated(params, params.simulator.history_days) if file is None else recorded(recording(file))
    symbol = params.simulator.symbol if file is None else market.split()[0]
    with tempfile.TemporaryDirectory(prefix="bellwether-evidence-") as scratch:
        folder = snapshot(Path(scratch), bars, symbol, SIMULATED if file is None else listed(file))
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            stages.build_features(params)
            stages.build_labels(params)
        data = PREDICTOR.dataset(folder / "artifacts", params)
        there = np.isfinite(data.newest()).any(axis=0)
        data = data.select_columns(there)
        data = data.select_rows(complete_rows(data))
        longer = params.predictor.model_copy(update={"epochs": STATED_EPOCHS, "patience": STATED_EPOCHS})
        default = _walked(data, params)
        stated = _walked(data, params.model_copy(update={"predictor": longer}))
    return {
        "market": market,
        "gain": asdict(block_mean(default["loss"] - stated["loss"])),
        "loss_default": float(default["loss"].mean()),
        "loss_stated": float(stated["loss"].mean()),
        "epochs_default": default["epochs"],
        "epochs_stated": stated["epochs"],
        "seconds_default": default["seconds"],
        "seconds_stated": stated["seconds"],
    }


def _walked(data: Dataset, params: Params) -> JsonObject:
    """Return (n,) losses out of fold, the epochs trained in all folds, and the seconds it took."""
    lines: list[str] = []
    started = time.perf_counter()
    embargo = stages.embargo_seconds(params, Grid("15m"))
    loss: Floats = out_of_fold(PREDICTOR, data, params, embargo, lines.append).loss
    epochs = sum("epoch " in line for line in lines)
    return {"loss": loss, "epochs": epochs, "seconds": round(time.perf_counter() - started, 1)}


def block_mean(values: Floats) -> Estimate:
    """Return the mean of values (n,) in time order, with a 95 % t interval over BLOCKS blocks of them."""
    means = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
    half = float(student.ppf(0.975, BLOCKS - 1) * means.std(ddof=1) / np.sqrt(BLOCKS))
    return Estimate(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, len(values))


def gains(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return market → gain in log loss of the stated epochs over the default, nats."""
    return {f"gain on {case['market']}": case["gain"] for case in found}
