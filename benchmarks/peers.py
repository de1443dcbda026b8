"""Serve one XGBoost model as others do, over HTTP: `mlflow models serve`, and MLServer where it is installed.

Neither stores anything, and both answer one row of one model: what they do is a small part of a decision.
BELLWETHER_MLSERVER names the command `mlserver` of an environment of its own (`pip install mlserver mlserver-xgboost`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.ports import free_ports
from pipelines.contracts import Floats
from pipelines.errors import ServiceDown

START_S = 90.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Hold a server that runs and the request of one row; `absent`: why it is not measured, then it has no URL."""

    name: str
    url: str = ""
    body: bytes = b""
    absent: str = ""

    def predict(self, http: httpx.Client) -> object:
        """Return what it answers to one row."""
        answer = http.post(self.url, content=self.body, headers={"content-type": "application/json"})
        return answer.raise_for_status().json()


@contextmanager
def peers(trees: Any, columns: Sequence[str], row: Floats) -> Iterator[list[Peer]]:
    """Serve a fitted XGBoost classifier by every peer that is installed; `row` (k,) is what each is sent."""
    with tempfile.TemporaryDirectory(prefix="bellwether-peers-") as scratch, ExitStack() as running:
        folder = Path(scratch)
        yield [
            running.enter_context(_mlflow(folder, trees, columns, row)),
            running.enter_context(_mlserver(folder, trees, row)),
        ]


@contextmanager
def _mlflow(folder: Path, trees: Any, columns: Sequence[str], row: Floats) -> Iterator[Peer]:
    """Run `mlflow models serve` on the model."""
    import mlflow.xgboost

    mlflow.xgboost.save_model(trees, str(folder / "mlflow"))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder / "mlflow"),
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    body = json.dumps({"dataframe_split": {"columns": list(columns), "data": [row.tolist()]}}).encode()
    with _running(command, folder / "mlflow.log", f"http://127.0.0.1:{port}/ping"):
        yield Peer("mlflow models serve, one XGBoost row", f"http://127.0.0.1:{port}/invocations", body)


@contextmanager
def _mlserver(folder: Path, trees: Any, row: Floats) -> Iterator[Peer]:
    """Run MLServer on the model, without parallel workers: faster for one client."""
    name, command = "MLServer, one XGBoost row", os.environ.get("BELLWETHER_MLSERVER") or shutil.which("mlserver")
    if not command:
        yield Peer(name, absent="not installed: BELLWETHER_MLSERVER names no command, and there is no `mlserver`")
        return
    served = folder / "mlserver"
    served.mkdir()
    trees.get_booster().save_model(served / "model.json")
    http, grpc, metrics = free_ports(3)
    settings = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    model = {
        "name": "trees",
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": "./model.json"},
    }
    (served / "settings.json").write_text(json.dumps(settings | {"host": "127.0.0.1"}))
    (served / "model-settings.json").write_text(json.dumps(model))
    inputs = [{"name": "rows", "shape": [1, len(row)], "datatype": "FP64", "data": row.tolist()}]
    base = f"http://127.0.0.1:{http}/v2"
    with _running([command, "start", str(served)], folder / "mlserver.log", f"{base}/health/ready"):
        yield Peer(name, f"{base}/models/trees/infer", json.dumps({"inputs": inputs}).encode())


@contextmanager
def _running(command: Sequence[str], log: Path, probe: str) -> Iterator[None]:
    """Run a server until the block ends, down to its last child. Raises ServiceDown if it does not answer `probe`."""
    variables: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
    try:
        _await(process, log, probe)
        yield
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sent)
                process.wait(10.0)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def _await(process: "subprocess.Popen[bytes]", log: Path, probe: str) -> None:
    """Wait until the probe answers 200. Raises ServiceDown with the end of the log."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(probe, timeout=2.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.2)
    raise ServiceDown(f"nothing answers at {probe}: {log.read_text(errors='replace')[-800:]}")
