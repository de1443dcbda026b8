"""The committed dvc.lock, reproduced: a fresh clone of the newest commit, data restored, `dvc repro` of every stage.

On the CPU type that data.dvc was made on every digest is that of the lock; elsewhere the committed figures are met to
1e-9. Run: python -m benchmarks.evidence dvc_repro
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.compiled import cache_dir
from pipelines.contracts import JsonObject
from pipelines.data.reference_year import cpu_type
from pipelines.errors import StateError
from pipelines.settings import ROOT, read_yaml

CASES = ("the committed lock",)
TOLERANCE = 1e-9  # relative, of a committed figure
SHOWN = Path("docs/results/dvc")


def reproduced(_case: str) -> JsonObject:
    """Reproduce the committed lock in a clone of its own; return counts of outputs and figures that are the same."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if not (clone / "dvc.lock").is_file():
            raise StateError("the newest commit has no dvc.lock: `make lock`, then commit it")
        lock, figures = digests(clone), figures_of(clone)
        _run(clone, "-m", "bellwether.cli.main", "data", "restore")
        _run(clone, "-m", "dvc", "repro")
        again, figures_again = digests(clone), figures_of(clone)
    return {
        "made_on_this_cpu": read_yaml(ROOT / "data.dvc")["meta"]["cpu"] == cpu_type(),
        "outputs": len(lock),
        "same_digest": sum(again.get(path) == digest for path, digest in lock.items()),
        "figures": len(figures),
        "same_figure": sum(is_close(value, figures_again.get(name)) for name, value in figures.items()),
    }


def digests(root: Path) -> dict[str, str]:
    """Return output → digest of every stage in a lock."""
    stages = read_yaml(root / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def figures_of(root: Path) -> dict[str, float]:
    """Return every number of the committed metrics and plots, by file and place."""
    return {
        f"{file.name}:{name}": value
        for file in sorted((root / SHOWN).glob("*.json"))
        for name, value in _numbers(json.loads(file.read_text()))
    }


def is_close(value: float, other: float | None) -> bool:
    """Return whether a figure is met to TOLERANCE."""
    return other is not None and abs(value - other) <= TOLERANCE * max(abs(value), abs(other))


def _numbers(found: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield place and value of each number in a JSON value."""
    if isinstance(found, Mapping | list):
        items = found.items() if isinstance(found, Mapping) else enumerate(found)
        for key, value in items:
            yield from _numbers(value, f"{place}/{key}")
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield place, float(found)


def _run(root: Path, *words: str) -> None:
    """Run Python in a clone with its own code. Raises CalledProcessError."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PYTHONPATH": str(root), "BELLWETHER_HOME": str(root / "artifacts"), "PATH": path}
    own["BELLWETHER_KERNEL_CACHE"] = str(cache_dir())  # its code is ours, so it is compiled already
    subprocess.run([sys.executable, *words], cwd=root, env=outside | own, check=True)
