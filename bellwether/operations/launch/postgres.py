"""Run the PostgreSQL of one home: `python -m bellwether.operations.launch.postgres`, until SIGTERM.

The first start makes the database cluster, its user with the password of the home, and a database for each tool.
PostgreSQL refuses to run as root: then it runs as `postgres`, and its files lie in a folder of that user, since nobody
else may enter the home.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from flows.support import stores
from pipelines.errors import ServiceDown
from pipelines.settings import DATABASES, POSTGRES_USER, Settings, settings

AS_ROOT = Path("/var/lib/bellwether")
# Measured with maps of 100 tasks and four writers (docs/results/tool-databases.md): MLflow held 8 connections, Prefect
# 12; on a turn the ledger one or two a process. Each pool may grow to 15, and eight flow runs may run at once.
TUNING = {"max_connections": 200, "shared_buffers": "128MB", "max_wal_size": "1GB", "wal_compression": "on"}


def programs() -> Path:
    """Return the folder of initdb and postgres: on PATH, or where Debian installs them. Raises ServiceDown."""
    found = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found is None and not installed:
        raise ServiceDown(
            "no PostgreSQL here: no initdb on PATH or under /usr/lib/postgresql. Install it (Debian: `apt install "
            "postgresql`), or set BELLWETHER_STORE_URL, BELLWETHER_MLFLOW_STORE_URL and BELLWETHER_PREFECT_STORE_URL"
        )
    return Path(found).resolve().parent if found else installed[-1].parent


def owner() -> str | None:
    """Return the user PostgreSQL runs as where we are root; None = as we do. Raises ServiceDown if there is none."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    if user := next((name for name in ("postgres", "nobody") if name in names), None):
        return user
    raise ServiceDown("PostgreSQL refuses to run as root, and there is no user postgres. Create it, or run as a user.")


def data_folder(where: Settings) -> Path:
    """Return the folder of the databases: in the home, or as root one outside that is named by the home."""
    if owner() is None:
        return where.home.resolve() / "postgres"
    return AS_ROOT / hashlib.sha256(str(where.home.resolve()).encode()).hexdigest()[:16]


def create(where: Settings, folder: Path) -> None:
    """Make the database cluster in an empty folder, complete or not at all: it is made next to it and moved."""
    user, bin_ = owner(), programs()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if user is not None:
        folder.parent.chmod(0o711)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        password = draft / "password"
        password.touch(0o600)
        password.write_text(stores.password(where))
        if user is not None:
            shutil.chown(draft, user)
            shutil.chown(password, user)
        made = draft / "data"
        _call([str(bin_ / "initdb"), "-D", str(made), "-U", POSTGRES_USER, "-E", "UTF8", "--locale=C.UTF-8",
               "-A", "scram-sha-256", f"--pwfile={password}"], draft, user)  # fmt: skip
        for name in DATABASES:
            _call([str(bin_ / "postgres"), "--single", "-D", str(made), "postgres"], draft, user,
                  f"CREATE DATABASE {name}\n")  # fmt: skip
        made.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _call(words: list[str], at: Path, user: str | None, sent: str = "") -> None:
    """Run a program of PostgreSQL as its user. Raises ServiceDown with the end of its output."""
    done = subprocess.run(
        words, input=sent, user=user, cwd=at, env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ServiceDown(f"{Path(words[0]).name} ended with {done.returncode}: {done.stdout[-600:]}")


def main() -> int:
    """Run the server in the foreground; SIGTERM ends it without waiting for its clients. Return its exit status."""
    where = settings()
    folder = data_folder(where)
    try:
        if not folder.exists():
            create(where, folder)
        words = [str(programs() / "postgres"), "-D", str(folder), "-p", str(where.postgres_port), "-k", ""]
    except ServiceDown as error:
        print(error, file=sys.stderr)
        return 1
    options = {"listen_addresses": where.host, "timezone": "UTC", **TUNING}
    for name, value in options.items():
        words += ["-c", f"{name}={value}"]
    user = owner()
    server = subprocess.Popen(words, user=user, extra_groups=[] if user else None, cwd="/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.send_signal(signal.SIGINT))  # its "fast": SIGTERM waits for clients
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
