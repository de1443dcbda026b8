"""The processes of one machine: start them, ask how they are, stop them to the last child.

`up` starts a detached honcho with lines of the Procfile. It writes one log a service under `<home>/logs` and keeps
`<home>/run/<run>.json` in step with what runs. Every process of a run carries BELLWETHER_RUN=<run> in its environment,
and so do its children, so `down` finds them all, also when the supervisor or the state file is gone.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import psutil
from honcho.environ import parse_procfile
from honcho.manager import Manager

from flows import ports
from pipelines.errors import ServiceDown, UnknownName
from pipelines.settings import ROOT, Settings
from serving import keys
from serving.guard import SESSION_PATH

START_SECONDS = 240.0  # until a service must answer; on two cores with fresh databases all answer within a minute
STOP_SECONDS = 20.0  # a service may take this long to end its work before it is killed
PROBE_SECONDS = 0.7
RUN_MARK = "BELLWETHER_RUN"
LOG_LINES = 15

Progress = Callable[[str], None]  # one line of news: "mlflow up after 11 s"


def silent(line: str) -> None:
    """The Progress of callers who show none."""


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
    """

    port_field: str | None
    health: str = "/"


SERVICES: dict[str, Service] = {
    "mlflow": Service("mlflow_port", "/health"),
    "prefect": Service("prefect_port", "/api/ready"),
    "decision": Service("decision_port", "/livez"),
    "flows": Service(None),
    "models": Service("model_port", "/livez"),
    "evidently": Service("evidently_port"),
}
WORKERS = ("flows",)  # stopped before the servers they talk to: a Prefect runner without its server lingers for minutes


class State(TypedDict):
    """How one service is. `since` is its start, ISO 8601 in UTC; `detail` explains a state that needs attention."""

    state: Literal["up", "down", "starting", "key refused"]
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
) -> list[str]:
    """Start what is not running and return its names; with `wait`, once everything asked for answers.

    Raises PortTaken and UnknownName before anything starts; ServiceDown when a service ends or stays silent, and then
    what this call started is stopped again.
    """
    wanted = list(known) if only is None else list(only)
    for name in wanted:
        if name not in known:
            raise UnknownName(f"no service {name!r}; known: {', '.join(known)}")
    repair(settings)
    running = _running(settings)
    missing = [name for name in wanted if name not in running]
    fields = {name: field for name in missing if (field := known[name].port_field)}
    ports.check(settings.host, {name: (field, int(getattr(settings, field))) for name, field in fields.items()})
    run = uuid.uuid4().hex[:12]
    try:
        if missing:
            _launch(settings, run, {name: _port(settings, known[name]) for name in missing}, procfile)
        if wait:
            await_healthy(settings, wanted, progress, known)
    except ServiceDown:
        _stop(settings, [run], progress)
        raise
    return missing


def await_healthy(
    settings: Settings,
    names: Iterable[str],
    progress: Progress = silent,
    known: Mapping[str, Service] = SERVICES,
) -> None:
    """Wait until each named service answers, whoever starts it.

    Raises ServiceDown with the end of its log if one of ours died, or if there is no answer in START_SECONDS.
    """
    waiting = list(names)
    began = time.monotonic()
    while waiting:
        states = services(settings, {name: known[name] for name in waiting})
        waited = time.monotonic() - began
        for name in [name for name in waiting if states[name]["state"] == "up"]:
            waiting.remove(name)
            progress(f"{name} up after {waited:.0f} s")
        for name in waiting:
            if states[name]["state"] == "key refused":
                raise ServiceDown(f"{name}: {states[name]['detail']}")
            if states[name]["state"] == "down" and (ended := _how_it_ended(settings, name)):
                raise ServiceDown(f"{name} {ended}. {_log_tail(settings, name)}")
            if waited > START_SECONDS:
                raise ServiceDown(f"{name} gave no answer in {START_SECONDS:.0f} s. {_log_tail(settings, name)}")
        time.sleep(0.2 if waiting else 0.0)


def _launch(settings: Settings, run: str, wanted: Mapping[str, int | None], procfile: Path) -> None:
    """Start a supervisor in a session of its own; return when each of `wanted` (name → port) has a process."""
    for folder in ("run", "logs", "mlflow", "prefect", "evidently", "bentoml"):
        (settings.home / folder).mkdir(parents=True, exist_ok=True)
    keys.write_key(settings)  # before `environment` reads it
    lines = [f"{name}={port or ''}" for name, port in wanted.items()]
    with _fresh_log(settings, "supervisor").open("w") as output:
        subprocess.run(
            [sys.executable, "-m", "flows.supervisor", str(settings.home.resolve()), str(procfile.resolve()), *lines],
            cwd=ROOT,
            env={**os.environ, **environment(settings), RUN_MARK: run},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    while set(wanted) - set(_read(settings, run)):
        if not members(settings, [run]):
            raise ServiceDown(f"the supervisor did not start. {_log_tail(settings, 'supervisor')}")
        time.sleep(0.05)


# ---- ask ------------------------------------------------------------------------------------------------------------


def services(settings: Settings, known: Mapping[str, Service] = SERVICES) -> dict[str, State]:
    """How every service is now, in under a second: what the state file knows, checked by asking each one."""
    running = _running(settings)
    with ThreadPoolExecutor(max_workers=len(known)) as pool:
        states = pool.map(lambda name: _state(settings, known[name], running.get(name, {})), known)
        return dict(zip(known, states, strict=True))


def answers(settings: Settings, name: str) -> bool:
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
    return _stop(settings, None, progress)


def leftovers(settings: Settings) -> list[Path]:
    """State files of runs of which no process is left: a crash, a reboot."""
    return [file for file in _state_files(settings) if not members(settings, [file.stem])]


def repair(settings: Settings) -> None:
    """Forget the runs of which no process is left."""
    for file in leftovers(settings):
        file.unlink(missing_ok=True)


def _stop(settings: Settings, runs: list[str] | None, progress: Progress) -> list[str]:
    family = set(members(settings, runs))
    family |= {child for process in family for child in _descendants(process)}
    by_pid = {process.pid: process for process in family}
    leaders = {name: by_pid[e["pid"]] for name, e in _running(settings).items() if e["pid"] in by_pid}
    for group in (set(leaders) & set(WORKERS), set(leaders) - set(WORKERS)):
        end([leaders[name] for name in group], STOP_SECONDS)
        for name in group:
            progress(f"{name} stopped")
    while rest := [p for p in family | set(members(settings, runs)) if is_alive(p)]:  # a dying parent may still fork
        end(rest, 3.0)
    for file in _state_files(settings):
        if runs is None or file.stem in runs:
            file.unlink(missing_ok=True)
    return list(leaders)


def end(processes: list[psutil.Process], patience: float) -> None:
    """SIGTERM to all, then SIGKILL to those still alive after `patience` seconds."""
    for signal in ("terminate", "kill"):
        for process in filter(is_alive, processes):
            try:
                getattr(process, signal)()
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


def members(settings: Settings, runs: list[str] | None = None) -> list[psutil.Process]:
    """Living processes of these runs of this home (None: of all its runs), without the caller and its parents."""
    home = str(settings.home.resolve())
    me = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            marks = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        mine = RUN_MARK in marks and marks.get("BELLWETHER_HOME") == home and process.pid not in me
        if mine and (runs is None or marks[RUN_MARK] in runs):
            found.append(process)
    return found


# ---- state and logs -------------------------------------------------------------------------------------------------


def _port(settings: Settings, service: Service) -> int | None:
    return int(getattr(settings, service.port_field)) if service.port_field else None


def _state_file(settings: Settings, run: str) -> Path:
    return settings.home / "run" / f"{run}.json"


def _state_files(settings: Settings) -> list[Path]:
    """Oldest first, so that the newest entry of a service counts."""
    return sorted((settings.home / "run").glob("*.json"), key=lambda file: file.stat().st_mtime)


def _read(settings: Settings, run: str) -> dict[str, dict[str, Any]]:
    """name → {pid, port, since, returncode} of one run; empty before its supervisor wrote anything."""
    file = _state_file(settings, run)
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _running(settings: Settings) -> dict[str, dict[str, Any]]:
    """The entries of the services whose process lives and is really ours (a pid may have been given out again)."""
    living = {process.pid for process in members(settings)}
    entries = {name: e for file in _state_files(settings) for name, e in _read(settings, file.stem).items()}
    return {name: entry for name, entry in entries.items() if entry["pid"] in living}


def _how_it_ended(settings: Settings, name: str) -> str:
    """How the newest process of a service that is gone came to its end; empty if we never started one."""
    codes = [e["returncode"] for f in _state_files(settings) for n, e in _read(settings, f.stem).items() if n == name]
    if not codes:
        return ""
    return "ended" if codes[-1] is None else f"ended with code {codes[-1]}"


def log_file(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / f"{name}.log"


def _fresh_log(settings: Settings, name: str) -> Path:
    """An empty log; the one of the run before is kept as `.log.1`."""
    path = log_file(settings, name)
    if path.exists():
        path.replace(path.with_suffix(".log.1"))
    return path


def _log_tail(settings: Settings, name: str) -> str:
    path = log_file(settings, name)
    last = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
    return f"Mend what its log says, then repeat. End of {path}:\n" + "\n".join(last)


# ---- the supervisor process -----------------------------------------------------------------------------------------


class _Logs:
    """honcho's printer: a line goes to the log of the service that wrote it."""

    width = 0  # honcho sets it

    def __init__(self, settings: Settings, names: Iterable[str]) -> None:
        self.files = {name: _fresh_log(settings, name).open("w", buffering=1) for name in names}

    def write(self, message: Any) -> None:
        text = message.data.decode(errors="replace") if isinstance(message.data, bytes) else message.data
        print(text, end="", file=self.files.get(message.name, sys.stdout), flush=True)


class _Services(Manager):
    """honcho's loop with two changes: a service that ends leaves the others alone, and the state file follows."""

    def __init__(self, logs: _Logs, state_file: Path, wanted: Mapping[str, int | None]) -> None:
        super().__init__(logs)
        self.state_file, self.wanted = state_file, wanted
        self.since: dict[str, str] = {}

    def _any_stopped(self) -> bool:
        return False

    def _system_print(self, data: str) -> None:
        """honcho says here what started and what stopped."""
        super()._system_print(data)
        entries = {}
        for name, process in self._processes.items():
            if pid := process.get("pid"):
                since = self.since.setdefault(name, datetime.now(UTC).isoformat(timespec="seconds"))
                code = process.get("returncode")
                entries[name] = {"pid": pid, "port": self.wanted[name], "since": since, "returncode": code}
        draft = self.state_file.with_suffix(".tmp")
        draft.write_text(json.dumps(entries, indent=1))
        draft.replace(self.state_file)


def supervise(settings: Settings, procfile: Path, wanted: Mapping[str, int | None]) -> None:
    """Run the lines `wanted` (name → port) of the Procfile until all have ended. The body of the detached process."""
    commands = parse_procfile(procfile.read_text()).processes
    manager = _Services(_Logs(settings, wanted), _state_file(settings, os.environ[RUN_MARK]), wanted)
    for name in wanted:
        if name not in commands:
            raise UnknownName(f"{procfile} has no line for {name}; it has {', '.join(commands)}")
        manager.add_process(name, commands[name], cwd=str(ROOT))
    manager.loop()


if __name__ == "__main__":
    home, procfile, *lines = sys.argv[1:]
    if os.fork():  # the caller waits for this half only, and so leaves no zombie behind
        os._exit(0)
    pairs = (line.partition("=") for line in lines)
    supervise(Settings(home=Path(home)), Path(procfile), {name: int(port) if port else None for name, _, port in pairs})
