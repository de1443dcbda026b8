"""A home of its own for a benchmark: environment with free ports, and a params.yaml with changes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ports import free_ports
from pipelines.settings import ROOT

SERVERS = ("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY")


def environment(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the environment of a home under `folder`; BELLWETHER_ variables set outside are dropped.

    changes  section of params.yaml → key → value, in place of what the project says
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in changes.items():
        params[section] |= values
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    outside = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_") and k not in ("CI", "COLUMNS")}
    kernels = {k: v for k, v in os.environ.items() if k == "BELLWETHER_KERNEL_CACHE"}  # compiled code is shared
    ports = {f"BELLWETHER_{s}_PORT": str(port) for s, port in zip(SERVERS, free_ports(len(SERVERS)), strict=True)}
    own = {"BELLWETHER_HOME": str(folder / "home"), "BELLWETHER_PARAMS_FILE": str(file)}
    return outside | kernels | ports | own
