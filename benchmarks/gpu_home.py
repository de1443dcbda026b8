"""A home with networks to serve, and the model service on it, for `benchmarks.gpu`. No training library is loaded."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import torch
from torch import nn

from benchmarks.arms import serve_arms
from benchmarks.ports import free_ports
from pipelines.contracts import Floats, Model
from pipelines.models.base import Export
from pipelines.models.calibration_and_novelty import Calibration, Novelty, as_json
from pipelines.models.export import json_bytes, write_bundle
from pipelines.models.networks import CORE, Plan, RecurrentNetwork, train_network
from pipelines.models.pattern_network import PatternNetwork
from pipelines.models.pattern_onnx import network_to_onnx
from pipelines.models.recurrent_onnx import recurrent_to_onnx
from pipelines.models.runtime import load_bundle
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT, Settings

ROWS = (1, 64, 1024, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows a close at which the card is compared with this CPU
MARKET, CLASSES, SEED = 5, 9, 7
KEY = "benchmark"
LOAD_S = 240.0  # until a service must be ready
FAMILIES = ("predictor", "pattern")


@dataclass(frozen=True, slots=True)
class Size:
    """Set how much is measured: rows a batch, seconds and calls a figure, windows and epochs of the training.

    load_s  seconds of load before a swap, and after it
    """

    rows: tuple[int, ...] = ROWS
    batches: tuple[int, ...] = BATCHES
    seconds: float = 2.0
    calls: int = 1000
    windows: int = 2500
    epochs: int = 3
    load_s: float = 0.5


TINY = Size((1, 3), (1, 2), 0.01, 3, 48, 1, 0.05)


def windows_of(family: str, n: int) -> Floats:
    """Return (n, steps, columns) random windows of a family; directions of a pattern are -1, 0 or 1."""
    view, rng = VIEWS[family], np.random.default_rng(SEED)
    rows = rng.normal(size=(n, view.steps, len(view.columns)))
    if family == "pattern":
        rows[:, :, -CLASSES:] = rng.integers(-1, 2, size=(n, view.steps, CLASSES))
    return rows


def places_of(family: str) -> list[int]:
    """Return the positions of the columns that the network of a family reads."""
    width = len(VIEWS[family].columns)
    return list(range(width)) if family == "predictor" else [*range(MARKET), *range(width - CLASSES, width)]


def network_for(family: str, seed: int, size: Size) -> nn.Module:
    """Return a network trained briefly on a visible rule, so that its probabilities spread from 0 to 1."""
    torch.manual_seed(seed)
    x = windows_of(family, 8 * size.windows // 25 + 16)[:, :, places_of(family)].astype(np.float32)
    outputs = 1 if family == "predictor" else CLASSES
    network: nn.Module = (
        RecurrentNetwork(x.shape[2], *CORE[1:])
        if family == "predictor"
        else PatternNetwork((0, 2, 1, 3, 4), (-1.0, -1.0, -1.0, -1.0, -1.0), CLASSES, 24, 0.2)
    )
    y, half = (x[:, -1, np.arange(outputs) % MARKET] > 0).astype(np.float64), len(x) // 2
    tail = (x[half:], y[half:], np.ones(len(x) - half))
    train_network(
        network, x[:half], y[:half], np.ones(half), tail, Plan(3 * size.epochs, 32, 5e-3, 9, seed), bf16=False
    )
    return network


def write_network(bundles: Path, family: str, seed: int, size: Size) -> str:
    """Write a bundle with one network and return its digest."""
    view, network = VIEWS[family], network_for(family, seed, size)
    columns = [view.columns[i] for i in places_of(family)]
    graph = (recurrent_to_onnx if family == "predictor" else network_to_onnx)(network, view.steps, "network")
    classes = ["up"] if family == "predictor" else [name.removesuffix(".direction") for name in columns[-CLASSES:]]
    member = {"name": "network", "file": "network.onnx", "reads": "window", "columns": columns, "weight": 1.0}
    schema = {"classes": classes, "steps": view.steps, "members": [member], "symbols": ["SIM/USDT"]}
    if family == "pattern":
        schema["gates"] = columns[-CLASSES:]
    lines = [as_json(Calibration(1.0, 0.0, np.eye(2) * 1e-6))] * len(classes)
    width = len(view.columns)
    digest = write_bundle(
        bundles / "draft",
        family=family,
        export=Export("ensemble", {"network.onnx": graph, "calibration.json": json_bytes({"network": lines})}, schema),
        novelty=Novelty(np.zeros(width), np.eye(width), 1e6),
        schema={"columns": list(view.columns), "dropped": {}, "decision_timeframe": "15m"},
        card="# measured only\n",
        inputs=windows_of(family, 64),
    )
    (bundles / "draft").rename(bundles / digest)
    return digest


@dataclass(frozen=True, slots=True)
class Home:
    """Hold the home of an installation with a champion and a challenger of each family that has a network."""

    where: Settings
    digests: Mapping[str, tuple[str, str]]

    def serve(self, first: int) -> None:
        """Serve the version `first` of the predictor as champion and the other as challenger."""
        families = {
            family: {"champion": _entry(pair, first), "challenger": _entry(pair, 1 - first)}
            for family, pair in self.digests.items()
        }
        serve_arms(self.where, families, None, datetime.now(UTC))

    def model(self, family: str, arm: int = 0) -> Model:
        """Return one of the models, on this CPU."""
        digest = self.digests[family][arm]
        return load_bundle(self.where.bundles / digest, digest)


def _entry(digests: tuple[str, str], i: int) -> dict[str, str]:
    """Return the entry of one version in a generation file."""
    return {
        "version": str(i + 1),
        "digest": digests[i],
        "run_id": "",
        "data_hash": "",
        "git_commit": "",
        "verdict": "passed",
    }


def make_home(folder: Path, size: Size) -> Home:
    """Write bundles and a ledger into a new home."""
    where = Settings(home=folder, store_url="")
    where.bundles.mkdir(parents=True)
    digests = {
        f: (write_network(where.bundles, f, 1, size), write_network(where.bundles, f, 2, size)) for f in FAMILIES
    }
    home = Home(where, digests)
    home.serve(0)
    return home


@contextlib.contextmanager
def model_service(home: Home, device: str, precision: str) -> Iterator[httpx.Client]:
    """Start the model service as an installation does and yield a client of it, once it is ready."""
    (port,) = free_ports(1)
    env = os.environ | {
        "BELLWETHER_HOME": str(home.where.home), "BELLWETHER_WRITE_KEY": KEY, "BELLWETHER_DEVICE": device,
        "BELLWETHER_DEVICE_PRECISION": precision, "BENTOML_DO_NOT_TRACK": "True", "BELLWETHER_STORE_URL": "",
        "BENTOML_HOME": str(home.where.home / "bentoml"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "serving.service.model_service:ModelService",
        "--host",
        "127.0.0.1",
    ]
    log = home.where.home / f"models-{precision}.log"
    with log.open("w") as written:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=env, stdout=written, stderr=written)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
            deadline = time.monotonic() + LOAD_S
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the model service did not become ready:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(client: httpx.Client) -> bool:
    """Return whether every check of the service holds."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
