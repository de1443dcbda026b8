"""The services of one machine as seen from outside: their table, environment, probes, states and logs.

A supervisor for each home (bellwether/operations/supervisor.py) runs lines of the Procfile, writes a log for each
service under `<home>/logs` and updates `<home>/run/state.json`. Every process it starts carries BELLWETHER_RUN and
BELLWETHER_SERVICE in its environment, and so do its children: `home_processes` finds them all, even when the supervisor
or the state file is gone. bellwether/operations/start_stop.py starts and stops them.
"""

import contextlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import psutil

from flows.support import ports, stores, work_pool
from flows.support.service_log import text_of
from flows.support.service_table import POOL, POSTGRESQL, SERVICES, TLS, Service, all_ports, port_of, services_of
from pipelines.bootstrap import OF_A_SERVICE
from pipelines.errors import ServiceDown
from pipelines.settings import Settings
from serving.service import keys
from serving.state.feed_state import ALIVE_S, read_feed_state

START_SECONDS = 240.0  # until a service must answer; on two cores with fresh databases all answer within a minute
STOP_SECONDS = 20.0  # a service may take this long to end its work before it is killed
PROBE_SECONDS = 0.7
LOOK_SECONDS = 0.5  # between two looks at services that start: each probe takes processor time from them
SUPERVISORS = {"bellwether.operations.supervisor", "flows.supervise"}  # modules: of this release, of 0.6
RUN_MARK = "BELLWETHER_RUN"
HOME_MARK = "BELLWETHER_SERVES_HOME"  # of a worker: the home whose it is, as its BELLWETHER_HOME is a folder of its own
SERVICE_MARK = "BELLWETHER_SERVICE"
LOG_LINES = 15
HOME_FOLDERS = ("logs", "mlflow", "prefect", "evidently", "bentoml")  # that services expect in their home
FEED_ORDER = "feed.json"  # under `<home>/run`: what a person ordered of the feed, which outlives every process

Progress = Callable[[str], None]  # receives one line of progress: "mlflow up after 11 s"


def silent(line: str) -> None:
    """Discard a line of progress: the Progress of callers that show none."""


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


class State(TypedDict):
    """Report how one service is. `since` is its start (ISO 8601, UTC); `detail` explains what needs attention."""

    state: Literal["up", "down", "starting", "not ready", "key refused"]
    url: str | None
    port: int | None
    pid: int | None
    since: str | None
    detail: str | None


class Entry(TypedDict, total=False):
    """Describe one service in the supervisor's state file; `deaths` counts those within its window."""

    pid: int | None
    port: int | None
    since: str
    returncode: int | None
    state: str
    detail: str | None
    deaths: int


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that make the tools find each other, write under `home` only and send no telemetry.

    Services inherit them; the command line sets them before it imports Prefect or MLflow. Until there is a key, they
    contain no credentials.
    """
    home = settings.home.resolve()
    return {
        **TELEMETRY_OFF,
        **{name: os.environ.get(name, value) for name, value in OF_A_SERVICE.items()},
        **_client_credentials(settings),
        **_tool_access_lists(settings),
        **stores.environment(settings),
        **work_pool.environment(settings),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "BELLWETHER_HOME": str(home),
        "BELLWETHER_HOST": settings.host,
        **{ports.variable(field): str(port) for field, port in all_ports(settings).items()},
        "BELLWETHER_PROFILE": settings.profile,
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_API_DATABASE_CONNECTION_URL": settings.prefect_store,
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # seconds until a requested run is seen; the default is 10
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
    """Return the hosts and origins that the tools accept behind our guard: the same as the guard accepts.

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


# ---- states ---------------------------------------------------------------------------------------------------------


def services(settings: Settings, known: Mapping[str, Service] | None = None) -> dict[str, State]:
    """Return the state of every service (or of those `known`), in under a second: the state file, checked by probes."""
    known = services_of(settings) if known is None else known
    running, entries = running_entries(settings), read_entries(settings)
    watched = supervisor_of(settings) is not None

    def probe(name: str) -> State:
        """Return the state of one service."""
        state = _probed_state(settings, known[name], running.get(name, {}))
        return _with_detail(settings, known[name], state, entries.get(name, {}), watched)

    with ThreadPoolExecutor(max_workers=max(1, len(known))) as pool:
        return dict(zip(known, pool.map(probe, known), strict=True))


def _probed_state(settings: Settings, service: Service, entry: Entry) -> State:
    """Return the state a service's health probe shows; `entry` is empty unless its process lives."""
    port = entry.get("port") or port_of(settings, service)
    protocol = service.health if service.health in (POSTGRESQL, TLS) else "http"
    url = f"{protocol}://{settings.host}:{port}" if port else None
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


def _with_detail(settings: Settings, service: Service, state: State, entry: Entry, watched: bool) -> State:
    """Return the state refined by readiness and supervisor: not ready, about to start again, given up."""
    if state["state"] == "up" and service.ready:
        failing = failing_readiness(f"{state['url']}{service.ready}", settings)
        state = {**state, "state": "not ready", "detail": failing} if failing else state
    if state["state"] == "down" and entry.get("state") in ("waiting", "clearing", "stopping") and watched:
        return {**state, "state": "starting", "detail": entry.get("detail")}
    if state["state"] == "down" and entry.get("state") == "gave up":
        return {**state, "detail": entry.get("detail")}
    if state["pid"] is not None and not watched and state["detail"] is None:
        return {**state, "detail": UNWATCHED}
    return state


def await_healthy(
    settings: Settings,
    names: Iterable[str],
    progress: Progress = silent,
    known: Mapping[str, Service] | None = None,
    deaths: int | None = None,
) -> None:
    """Wait until each named service answers, no matter who starts it.

    deaths  stop waiting for a service that dies this often meanwhile; None = until its supervisor gives up
    Raises  ServiceDown with the end of its log if one of ours is gone, or if there is no answer in START_SECONDS
    """
    known, waiting = services_of(settings) if known is None else known, list(names)
    began, before = time.monotonic(), {name: _deaths(settings, name) for name in waiting}
    while waiting:
        states = services(settings, {name: known[name] for name in waiting})
        waited = time.monotonic() - began
        for name in [name for name in waiting if states[name]["state"] in ("up", "not ready")]:
            waiting.remove(name)
            progress(f"{name} up after {waited:.0f} s")
        watched = supervisor_of(settings) is not None  # goes through all processes of the machine: once for all names
        for name in waiting:
            if states[name]["state"] == "key refused":
                raise ServiceDown(f"{name}: {states[name]['detail']}")
            if ended := _how_it_ended(settings, name, watched, None if deaths is None else before[name] + deaths):
                raise ServiceDown(f"{name} {ended}. {log_tail(settings, name)}")
            if waited > START_SECONDS:
                raise ServiceDown(f"{name} gave no answer in {START_SECONDS:.0f} s. {log_tail(settings, name)}")
        time.sleep(LOOK_SECONDS if waiting else 0.0)


# ---- probes ---------------------------------------------------------------------------------------------------------


def is_responding(settings: Settings, name: str) -> bool:
    """Return True if this service works now, no matter who started it; cheaper than `services`.

    One with a port answers there; of the others, the one of this home's last minute polls or writes.
    """
    service = {**SERVICES, **POOL}[name]
    try:
        if service.port_field is None:
            feed = read_feed_state(settings.serving_dir)
            since = datetime.now(UTC) - timedelta(minutes=1)
            return _is_healthy(settings, service, None, Entry(pid=feed.pid if feed else None, since=since.isoformat()))
        return bool(_get(settings, f"http://{settings.host}:{port_of(settings, service)}{service.health}"))
    except _KeyRefused:
        return False


def failing_readiness(url: str, settings: Settings) -> str | None:
    """Return the failing checks of a service that answers, from its readiness probe; None if `up` need not wait."""
    try:
        with _DIRECT.open(url, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return failing_checks(settings, error.code, error.read())
    except (OSError, ValueError) as error:
        return f"{url} gives no answer ({error})"


def failing_checks(settings: Settings, status: int, answer: bytes) -> str | None:
    """Return what `up` still waits for, read from the HTTP status and the JSON of a readiness probe.

    None if the service is ready, waits only for the first turn of the loop, or refuses our key (then it lives).
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
        first = set(failing) <= {"generation watcher", "warm start"}
    return None if first else "; ".join(f"{name}: {why}" for name, why in failing.items())


class _KeyRefused(Exception):
    """Signal that a server answered 401 to our key."""


KEY_REFUSED = (
    "up, but it refuses our key: it started with another key or belongs to another home. Check BELLWETHER_HOME and "
    "BELLWETHER_WRITE_KEY, then run `bellwether down` and `bellwether up`"
)


def _is_healthy(settings: Settings, service: Service, url: str | None, entry: Entry) -> bool:
    """Return True if the health path answers; then check our key, since some health paths need none.

    Raises  _KeyRefused
    """
    if url is None:
        if not entry or service.sign == "writes":
            return bool(entry) and _is_writing(settings, entry["pid"])
        api = f"{settings.prefect_url}/api"
        return work_pool.shows_life(
            service.worker, entry["since"], lambda path, body: _request(settings, f"{api}{path}", body)
        )
    if service.health in (POSTGRESQL, TLS):
        return stores.accepts(settings, service.health, port_of(settings, service) or 0, PROBE_SECONDS)
    if not _get(settings, f"{url}{service.health}"):
        return False
    if not service.guarded:
        return True
    _get(settings, f"{url}{keys.SESSION_PATH}")
    return True


def _get(settings: Settings, url: str) -> bool:
    """Return True if a GET of `url` with our key answers 2xx within PROBE_SECONDS. Raises _KeyRefused at 401."""
    return _request(settings, url, None) is not None


def _request(settings: Settings, url: str, body: Mapping[str, object] | None) -> Any:
    """Send our key, and `body` as JSON with POST; return the parsed answer, True without a body, None unless 2xx.

    Raises  _KeyRefused at 401
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


def _is_writing(settings: Settings, pid: int | None) -> bool:
    """Return True if the feed of this pid wrote its state just now, also one that is idle."""
    state = read_feed_state(settings.serving_dir)
    return state is not None and state.pid == pid and abs((datetime.now(UTC) - state.at).total_seconds()) < ALIVE_S


# ---- processes ------------------------------------------------------------------------------------------------------


def is_alive(process: psutil.Process) -> bool:
    """Return True if the process runs; False for a zombie too, which has ended and waits for its parent."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def home_processes(settings: Settings, service: str | None = None) -> list[psutil.Process]:
    """Return the living processes of this home (of one of its services), without the caller and its parents."""
    return [p for p, marks in _marked(settings, psutil.pids()) if service in (None, marks.get(SERVICE_MARK))]


def supervisor_of(settings: Settings) -> psutil.Process | None:
    """Return the living supervisor of this home, or None. For one of its services that is a parent."""
    for pids in (_parents_of_services(settings), psutil.pids()):  # all of the machine only where it has no service
        for process, marks in _marked(settings, pids, with_parents=True):
            with contextlib.suppress(psutil.Error):
                if SERVICE_MARK not in marks and SUPERVISORS & set(process.cmdline()) and is_alive(process):
                    return process
    return None


def _parents_of_services(settings: Settings) -> set[int]:
    """Return the pids of the parents of the services in the state file: its supervisor, if that lives."""
    parents = set()
    for entry in read_entries(settings).values():
        with contextlib.suppress(psutil.Error):
            parents.add(psutil.Process(entry.get("pid") or 0).ppid())
    return parents


def _marked(
    settings: Settings, pids: Iterable[int], with_parents: bool = False
) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Yield each of these processes that carries this home's mark, with its environment."""
    home = str(settings.home.resolve())
    me = {os.getpid()} if with_parents else {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            marks = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if RUN_MARK in marks and home == marks.get(HOME_MARK, marks.get("BELLWETHER_HOME")) and process.pid not in me:
            yield process, marks


def parse_procfile(procfile: Path) -> dict[str, str]:
    """Return name → command of each line `name: command`; all other lines are comments."""
    return dict(re.findall(r"^([A-Za-z0-9_-]+):[ \t]*(\S.*)$", procfile.read_text(), flags=re.MULTILINE))


# ---- state file and logs --------------------------------------------------------------------------------------------


def state_file(settings: Settings) -> Path:
    """Return the path of the supervisor's state file."""
    return settings.home / "run" / "state.json"


def orders_folder(settings: Settings) -> Path:
    """Return the folder from which the supervisor takes its orders."""
    return settings.home / "run" / "orders"


def disk_file(settings: Settings) -> Path:
    """Return the path of the last day's free bytes, written by the supervisor: [[epoch seconds, bytes], …]."""
    return settings.home / "logs" / "disk.json"


def disk_samples(settings: Settings) -> list[tuple[float, int]]:
    """Return the content of `disk_file`; empty if it is absent or damaged: it is a forecast, not a fact."""
    try:
        return [(float(at_s), int(free_bytes)) for at_s, free_bytes in json.loads(disk_file(settings).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by one that is complete and readable by its owner only."""
    draft = path.with_suffix(".tmp")
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(number, "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # half a file would only take the room that is missing
        raise


def read_entries(settings: Settings) -> dict[str, Entry]:
    """Return the entries of the state file by name; empty before a supervisor wrote anything."""
    try:
        found = json.loads(state_file(settings).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # damaged: the next change writes it again
        return {}
    return {name: cast(Entry, e) for name, e in found.items() if isinstance(e, dict)} if isinstance(found, dict) else {}


def running_entries(settings: Settings) -> dict[str, Entry]:
    """Return the entries whose process lives and is really ours (the system may have given a pid out again)."""
    entries = {pid: (name, entry) for name, entry in read_entries(settings).items() if (pid := entry.get("pid"))}
    return dict(entries[process.pid] for process, _ in _marked(settings, entries))


def leftovers(settings: Settings) -> list[Path]:
    """Return state files of which no process is left, as after a crash or a reboot; the order of a feed is none."""
    if home_processes(settings):
        return []
    return sorted(file for file in (settings.home / "run").glob("*.json") if file.name != FEED_ORDER)


def _how_it_ended(settings: Settings, name: str, watched: bool, deaths: int | None) -> str:
    """Describe the end of a service (`watched`: its supervisor lives); empty if it was never started or may come up."""
    entry = read_entries(settings).get(name)
    if entry is None:
        return ""
    code = entry.get("returncode")
    ended = f"ended with code {code}" if code is not None else "ended"
    if entry.get("state") == "gave up":
        return str(entry.get("detail") or ended)
    if deaths is not None and _deaths(settings, name) >= deaths:
        return f"{ended}, {entry['deaths']} times in a row"
    return "" if watched else f"{ended}, and its supervisor is gone"


def _deaths(settings: Settings, name: str) -> int:
    """Return how often a service died lately, as its supervisor counts."""
    return int(read_entries(settings).get(name, {}).get("deaths") or 0)


def log_file(settings: Settings, name: str) -> Path:
    """Return the path of a service's log."""
    return settings.home / "logs" / f"{name}.log"


def log_tail(settings: Settings, name: str) -> str:
    """Return the end of a log as plain text; a supervisor that could not start wrote to another file."""
    path = log_file(settings, name)
    if name == "supervisor" and not path.exists():
        path = path.with_suffix(".err")
    last = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
    return f"Fix the cause shown in its log, then repeat. End of {path}:\n" + "\n".join(map(text_of, last))
