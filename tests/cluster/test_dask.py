"""Stages whose parts Dask workers compute: the same bytes on any number, workers and scheduler lost in the middle, who
may connect. With the scheduler, workers and Prefect server of a home."""

import contextlib
import filecmp
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from support.command_line import environment
from support.stack import until

from bellwether.operations import start_stop
from benchmarks import evidence
from benchmarks.fixture import MINUTES, simulated, universe
from benchmarks.ports import free_ports
from flows.support import dask_workers, processes, stores
from flows.support.stage_command import HERE, ON_WORKERS
from pipelines.cpu import code_digest, numeric_cpu
from pipelines.settings import ROOT, Settings, load_params, read_yaml

LACKING = [name for name in ("distributed", "prefect_dask") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (requirements-cluster.txt)"),
]
SMALL = {
    "validator": {"trees": 20, "depth": 3, "decay_half_lives_events": [8000]},
    "splits": {"folds": 3, "calibration_stretches": 2}, "importance": {"repeats": 1}, "gate": {"min_events": 100},
    "drift": {"block_bars": 96}, "regime": {"folds": 1, "em_iterations": 5},
}  # fmt: skip
STAGES = ("features", "labels", "train validator", "train regime")
OTHER_CPU = {"NPY_DISABLE_CPU_FEATURES": "AVX512F"}  # another type, by `numeric_cpu`
LIAR = (  # announces the coordinator's type, and computes on another
    "import sys; from bellwether.operations.launch import dask_node; dask_node.numeric_cpu = lambda: sys.argv.pop(); "
    "dask_node.main()"
)
OTHER_CODE = (  # of a release that computes otherwise
    "import sys; from flows.support import dask_workers; dask_workers.code_digest = lambda: 'other'; "
    "from bellwether.operations.launch import dask_node; dask_node.main()"
)
EVIDENCE = "gate_leaks"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The settings of a home of profile `cluster` without stores of its own; Prefect and the Dask scheduler run."""
    root = tmp_path_factory.mktemp("dask")
    names = ("mlflow_port", "prefect_port", "decision_port", "model_port", "evidently_port", "dask_port",
             "dask_worker_1_port", "dask_worker_2_port")  # fmt: skip
    urls = {f"{name}_url": f"sqlite:///{root}/{name}.db" for name in ("store", "mlflow_store", "prefect_store")}
    urls |= {"remote_url": str(root / "remote"), "mlflow_artifacts_url": str(root / "artifacts")}
    own = urls | dict(zip(names, free_ports(len(names)), strict=True))
    settings = Settings(_env_file=None, home=root / "home", profile="cluster", job_niceness=5, **own)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in urls.items():
            patch.setenv(f"BELLWETHER_{name.upper()}", value)
        start_stop.up(settings, only=["prefect", "dask-scheduler"])
        yield settings
        start_stop.down(settings)
    assert processes.home_processes(settings) == []


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A workspace of two small markets after its stages on this machine, and its data alone."""
    tree, params, root = read_yaml(ROOT / "params.yaml"), load_params(), tmp_path_factory.mktemp("local")
    for name, changes in SMALL.items():
        tree[name] |= changes
    bars = {f"{name}/USDT": (simulated(params, 60, seed=seed), MINUTES) for name, seed in (("AAA", 3), ("BBB", 4))}
    data = universe(root / "data-only", bars, {})
    (data / "params.yaml").write_text(yaml.safe_dump(tree))
    done = root / "workspace"
    shutil.copytree(data, done)
    for stage in STAGES:
        subprocess.run(
            [sys.executable, "-P", "-m", HERE, *stage.split()], cwd=done, env=variables(), check=True, timeout=120
        )
    return done


def variables(settings=None):
    """Return the environment of a stage or a worker; of a home, with the way to its servers."""
    own = {} if settings is None else processes.environment(settings)
    names = {name: value for name, value in os.environ.items() if name.startswith("BELLWETHER_")}
    return {**environment(ROOT / "artifacts"), **names, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def workspace(local, folder, stages=()):
    """Return a new workspace with the same data, and what these stages wrote on this machine."""
    shutil.copytree(local.parent / "data-only", folder)
    for stage in stages:
        shutil.copytree(local / "artifacts" / stage, folder / "artifacts" / stage)
    return folder


def folder_of(home, number):
    """Return the folder of the worker of a number."""
    return home.home / "dask" / f"worker-{number}"


def known(home):
    """Return how many workers the scheduler knows."""
    import distributed

    with distributed.Client(home.dask, security=dask_workers.security(home), set_as_default=False) as client:
        return len(client.scheduler_info()["workers"])


@contextlib.contextmanager
def workers(home, n, first=1, command=("-m", "bellwether.operations.launch.dask_node"), last=(), **more):
    """Yield the processes of n workers that the scheduler knows; at the end they are gone, and so are theirs."""
    before, running = known(home), []
    for number in range(first, first + n):
        words = [sys.executable, *command, "worker", str(number), *last]
        with (home.home / "logs" / f"own-worker-{number}.log").open("a") as log:
            running.append(subprocess.Popen(words, cwd=ROOT, env=variables(home) | more, stdout=log, stderr=log))
    try:
        until(lambda: known(home) == before + n, 60, f"{n} workers")
        yield running
    finally:
        for one in running:
            inside = psutil.Process(one.pid).children(recursive=True) if one.poll() is None else []
            one.kill()
            one.wait()
            psutil.wait_procs(inside, timeout=15)
        until(lambda: known(home) == before, 60, "no worker")


def start(home, folder, stage):
    """Start a stage whose parts the workers compute."""
    words = [sys.executable, "-P", "-m", ON_WORKERS, *stage.split()]
    return subprocess.Popen(
        words, cwd=folder, env=variables(home), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(home, folder, stage):
    """Run a stage on the workers and return what it printed; it succeeds."""
    process = start(home, folder, stage)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-6000:]
    return shown


def computing(folder):
    """Return whether a worker of this folder computes a part now."""
    return any(folder.glob("part-*"))


def differences(one, other):
    """Return the files below two folders that are in one alone or differ in a byte; what a fit took is none."""

    def files(root):
        return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and "timings" not in p.parts}

    both = files(one) & files(other)
    return sorted(files(one) ^ files(other)) + [n for n in sorted(both) if not filecmp.cmp(one / n, other / n, False)]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_every_output_has_the_same_bytes_on_any_number_of_workers(home, local, tmp_path, n):
    folder, chosen = workspace(local, tmp_path / "workspace"), STAGES if n == 2 else STAGES[:-1]
    with workers(home, n):
        for stage in chosen:
            run(home, folder, stage)
    for name in [stage.split()[-1] for stage in chosen]:
        assert differences(local / "artifacts" / name, folder / "artifacts" / name) == []
    fit = folder / "artifacts" / "validator"
    assert {"bundle", "fit.json", "importance.json", "oof.npz"} <= {path.name for path in fit.iterdir()}


@pytest.mark.parametrize("n", [1, 2])
def test_a_killed_worker_costs_its_parts_and_nothing_else(home, local, tmp_path, n):
    folder = workspace(local, tmp_path / "workspace", ("features", "labels"))
    with workers(home, n) as running:
        process = start(home, folder, "train validator")
        until(lambda: computing(folder_of(home, 1)), 60, "a part on worker 1")
        inside = psutil.Process(running[0].pid).children(recursive=True)
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        assert psutil.wait_procs(inside, timeout=15)[1] == []  # nothing computes on without it
        with workers(home, 1, first=1) if n == 1 else contextlib.nullcontext():
            shown, _ = process.communicate(timeout=120)
        assert process.returncode == 0, shown[-6000:]
    assert differences(local / "artifacts" / "validator", folder / "artifacts" / "validator") == []
    assert sorted(path.name for path in (folder / "artifacts").iterdir()) == [
        "features",
        "labels",
        "timings",
        "validator",
    ]


def test_the_parts_of_a_worker_that_hangs_go_elsewhere_when_its_lease_ends(home, local, tmp_path):
    folder = workspace(local, tmp_path / "workspace", ("features", "labels"))
    with workers(home, 2) as running:
        process = start(home, folder, "train validator")
        until(lambda: computing(folder_of(home, 1)), 60, "a part on worker 1")
        inside = psutil.Process(running[0].pid).children(recursive=True)
        for one in inside:
            one.suspend()
        running[0].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        shown, _ = process.communicate(timeout=120)
        took = time.monotonic() - began
        running[0].send_signal(signal.SIGCONT)
        for one in inside:  # they end with their worker, but not while they stand still
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
        assert process.returncode == 0, shown[-6000:]
    assert took > dask_workers.WORKER_TTL_S / 2
    assert differences(local / "artifacts" / "validator", folder / "artifacts" / "validator") == []


def test_a_worker_on_another_type_of_cpu_computes_nothing(home, local, tmp_path):
    folder = workspace(local, tmp_path / "workspace", ("features", "labels"))
    with workers(home, 1), workers(home, 1, first=2, **OTHER_CPU):
        run(home, folder, "train validator")
        assert list(folder_of(home, 2).glob("work-*")) == list(folder_of(home, 2).glob("part-*")) == []
    assert differences(local / "artifacts" / "validator", folder / "artifacts" / "validator") == []
    soon = "from flows.support import dask_workers; dask_workers.WAIT_S = 3; from flows import stage; stage.main()"
    with workers(home, 1, **OTHER_CPU):
        done = subprocess.run(
            [sys.executable, "-P", "-c", soon, "train", "validator"], cwd=folder, env=variables(home), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"no Dask worker with code-{code_digest()} cpu-{numeric_cpu()} for 3 s" in done.stdout
    assert "BELLWETHER_DASK_URL=local" in done.stdout.splitlines()[-1]


def test_a_worker_of_another_release_computes_nothing(home, local, tmp_path):
    folder = workspace(local, tmp_path / "workspace")
    with workers(home, 1), workers(home, 1, first=2, command=("-c", OTHER_CODE)):
        run(home, folder, "features")
        assert list(folder_of(home, 2).glob("work-*")) == list(folder_of(home, 2).glob("part-*")) == []
    assert differences(local / "artifacts" / "features", folder / "artifacts" / "features") == []


def test_cases_of_evidence_are_the_same_on_workers_also_where_one_is_killed(home, tmp_path):
    part = evidence.PARTS[EVIDENCE]
    cases = part.cases[:4]
    env = variables(home) | {"BELLWETHER_HOME": str(home.home)}
    words = [sys.executable, "-m", "benchmarks.spread_evidence", EVIDENCE, "--again"]
    words += [word for case in cases for word in ("--case", case)]
    file = home.home / "evidence" / f"{EVIDENCE}.json"
    with workers(home, 2) as running:
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        until(lambda: computing(folder_of(home, 1)) or process.poll() is not None, 60, "a case on worker 1")
        assert process.poll() is None, process.communicate()[0]
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown[-6000:]
    found = json.loads(file.read_text())["cases"]
    assert found == {case: json.loads(json.dumps(part.run(case))) for case in cases}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.spread_evidence", "crashes"], cwd=ROOT, env=env, text=True, check=False,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no evidence crashes for workers" in done.stderr  # it times services of one machine


def test_results_of_two_types_are_refused(home, local, tmp_path):
    folder = workspace(local, tmp_path / "workspace")
    with workers(home, 1, command=("-c", LIAR), last=(numeric_cpu(),), **OTHER_CPU):
        process = start(home, folder, "features")
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert shown.splitlines()[-1].startswith("MIXED_CPU: features ")
    assert not (folder / "artifacts" / "features" / "meta.json").exists()


def test_a_connection_without_the_certificate_of_the_home_is_refused(home, tmp_path):
    import distributed
    from distributed.comm import CommClosedError
    from distributed.security import Security

    stranger = tmp_path / "dask.pem", tmp_path / "dask_key.pem"
    stores.write_certificate(*stranger)
    ours, _ = stores.dask_files(home)
    parts = {"tls_client_cert": str(stranger[0]), "tls_client_key": str(stranger[1]), "require_encryption": True}
    for authority in (
        stranger[0],
        ours,
    ):  # it does not trust our scheduler; it does, and the scheduler does not trust it
        with pytest.raises(CommClosedError):
            distributed.Client(home.dask, security=Security(tls_ca_file=str(authority), **parts), timeout=3)
    with pytest.raises(CommClosedError):
        distributed.Client(home.dask.replace("tls", "tcp"), timeout=3)
    assert known(home) == 0  # ours is not
    for file in stores.dask_files(home):
        assert file.stat().st_mode & 0o077 == 0


def test_a_stage_whose_scheduler_was_killed_says_so_and_runs_once_more(home, local, tmp_path):
    folder = workspace(local, tmp_path / "workspace", ("features", "labels"))
    start_stop.up(home, only=["dask-worker-1", "dask-worker-2"])
    until(lambda: known(home) == 2, 60, "two workers")
    process = start(home, folder, "train validator")
    until(lambda: computing(folder_of(home, 1)), 60, "a part on worker 1")
    os.kill(processes.read_entries(home)["dask-scheduler"]["pid"], signal.SIGKILL)
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 0, shown[-6000:]
    assert "ended or was restarted; this stage runs once more" in shown
    assert differences(local / "artifacts" / "validator", folder / "artifacts" / "validator") == []
    until(lambda: known(home) == 2, 60, "two workers again")
