"""`kernel`: the one way to compile a function. Nothing else in the project calls numba.njit.

numba's own cache checks only the file of a function, so a kernel that calls one from another file would stay stale
after that other file changed. Here the folder of a file's machine code is named by the content of the file and of all
files of this project that it imports, directly or not, of numba and of the CPU: what did not change is not compiled
again, in this copy of the project or in another that shares BELLWETHER_KERNEL_CACHE. Files that nearly every module
imports and no kernel may read (a test checks) are left out: EXCLUDED_SOURCES. fastmath, parallel and SVML stay off:
batch and live must be equal bit for bit.
"""

import atexit
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, update_wrapper
from pathlib import Path
from typing import Any, overload

log = logging.getLogger("bellwether.kernels")
_ROOT = Path(__file__).resolve().parent.parent
EXCLUDED_SOURCES = frozenset(
    _ROOT / "pipelines" / name for name in ("settings.py", "params.py", "family_params.py", "errors.py")
)
_IMPORT = re.compile(r"^\s*from ((?:pipelines|serving)[\w.]*) import (\([^)]*\)|[^\n#]+)", re.MULTILINE)
SEALS = (
    "seals.sha256"  # in the cache folder, as `sha256sum` writes it; of two lines for one file the later one is valid
)
LOOSE = stat.S_IWGRP | stat.S_IWOTH
LOCK_SECONDS = 10.0  # writing one entry takes milliseconds


@cache
def kernel_sources() -> tuple[Path, ...]:
    """Return every source file that compiles something, in a fixed order."""
    files = [*(_ROOT / "pipelines").rglob("*.py"), *(_ROOT / "serving").rglob("*.py")]
    return tuple(sorted(f for f in files if "@kernel" in f.read_text() or f.name == "contracts.py"))


def configured_dir() -> Path:
    """Return the folder of all compiled kernels, BELLWETHER_KERNEL_CACHE; `cache_dir` checks whether it may be used."""
    return Path(os.environ.get("BELLWETHER_KERNEL_CACHE", _ROOT / "artifacts" / "kernels")).resolve()


def cache_dir() -> Path:
    """Return the folder of this process's kernels: the configured one, or a new one if others could write there."""
    return _usable(configured_dir())


@cache
def _usable(folder: Path) -> Path:
    """Return `folder` if its machine code can be trusted, else a temporary folder that this process removes."""
    reason = untrusted_reason(folder)
    if reason is None:
        try:
            _make_private(folder)
        except OSError as error:  # a read-only disk: sealed files on it can still be read
            reason = None if folder.is_dir() else f"{folder} cannot be made ({error.strerror})"
    if reason is None:
        return folder
    own = Path(tempfile.mkdtemp(prefix="bellwether-kernels-"))
    atexit.register(_remove_own, own, os.getpid())
    log.warning("%s: it is not used and this process compiles for itself alone; `make setup` repairs it", reason)
    return own


def _remove_own(folder: Path, creator: int) -> None:
    """Remove the temporary folder when the process that created it ends."""
    if os.getpid() == creator:  # not when a fork of it ends
        shutil.rmtree(folder, ignore_errors=True)


def untrusted_reason(folder: Path) -> str | None:
    """Return why machine code in this folder cannot be trusted; None if it can, or if there is no folder yet."""
    if not folder.exists():
        return None
    found = folder.stat()
    if not folder.is_dir():
        return f"the kernel cache {folder} is no folder"
    if found.st_uid != os.geteuid():
        return f"the kernel cache {folder} belongs to another user (uid {found.st_uid})"
    if found.st_mode & LOOSE:
        return f"others may write in the kernel cache {folder} (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _make_private(folder: Path) -> None:
    """Create a folder, or restrict an existing one, with mode 0700."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        folder.chmod(0o700)


def sources_of(*sources: Path) -> set[Path]:
    """Return the files and everything of this project that they import, directly or not."""
    found, todo = set(sources), list(sources)
    while todo:
        new = set(_imported(todo.pop())) - found
        found |= new
        todo += new
    return found


@cache
def cpu_type() -> str:
    """Return the type of this machine's CPU as LLVM names it, such as `skylake-avx512`."""
    import llvmlite.binding

    return str(llvmlite.binding.get_host_cpu_name())


@cache
def digest_of(*sources: Path) -> str:
    """Return sixteen hex digits of files, everything of this project that they import, this numba and this CPU."""
    import numba

    digest = hashlib.sha256(f"{numba.__version__} {cpu_type()}".encode())
    for source in sorted(sources_of(*sources), key=lambda path: (path.name, str(path))):
        digest.update(source.name.encode() + _content(source))
    return digest.hexdigest()[:16]


@cache
def _content(source: Path) -> bytes:
    """Return the bytes of a source file, read once a process."""
    return source.read_bytes()


@cache
def _imported(source: Path) -> tuple[Path, ...]:
    """Return the files of this project that a source file imports directly."""
    return tuple(_files_imported(_content(source).decode()))


def _files_imported(text: str) -> Iterator[Path]:
    """Yield the files of this project that source text imports, without EXCLUDED_SOURCES."""
    for module, names in _IMPORT.findall(text):
        at = _ROOT.joinpath(*module.split("."))
        for path in (at, *(at / name for name in re.findall(r"\w+", names))):
            if (file := path.with_suffix(".py")).is_file() and file not in EXCLUDED_SOURCES:
                yield file


# ---- seals ----------------------------------------------------------------------------------------------------------


def prepare() -> str | None:
    """Make the configured folder usable; return what was wrong in one sentence, None if nothing was.

    Files that do not match their seal are removed, and all of them if others could write here. Raises PermissionError
    if the folder belongs to another user or is open to all users on purpose, as /tmp is.
    """
    folder = configured_dir()
    reason = untrusted_reason(folder)
    if reason and not _can_be_closed(folder):
        raise PermissionError(f"{reason}; set BELLWETHER_KERNEL_CACHE to a folder of your own")
    _make_private(folder)
    if reason:
        (folder / SEALS).unlink(missing_ok=True)
        shutil.rmtree(folder / "folds", ignore_errors=True)  # generated sources and their bytecode
    _usable.cache_clear()
    bad = remove_invalid(folder)
    if reason:
        return f"{reason}: closed to them, and what was in it ({bad} files) is compiled again"
    return f"{bad} files in {folder} do not match their seal: compiled again" if bad else None


def _can_be_closed(folder: Path) -> bool:
    """Return whether the folder is ours, and not one like /tmp, which is open on purpose."""
    found = folder.stat()
    return folder.is_dir() and found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX


def remove_invalid(folder: Path) -> int:
    """Remove every file that differs from its seal or has none, with its seal; return how many."""
    with locked(folder):
        bad = invalid_files(folder)
        for name in bad:
            (folder / name).unlink(missing_ok=True)
        for draft in folder.rglob("*.tmp.*"):  # writers hold the lock, so no one is writing these
            draft.unlink(missing_ok=True)
        if bad:
            valid = {name: digest for name, digest in _sealed(folder).items() if name not in bad}
            text = "".join(f"{digest}  {name}\n" for name, digest in valid.items())
            with open(_opened(folder / SEALS, os.O_WRONLY | os.O_TRUNC), "w") as seals:
                seals.write(text)
    return len(bad)


def invalid_files(folder: Path) -> list[str]:
    """Return names of sealed files that are missing or changed, and of code without a seal. Reads all of them."""
    if not folder.is_dir():
        return []
    seals = _sealed(folder)
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.nb[ci]")}
    return sorted({name for name in seals if _verified(folder, name) is None} | (found - seals.keys()))


def read_sealed(folder: Path, name: str) -> bytes | None:
    """Return the bytes of a file of this folder; None if it is missing or differs from its seal (logged once)."""
    content = _verified(folder, name)
    if content is None and (folder / name).exists():
        _warn_once(folder)
    return content


@cache
def _warn_once(folder: Path) -> None:
    """Log, once a process, that files of this folder do not match their seal."""
    log.warning("the kernel cache %s holds files that do not match their seal: these are compiled again", folder)


def _verified(folder: Path, name: str) -> bytes | None:
    """Return the bytes of a file that matches its seal, else None."""
    file = folder / name
    try:
        if file.parent.lstat().st_mode & LOOSE:
            return None
        with open(_opened(file, os.O_RDONLY), "rb") as handle:
            content = handle.read()
    except OSError:  # missing, a link, or not ours to read
        return None
    return content if hashlib.sha256(content).hexdigest() == _sealed(folder).get(name) else None


def _opened(file: Path, flags: int) -> int:
    """Return the descriptor of a plain file that only this user may write. Raises OSError for any other."""
    descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & LOOSE:
        os.close(descriptor)
        raise PermissionError(f"{file} is not a plain file that only this user may write")
    return descriptor


def _sealed(folder: Path) -> dict[str, str]:
    """Return name → sha256 of everything sealed in this folder; a line that was cut short is ignored."""
    try:
        found = (folder / SEALS).stat()
        return _seals(folder, found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        return {}


@cache
def _seals(folder: Path, *_version: int) -> dict[str, str]:
    """Return name → sha256 of a seal file; `_version` (inode, time, size) makes the cache read a changed file again."""
    with open(_opened(folder / SEALS, os.O_RDONLY), errors="replace") as seals:
        lines = [line.rstrip("\n").partition("  ") for line in seals if line.endswith("\n")]
    return {name: digest for digest, _, name in lines if len(digest) == 64}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the writers' lock of a folder. Raises OSError if it cannot be written, or is locked for LOCK_SECONDS."""
    descriptor = _opened(folder / SEALS, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"another process has been writing in {folder} for {LOCK_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def seal(folder: Path, name: str, content: bytes) -> None:
    """Write a file of this folder atomically, and its seal. Raises OSError."""
    with locked(folder):
        write_sealed(folder, name, content)


def write_sealed(folder: Path, name: str, content: bytes) -> None:
    """Write file and seal; the caller holds the lock."""
    file = folder / name
    _make_private(file.parent)
    draft = file.with_name(f"{file.name}.tmp.{uuid.uuid4().hex[:16]}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(content)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    line = f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
    with open(_opened(folder / SEALS, os.O_RDWR | os.O_APPEND), "rb+") as seals:
        before = seals.read()
        seals.truncate(before.rfind(b"\n") + 1)  # drop a line that was cut short
        seals.write(line)


# ---- all compiled or not --------------------------------------------------------------------------------------------


def _warm_mark() -> str:
    """Return the name of the file that `mark_warm` writes for this content, numba and CPU."""
    return f"warmed_{digest_of(*kernel_sources())}"


def mark_warm() -> None:
    """Record that all kernels of this content are in the cache: a sealed list of everything sealed now."""
    folder = configured_dir()
    seal(folder, _warm_mark(), "\n".join(sorted(_sealed(folder))).encode())


def kernels_are_warm() -> bool:
    """Return whether `mark_warm` was called for this content, numba and CPU, and each file it listed is unchanged."""
    folder = configured_dir()
    if untrusted_reason(folder) is not None:
        return False
    names = _verified(folder, _warm_mark())
    return names is not None and all(_verified(folder, name) is not None for name in names.decode().split("\n"))


# ---- kernels --------------------------------------------------------------------------------------------------------


class Kernel:
    """A function that numba compiles, or loads from the cache, at its first call.

    Numba itself is imported no earlier: a command that folds nothing does not wait for it.
    """

    def __init__(self, function: Any, nogil: bool = False) -> None:
        """Hold `function`, which stays readable as `py_func`. nogil: other threads run while it does."""
        update_wrapper(self, function)
        self.py_func, self.nogil = function, nogil

    def __call__(self, *arguments: Any) -> Any:
        """Return what the compiled function returns."""
        return self.compiled(*arguments)

    @cached_property
    def compiled(self) -> Any:
        """Return numba's dispatcher of the function, cached on disk by content; one for all threads."""
        from numba.core.compiler_lock import global_compiler_lock

        with global_compiler_lock:  # held while a kernel compiles those it calls: a lock of our own could deadlock
            return self.__dict__.get("compiled") or self._dispatcher()

    def _dispatcher(self) -> Any:
        """Return a new dispatcher; `nogil` stands in the source, whose content names the cache folder."""
        import numba

        from pipelines import kernel_cache

        numba.config.CACHE_DIR = str(cache_dir())
        numba.config.CACHE_LOCATOR_CLASSES = f"{kernel_cache.__name__}.{kernel_cache.ByContent.__name__}"
        compiled = numba.njit(error_model="numpy", fastmath=False, nogil=self.nogil)(self.py_func)
        compiled._cache = kernel_cache.SealedCache(self.py_func)  # what cache=True does, with ours in its place
        return compiled

    @property
    def _numba_type_(self) -> Any:
        """Return what numba asks of a global that another kernel calls."""
        return self.compiled._numba_type_


@overload
def kernel(function: Callable[..., Any]) -> Kernel: ...
@overload
def kernel(*, nogil: bool) -> Callable[[Callable[..., Any]], Kernel]: ...
def kernel(
    function: Callable[..., Any] | None = None, *, nogil: bool = False
) -> Kernel | Callable[[Callable[..., Any]], Kernel]:
    """Return `function` compiled with numba at its first call; a drop-in for `numba.njit`.

    nogil  `@kernel(nogil=True)`: other threads run while a call from Python does. Only for a function whose arrays
           no other thread uses meanwhile
    """
    return Kernel(function, nogil) if function is not None else lambda each: Kernel(each, nogil)
