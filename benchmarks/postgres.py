"""Run a real PostgreSQL for tests and evidence: started on a free port, removed with everything afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ports import free_ports
from pipelines.errors import ServiceDown

USER = "bellwether"
# kill -9 of a client loses nothing without fsync; only a power cut would
QUICK = "-c fsync=off -c full_page_writes=off -c shared_buffers=16MB -c max_connections=50"


def programs() -> Path | None:
    """Return the folder of initdb and pg_ctl: on PATH, or where Debian installs them; None if there is none."""
    found = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).resolve().parent if found else installed[-1].parent if installed else None


@contextmanager
def postgresql(settings: str = QUICK) -> Iterator[str]:
    """Yield the URL of an empty database `postgres`; more can be created in it.

    settings  of the server, as its command line takes them
    Raises ServiceDown if there is no PostgreSQL.

    PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, in a folder that user owns.
    """
    folder = programs()
    if folder is None:
        raise ServiceDown("no initdb on PATH or under /usr/lib/postgresql; install PostgreSQL")
    root = Path(tempfile.mkdtemp(prefix="bellwether-postgresql-"))
    user = _other_user() if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(root, user)
    (port,) = free_ports(1)
    data = root / "data"

    def call(*words: str) -> None:
        """Run a program as the database's user. Raises ServiceDown with the end of its output."""
        done = subprocess.run(words, user=user, cwd=root, env={"PATH": os.defpath, "LC_ALL": "C"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
        if done.returncode:
            raise ServiceDown(f"{' '.join(words[:2])} ended with {done.returncode}: {done.stdout[-600:]}")

    try:
        call(str(folder / "initdb"), "-D", str(data), "-U", USER, "-E", "UTF8", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {root} -c listen_addresses=127.0.0.1 {settings}"
        call(str(folder / "pg_ctl"), "-D", str(data), "-l", str(root / "log"), "-o", options, "-w", "start")
        yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            call(str(folder / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(root, ignore_errors=True)


def _other_user() -> str:
    """Return a user that PostgreSQL may run as when we are root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
