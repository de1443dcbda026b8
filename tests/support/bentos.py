"""Build our bentos and serve them, by the commands that a user types."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.compiled import cache_dir
from pipelines.settings import ROOT

BENTOML = Path(sys.executable).with_name("bentoml")
OUTSIDE = ("PYTHONPATH", "BELLWETHER_HOME")  # what would let a bento run on more than it holds


def bento_environment(bentoml_home):
    """Return the environment of BentoML's commands with a store of their own."""
    own = {
        "BENTOML_HOME": str(bentoml_home), "BENTOML_DO_NOT_TRACK": "True", "BELLWETHER_WRITE_KEY": "test-key",
        "BELLWETHER_KERNEL_CACHE": str(cache_dir()),
    }  # fmt: skip
    return {name: value for name, value in os.environ.items() if name not in OUTSIDE} | own


def build_bentos(bentoml_home, names):
    """Build deploy/bento/<name>.yaml of each name in the repository root, side by side; return name → its folder."""
    command = [BENTOML, "build", "-o", "tag", "-f"]
    building = {
        name: subprocess.Popen(
            [*command, f"deploy/bento/{name}.yaml"], cwd=ROOT, env=bento_environment(bentoml_home / name),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    folders = {}
    for name, process in building.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        tag = out.strip().rpartition("__tag__:")[2]
        folders[name] = bentoml_home / name / "bentos" / Path(*tag.split(":"))
    return folders


def serve_bento(name, bentoml_home, port, folder, **env):
    """Start `bentoml serve` on the newest build of a bento, in a folder of no project; return process and log file."""
    log = folder / f"{name}.log"
    command = [BENTOML, "serve", f"bellwether-{name}:latest", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as written:
        process = subprocess.Popen(
            command, cwd=folder, env=bento_environment(bentoml_home / name) | env, stdout=written, stderr=written
        )
    return process, log
