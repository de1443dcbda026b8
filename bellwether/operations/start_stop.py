"""Start, restart and stop the services of one home, down to their last child process.

`up` starts one detached supervisor for each home and orders it to run lines of the Procfile. Only the holder of
`<home>/run/lock` starts or stops anything there. `down` finds every process by the mark in its environment, also when
the supervisor or the state file is gone.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from bellwether.operations.orders import Command, Order
from flows.support import ports, stores
from flows.support.processes import (
    HOME_FOLDERS,
    RUN_MARK,
    STOP_SECONDS,
    Progress,
    await_healthy,
    environment,
    home_processes,
    is_alive,
    leftovers,
    log_tail,
    orders_folder,
    parse_procfile,
    read_entries,
    running_entries,
    services,
    silent,
    state_file,
    supervisor_of,
    write_atomic,
)
from flows.support.service_table import STORES, Service, port_of, services_of, stop_rank
from pipelines.errors import LeaseHeld, ServiceDown, UnknownName
from pipelines.settings import ROOT, Settings
from serving.service import keys

READY_SECONDS = 20.0  # a service that answers may be not ready this long before `up` restarts or refuses it
ORDER_SECONDS = 10.0  # the supervisor reads its orders four times a second
LOCK_SECONDS = 60.0  # `up` and `down` wait this long for each other: most starts are over by then


# ---- start ----------------------------------------------------------------------------------------------------------


def up(
    settings: Settings,
    only: Iterable[str] | None = None,
    wait: bool = True,
    progress: Progress = silent,
    procfile: Path = ROOT / "Procfile",
    known: Mapping[str, Service] | None = None,
    ready: bool = True,
) -> list[str]:
    """Start what is not running and return its names; with `wait`, once every requested service works.

    Stores that this home runs itself are started first, and the rest once they work.

    known   the services there are; None = those of this home's profile
    ready   a service must be ready, not only answer; one that ran before and stays not ready is restarted once
    Raises  PortTaken and UnknownName before anything starts; LeaseHeld while another process starts or stops this home;
            ServiceDown when a service ends or does not answer (what this call started is stopped again), or when one
            stays not ready (all services go on running)
    """
    known = services_of(settings) if known is None else known
    wanted = _checked_names(known if only is None else only, known)
    with home_lock(settings, "up", progress):
        _end_orphans(settings, progress)
        running = running_entries(settings)
        missing = [name for name in wanted if name not in running]
        _check_ports(settings, {name: field for name in missing if (field := known[name].port_field)})
        if missing:
            keys.home_key(settings)  # before the environment is passed on
            keys.chain_key(settings)  # workers of the pool are given both
            stores.write_credentials(settings)
        first = [name for name in missing if name in STORES]
        try:
            _start(settings, first, known, procfile)
            await_healthy(settings, first, progress, known, deaths=2)
            if "s3" in wanted:
                stores.make_bucket(settings)
        except ServiceDown:
            _stop_some(settings, first, progress)
            raise
        _start(settings, [name for name in missing if name not in STORES], known, procfile)
        if not wait:
            return missing
        try:
            await_healthy(settings, wanted, progress, known, deaths=2)
        except ServiceDown:
            _stop_some(settings, missing, progress)
            raise
        if ready:
            _await_ready(settings, wanted, missing, progress, known)
    return missing


def _start(settings: Settings, names: list[str], known: Mapping[str, Service], procfile: Path) -> None:
    """Order the supervisor to start these services, if there are any."""
    if names:
        _send_order(settings, {"start": _commands(settings, names, known, procfile), "env": _service_env(settings)})


def restart(
    settings: Settings,
    names: Iterable[str] | None = None,
    progress: Progress = silent,
    known: Mapping[str, Service] | None = None,
) -> list[str]:
    """Restart those of `names` (None: all but the stores) that run, wait until they answer, and return their names.

    They start with the caller's settings. Raises ServiceDown without a living supervisor, UnknownName for a name that
    is no service.
    """
    with home_lock(settings, "restart", progress):
        return _restart(settings, names, progress, services_of(settings) if known is None else known)


def _restart(
    settings: Settings, names: Iterable[str] | None, progress: Progress, known: Mapping[str, Service]
) -> list[str]:
    """Do what `restart` does, under a lock that is already held."""
    wanted = _checked_names([name for name in known if name not in STORES] if names is None else names, known)
    before = running_entries(settings)
    chosen = [name for name in wanted if name in before]
    if not chosen:
        return []
    if supervisor_of(settings) is None:
        raise ServiceDown("nothing supervises this home, so nothing can be restarted alone. Run `bellwether up`.")
    _send_order(settings, {"restart": chosen, "env": _service_env(settings)})
    deadline = time.monotonic() + 3 * STOP_SECONDS
    while any(read_entries(settings).get(name, {}).get("pid") in (None, before[name].get("pid")) for name in chosen):
        if time.monotonic() > deadline:
            raise ServiceDown(f"{', '.join(chosen)} did not restart in {3 * STOP_SECONDS:.0f} s. Run `bellwether up`.")
        time.sleep(0.1)
    await_healthy(settings, chosen, progress, known, deaths=2)
    return chosen


def _checked_names(names: Iterable[str], known: Mapping[str, Service]) -> list[str]:
    """Return the names as a list. Raises UnknownName for one that is no service."""
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UnknownName(f"no service {name!r}; known: {', '.join(known)}")
    return wanted


def _await_ready(
    settings: Settings, names: list[str], fresh: list[str], progress: Progress, known: Mapping[str, Service]
) -> None:
    """Wait until every service is ready; restart once what ran before and is not. Raises ServiceDown for the rest."""
    probed = {name: known[name] for name in names if known[name].ready}
    restarted, began = list(fresh), time.monotonic()
    while failing := {n: s["detail"] for n, s in services(settings, probed).items() if s["state"] != "up"}:
        waited = time.monotonic() - began
        old = [name for name in failing if name not in restarted]
        if waited > READY_SECONDS and old and supervisor_of(settings) is not None:
            progress(f"{', '.join(old)} not ready for {waited:.0f} s: restarting")
            _restart(settings, old, progress, known)
            restarted += old
            began = time.monotonic()
        elif waited > READY_SECONDS:
            causes = "; ".join(f"{name} is not ready: {why}" for name, why in failing.items())
            raise ServiceDown(f"{causes}. All services go on running. Fix the cause; `bellwether doctor` shows more.")
        time.sleep(0.3)


def _commands(
    settings: Settings, names: Iterable[str], known: Mapping[str, Service], procfile: Path
) -> dict[str, Command]:
    """Return name → command, port and health path. Raises UnknownName for a service the Procfile has no line for."""
    commands = parse_procfile(procfile)
    found: dict[str, Command] = {}
    for name in names:
        if name not in commands:
            raise UnknownName(f"{procfile} has no line for {name}; it has {', '.join(commands)}")
        service = known[name]
        found[name] = {"command": commands[name], "port": port_of(settings, service), "health": service.health}
    return found


def _service_env(settings: Settings) -> dict[str, str]:
    """Return the environment of a service: the caller's settings and ours, which an older supervisor does not know."""
    own = {name: value for name, value in os.environ.items() if name.startswith("BELLWETHER_")}
    return {**own, **environment(settings)}


def _check_ports(settings: Settings, fields: Mapping[str, str]) -> None:
    """Raise PortTaken for a port of another process; the supervisor ends what our own dead services left behind."""
    ours = {process.pid for process in home_processes(settings)}
    wanted = {name: (field, int(getattr(settings, field))) for name, field in fields.items()}
    ports.check(settings.host, wanted, ours)


def _end_orphans(settings: Settings, progress: Progress) -> None:
    """End what runs without a supervisor: it is not restarted, its output is not read, and it holds our ports."""
    if supervisor_of(settings) is not None:
        return
    if left := home_processes(settings):
        progress(f"ending {len(left)} processes whose supervisor is gone")
        _end_services(_service_processes(settings), progress)
        _end_with_descendants(left, settings)
    with contextlib.suppress(FileNotFoundError):
        state_file(settings).unlink()
    for stale in [*orders_folder(settings).glob("*"), *leftovers(settings)]:
        stale.unlink(missing_ok=True)


# ---- supervisor and lock --------------------------------------------------------------------------------------------


def _send_order(settings: Settings, order: Order) -> None:
    """Hand an order to the supervisor, starting one if none lives; return when it has been carried out."""
    folder = orders_folder(settings)
    for one in (folder, *(settings.home / name for name in HOME_FOLDERS)):
        one.mkdir(parents=True, exist_ok=True)
    file = folder / f"{time.time_ns()}.json"
    write_atomic(file, json.dumps(order))
    if supervisor_of(settings) is None:
        _launch_supervisor(settings)
    deadline = time.monotonic() + ORDER_SECONDS
    while file.exists():
        found = supervisor_of(settings)
        if found is None:
            file.unlink(missing_ok=True)
            raise ServiceDown(f"the supervisor did not start. {log_tail(settings, 'supervisor')}")
        if time.monotonic() > deadline:
            file.unlink(missing_ok=True)
            raise ServiceDown(
                f"the supervisor (process {found.pid}) did not react in {ORDER_SECONDS:.0f} s. "
                "Run `bellwether down`, then `bellwether up`."
            )
        time.sleep(0.05)


def _launch_supervisor(settings: Settings) -> None:
    """Start a supervisor in a session of its own."""
    with _crash_output(settings) as output:
        subprocess.run(
            [sys.executable, "-m", "bellwether.operations.supervisor", str(settings.home.resolve())],
            cwd=ROOT,
            env={**os.environ, **environment(settings), RUN_MARK: uuid.uuid4().hex[:12]},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )


@contextlib.contextmanager
def _crash_output(settings: Settings) -> Iterator[int]:
    """Yield a file descriptor for the output of a supervisor that cannot start; /dev/null if the disk takes no file."""
    path = settings.home / "logs" / "supervisor.err"
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError:
        number = os.open(os.devnull, os.O_WRONLY)
    try:
        yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def home_lock(settings: Settings, command: str, progress: Progress = silent) -> Iterator[None]:
    """Hold this home's lock, so that no other process starts or stops anything here; it ends with its holder.

    command   the `bellwether` command that holds it, for the messages of those that wait
    Raises    LeaseHeld, naming the holder, after LOCK_SECONDS
    """
    path = settings.home / "run" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        if command != "down":
            raise
        yield  # a home that became read-only can still be stopped
        return
    try:
        deadline, announced = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(number, 100, 0).decode(errors="replace").strip() or "another process"
            if time.monotonic() > deadline:
                raise LeaseHeld(f"{holder} is still busy with {settings.home}. Wait for it, or end it, then repeat.")
            if not announced:
                progress(f"waiting for {holder}")
                announced = True
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # on a full disk the next caller does not learn our name; the lock holds
            os.ftruncate(number, 0)
            os.pwrite(number, f"process {os.getpid()} (`bellwether {command}`)".encode(), 0)
        yield
    finally:
        os.close(number)


# ---- stop -----------------------------------------------------------------------------------------------------------


def down(settings: Settings, progress: Progress = silent) -> list[str]:
    """Stop everything `up` started under this home, workers first, and return the names of the services that ran.

    Nothing survives: what has not ended after STOP_SECONDS is killed, with every descendant, known or strayed.
    """
    with home_lock(settings, "down", progress):
        running = _service_processes(settings)
        everything = home_processes(settings)
        found = supervisor_of(settings)
        if found is not None:
            _stop_supervisor(found, dict(running), progress)
        _end_services({name: process for name, process in running.items() if is_alive(process)}, progress)
        _end_with_descendants(everything, settings)
        with contextlib.suppress(OSError):  # a home that became read-only retains its state file
            for stale in (state_file(settings), *orders_folder(settings).glob("*"), *leftovers(settings)):
                stale.unlink(missing_ok=True)
    return list(running)


def stop_stores(settings: Settings, progress: Progress = silent) -> None:
    """Stop the stores of this home, unless any other service runs, which uses them."""
    with home_lock(settings, "migrate", progress):
        running = list(running_entries(settings))
        if set(running) <= STORES.keys():
            _stop_some(settings, running, progress)


def _stop_supervisor(found: psutil.Process, running: dict[str, psutil.Process], progress: Progress) -> None:
    """Send SIGTERM to the supervisor; return when it has stopped its services, or when it takes too long for that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found.send_signal(signal.SIGTERM)
        if found.status() == psutil.STATUS_STOPPED:  # suspended: it would act on nothing, and later restart services
            found.kill()
    deadline = time.monotonic() + 3 * STOP_SECONDS + 5.0  # workers, then servers, then stores
    while is_alive(found) and time.monotonic() < deadline:
        for name in [name for name, process in running.items() if not is_alive(process)]:
            del running[name]
            progress(f"{name} stopped")
        time.sleep(0.05)
    if is_alive(found):
        end([found], 0.5)
    for name in [name for name, process in running.items() if not is_alive(process)]:
        progress(f"{name} stopped")


def _stop_some(settings: Settings, names: list[str], progress: Progress) -> None:
    """Stop what a failed `up` started. The supervisor ends itself with the last service."""
    if names and supervisor_of(settings) is not None:
        with contextlib.suppress(ServiceDown, OSError):  # it does not react: the lines below end the processes
            _send_order(settings, {"stop": names})
            deadline = time.monotonic() + 2 * STOP_SECONDS
            while set(names) & set(read_entries(settings)) and supervisor_of(settings) and time.monotonic() < deadline:
                time.sleep(0.05)
    left = [process for name in names for process in home_processes(settings, name)]
    if left or not running_entries(settings):
        found = supervisor_of(settings)
        end([*left, *([found] if found is not None and not running_entries(settings) else [])], STOP_SECONDS)


def _service_processes(settings: Settings) -> dict[str, psutil.Process]:
    """Return service → the process that the supervisor started for it, of those that live."""
    by_pid = {process.pid: process for process in home_processes(settings)}
    return {name: by_pid[pid] for name, e in running_entries(settings).items() if (pid := e["pid"]) in by_pid}


def _end_services(running: Mapping[str, psutil.Process], progress: Progress) -> None:
    """End the processes of services, each before those it uses."""
    for rank in sorted({stop_rank(name) for name in running}):
        group = [name for name in running if stop_rank(name) == rank]
        end([running[name] for name in group], STOP_SECONDS)
        for name in group:
            progress(f"{name} stopped")


def _end_with_descendants(processes: list[psutil.Process], settings: Settings) -> None:
    """End these processes, their descendants and all that carries this home's mark, until none is alive."""
    everyone = set(processes) | {child for process in processes for child in _descendants(process)}
    while rest := [p for p in everyone | set(home_processes(settings)) if is_alive(p)]:  # a dying parent may still fork
        end(rest, 3.0)


def end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Send SIGTERM to all, then SIGKILL to those still alive after `timeout_s` seconds."""
    for action in ("terminate", "kill"):
        for process in filter(is_alive, processes):
            try:
                getattr(process, action)()
            except psutil.NoSuchProcess:
                continue
        deadline = time.monotonic() + timeout_s
        while any(map(is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return all child processes of a process, recursively; none if it has ended."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []
