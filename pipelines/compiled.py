"""`kernel`: the one way to compile a function. Nothing else in the project calls numba.njit.

numba's own cache looks at the file that holds a function only, so a kernel that calls one from another file would be
served stale after that other file changed. Here the folder of a file's machine code is named by the content of the file
and of all files of this project that it imports, directly or not, of numba and of the CPU: what did not change is not
compiled again, in this copy of the project or in another that shares BELLWETHER_KERNEL_CACHE. Two files that nearly all
import are left out, for no kernel may read them (a test looks): settings.py and errors.py. fastmath, parallel and
SVML stay off: batch and live must be equal bit for bit.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from numba.core.caching import UserProvidedCacheLocator

_ROOT = Path(__file__).resolve().parent.parent
UNREAD = frozenset({_ROOT / "pipelines" / "settings.py", _ROOT / "pipelines" / "errors.py"})
_IMPORT = re.compile(r"^\s*from ((?:pipelines|serving)[\w.]*) import (\([^)]*\)|[^\n#]+)", re.MULTILINE)


@cache
def kernel_sources() -> tuple[Path, ...]:
    """Every source file that compiles something, in a fixed order."""
    files = [*(_ROOT / "pipelines").rglob("*.py"), *(_ROOT / "serving").rglob("*.py")]
    return tuple(sorted(f for f in files if "@kernel" in f.read_text() or f.name == "contracts.py"))


def cache_dir() -> Path:
    """Folder of all compiled kernels."""
    return Path(os.environ.get("BELLWETHER_KERNEL_CACHE", _ROOT / "artifacts" / "kernels"))


def sources_of(*sources: Path) -> set[Path]:
    """Files and everything of this project that they import, directly or not."""
    found, todo = set(sources), list(sources)
    while todo:
        new = set(_imported(todo.pop())) - found
        found |= new
        todo += new
    return found


@cache
def digest_of(*sources: Path) -> str:
    """Of files and everything of this project that they import, this numba and this CPU: sixteen hex digits."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()}".encode())
    for source in sorted(sources_of(*sources), key=lambda path: (path.name, str(path))):
        digest.update(source.name.encode() + _content(source))
    return digest.hexdigest()[:16]


@cache
def _content(source: Path) -> bytes:
    return source.read_bytes()


@cache
def _imported(source: Path) -> tuple[Path, ...]:
    return tuple(_files_imported(_content(source).decode()))


def _files_imported(text: str) -> Iterator[Path]:
    for module, names in _IMPORT.findall(text):
        at = _ROOT.joinpath(*module.split("."))
        for path in (at, *(at / name for name in re.findall(r"\w+", names))):
            if (file := path.with_suffix(".py")).is_file() and file not in UNREAD:
                yield file


class ByContent(UserProvidedCacheLocator):  # type: ignore[misc]
    """Where numba keeps the machine code of a function."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        source = Path(py_file)
        self._cache_path = str(cache_dir() / f"{source.stem}_{digest_of(source)}")


def kernel(function: Any) -> Any:
    """Compile `function` with numba, cached on disk; a drop-in for `numba.njit`."""
    numba.config.CACHE_DIR = str(cache_dir())
    numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{ByContent.__name__}"
    return numba.njit(cache=True, error_model="numpy", fastmath=False)(function)
