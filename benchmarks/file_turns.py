"""A whole turn on each of file_histories: `bellwether run --once` in a home of its own, with every server.

Run: python -m benchmarks.evidence file_turns
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.file_histories import HISTORIES
from benchmarks.ports import free_ports
from pipelines.contracts import JsonObject
from pipelines.settings import ROOT

SERVERS = ("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY")
PATIENCE_S = 1800.0
KEPT = 4000  # characters of what a turn that failed wrote last


def turn(name: str) -> JsonObject:
    """Run one turn on a history; return exit code, seconds, what each family came to, and decisions by action."""
    history = HISTORIES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = history.write(Path(folder))
        ports = {f"BELLWETHER_{server}_PORT": str(port) for server, port in zip(SERVERS, free_ports(5), strict=True)}
        command = [
            str(Path(sys.executable).with_name("bellwether")), "run", "--source", "files", "--path", str(path),
            "--symbol", history.symbol, *history.options, "--once", "--json",
        ]  # fmt: skip
        began = time.monotonic()
        ran = subprocess.run(
            command, cwd=ROOT, env=os.environ | ports | {"BELLWETHER_HOME": str(Path(folder) / "home")},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        seconds = round(time.monotonic() - began, 1)
    found: JsonObject = {"exit_code": ran.returncode, "seconds": seconds, "traceback": "Traceback" in ran.stderr}
    if ran.returncode != 0:
        return found | {"output": ran.stderr[-KEPT:]}
    result = json.loads(ran.stdout)
    return found | {
        "versions": sorted(result["versions"]), "untrained": result.get("untrained", {}),
        "actions": result["actions"], "drift": result["monitor"]["summary"],
    }  # fmt: skip


def turn_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return exit code, seconds, families trained and decisions of each turn, without an interval."""
    figures = {}
    for case in found:
        counted = {
            "exit code": case["exit_code"], "seconds": case["seconds"], "families": len(case.get("versions", ())),
            "decisions": sum(case.get("actions", {}).values()),
        }  # fmt: skip
        figures |= {
            f"{case['case']}: {name}": {"value": float(value), "low": None, "high": None, "n": 1}
            for name, value in counted.items()
        }
    return figures
