"""Faults outside the product are one sentence with the file and the remedy, never a traceback."""

import errno
import json
import os
import socket
import sqlite3
import stat
import sys
import time
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from support.tmpfs import mounted

from bellwether import error_messages
from bellwether.cli import main as cli
from pipelines.settings import ROOT, settings
from pipelines.store import Store, StoreFault

SERVICES = ("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY")
NOWHERE = {f"BELLWETHER_{name}_PORT": str(port) for port, name in enumerate(SERVICES, 2)}


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Type a command in this process. Returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(ROOT)

    def type_in(*words, cwd=ROOT, **changed):
        outside = {k: v for k, v in os.environ.items() if k == "BELLWETHER_KERNEL_CACHE" or not k.startswith("BELL")}
        env = {**outside, **NOWHERE, "BELLWETHER_HOME": str(tmp_path / "home"), **changed}
        monkeypatch.setattr(sys, "argv", ["bellwether", *words])
        monkeypatch.chdir(cwd)
        settings.cache_clear()
        code = 0
        with patch.dict(os.environ, env, clear=True):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield type_in
    settings.cache_clear()


def one_line(answer, *parts):
    """Exit code 1 and one line that has all the parts; returns the line."""
    code, out, err = answer
    assert code == 1, (out, err)
    assert "Traceback" not in out + err
    lines = [line for line in err.strip().splitlines() if not line.startswith("`bellwether status`")]
    assert len(lines) == 1, err
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


@pytest.fixture
def home(tmp_path):
    """A home with a current, empty store."""
    made = tmp_path / "home"
    made.mkdir()
    Store.open(f"sqlite:///{made / 'store.db'}").close()
    return made


@pytest.mark.parametrize("words", [["status"], ["up"], ["alarms"], ["decide"], ["run", "--once"]])
def test_a_home_that_is_a_file(tmp_path, typed, words):
    (tmp_path / "home").write_text("not a folder")
    one_line(typed(*words), str(tmp_path / "home"), "BELLWETHER_HOME")


def test_a_home_under_a_file_is_reported_by_doctor_too(tmp_path, typed):
    (tmp_path / "home").write_text("not a folder")
    code, out, err = typed("doctor", "--json")
    assert (code, "Traceback" in err) == (1, False)
    found = {f["name"]: f for f in json.loads(out)}
    assert found["write access"]["state"] == "fail"
    assert "BELLWETHER_HOME" in found["write access"]["remedy"]


@pytest.fixture
def read_only(tmp_path):
    """A home on a file system that is mounted read-only: root may write anywhere else."""
    with mounted(tmp_path / "home", "size=1m,ro") as made:
        yield made


@pytest.mark.parametrize("words", [["status"], ["up"], ["alarms"], ["decide"], ["backup"]])
def test_a_read_only_home(read_only, typed, words):
    one_line(typed(*words), str(read_only))


def test_down_works_in_a_read_only_home(read_only, typed):
    code, _, err = typed("down", "--json")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("words", [["status"], ["alarms"], ["breaker", "list"], ["status", "--json"]])
@pytest.mark.parametrize("damage", ["header", "text", "cut"])
def test_a_store_that_is_no_database_any_more(home, typed, words, damage):
    file = home / "store.db"
    raw = file.read_bytes()
    file.write_bytes({"header": b"\0" * 100 + raw[100:], "text": b"hello" * 1000, "cut": raw[:5000]}[damage])
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    one_line(typed(*words), str(file), "bellwether restore FILE")


def test_a_store_that_is_a_folder(tmp_path, typed):
    (tmp_path / "home" / "store.db").mkdir(parents=True)
    one_line(typed("status"), str(tmp_path / "home" / "store.db"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@127.0.0.1:9/bellwether", "Start the database"),
        ("postgresql://me:secret@no.such.host.invalid/bellwether", "Start the database"),
        ("postgresql://me:secret@127.0.0.1:port/bellwether", "BELLWETHER_STORE_URL"),
        ("no url at all", "BELLWETHER_STORE_URL"),
        ("oracle9000://x/y", "BELLWETHER_STORE_URL"),
        ("sqlite:////proc/nowhere/store.db", "/proc/nowhere"),
    ],
)
def test_a_store_that_cannot_be_reached_or_understood(typed, url, expected):
    assert "secret" not in one_line(typed("status", BELLWETHER_STORE_URL=url), expected)


def test_a_database_server_that_never_answers_is_reported_as_down_within_five_seconds(typed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://me:secret@127.0.0.1:{server.getsockname()[1]}/bellwether"
        began = time.monotonic()
        one_line(typed("status", BELLWETHER_STORE_URL=url), "127.0.0.1/bellwether", "Start the database")
        assert time.monotonic() - began < 5.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BELLWETHER_DECISION_PORT", "three"),
        ("BELLWETHER_DURABILITY", "eternal"),
        ("BELLWETHER_KEEP_DAYS", "1"),
        ("BELLWETHER_HANG_SECONDS", "-5"),
        ("BELLWETHER_DISK_STOP_MB", "999999999"),
        ("BELLWETHER_FIT_TIMEOUT_MINUTES", "soon"),
    ],
)
@pytest.mark.parametrize("command", ["status", "up"])
def test_a_setting_that_does_not_parse_is_named_with_its_value(typed, command, name, value):
    one_line(typed(command, **{name: value}), name, value, ".env")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x00garbage", b"BELLWETHER_DECISION_PORT=three\n"])
def test_a_damaged_env_file_is_named(tmp_path, typed, content, monkeypatch):
    (tmp_path / ".env").write_bytes(content)
    with_env = {name: value for name, value in NOWHERE.items() if "DECISION" not in name}
    monkeypatch.setattr(sys.modules[__name__], "NOWHERE", with_env)
    one_line(typed("status", cwd=tmp_path), ".env")


@pytest.mark.parametrize(
    "content", [b"seed: [1, 2", b"\xff\xfe\x00", b"", b"just text", b"[1, 2]", b"seed: 1\n", b"a: b: c"]
)
def test_damaged_params_are_named(tmp_path, home, typed, content):
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    one_line(typed("status", BELLWETHER_PARAMS_FILE=str(file)), "params.yaml")


def test_params_that_are_not_there(tmp_path, home, typed):
    one_line(typed("status", BELLWETHER_PARAMS_FILE=str(tmp_path / "none.yaml")), str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("content", ["outs:\n- md5", "outs:", "", "outs: [", "{}"])
def test_a_data_pointer_that_is_cut_off(home, typed, content):
    (home / "workspace").mkdir()
    (home / "workspace" / "data.dvc").write_text(content)
    one_line(typed("status"), str(home / "workspace" / "data.dvc"), "bellwether run --once")


@pytest.mark.parametrize("content", ["schema: '2.0'\nst", "schema: '2.0'\nstages:", "stages: [", "\0\0"])
def test_a_lock_of_the_build_graph_that_is_cut_off(tmp_path, content):
    from pipelines import versioning
    from pipelines.errors import UnreadableFile

    (tmp_path / "dvc.lock").write_text(content)
    with pytest.raises(UnreadableFile, match=r"dvc\.lock"):
        versioning._locked(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "null", '"text"'])
@pytest.mark.parametrize("words", [["decide"], ["status"]])
def test_a_manifest_or_generation_file_that_is_cut_off(home, typed, words, content):
    (home / "workspace" / "data").mkdir(parents=True)
    (home / "workspace" / "data" / "manifest.json").write_text(content)
    (home / "serving").mkdir()
    (home / "serving" / "generation.json").write_text(content)
    one_line(typed(*words), "manifest.json", "bellwether run --once")


def test_a_port_of_another_process(typed):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        one_line(typed("up", BELLWETHER_MLFLOW_PORT=port), port, f"process {os.getpid()}", "BELLWETHER_MLFLOW_PORT")


def test_no_room_on_the_disk(home, typed, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(home / "store.db"))

    monkeypatch.setattr(Store, "open", full)
    one_line(typed("status"), str(home / "store.db"), "free some room")


def test_a_bug_is_one_sentence_and_its_traceback_is_in_a_file_for_its_owner_only(home, typed, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError("first line\nsecond [line]")

    monkeypatch.setattr(Store, "open", bug)
    message = one_line(typed("status"), "RuntimeError", "first line")
    (file,) = (home / "logs").glob("crash-*.log")
    assert str(file) in message
    assert "in bug" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_where_no_traceback_can_be_written_the_variable_that_shows_it_is_named(tmp_path, typed, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("bellwether.operations.start_stop.down", bug)
    (tmp_path / "home").write_text("a file")
    one_line(typed("down"), "broken", "BELLWETHER_DEBUG=1")
    _, _, err = typed("down", BELLWETHER_DEBUG="1")
    assert "Traceback" in err
    assert "in bug" in err


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["free some room"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), ["/x/y", "chown"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"/x"), ["/x"]),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ["bellwether up"]),
        (TimeoutError("timed out"), ["bellwether up"]),
        (MemoryError(), ["memory"]),
        (ModuleNotFoundError("no", name="xgboost"), ["xgboost", "make setup"]),
        (OSError(errno.EIO, "Input/output error", "/x", None, "/y"), ["/x", "/y", "restore"]),
    ],
)
def test_errors_of_the_system_have_a_remedy(error, parts):
    message = error_messages.describe_known_error(error)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_remote_in_s3_without_its_packages_names_what_installs_them():
    from dvc_objects.fs.errors import RemoteMissingDepsError

    message = error_messages.describe_known_error(RemoteMissingDepsError(None, "s3", "s3://a/b", ["dvc-s3"]))
    assert "requirements-cluster.txt" in message
    assert message.startswith("BELLWETHER_REMOTE_URL: ")


def test_the_cause_of_an_error_is_described():
    error = RuntimeError("could not do it")
    error.__cause__ = OSError(errno.EROFS, "Read-only file system", "/data/x")
    assert "/data/x" in error_messages.describe_known_error(error)


def test_an_unexpected_error_has_no_description():
    for error in (RuntimeError("x"), KeyError("y"), ValueError("z"), OSError("made up")):
        assert error_messages.describe_known_error(error) is None


def test_a_locked_store_is_reported_as_locked(home):
    url = f"sqlite:///{home / 'store.db'}"
    with closing(Store.open(url)) as store, closing(sqlite3.connect(home / "store.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
            with pytest.raises(StoreFault) as caught:
                connection.exec_driver_sql("CREATE TABLE one (x)")
    message = error_messages.describe_known_error(caught.value)
    assert "locked" in message
    assert "bellwether doctor" in message
