"""The supervisor when something dies, hangs, floods or fills the disk. Small servers stand for services."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import closing, suppress

import psutil
import pytest
from support.small_services import KNOWN, free_port, home, start, states
from support.tmpfs import mounted

from bellwether.operations import start_stop, supervisor, supervisor_watch
from bellwether.operations.supervisor import Policy, Supervisor
from flows.support import processes
from flows.support.service_table import Service
from pipelines import disk
from pipelines.errors import LeaseHeld, ServiceDown
from pipelines.settings import Settings
from pipelines.store import Store

__all__ = ["home"]  # the fixture

# the parent waits, its child listens: as a BentoML parent and its worker
PARENT = """import http.server as h, os, sys, time
print("about to serve", flush=True)
if os.fork(): time.sleep(600)
h.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()
"""
# 200 at /livez; /readyz is red until the file is there
RED = """import http.server as h, os, sys
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        red = self.path == "/readyz" and not os.path.exists(sys.argv[2])
        self.send_response(503 if red else 200); self.end_headers()
        self.wfile.write(os.environ["ANSWER"].encode())
h.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""
# answers `n` times, then takes connections and answers no more
SILENT = """import socket, sys, time
s = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
for _ in range(3):
    c, _ = s.accept(); c.recv(1000); c.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n"); c.close()
time.sleep(600)
"""
# prints whether it has a supervisor
SUPERVISED = """import sys, time
from flows.support import processes
from pipelines.settings import Path, Settings
print("supervised", processes.supervisor_of(Settings(home=Path(sys.argv[1]))) is not None, flush=True)
time.sleep(600)
"""


def script(folder, text):
    (folder / "script.py").write_text(text)
    return f"exec {sys.executable} {folder / 'script.py'}"


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def alarms(settings, open_only=True):
    with closing(Store.open(settings.store)) as store:
        return store.alarms(open_only)


# ---- the real supervisor process ------------------------------------------------------------------------------------


def test_a_killed_parent_is_started_again_its_worker_ended_and_the_alarm_is_in_the_store(home):
    (home.home.parent / "Procfile").write_text(f'alpha: {script(home.home.parent, PARENT)} "$BELLWETHER_MLFLOW_PORT"\n')
    start(home, only=["alpha"])
    before = processes.services(home, KNOWN)["alpha"]
    (worker,) = psutil.Process(before["pid"]).children()
    began = time.monotonic()
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: processes.read_entries(home)["alpha"]["pid"] not in (None, before["pid"]), 6.0, "a new process")
    assert not processes.is_alive(worker)
    wait_for(lambda: states(home)["alpha"] == "up", 6.0, "an answer")
    assert time.monotonic() - began < 8.0
    (alarm,) = wait_for(lambda: alarms(home), 10.0, "the alarm")
    assert (alarm.kind, alarm.severity) == ("service_died", "high")
    assert alarm.detail.startswith("alpha: killed by SIGKILL")
    assert "Last line: " in alarm.detail


def test_a_service_knows_that_it_is_supervised(home):
    """The flows wait for Prefect as anybody does; the supervisor is their parent."""
    (home.home.parent / "Procfile").write_text(f"alpha: {script(home.home.parent, SUPERVISED)} {home.home}\n")
    start(home, only=["alpha"], wait=False)
    log = processes.log_file(home, "alpha")
    wait_for(lambda: log.exists() and "supervised" in log.read_text(), 10.0, "its answer")
    assert "supervised True" in log.read_text()


def test_without_a_supervisor_the_services_go_on_and_up_ends_them_and_starts_again(home):
    start(home)
    before = processes.services(home, KNOWN)
    found = processes.supervisor_of(home)
    found.kill()
    wait_for(lambda: not processes.is_alive(found), 5.0, "the supervisor to die")
    orphaned = processes.services(home, KNOWN)
    assert [s["state"] for s in orphaned.values()] == ["up", "up"]
    assert all("bellwether up" in s["detail"] for s in orphaned.values())
    lines = []
    assert start(home, progress=lines.append) == ["alpha", "beta"]
    assert "ending 2 processes whose supervisor is gone" in lines
    after = processes.services(home, KNOWN)
    assert all(after[name]["pid"] != before[name]["pid"] and after[name]["detail"] is None for name in KNOWN)


def test_two_ups_at_once_start_everything_once(home):
    found, lines = [], []
    threads = [threading.Thread(target=lambda: found.append(start(home, progress=lines.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found, key=len) == [[], ["alpha", "beta"]]
    assert sum(line.startswith("waiting for ") for line in lines) == 1
    assert states(home) == {"alpha": "up", "beta": "up"}


def test_a_wait_too_long_for_the_lock_names_its_holder(home, monkeypatch):
    monkeypatch.setattr(start_stop, "LOCK_SECONDS", 0.2)
    with start_stop.home_lock(home, "up"):
        for act in (lambda: start(home), lambda: start_stop.down(home), lambda: start_stop.restart(home)):
            with pytest.raises(LeaseHeld, match=rf"process {os.getpid()} \(`bellwether up`\)"):
                act()
    assert start_stop.down(home) == []


def test_restart_gives_a_new_process_and_no_alarm(home):
    start(home)
    before = processes.services(home, KNOWN)
    assert start_stop.restart(home, ["beta"], known=KNOWN) == ["beta"]
    after = processes.services(home, KNOWN)
    assert after["beta"]["state"] == "up"
    assert [after[n]["pid"] == before[n]["pid"] for n in KNOWN] == [True, False]
    assert not (home.home / "store.db").exists()


def test_down_works_with_a_suspended_supervisor(home):
    start(home)
    processes.supervisor_of(home).suspend()
    assert sorted(start_stop.down(home)) == ["alpha", "beta"]
    assert processes.home_processes(home) == []


def test_a_damaged_state_file_is_no_reason_to_fail(home):
    start(home)
    processes.state_file(home).write_text('{"alpha": {"pid": ')
    assert states(home) == {"alpha": "up", "beta": "up"}
    assert sorted(processes.home_processes(home), key=lambda p: p.pid)
    start_stop.down(home)
    assert processes.home_processes(home) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    with mounted(tmp_path / "small", "size=4m") as folder:
        yield folder


def test_on_a_full_disk_services_are_restarted_and_logging_resumes_with_free_room(small_disk, tmp_path, monkeypatch):
    settings = Settings(home=small_disk / "home", mlflow_port=free_port(), prefect_port=free_port())
    talk = "import time\nwhile True: print('still here', flush=True); time.sleep(0.005)"
    (tmp_path / "Procfile").write_text(f"alpha: {script(tmp_path, talk)}\n")
    known = {"alpha": Service(None)}
    monkeypatch.setenv("BELLWETHER_DISK_WARN_MB", "2")
    monkeypatch.setenv("BELLWETHER_DISK_STOP_MB", "1")
    try:
        start_stop.up(settings, known=known, procfile=tmp_path / "Procfile", wait=False)
        log = processes.log_file(settings, "alpha")
        wait_for(lambda: log.exists() and log.stat().st_size, 5.0, "a first line")
        fill = small_disk / "fill"
        with fill.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        size = log.stat().st_size
        first, found = processes.read_entries(settings)["alpha"]["pid"], processes.supervisor_of(settings)
        time.sleep(1.0)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: [p for p in processes.home_processes(settings, "alpha") if p.pid != first], 6.0, "a restart")
        assert log.stat().st_size <= size + 4096
        assert processes.is_alive(found)
        fill.unlink()
        wait_for(lambda: "lines lost: No space left on device" in log.read_text(), 6.0, "logging to go on")
        assert all(json.loads(line)["service"] == "alpha" for line in log.read_text().splitlines())
        wait_for(lambda: processes.read_entries(settings)["alpha"]["pid"] not in (None, first), 5.0, "the state file")
        assert any(a.kind == "service_died" for a in wait_for(lambda: alarms(settings), 12.0, "the alarm"))
        assert processes.is_alive(found)
    finally:
        start_stop.down(settings)
        assert processes.home_processes(settings) == []


# ---- readiness ------------------------------------------------------------------------------------------------------


@pytest.fixture
def red(home, monkeypatch):
    """`alpha` answers and is not ready until the returned file exists; the answer is what is put in ANSWER."""
    green = home.home.parent / "green"
    (home.home.parent / "Procfile").write_text(
        f'alpha: {script(home.home.parent, RED)} "$BELLWETHER_MLFLOW_PORT" {green}\n'
    )
    monkeypatch.setattr(start_stop, "READY_SECONDS", 0.5)
    checks = [{"name": "store", "ok": False, "detail": "locked"}, {"name": "golden", "ok": True, "detail": ""}]
    monkeypatch.setenv("ANSWER", json.dumps({"checks": checks}))
    return green


READY = {"alpha": Service("mlflow_port", "/livez", "/readyz")}


def test_a_service_that_answers_but_is_not_ready_is_not_up_and_up_names_the_failing_check(home, red):
    with pytest.raises(ServiceDown, match=r"alpha is not ready: store: locked.*bellwether doctor"):
        start(home, known=READY)
    found = processes.services(home, READY)["alpha"]
    assert (found["state"], found["detail"]) == ("not ready", "store: locked")
    assert found["pid"] is not None
    start(home, known=READY, ready=False)  # `run` begins there: its turn is what replaces a refused warm start
    red.touch()
    start(home, known=READY)
    assert processes.services(home, READY)["alpha"]["state"] == "up"


def test_a_service_that_ran_before_and_is_not_ready_is_restarted_once(home, red):
    start(home, known=READY, ready=False)
    before, lines = processes.services(home, READY)["alpha"]["pid"], []
    with pytest.raises(ServiceDown, match="alpha is not ready"):
        start(home, known=READY, progress=lines.append)
    assert [line for line in lines if "restarting" in line] == ["alpha not ready for 1 s: restarting"]
    assert processes.services(home, READY)["alpha"]["pid"] not in (None, before)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ({"waiting_for_first_turn": True, "checks": [{"name": "x", "ok": False, "detail": ""}]}, True),
        ({"checks": [{"name": "warm start", "ok": False, "detail": "none yet"}]}, True),
        ({"checks": [{"name": "warm start", "ok": False, "detail": ""}, {"name": "store", "ok": False, "detail": "x"}]},
         False),
        ("no json", False),
        ([1, 2], False),
    ],
)  # fmt: skip
def test_a_home_before_its_first_turn_is_up(home, answer, accepted):
    body = answer if isinstance(answer, str) else json.dumps(answer)
    with fake_ready(body) as url:
        assert (processes.failing_readiness(url, home) is None) == accepted


def test_after_the_first_turn_a_missing_warm_start_is_not_ready(home):
    home.serving_dir.mkdir(parents=True)
    (home.serving_dir / "generation.json").write_text("{}")
    with fake_ready(json.dumps({"checks": [{"name": "warm start", "ok": False, "detail": "refused"}]})) as url:
        assert processes.failing_readiness(url, home) == "warm start: refused"


def fake_ready(body):
    import http.server
    from contextlib import contextmanager

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(503)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    @contextmanager
    def serving():
        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}/readyz"
            server.shutdown()

    return serving()


# ---- its loop, in this process, with little patience ----------------------------------------------------------------


@pytest.fixture
def supervise(home, monkeypatch):
    """Make a Supervisor of this home that runs one command as `alpha`."""
    made = []
    monkeypatch.setattr(supervisor, "STEP_S", 0.02)

    def make(command, port=None, settings=home, **policy):
        quick = {"first_delay_s": 0.02, "steady_s": 60.0, "probe_every_s": 0.05, "stop_s": 2.0, **policy}
        supervised = Supervisor(settings, Policy(**quick))
        made.append(supervised)
        supervised.start("alpha", command, port, "/", {"BELLWETHER_HOME": str(home.home), processes.RUN_MARK: "test"})
        supervised.received_order = True
        return supervised

    (home.home / "run").mkdir(parents=True)
    yield make
    for supervised in made:
        supervised.stop_requested = True
        supervised.run()


def step_until(supervised, condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {supervised.children}"
        supervised.step()


def kinds(settings):
    return [alarm.kind for alarm in alarms(settings)] if (settings.home / "store.db").exists() else []


def test_the_delay_grows_with_each_death_and_not_longer_than_the_longest():
    policy = Policy()
    assert [policy.delay_s(n) for n in (1, 2, 3, 7, 20)] == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_a_service_that_dies_repeatedly_is_given_up_with_a_critical_alarm_and_up_tries_again(home, supervise):
    supervised = supervise("echo no database here; exit 3", deaths=3)
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.state == "gave up", 10.0, "it to give up")
    assert len(child.deaths) == 3
    step_until(supervised, lambda: "service_gave_up" in kinds(home), 10.0, "the alarm")
    found = [a for a in alarms(home) if a.kind == "service_gave_up"]
    assert [a.severity for a in found] == ["critical"]
    assert "alpha: ended with code 3; gave up after 3 deaths" in found[0].detail
    assert "no database here" in found[0].detail
    state = processes.services(home, KNOWN)["alpha"]
    assert state["state"] == "down"
    assert "bellwether up" in state["detail"]
    supervised.start("alpha", "exec sleep 600", None, None, child.env)
    step_until(supervised, lambda: supervised.children["alpha"].pid, 5.0, "a new start")


def test_while_the_disk_is_full_no_service_is_given_up_and_free_room_resets_the_count(home, supervise, monkeypatch):
    monkeypatch.setattr(disk, "free", lambda _: 0)
    supervised = supervise("exit 3", deaths=2, disk_every_s=0.0)
    child = supervised.children["alpha"]
    step_until(supervised, lambda: len(child.deaths) >= 4, 10.0, "four deaths")
    monkeypatch.setattr(disk, "free", lambda _: 2**50)
    child.command = "exec sleep 600"
    step_until(supervised, lambda: child.state == "running" and child.process.poll() is None, 10.0, "a start")
    step_until(supervised, lambda: "disk_full" not in kinds(home) and "service_died" in kinds(home), 10.0, "its alarm")
    assert "disk_full" in {alarm.kind for alarm in alarms(home, open_only=False)}


def test_alarms_of_a_service_are_cleared_once_it_has_been_back_up_for_a_while(home, supervise):
    supervised = supervise("[ -e $BELLWETHER_HOME/died ] && exec sleep 600; touch $BELLWETHER_HOME/died; exit 1",
                       steady_s=1.5)  # fmt: skip
    step_until(supervised, lambda: kinds(home) == ["service_died"], 10.0, "the alarm")
    step_until(supervised, lambda: kinds(home) == [], 10.0, "it to be cleared")


@pytest.mark.parametrize("stopped", [True, False])
def test_a_service_that_hangs_after_it_was_healthy_is_killed_and_started_again(home, supervise, monkeypatch, stopped):
    monkeypatch.setattr(supervisor_watch, "PROBE_S", 0.1)
    monkeypatch.setattr(supervisor, "CLEAR_S", 0.3)
    port = free_port()
    server = f"exec {sys.executable} -m http.server --bind 127.0.0.1 {port}"
    command = server if stopped else f"{script(home.home.parent, SILENT)} {port}"
    supervised = supervise(command, port, home.model_copy(update={"hang_seconds": 0.5}))
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.was_healthy, 10.0, "a first answer")
    first = child.pid
    if stopped:
        os.kill(first, signal.SIGSTOP)
    step_until(supervised, lambda: child.pid not in (None, first), 10.0, "a new process")
    step_until(supervised, lambda: "service_hung" in kinds(home), 10.0, "the alarm")
    assert kinds(home) == ["service_hung"]
    assert len(child.deaths) == 1


def test_a_slow_start_is_no_hang(home, supervise):
    supervised = supervise("exec sleep 600", free_port(), home.model_copy(update={"hang_seconds": 0.1}))
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.fails > 6, 10.0, "many failed probes")
    first = child.pid
    for _ in range(20):
        supervised.step()
    assert (child.pid, child.state, kinds(home)) == (first, "running", [])


def test_a_flood_of_output_never_blocks_and_takes_bounded_disk(home, supervise):
    supervised = supervise(f"{sys.executable} -c 'print((chr(120) * 99 + chr(10)) * 200000)'; exec sleep 600")
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.log._over > 1000, 20.0, "the flood")
    step_until(supervised, lambda: not _busy(child), 20.0, "20 MB to be drained")
    child.log.flush()
    assert child.log.path.stat().st_size < 2 * 2**20
    assert "lines dropped: more than 500 in a second" in child.log.path.read_text()


def _busy(child):
    """The shell still waits for the flood to be read."""
    return child.process is None or bool(psutil.Process(child.pid).children())


def test_a_locked_or_damaged_store_delays_nothing_and_gets_its_alarm_later(home, supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "CLEAR_S", 0.2)
    (home.home / "store.db").write_bytes(b"this is no database" * 100)
    supervised = supervise("[ -e $BELLWETHER_HOME/died ] && exec sleep 600; touch $BELLWETHER_HOME/died; exit 1")
    supervised.outbox._retry_s = 0.1
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.state == "running" and len(child.deaths) == 1, 5.0, "the restart")
    step_until(supervised, lambda: "takes no alarm" in supervised.log.path.read_text(), 5.0, "a line in the log")
    (home.home / "store.db").unlink()
    step_until(supervised, lambda: kinds(home) == ["service_died"], 10.0, "the alarm")


def test_an_order_to_start_what_is_just_about_to_start_again_starts_it_once(home, supervise):
    """As `up` does right after a kill: the order and the end of the pause fall into one step."""
    supervised = supervise("[ -e $BELLWETHER_HOME/died ] && exec sleep 600; touch $BELLWETHER_HOME/died; exit 1",
                           first_delay_s=60.0)  # fmt: skip
    child = supervised.children["alpha"]
    step_until(supervised, lambda: child.state == "waiting" and child.deaths, 10.0, "the death")
    child.start_at = 0.0
    again = {"command": child.command, "port": None, "health": None}
    processes.orders_folder(home).mkdir()
    (processes.orders_folder(home) / "1.json").write_text(json.dumps({"start": {"alpha": again}, "env": child.env}))
    step_until(supervised, lambda: supervised.children["alpha"].pid, 10.0, "a new start")
    for _ in range(20):
        supervised.step()
    assert [p.pid for p in processes.home_processes(home, "alpha")] == [supervised.children["alpha"].pid]


def test_an_order_that_cannot_be_read_is_no_reason_to_end(home, supervise):
    supervised = supervise("exec sleep 600")
    folder = processes.orders_folder(home)
    folder.mkdir()
    (folder / "1.json").write_text('{"start": ')
    (folder / "2.json").write_text('{"restart": 7}')
    step_until(supervised, lambda: not (folder / "1.json").exists(), 5.0, "the order to go")
    for _ in range(5):
        assert not supervised.step()
    shutil.rmtree(folder)
    assert not supervised.step()
    assert supervised.children["alpha"].state == "running"
