"""`kernel`: the one way to compile a function. Nothing else in the project calls numba.njit.

numba's own cache only looks at the file that holds a function, so a kernel that calls one from another file would be
served stale after that other file changed. The cache folder is therefore named by a hash of every kernel source, the
numba version and the CPU. fastmath, parallel and SVML stay off: batch and live must be equal bit for bit.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

_ROOT = Path(__file__).resolve().parent.parent


@cache
def kernel_sources() -> tuple[Path, ...]:
    """Every source file that compiles something, in a fixed order."""
    files = [*(_ROOT / "pipelines").rglob("*.py"), *(_ROOT / "serving").rglob("*.py")]
    return tuple(sorted(f for f in files if "@kernel" in f.read_text() or f.name == "contracts.py"))


@cache
def cache_dir() -> Path:
    """Folder of compiled kernels for exactly these sources, this numba and this CPU."""
    digest = hashlib.sha256()
    for source in kernel_sources():
        digest.update(source.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()}".encode())
    home = Path(os.environ.get("BELLWETHER_KERNEL_CACHE", _ROOT / "artifacts" / "kernels"))
    return home / digest.hexdigest()[:16]


def kernel(function: Any) -> Any:
    """Compile `function` with numba, cached on disk; a drop-in for `numba.njit`."""
    numba.config.CACHE_DIR = str(cache_dir())
    return numba.njit(cache=True, error_model="numpy", fastmath=False)(function)
