"""Describe errors of the system and of libraries in one sentence: the file or service, and what to do.

Our own errors (`pipelines.errors`) carry such a message already. The traceback of an unexpected error goes to a file.
"""

import errno
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from pipelines.settings import ROOT, settings

DEBUG = "BELLWETHER_DEBUG"  # 1: show tracebacks; no field of Settings, because it must work when those cannot be read

_BY_ERRNO = {
    errno.ENOSPC: "The disk is full: free some room, then repeat; services go on by themselves",
    errno.EDQUOT: "The quota is used up: free some room, then repeat; services go on by themselves",
    errno.EROFS: "The file system is read-only: mount it for writing, or set BELLWETHER_HOME elsewhere",
    errno.EACCES: "Give this user access to it (chown, chmod), or set BELLWETHER_HOME elsewhere",
    errno.EPERM: "Give this user access to it (chown, chmod), or set BELLWETHER_HOME elsewhere",
    errno.ENOTDIR: "A file is where a folder is needed: move it away, or set BELLWETHER_HOME elsewhere",
    errno.EEXIST: "A file is where a folder is needed: move it away, or set BELLWETHER_HOME elsewhere",
    errno.EISDIR: "A folder is where a file is needed: move it away",
    errno.ENOENT: "Check the path; if it is one of ours, `bellwether run --once` writes it",
    errno.EIO: "The disk cannot be read: check it, then restore a backup with `bellwether restore FILE`",
    errno.EMFILE: "Too many files are open: raise `ulimit -n`, then repeat",
    errno.ENAMETOOLONG: "Set BELLWETHER_HOME to a shorter path",
    errno.ELOOP: "Links go round in a circle: remove one",
}
_STORE = (  # part of a message of SQLite or PostgreSQL → what to do
    ("not a database", "It is damaged: move it away and restore a backup with `bellwether restore FILE`"),
    ("malformed", "It is damaged: move it away and restore a backup with `bellwether restore FILE`"),
    ("disk i/o error", "The disk cannot be used: check it and its free room, then repeat"),
    ("disk is full", "Free some room, then repeat; services go on by themselves"),
    ("readonly", "Give this user write access to the file and its folder (chown, chmod)"),
    ("unable to open", "Check that its folder exists and that this user may write there"),
    ("locked", "Another process is writing: repeat; if it stays, `bellwether doctor` names who is alive"),
    ("password authentication", "Correct user and password in BELLWETHER_STORE_URL"),
    ("does not exist", "Create the database, or correct BELLWETHER_STORE_URL"),
    ("could not parse", "Write BELLWETHER_STORE_URL as postgresql://user:password@host:5432/name"),
    ("can't load plugin", "Write BELLWETHER_STORE_URL as postgresql://user:password@host:5432/name"),
)


def describe_known_error(error: BaseException) -> str | None:
    """Return one line that names the file or service and the remedy; None for an unexpected error."""
    for one in _causes(error):
        message = _settings_message(one) or _library_message(one) or _system_message(one)
        if message:
            return " ".join(message.split())
    return None


def describe_unexpected_error(error: BaseException) -> str:
    """Return one line for a bug, with the file its traceback was written to."""
    first = (str(error).splitlines() or [""])[0][:300]
    where = _write_traceback(error)
    hint = f"its traceback is in {where}" if where else f"{DEBUG}=1 shows its traceback"
    return f"{first or 'no message'} (unexpected: {hint}; please report it)"


def _write_traceback(error: BaseException) -> Path | None:
    """Write the traceback under `<home>/logs`, for its owner only; return its path, None if that is impossible."""
    try:
        folder = settings().home / "logs"
    except (ValueError, OSError):  # the settings are what is wrong
        folder = ROOT / "artifacts" / "logs"
    path = folder / f"crash-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, outermost first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return found


def _settings_message(error: BaseException) -> str | None:
    """Describe an error of the settings: the variable, its value and the fault; None for any other error."""
    if isinstance(error, ValidationError) and error.title == "Settings":
        faults = []
        for fault in error.errors():
            name = ".".join(map(str, fault["loc"])).upper()
            value = "" if "KEY" in name else f" (got {str(fault['input'])[:80]!r})"
            faults.append(f"BELLWETHER_{name}: {fault['msg']}{value}" if name else str(fault["msg"]))
        return f"{'; '.join(faults)}. Correct it in the environment or in .env."
    if type(error).__name__ == "SettingsError":  # pydantic-settings: a value or the .env file cannot be read at all
        return f"{error}. Correct it in the environment or in .env."
    if isinstance(error, UnicodeDecodeError) and any("dotenv" in f.filename for f in _frames(error)):
        return f"{Path('.env').absolute()}: not a text file ({error.reason}). Write NAME=value lines, or delete it."
    return None


def _library_message(error: BaseException) -> str | None:
    """Describe an error of a database, DVC, MLflow, Prefect or an HTTP client, recognised by its class's package."""
    first = (str(error).splitlines() or [type(error).__name__])[0][:300]
    package = type(error).__module__.partition(".")[0]
    store = sys.modules.get("pipelines.store")
    if store is not None and isinstance(error, store.StoreFault):
        first = (str(getattr(error, "orig", None) or error).splitlines() or [first])[0]
        lower = str(error).lower()
        remedy = next((todo for word, todo in _STORE if word in lower), None)
        remedy = remedy or ("Start the database, or correct BELLWETHER_STORE_URL" if _on_a_server() else
                            "`bellwether doctor` checks it")  # fmt: skip
        return f"the store {_store_name()}: {first}. {remedy}."
    if isinstance(error, ValueError) and any(f.filename.endswith("sqlalchemy/engine/url.py") for f in _frames(error)):
        return f"BELLWETHER_STORE_URL is no URL ({first}). Write it as postgresql://user:password@host:5432/name."
    if type(error).__name__ == "RemoteMissingDepsError":  # of DVC, for a remote that is no folder
        return (
            f"BELLWETHER_REMOTE_URL: {first}. For S3: `.venv/bin/uv pip install -r requirements-cluster.txt -c "
            "requirements.lock`."
        )
    if package in ("dvc", "dvc_data", "dvc_objects", "scmrepo"):
        if "lock" in type(error).__name__.lower() or "lock" in first.lower():
            return f"data versions: {first}. Another command may be writing them: repeat when it has ended."
        return (
            f"data versions in {settings().workspace}: {first}. If a file there is damaged, delete it; "
            "`bellwether run --once` writes it again."
        )
    if package == "mlflow":
        return f"MLflow: {first}. See `bellwether status` and {_log('mlflow')}; `bellwether up` starts what is down."
    if package == "prefect":
        return f"Prefect: {first}. See `bellwether status` and {_log('prefect')}; `bellwether up` starts what is down."
    if package in ("httpx", "httpcore", "requests", "urllib3"):
        return f"a service does not answer: {first}. See `bellwether status`; `bellwether up` starts what is down."
    if package in ("yaml", "ruamel"):
        return f"a YAML file is damaged: {' '.join(str(error).split())[:300]}. Restore it from git or a backup."
    return None


def _system_message(error: BaseException) -> str | None:
    """Describe an error of the operating system: path, fault and remedy; None for any other error."""
    if isinstance(error, MemoryError):
        return "not enough memory. Close something large; `bellwether doctor` shows what is free."
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed. Run `make setup`."
    if not isinstance(error, OSError):
        return None
    given = (error.filename, error.filename2)
    names = [os.fsdecode(name) for name in given if isinstance(name, str | bytes | os.PathLike)]
    what = error.strerror or str(error) or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError) and not names:
        return f"a service does not answer: {what}. See `bellwether status`; `bellwether up` starts what is down."
    remedy = _BY_ERRNO.get(error.errno or 0)
    if not names and remedy is None:
        return None  # raised by a library for reasons of its own: its traceback shows more
    where = " → ".join(names) or str(settings().home)
    return f"{where}: {what}. {remedy or 'Check that file and its folder, then repeat'}."


def _store_name() -> str:
    """Return the file or server of the store, without its password."""
    try:
        parts = urlsplit(settings().store)
        host = parts.hostname or ""
        return settings().store.removeprefix("sqlite:///") if not host else f"{parts.scheme}://{host}{parts.path}"
    except (ValueError, OSError):
        return "in BELLWETHER_STORE_URL"


def _on_a_server() -> bool:
    """Return True if the store is a database server, not a file."""
    return not settings().store.startswith("sqlite")


def _log(name: str) -> Path:
    """Return the log of a service."""
    return settings().home / "logs" / f"{name}.log"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error's traceback, outermost first."""
    return list(traceback.extract_tb(error.__traceback__))


def debugging() -> bool:
    """Return True if BELLWETHER_DEBUG requests tracebacks."""
    return os.environ.get(DEBUG, "").lower() in ("1", "true", "yes")
