"""Upgrade under load: stop the release before this one, and start this release on the same home.

The old code is read from git and runs from a folder of its own: it makes the home (market, model, warm start,
workspace) and serves from it. A client sends bars and requests decisions all the time, before, between and after. In a
second home the old release has another feature, so that its warm start is refused by this one and is folded again.

Run: python -m benchmarks.evidence upgrade
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import httpx
import numpy as np

from bellwether.operations import start_stop
from benchmarks.ports import free_ports
from pipelines.contracts import OPEN_TIME, Floats, JsonObject, utc
from pipelines.errors import ServiceDown
from pipelines.settings import ROOT, Settings, load_params
from pipelines.store import Store, decision_of, decision_payload
from serving.client import bars_json

FIRST = "d51897f"  # release 0.5.0, used where git has no earlier tag
BARS_BEFORE, BARS_AFTER = 60, 100  # decision bars answered by the old release, and by this one
PACE_S = 0.02
PATIENCE_S = 300.0
OTHER_FEATURE = "pipelines/features/volume.py"

MAKE = """
import json, shutil, sys
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from benchmarks.hardship import _line_of
from benchmarks.house import FAMILY, arm_of, stand
from pipelines.store import Store
from serving.generation import write_generation
home = Path(sys.argv[1])
at = stand(False)
home.mkdir()
shutil.copytree(at.home / "bundles", home / "bundles")
shutil.copytree(at.home / "serving" / "warm", home / "serving" / "warm")
warm = at.warm | {"path": str(home / "serving" / "warm" / at.warm["digest"])}
write_generation(home / "serving", {FAMILY: {"champion": arm_of(at.digests[0], "1")}}, warm, datetime.now(UTC))
trained = at.home.parent / f"seed-{at.params.seed}"
for name in ("data", "data.dvc", "artifacts/features", "artifacts/labels"):
    source, target = trained / name, home / "workspace" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
store = Store.open(f"sqlite:///{home / 'store.db'}")
store.add_promotion(_line_of(at))
store.close()
np.save(sys.argv[2], at.live)
"""
UP = "from flows import supervisor; from pipelines.settings import Settings; supervisor.up(Settings(), ('decision',))"
DOWN = "from flows import supervisor; from pipelines.settings import Settings; supervisor.down(Settings())"
THIS_UP = "from bellwether.cli.main import main; main()"


@dataclass
class Caller:
    """Send bars and request a decision at each close, one after the other; what is not answered with 200 is sent again.

    good     monotonic seconds of each good answer
    answers  acknowledged decisions, by id
    """

    settings: Settings
    symbol: str
    groups: list[Floats]
    key: str
    good: list[float] = field(default_factory=list)
    answers: dict[str, JsonObject] = field(default_factory=dict)
    fed: int = 0
    tiers: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    until: int = 0  # decision bars to send before it waits
    _as_of: bool = True  # the old release needs a time in the request; this one has a clock
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self._thread.join()

    def wait(self, bars: int, patience_s: float) -> None:
        """Wait until so many bars were answered. Raises ServiceDown with the last fault after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while self.fed < bars:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ServiceDown(
                    f"{self.fed} of {bars} decision bars answered in {patience_s:.0f} s: {self.faults[-1:]}"
                )
            time.sleep(0.05)

    def _run(self) -> None:
        """Send every bar and request its decision."""
        step_s = float(self.groups[1][0, OPEN_TIME] - self.groups[0][0, OPEN_TIME])
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.settings.decision_url, headers=headers, timeout=10.0) as http:
            for group in self.groups:
                bars = bars_json(group)
                self._retry(http, "/observe", {"symbol": self.symbol, "bars": bars})
                decision = self._retry(
                    http, "/decide", {"symbol": self.symbol}, utc(group[0, OPEN_TIME] + step_s).isoformat()
                )
                if decision is None:
                    return
                if self.answers.setdefault(decision["id"], decision) != decision:
                    self.faults.append(f"decision {decision['id']} was answered in two ways")
                self.tiers.append(decision["tier"])
                self.fed += 1
                time.sleep(PACE_S)

    def _retry(self, http: httpx.Client, path: str, body: JsonObject, as_of: str | None = None) -> JsonObject | None:
        """Send a request until it is answered with 200; None once stopped."""
        while not self._ended.is_set():
            sent = body | ({"as_of": as_of} if as_of and self._as_of else {})
            try:
                answer = http.post(path, json=sent)
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.good.append(time.monotonic())
                return dict(answer.json())
            if answer.status_code == 400 and "as_of" in sent and "as_of" in answer.text:
                self._as_of = False
            elif answer.status_code != 503:
                fault = f"{path} answered {answer.status_code}: {answer.text[:200]}"
                self.faults += [fault] if fault not in self.faults else []
            time.sleep(0.05)
        return None


def previous() -> str:
    """Return the newest tag before this commit, else release 0.5.0."""
    found = _git("describe", "--tags", "--abbrev=0", "HEAD^")
    return found.stdout.strip() if found.returncode == 0 else FIRST


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run git in this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def check_out(revision: str, into: Path) -> str:
    """Write the tracked files of a revision into a folder of their own; return its version.

    Raises ServiceDown without it.
    """
    into.mkdir()
    packed = into.with_suffix(".tar")
    done = _git("archive", "--output", str(packed), revision)
    if done.returncode:
        raise ServiceDown(f"git has no revision {revision}: {done.stderr.strip()}; name one that is there")
    subprocess.run(["tar", "-xf", str(packed), "-C", str(into)], check=True)
    packed.unlink()
    found = re.search(r'^version = "([^"]+)"', (into / "pyproject.toml").read_text(), re.MULTILINE)
    return found[1] if found else revision


def run_drill(revision: str | None = None) -> JsonObject:
    """Upgrade two homes of `revision` (default: `previous`) under load: as it is, and with another feature.

    Returns of the first: from (version), silent_s (last good answer of the old to first of the new), recovery_s (start
    of `up` to first good answer), acknowledged, lost, doubled, lost_bars, loose_before and loose_after (files and
    folders under home that others may read or write), tiers before and after, output (of `up`), faults; and under
    `other_catalogue` the same of the second.
    """
    wanted = revision or previous()
    with tempfile.TemporaryDirectory(prefix="bellwether-upgrade-") as scratch:
        found = upgraded(Path(scratch), wanted, other_feature=False)
    with tempfile.TemporaryDirectory(prefix="bellwether-upgrade-") as scratch:
        other = upgraded(Path(scratch), wanted, other_feature=True)
    return found | {"other_catalogue": other}


def upgraded(scratch: Path, revision: str, other_feature: bool) -> JsonObject:
    """Upgrade one home and return the figures of `run_drill`."""
    old, home = scratch / "old", scratch / "home"
    release = check_out(revision, old)
    if other_feature:
        source = old / OTHER_FEATURE
        source.write_text(source.read_text() + "\n_OF_AN_EARLIER_RELEASE = 1\n")
    env = environment_of(home)
    packages = install_missing(old / "requirements.lock", scratch / "packages")
    old_env = env | {"PYTHONPATH": f"{old}{os.pathsep}{packages}"}
    with _umask(0o022):
        run_python(old, old_env, MAKE, str(home), str(scratch / "live.npy"))
        run_python(old, old_env, UP)
    settings = Settings(home=home, **_ports(env))
    params = load_params(old / "params.yaml")
    live = np.load(scratch / "live.npy")
    slot = live[:, OPEN_TIME] // 900
    groups = np.split(live, np.flatnonzero(np.diff(slot)) + 1)[:-1]
    caller = Caller(settings, params.simulator.symbol, groups, (home / "write_key").read_text().strip())
    caller.start()
    try:
        caller.wait(BARS_BEFORE, PATIENCE_S)
        loose_before = loose(home)
        run_python(old, old_env, DOWN)
        stopped, answered = time.monotonic(), caller.fed
        last = caller.good[-1]
        output = run_python(ROOT, env | {"PYTHONPATH": str(ROOT)}, THIS_UP, "up")
        caller.wait(answered + BARS_AFTER, PATIENCE_S)
        first = next(at for at in caller.good if at > stopped)
    finally:
        caller.stop()
        start_stop.down(settings)
    store = Store.open(settings.store)
    try:
        records = store.decisions()
        stored_bars = store.bars(caller.symbol)
    finally:
        store.close()
    stored = {record.decision.id: decision_payload(record.decision) for record in records}
    keys = [(r.decision.symbol, r.decision.as_of, r.decision.generation, r.decision.tier) for r in records]
    shown = np.vstack(groups[: caller.fed])
    return {
        "from": f"{release} ({revision})", "silent_s": first - last, "recovery_s": first - stopped,
        "acknowledged": len(caller.answers),
        "lost": sum(_differs(stored.get(id), answer) for id, answer in caller.answers.items()),
        "doubled": len(keys) - len(set(keys)),
        "lost_bars": int(len(shown) - len(np.intersect1d(shown[:, OPEN_TIME], stored_bars[:, OPEN_TIME]))),
        "loose_before": loose_before, "loose_after": loose(home),
        "tiers_before": sorted(set(caller.tiers[:answered])), "tiers_after": sorted(set(caller.tiers[answered + 1 :])),
        "output": [line for line in output.splitlines() if line.isascii() and " up after" not in line][:8],
        "warm_start": "folded again" if "folded again" in output else "read as it was", "faults": caller.faults[:5],
    }  # fmt: skip


def _differs(stored: JsonObject | None, answer: JsonObject) -> bool:
    """Return whether the stored decision differs from the answer, read with the keys and words of this release."""
    answered = decision_of({key: value for key, value in answer.items() if key != "api"})
    return stored != decision_payload(answered)


def install_missing(lock: Path, into: Path) -> Path:
    """Install the packages of a release's lock that this environment lacks into a folder of their own; return it.

    Raises ServiceDown with the end of what the installer printed.
    """
    present = {re.sub(r"[-_.]+", "-", found.name).lower() for found in metadata.distributions()}
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE)
    missing = [f"{name}=={version}" for name, version in pins if re.sub(r"[-_.]+", "-", name).lower() not in present]
    into.mkdir()
    if missing:
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(into),
            *missing,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceDown(f"{', '.join(missing)} of the old release cannot be installed: {done.stderr[-500:]}")
    return into


def loose(home: Path) -> int:
    """Return the number of files and folders under `home` that the group or others may read or write."""
    return sum(bool(path.lstat().st_mode & 0o077) for path in (home, *home.rglob("*")) if not path.is_symlink())


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of an installation of its own; of ours only the kernel cache counts."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_") and k != "PYTHONPATH"}
    kernels = {k: v for k, v in os.environ.items() if k == "BELLWETHER_KERNEL_CACHE"}
    ports = zip(("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY"), free_ports(5), strict=True)
    return outside | kernels | {"BELLWETHER_HOME": str(home)} | {f"BELLWETHER_{n}_PORT": str(p) for n, p in ports}


def _ports(env: dict[str, str]) -> JsonObject:
    """Return the ports of an environment as arguments of Settings."""
    return {
        k.removeprefix("BELLWETHER_").lower(): int(v)
        for k, v in env.items()
        if k.startswith("BELLWETHER_") and k.endswith("_PORT")
    }


def run_python(tree: Path, env: dict[str, str], code: str, *words: str) -> str:
    """Run code of one tree; return its output. Raises ServiceDown with the end of it if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tree, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ServiceDown(f"{code.splitlines()[-1]} {' '.join(words)} of {tree} ended with {done.returncode}: "
                          f"{done.stdout[-1500:]}")  # fmt: skip
    return done.stdout


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Set the umask, and restore it at the end."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


if __name__ == "__main__":
    print(json.dumps(run_drill(sys.argv[1] if len(sys.argv) > 1 else None), indent=1))
