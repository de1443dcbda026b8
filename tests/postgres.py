"""A real PostgreSQL for tests: started once, on a free loopback port, in a folder of its own; a schema a test."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

START_SECONDS = 60.0
LANGUAGE = {"LC_ALL": "C", "LANG": "C"}  # messages in English, and no locale that a small image lacks
# nothing here outlives the tests, so nothing waits for a disk
QUICK = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c shared_buffers=16MB -c max_connections=50"


def programs() -> Path | None:
    """The folder with initdb and postgres: of the PATH, or Debian's newest, which is on no PATH; None = none."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folders = [Path(found).resolve().parent] if found else debian[::-1]
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


def server_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: somebody else then, None = the user we are."""
    if os.getuid() != 0:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


@contextmanager
def running(binaries: Path) -> Iterator[str]:
    """A server of its own, up to the end of the block; gives the URL of its databases, without a name."""
    user = server_user()
    other = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    home = Path(tempfile.mkdtemp(prefix="bellwether-postgres-"))
    environment = {**os.environ, **LANGUAGE, "HOME": str(home)}
    try:
        if user is not None:
            os.chown(home, user.pw_uid, user.pw_gid)
        options = ["--auth=trust", "--username=bellwether", "--encoding=UTF8", "--no-sync"]
        subprocess.run([binaries / "initdb", *options, "--pgdata", home / "data"], check=True, cwd=home,
                       env=environment, stdout=subprocess.DEVNULL, **other)  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        where = ["-D", home / "data", "-k", home, "-h", "127.0.0.1", "-p", str(port)]
        with (home / "log").open("w") as log:
            server = subprocess.Popen([binaries / "postgres", *where, *QUICK.split()], cwd=home, env=environment,
                                      stdout=log, stderr=subprocess.STDOUT, **other)  # fmt: skip
        try:
            _await(server, port, home / "log")
            yield f"postgresql+psycopg2://bellwether@127.0.0.1:{port}"
        finally:
            server.send_signal(subprocess.signal.SIGINT)  # "fast": open connections are ended, not waited for
            server.wait(30)
    finally:
        shutil.rmtree(home)


def connect(port: int):
    return psycopg2.connect(host="127.0.0.1", port=port, user="bellwether", dbname="postgres", connect_timeout=5)


def _await(server: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connect(port).close()
            return
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


@contextmanager
def database(server: str) -> Iterator[str]:
    """A new, empty schema, which is all a connection with this URL sees: a thousandth of the time of a database."""
    port, name = int(server.rpartition(":")[2]), f"t{uuid.uuid4().hex}"
    connection = connect(port)
    connection.autocommit = True
    try:
        connection.cursor().execute(f"CREATE SCHEMA {name}")
        yield f"{server}/postgres?options=-csearch_path%3D{name}"
        connection.cursor().execute("SET lock_timeout = '10s'")  # a transaction left open is a failure, not a wait
        connection.cursor().execute(f"DROP SCHEMA {name} CASCADE")
    finally:
        connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    binaries = programs()
    if binaries is None:
        pytest.skip("no PostgreSQL here: neither initdb on the PATH nor /usr/lib/postgresql; apt install postgresql")
    with running(binaries) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server) -> Iterator[str]:
    with database(postgres_server) as url:
        yield url


@pytest.fixture
def second_postgres_url(postgres_server) -> Iterator[str]:
    with database(postgres_server) as url:
        yield url
