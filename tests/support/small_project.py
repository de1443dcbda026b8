"""A clone of this repository whose universe is one market of 30 days and whose graph fits one family."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks import reference_universe
from pipelines.compiled import cache_dir
from pipelines.settings import ROOT, load_params

SMALL = {
    "universe": {"symbols": ["SIM/USDT"], "groups": {}},
    "simulator": {"history_days": 30},
    "splits": {"min_train_fraction": 0.6},
    "regime": {"folds": 1, "em_iterations": 5},
    "importance": {"repeats": 1},
}
FAMILIES = "[validator, pattern, regime, predictor]"


def git(root: Path, *words: str) -> str:
    """Return what a git command prints in `root`."""
    own = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *own, *words], cwd=root, capture_output=True, text=True, check=True).stdout


def environment(root: Path) -> dict[str, str]:
    """Return the environment in which the commands of a clone run its own code, with a home inside it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PYTHONPATH": str(root), "PATH": path, "BELLWETHER_HOME": str(root / "artifacts"), "COLUMNS": "200"}
    shared = {"BELLWETHER_KERNEL_CACHE": str(cache_dir())}  # its code is ours, so it is compiled already
    return kept | own | shared | {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in a clone, as its user does."""
    return subprocess.run(
        [sys.executable, *words], cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )


def clone(root: Path) -> Path:
    """Make the small project in `root`, committed, its `data.dvc` made by the code that makes the real one."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    params = yaml.safe_load((root / "params.yaml").read_text())
    for section, changes in SMALL.items():
        for name, value in changes.items():
            params[section][name] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    graph = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(graph.replace(FAMILIES, "[regime]"))
    reference_universe.main(root / "data.dvc", load_params(root / "params.yaml"))
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "small")
    return root
