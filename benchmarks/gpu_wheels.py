"""Collect, as wheels, what a machine that has torch still lacks to run `benchmarks.gpu`; for one without a network.

Run: python -m benchmarks.gpu_wheels FOLDER [--python 3.12] [--have FILE]
There: pip install --no-index --no-deps --target SITE FOLDER/*.whl; PYTHONPATH=SITE python -m benchmarks.gpu
FILE names what that machine has, one a line, as `pip freeze` prints it; without one, PRESENT is assumed.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.settings import ROOT

NEEDED = (
    "bentoml", "httptools", "pydantic-settings", "sqlalchemy", "alembic", "msgspec", "httpx", "psutil", "pyyaml",
    "packaging",
)  # fmt: skip
# images with torch have these too, and they are large; of whatever version, for a measurement
PRESENT = ("torch", "numpy", "numba", "llvmlite", "onnx", "onnxruntime", "protobuf", "setuptools", "pip")
LIMIT_MIB = 64
_MINORS = (39, 38, 35, 34, 31, 28, 27, 24, 17, 12, 5)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in _MINORS), "manylinux2014_x86_64", "manylinux1_x86_64")


def closure(roots: Iterable[str], python: str) -> set[str]:
    """Return the canonical names of packages and of all that they require, as they are installed here."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found:
            continue
        try:
            wanted = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # of another platform or Python than ours
            continue
        found.add(name)
        extras = ["", *one.extras]
        waiting += [
            each
            for each in wanted
            if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in extras)
        ]
    return found


def locked() -> Mapping[str, str]:
    """Return canonical name → version of requirements.lock."""
    lines = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def lacking(have: Iterable[str], python: str) -> list[str]:
    """Return `name==version` of what a machine with these packages lacks, sorted."""
    there = {canonicalize_name(re.split(r"[=<>@ \[]", name.strip())[0]) for name in have if name.strip()}
    versions = locked()
    return sorted(f"{name}=={versions[name]}" for name in closure(NEEDED, python) - there if name in versions)


def main() -> int:
    """Download the wheels; return 1 where they are more than LIMIT_MIB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_wheels", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version of that machine")
    parser.add_argument("--have", type=Path, help="what that machine has, one package a line")
    options = parser.parse_args()
    have = [*PRESENT, *(options.have.read_text().splitlines() if options.have else ())]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", options.python, "--implementation", "cp", *platforms, "--dest", str(options.folder)]
    subprocess.run([*command, *lacking(have, options.python)], check=True)
    wheels = list(options.folder.glob("*.whl"))
    mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {mib:.1f} MiB of at most {LIMIT_MIB}")
    return 1 if mib > LIMIT_MIB else 0


if __name__ == "__main__":
    sys.exit(main())
