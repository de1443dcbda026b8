"""The processes of one machine: start them, ask how they are, stop them to the last child.

`up` starts one detached supervisor a home (bellwether/operations/supervisor.py) and orders it to run lines of the Procfile. It writes a
log for each service under `<home>/logs`, restarts what dies, and keeps `<home>/run/state.json` in step. Every process
it starts carries BELLWETHER_RUN and BELLWETHER_SERVICE in its environment, and so do its children: `down` finds them
all, also when the supervisor or the state file is gone. Who starts or stops a home holds `<home>/run/lock`.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import psutil

from flows.support import ports
from flows.support.service_log import text_of
from pipelines.bootstrap import THREADS
from pipelines.errors import LeaseHeld, ServiceDown, UnknownName
from pipelines.settings import ROOT, Settings
from serving.service import keys
from serving.service.http_guard import SESSION_PATH

START_SECONDS = 240.0  # until a service must answer; on two cores with fresh databases all answer within a minute
STOP_SECONDS = 20.0  # a service may take this long to end its work before it is killed
PROBE_SECONDS = 0.7
READY_SECONDS = 20.0  # a service that answers may be not ready this long before `up` does something about it
ORDER_SECONDS = 10.0  # the supervisor looks for orders four times a second
LOCK_SECONDS = 60.0  # `up` and `down` wait this long for each other: most starts are over by then
RUN_MARK = "BELLWETHER_RUN"
SERVICE_MARK = "BELLWETHER_SERVICE"
LOG_LINES = 15

Progress = Callable[[str], None]  # one line of news: "mlflow up after 11 s"


def silent(line: str) -> None:
    """The Progress of callers who show none."""


UNWATCHED = "its supervisor is gone: nothing restarts it; run `bellwether up`"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own services are behind no proxy

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",  # Prefect, Evidently, MLflow
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "EVIDENTLY_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # read once, when onnxruntime is imported
}


@dataclass(frozen=True)
class Service:
    """One line of the Procfile, seen from outside.

    port_field   the field of Settings with its port; None = it listens on none, as our Prefect runner does
    health       the path that answers 200 once the service works
    ready        the path that answers 200 once it does its job, 503 with its failing checks before; None = it has none
    """

    port_field: str | None
    health: str = "/"
    ready: str | None = None


SERVICES: dict[str, Service] = {
    "mlflow": Service("mlflow_port", "/livez"),
    "prefect": Service("prefect_port", "/readyz"),
    "decision": Service("decision_port", "/livez", "/readyz"),
    "flows": Service(None),
    "models": Service("model_port", "/livez", "/readyz"),
    "evidently": Service("evidently_port", "/livez"),
}
WORKERS = ("flows",)  # stopped before the servers they talk to: a Prefect runner without its server lingers for minutes


class State(TypedDict):
    """How one service is. `since` is its start, ISO 8601 in UTC; `detail` explains a state that needs attention."""

    state: Literal["up", "down", "starting", "not ready", "key refused"]
    url: str | None
    port: int | None
    pid: int | None
    since: str | None
    detail: str | None


def environment(settings: Settings) -> dict[str, str]:
    """What the tools must be told so that they find each other, write under `home` only and report to nobody.

    Services inherit it; the command line puts it into its own environment before it imports Prefect or MLflow. Until
    there is a key, it contains no credentials.
    """
    home = settings.home.resolve()
    return {
        **TELEMETRY_OFF,
        THREADS: os.environ.get(THREADS, "1"),  # of BLAS; our sums are small and the services share few cores
        **_client_credentials(settings),
        **_tool_access_lists(settings),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "BELLWETHER_HOME": str(home),
        "BELLWETHER_HOST": settings.host,
        **{ports.variable(s.port_field): str(_port(settings, s)) for s in SERVICES.values() if s.port_field},
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # seconds until a run that was asked for is seen; theirs is 10
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "BENTOML_HOME": str(home / "bentoml"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc" / "config"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc" / "site"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }


def _client_credentials(settings: Settings) -> dict[str, str]:
    """Return the variables that make Prefect's clients (HTTP and WebSocket) and MLflow's client send our key."""
    key = keys.read_key(settings)
    if key is None:
        return {}
    headers = json.dumps({"Authorization": f"Bearer {key}"})
    return {"PREFECT_CLIENT_CUSTOM_HEADERS": headers, "MLFLOW_TRACKING_TOKEN": key}


def _tool_access_lists(settings: Settings) -> dict[str, str]:
    """Return the hosts and origins that the tools accept themselves, behind our guard: the same as the guard.

    The Prefect UI calls its API at the address it was loaded from.
    """
    hosts = ["localhost:*", "127.0.0.1:*", "[::1]:*", f"{settings.host}:*", *settings.proxy_hosts]
    origins = [f"{scheme}://{name}" for name in settings.proxy_hosts for scheme in ("http", "https")]
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join([settings.mlflow_url, *origins]),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join([settings.prefect_url, *origins]),
        "PREFECT_UI_API_URL": "/api",
    }


# ---- start ----------------------------------------------------------------------------------------------------------


def up(
    settings: Settings,
    only: Iterable[str] | None = None,
    wait: bool = True,
    progress: Progress = silent,
    procfile: Path = ROOT / "Procfile",
    known: Mapping[str, Service] = SERVICES,
    ready: bool = True,
) -> list[str]:
    """Start what is not running and return its names; with `wait`, once everything asked for works.

    ready   a service has to be ready, not only to answer; one that ran before and stays red is restarted once
    Raises  PortTaken and UnknownName before anything starts; LeaseHeld while another process starts or stops this home;
            ServiceDown when a service ends or stays silent, and then what this call started is stopped again, or when
            one stays not ready, and then all go on running
    """
    wanted = list(known) if only is None else list(only)
    for name in wanted:
        if name not in known:
            raise UnknownName(f"no service {name!r}; known: {', '.join(known)}")
    with home_lock(settings, "up", progress):
        _end_orphans(settings, progress)
        running = _running(settings)
        missing = [name for name in wanted if name not in running]
        _check_ports(settings, {name: field for name in missing if (field := known[name].port_field)})
        if missing:
            keys.write_key(settings)  # made before it is passed on
            _order(settings, {"start": _lines(settings, missing, known, procfile), "env": _passed_on(settings)})
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


def restart(
    settings: Settings,
    names: Iterable[str] | None = None,
    progress: Progress = silent,
    known: Mapping[str, Service] = SERVICES,
) -> list[str]:
    """Stop and start again those of `names` (None: all) that run, and wait until they answer. Returns their names.

    They start with the caller's settings. Raises ServiceDown without a living supervisor, UnknownName for a name that
    is none.
    """
    with home_lock(settings, "restart", progress):
        return _restart(settings, names, progress, known)


def _restart(
    settings: Settings, names: Iterable[str] | None, progress: Progress, known: Mapping[str, Service]
) -> list[str]:
    wanted = list(known) if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise UnknownName(f"no service {name!r}; known: {', '.join(known)}")
    before = _running(settings)
    chosen = [name for name in wanted if name in before]
    if not chosen:
        return []
    if supervisor_of(settings) is None:
        raise ServiceDown("nothing supervises this home, so nothing can be restarted alone. Run `bellwether up`.")
    _order(settings, {"restart": chosen, "env": _passed_on(settings)})
    deadline = time.monotonic() + 3 * STOP_SECONDS
    while any(_read(settings).get(name, {}).get("pid") in (None, before[name]["pid"]) for name in chosen):
        if time.monotonic() > deadline:
            raise ServiceDown(f"{', '.join(chosen)} did not restart in {3 * STOP_SECONDS:.0f} s. Run `bellwether up`.")
        time.sleep(0.1)
    await_healthy(settings, chosen, progress, known, deaths=2)
    return chosen


def await_healthy(
    settings: Settings,
    names: Iterable[str],
    progress: Progress = silent,
    known: Mapping[str, Service] = SERVICES,
    deaths: int | None = None,
) -> None:
    """Wait until each named service answers, whoever starts it.

    deaths  one that dies so often meanwhile is waited for no longer; None = until its supervisor gives up
    Raises  ServiceDown with the end of its log if one of ours is gone, or if there is no answer in START_SECONDS
    """
    waiting = list(names)
    began, before = time.monotonic(), {name: _deaths(settings, name) for name in waiting}
    while waiting:
        states = services(settings, {name: known[name] for name in waiting})
        waited = time.monotonic() - began
        for name in [name for name in waiting if states[name]["state"] in ("up", "not ready")]:
            waiting.remove(name)
            progress(f"{name} up after {waited:.0f} s")
        for name in waiting:
            if states[name]["state"] == "key refused":
                raise ServiceDown(f"{name}: {states[name]['detail']}")
            if ended := _how_it_ended(settings, name, None if deaths is None else before[name] + deaths):
                raise ServiceDown(f"{name} {ended}. {_log_tail(settings, name)}")
            if waited > START_SECONDS:
                raise ServiceDown(f"{name} gave no answer in {START_SECONDS:.0f} s. {_log_tail(settings, name)}")
        time.sleep(0.2 if waiting else 0.0)


def _await_ready(
    settings: Settings, names: list[str], fresh: list[str], progress: Progress, known: Mapping[str, Service]
) -> None:
    """Wait until nothing is red. What ran before and stays red is restarted, once; what then is red is an error."""
    asked = {name: known[name] for name in names if known[name].ready}
    restarted, began = list(fresh), time.monotonic()
    while red := {n: s["detail"] for n, s in services(settings, asked).items() if s["state"] != "up"}:
        waited = time.monotonic() - began
        old = [name for name in red if name not in restarted]
        if waited > READY_SECONDS and old and supervisor_of(settings) is not None:
            progress(f"{', '.join(old)} not ready for {waited:.0f} s: restarting")
            _restart(settings, old, progress, known)
            restarted += old
            began = time.monotonic()
        elif waited > READY_SECONDS:
            told = "; ".join(f"{name} is not ready: {why}" for name, why in red.items())
            raise ServiceDown(f"{told}. It runs on. Fix the cause; `bellwether doctor` says more.")
        time.sleep(0.3)


def _lines(
    settings: Settings, names: Iterable[str], known: Mapping[str, Service], procfile: Path
) -> dict[str, dict[str, Any]]:
    """What the supervisor has to know to run each service. Raises UnknownName if the Procfile has no line for one."""
    commands = parse_procfile(procfile)
    found = {}
    for name in names:
        if name not in commands:
            raise UnknownName(f"{procfile} has no line for {name}; it has {', '.join(commands)}")
        service = known[name]
        found[name] = {"command": commands[name], "port": _port(settings, service), "health": service.health}
    return found


def parse_procfile(procfile: Path) -> dict[str, str]:
    """Name → command of each line `name: command`; all other lines are comments."""
    return dict(re.findall(r"^([A-Za-z0-9_-]+):[ \t]*(\S.*)$", procfile.read_text(), flags=re.MULTILINE))


def _passed_on(settings: Settings) -> dict[str, str]:
    """The caller's own settings and ours: a supervisor that has run for days knows neither."""
    own = {name: value for name, value in os.environ.items() if name.startswith("BELLWETHER_")}
    return {**own, **environment(settings)}


def _check_ports(settings: Settings, fields: Mapping[str, str]) -> None:
    """Raises PortTaken for a port that somebody else holds; what our own dead left behind the supervisor ends."""
    ours = {process.pid for process in home_processes(settings)}
    wanted = {name: (field, int(getattr(settings, field))) for name, field in fields.items()}
    ports.check(settings.host, wanted, ours)


def _end_orphans(settings: Settings, progress: Progress) -> None:
    """End what runs without a supervisor: nobody restarts it or reads its output, and it holds our ports."""
    if supervisor_of(settings) is not None:
        return
    if left := home_processes(settings):
        progress(f"ending {len(left)} processes whose supervisor is gone")
        _end_leaders(_leaders(settings), progress)
        _end_family(left, settings)
    with contextlib.suppress(FileNotFoundError):
        state_file(settings).unlink()
    for stale in [*orders_folder(settings).glob("*"), *leftovers(settings)]:
        stale.unlink(missing_ok=True)


def _order(settings: Settings, order: Mapping[str, Any]) -> None:
    """Hand an order to the supervisor, starting one if none lives; return when it has been carried out."""
    folder = orders_folder(settings)
    for one in (folder, *(settings.home / name for name in ("logs", "mlflow", "prefect", "evidently", "bentoml"))):
        one.mkdir(parents=True, exist_ok=True)
    file = folder / f"{time.time_ns()}.json"
    write_atomic(file, json.dumps(order))
    if supervisor_of(settings) is None:
        _launch(settings)
    deadline = time.monotonic() + ORDER_SECONDS
    while file.exists():
        found = supervisor_of(settings)
        if found is None:
            file.unlink(missing_ok=True)
            raise ServiceDown(f"the supervisor did not start. {_log_tail(settings, 'supervisor')}")
        if time.monotonic() > deadline:
            file.unlink(missing_ok=True)
            raise ServiceDown(
                f"the supervisor (process {found.pid}) did not react in {ORDER_SECONDS:.0f} s. "
                "Run `bellwether down`, then `bellwether up`."
            )
        time.sleep(0.05)


def _launch(settings: Settings) -> None:
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
    """Where a supervisor that cannot even start says why; nowhere, if the disk takes no file."""
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
def home_lock(settings: Settings, what: str, progress: Progress = silent) -> Iterator[None]:
    """Hold this home's lock: nobody else starts or stops anything here. It ends with the process that holds it.

    Raises LeaseHeld, naming the holder, after LOCK_SECONDS.
    """
    path = settings.home / "run" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        if what != "down":
            raise
        yield  # a home nobody can write to any more can still be stopped
        return
    try:
        deadline, told = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(number, 100, 0).decode(errors="replace").strip() or "another process"
            if time.monotonic() > deadline:
                raise LeaseHeld(f"{holder} is still busy with {settings.home}. Wait for it, or end it, then repeat.")
            if not told:
                progress(f"waiting for {holder}")
                told = True
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # on a full disk the next caller does not learn our name; the lock holds
            os.ftruncate(number, 0)
            os.pwrite(number, f"process {os.getpid()} (`bellwether {what}`)".encode(), 0)
        yield
    finally:
        os.close(number)


# ---- ask ------------------------------------------------------------------------------------------------------------


def services(settings: Settings, known: Mapping[str, Service] = SERVICES) -> dict[str, State]:
    """How every service is now, in under a second: what the state file knows, checked by asking each one."""
    running, entries = _running(settings), _read(settings)
    watched = supervisor_of(settings) is not None

    def ask(name: str) -> State:
        state = _state(settings, known[name], running.get(name, {}))
        return _explained(settings, known[name], state, entries.get(name, {}), watched)

    with ThreadPoolExecutor(max_workers=max(1, len(known))) as pool:
        return dict(zip(known, pool.map(ask, known), strict=True))


def _explained(settings: Settings, service: Service, state: State, entry: Mapping[str, Any], watched: bool) -> State:
    """The same state with what its readiness and its supervisor know: red, about to start again, given up."""
    if state["state"] == "up" and service.ready:
        red = _red(f"{state['url']}{service.ready}", settings)
        state = state | State(state="not ready", detail=red) if red else state  # type: ignore[typeddict-item]
    if state["state"] == "down" and entry.get("state") in ("waiting", "clearing", "stopping") and watched:
        return {**state, "state": "starting", "detail": entry.get("detail")}
    if state["state"] == "down" and entry.get("state") == "gave up":
        return {**state, "detail": entry.get("detail")}
    if state["pid"] is not None and not watched and state["detail"] is None:
        return {**state, "detail": UNWATCHED}
    return state


def _red(url: str, settings: Settings) -> str | None:
    """Failing checks of a service that answers; None if `up` is done with it."""
    try:
        with _DIRECT.open(url, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return failing_checks(settings, error.code, error.read())
    except (OSError, ValueError) as error:
        return f"{url} gives no answer ({error})"


def failing_checks(settings: Settings, status: int, answer: bytes) -> str | None:
    """What keeps `up` waiting, of the status and the JSON of a readiness probe.

    None if the service is ready, or waits only for the first turn of the loop, or refuses our key (then it lives).
    """
    if status in (200, 401, 403):
        return None
    try:
        found = json.loads(answer)
        failing = {str(c["name"]): str(c["detail"]) for c in found["checks"] if not c["ok"]}
    except (ValueError, KeyError, TypeError):
        return f"its readiness probe answers {status}"
    first = found.get("waiting_for_first_turn") is True
    if not first and not (settings.serving_dir / "generation.json").exists():
        first = set(failing) <= {"follows generation", "warm start"}
    return None if first else "; ".join(f"{name}: {why}" for name, why in failing.items())


def is_responding(settings: Settings, name: str) -> bool:
    """Whether this service answers us on its port now, whoever started it; cheaper than `services`."""
    service = SERVICES[name]
    try:
        return bool(_answers(settings, f"http://{settings.host}:{_port(settings, service)}{service.health}"))
    except _KeyRefused:
        return False


def _state(settings: Settings, service: Service, entry: Mapping[str, Any]) -> State:
    port = entry.get("port") or _port(settings, service)
    url = f"http://{settings.host}:{port}" if port else None
    state: Literal["up", "down", "starting", "key refused"] = "starting" if entry else "down"
    detail = None
    try:
        if _is_healthy(settings, service, url, entry):
            state = "up"
    except _KeyRefused:
        state, detail = "key refused", KEY_REFUSED
    return State(
        state=state,
        url=url,
        port=port,
        pid=entry.get("pid"),
        since=entry.get("since"),
        detail=detail,
    )


class _KeyRefused(Exception):
    """The server answered 401 to our key."""


KEY_REFUSED = (
    "up, but it refuses our key: it started with another key or belongs to another home. Check BELLWETHER_HOME and "
    "BELLWETHER_WRITE_KEY, then run `bellwether down` and `bellwether up`"
)


def _is_healthy(settings: Settings, service: Service, url: str | None, entry: Mapping[str, Any]) -> bool:
    """Ask the health path, then check our key, since some health paths need none. Raises _KeyRefused."""
    if url is None:
        return bool(entry) and _polls(settings, entry["since"])
    if not _answers(settings, f"{url}{service.health}"):
        return False
    _answers(settings, f"{url}{SESSION_PATH}")
    return True


def _answers(settings: Settings, url: str, body: dict[str, Any] | None = None) -> Any:
    """True, or the parsed answer to `body`, if `url` replies with 2xx in PROBE_SECONDS; None otherwise.

    It sends our key. Raises _KeyRefused at 401.
    """
    data = None if body is None else json.dumps(body).encode()
    key = keys.read_key(settings)
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as reply:
            return True if body is None else json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise _KeyRefused from error
        return None
    except (OSError, ValueError):  # refused, timed out, or not JSON: not healthy
        return None


def _polls(settings: Settings, since: str) -> bool:
    """True if work was asked for since this runner started and in the last minute; it asks every 2 s."""
    known = _answers(settings, f"{settings.prefect_url}/api/deployments/filter", {"limit": 50})
    oldest = max(datetime.fromisoformat(since), datetime.now(UTC) - timedelta(minutes=1))
    return any(d["last_polled"] and datetime.fromisoformat(d["last_polled"]) > oldest for d in known or [])


# ---- stop -----------------------------------------------------------------------------------------------------------


def down(settings: Settings, progress: Progress = silent) -> list[str]:
    """Stop everything `up` started under this home, workers first, and return the names of the services that ran.

    Nothing survives: what has not ended after STOP_SECONDS is killed, with every descendant, known or strayed.
    """
    with home_lock(settings, "down", progress):
        leaders = _leaders(settings)
        family = home_processes(settings)
        found = supervisor_of(settings)
        if found is not None:
            _ask_to_leave(found, dict(leaders), progress)
        _end_leaders({name: process for name, process in leaders.items() if is_alive(process)}, progress)
        _end_family(family, settings)
        with contextlib.suppress(OSError):  # a home nobody can write to any more keeps its state file
            for stale in (state_file(settings), *orders_folder(settings).glob("*"), *leftovers(settings)):
                stale.unlink(missing_ok=True)
    return list(leaders)


def leftovers(settings: Settings) -> list[Path]:
    """State files of which no process is left: a crash, a reboot."""
    return [] if home_processes(settings) else sorted((settings.home / "run").glob("*.json"))


def _ask_to_leave(found: psutil.Process, leaders: dict[str, psutil.Process], progress: Progress) -> None:
    """SIGTERM to the supervisor; return when it has stopped its services, or when it takes too long for that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found.send_signal(signal.SIGTERM)
        if found.status() == psutil.STATUS_STOPPED:  # hung: it would act on nothing, and would restart what we end
            found.kill()
    deadline = time.monotonic() + 2 * STOP_SECONDS + 5.0  # workers, then servers
    while is_alive(found) and time.monotonic() < deadline:
        for name in [name for name, process in leaders.items() if not is_alive(process)]:
            del leaders[name]
            progress(f"{name} stopped")
        time.sleep(0.05)
    if is_alive(found):
        end([found], 0.5)
    for name in [name for name, process in leaders.items() if not is_alive(process)]:
        progress(f"{name} stopped")


def _stop_some(settings: Settings, names: list[str], progress: Progress) -> None:
    """Stop what a failed `up` started. The supervisor ends itself with the last service."""
    if names and supervisor_of(settings) is not None:
        with contextlib.suppress(ServiceDown, OSError):  # it does not react: then by hand
            _order(settings, {"stop": names})
            deadline = time.monotonic() + 2 * STOP_SECONDS
            while set(names) & set(_read(settings)) and supervisor_of(settings) and time.monotonic() < deadline:
                time.sleep(0.05)
    left = [process for name in names for process in home_processes(settings, name)]
    if left or not _running(settings):
        found = supervisor_of(settings)
        end([*left, *([found] if found is not None and not _running(settings) else [])], STOP_SECONDS)


def _leaders(settings: Settings) -> dict[str, psutil.Process]:
    by_pid = {process.pid: process for process in home_processes(settings)}
    return {name: by_pid[e["pid"]] for name, e in _running(settings).items() if e["pid"] in by_pid}


def _end_leaders(leaders: Mapping[str, psutil.Process], progress: Progress) -> None:
    for group in (set(leaders) & set(WORKERS), set(leaders) - set(WORKERS)):
        end([leaders[name] for name in group], STOP_SECONDS)
        for name in group:
            progress(f"{name} stopped")


def _end_family(family: list[psutil.Process], settings: Settings) -> None:
    everyone = set(family) | {child for process in family for child in _descendants(process)}
    while rest := [p for p in everyone | set(home_processes(settings)) if is_alive(p)]:  # a dying parent may still fork
        end(rest, 3.0)


def end(processes: list[psutil.Process], patience: float) -> None:
    """SIGTERM to all, then SIGKILL to those still alive after `patience` seconds."""
    for action in ("terminate", "kill"):
        for process in filter(is_alive, processes):
            try:
                getattr(process, action)()
            except psutil.NoSuchProcess:
                continue
        deadline = time.monotonic() + patience
        while any(map(is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie too: it has ended, and only waits to be counted by whoever adopted it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def home_processes(settings: Settings, service: str | None = None) -> list[psutil.Process]:
    """Living processes of this home (of one of its services), without the caller and its parents."""
    return [process for process, marks in _family(settings) if service in (None, marks.get(SERVICE_MARK))]


def supervisor_of(settings: Settings) -> psutil.Process | None:
    """The living supervisor of this home; None if there is none. For one of its services that is a parent."""
    for process, marks in _family(settings, with_parents=True):
        if SERVICE_MARK not in marks:
            with contextlib.suppress(psutil.Error):
                if "bellwether.operations.supervisor" in process.cmdline() and is_alive(process):
                    return process
    return None


def _family(settings: Settings, with_parents: bool = False) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    home = str(settings.home.resolve())
    me = {os.getpid()} if with_parents else {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            marks = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if RUN_MARK in marks and marks.get("BELLWETHER_HOME") == home and process.pid not in me:
            yield process, marks


# ---- state and logs -------------------------------------------------------------------------------------------------


def _port(settings: Settings, service: Service) -> int | None:
    return int(getattr(settings, service.port_field)) if service.port_field else None


def state_file(settings: Settings) -> Path:
    return settings.home / "run" / "state.json"


def orders_folder(settings: Settings) -> Path:
    return settings.home / "run" / "orders"


def disk_file(settings: Settings) -> Path:
    """Free bytes over the last day, written by the supervisor: [[epoch seconds, bytes], …]."""
    return settings.home / "logs" / "disk.json"


def disk_samples(settings: Settings) -> list[tuple[float, int]]:
    """What `disk_file` holds; empty if it is not there or damaged: it is a forecast, not a fact."""
    try:
        return [(float(at_s), int(free_bytes)) for at_s, free_bytes in json.loads(disk_file(settings).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by one that is whole and readable by its owner only."""
    draft = path.with_suffix(".tmp")
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(number, "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # half a file would only take the room that is missing
        raise


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    """name → {pid, port, since, returncode, state, detail, deaths}; empty before a supervisor wrote anything."""
    try:
        found = json.loads(state_file(settings).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # damaged: the next change writes it anew
        return {}
    return {name: e for name, e in found.items() if isinstance(e, dict)} if isinstance(found, dict) else {}


def _running(settings: Settings) -> dict[str, dict[str, Any]]:
    """The entries of the services whose process lives and is really ours (a pid may have been given out again)."""
    living = {process.pid for process in home_processes(settings)}
    return {name: entry for name, entry in _read(settings).items() if entry.get("pid") in living}


def _how_it_ended(settings: Settings, name: str, deaths: int | None) -> str:
    """How a service came to its end that is waited for no longer; empty if we never started it or it may still come."""
    entry = _read(settings).get(name)
    if entry is None:
        return ""
    code = entry.get("returncode")
    ended = f"ended with code {code}" if code is not None else "ended"
    if entry.get("state") == "gave up":
        return str(entry.get("detail") or ended)
    if deaths is not None and _deaths(settings, name) >= deaths:
        return f"{ended}, {entry['deaths']} times in a row"
    return "" if supervisor_of(settings) is not None else f"{ended}, and its supervisor is gone"


def _deaths(settings: Settings, name: str) -> int:
    """How often a service died lately, as its supervisor counts."""
    return int(_read(settings).get(name, {}).get("deaths") or 0)


def log_file(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / f"{name}.log"


def _log_tail(settings: Settings, name: str) -> str:
    """The end of a log as a person reads it; a supervisor that never ran left its words in another file."""
    path = log_file(settings, name)
    if name == "supervisor" and not path.exists():
        path = path.with_suffix(".err")
    last = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
    return f"Fix what its log says, then repeat. End of {path}:\n" + "\n".join(map(text_of, last))
