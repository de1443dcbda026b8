"""Run `bellwether` as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.settings import ROOT

COMMAND = Path(sys.executable).with_name("bellwether")


def environment(home):
    """Return the environment of an installation under `home` without services; compiled code is shared."""
    outside = {
        k: v
        for k, v in os.environ.items()
        if k == "BELLWETHER_KERNEL_CACHE" or not (k.startswith("BELLWETHER_") or k == "CI")
    }
    closed = {f"BELLWETHER_{name}_PORT": "9" for name in ("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY")}
    return {**outside, **closed, "BELLWETHER_HOME": str(home)}


def bellwether(home, *words, **variables):
    """Run one command, with more variables if any, and return the finished process."""
    return subprocess.run([COMMAND, *words], cwd=ROOT, env=environment(home) | variables, capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
