"""Importing a package changes nothing in the process; entry points set threads and garbage collection."""

import os
import subprocess
import sys

import pytest

from flows.support.processes import environment
from pipelines import bootstrap
from pipelines.settings import ROOT, Settings

BLAS = "\nfrom threadpoolctl import threadpool_info\nprint(*{pool['num_threads'] for pool in threadpool_info()})"
STAGE = """
import contextlib, runpy, sys
sys.argv = ["stages", "no such stage"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    runpy.run_module("pipelines.training.stages", run_name="__main__")
"""


def run(code, **variables):
    """Return what a Python process prints that starts without a number of threads."""
    inherited = {name: value for name, value in os.environ.items() if name != bootstrap.THREADS}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=inherited | variables,
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.split()


def test_importing_every_layer_changes_neither_the_environment_nor_the_garbage_collector():
    layers = "pipelines.store, pipelines.settings, serving.policy.decide, flows.support.processes, bellwether.cli.main"
    code = f"import gc, os; before = dict(os.environ), gc.get_threshold()\nimport {layers}\n"
    assert run(code + "print((dict(os.environ), gc.get_threshold()) == before)") == ["True"]


def test_bootstrap_sets_one_thread_unless_the_environment_names_a_number():
    code = "from pipelines.bootstrap import bootstrap; bootstrap()\nimport gc, os\n"
    shown = f"print(os.environ['{bootstrap.THREADS}'], gc.get_threshold()[0])"
    assert run(code + shown) == ["1", "20000"]
    assert run(code + shown, **{bootstrap.THREADS: "3"}) == ["3", "20000"]


def test_a_command_that_answers_and_ends_searches_for_no_cycles_not_even_at_its_end():
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"  # the first one runs last
        "from pipelines.bootstrap import bootstrap, expect_one_answer; bootstrap(); expect_one_answer()\n"
        "print(gc.get_threshold()[0], gc.get_freeze_count())"
    )
    assert run(code) == ["250000", "0", "True"]


def test_bootstrap_imports_no_numpy():
    assert run("import pipelines.bootstrap, pipelines.settings, sys; print('numpy' in sys.modules)") == ["False"]


@pytest.mark.parametrize("code", [STAGE, "import serving.service.decision_service"])
def test_a_stage_and_a_service_compute_on_one_thread(code, tmp_path, monkeypatch):
    monkeypatch.delenv(bootstrap.THREADS, raising=False)
    started = {} if code == STAGE else environment(Settings(home=tmp_path))  # what `up` passes to a service
    assert run(code + BLAS, **started) == ["1"]


def test_a_flow_run_has_the_settings_of_its_parent():
    """Prefect spawns it, and a spawned process runs the main module of its parent as `__mp_main__`."""
    code = "import gc, runpy; runpy.run_module('flows.deployments', run_name='__mp_main__')"
    assert run(code + "; print(gc.get_threshold()[0])") == ["20000"]


def test_a_service_keeps_what_it_loaded_out_of_frequent_searches():
    code = (
        "import gc; from collections import deque; from pipelines.bootstrap import bootstrap, serve_from_now_on\n"
        "bootstrap(); loaded = [[i] for i in range(500_000)]; gc.collect(); serve_from_now_on()\n"
        "lately = deque(maxlen=10_000)\n"  # what requests leave lives through some searches
        "for _ in range(110_000): itself = []; itself.append(itself); lately.append(itself)\n"
        "print(*gc.get_threshold(), gc.get_freeze_count() > 500_000, len(gc.get_objects()) < 80_000)"
    )
    shown = " ".join(map(str, bootstrap.SERVING_THRESHOLDS))
    assert run(code) == [*shown.split(), "True", "True"]


def test_what_a_thread_starts_after_it_stepped_back_goes_behind_and_what_ran_before_does_not():
    code = (
        "import os, subprocess, sys, threading; from pipelines.bootstrap import step_back\n"
        "go, found = threading.Event(), []\n"
        "watcher = threading.Thread(target=lambda: (go.wait(), found.append(os.nice(0)))); watcher.start()\n"
        "step_back(13); step_back(11)\n"
        "go.set(); watcher.join()\n"
        "job = subprocess.check_output([sys.executable, '-c', 'import os; print(os.nice(0))'], text=True)\n"
        "print(*found, os.nice(0), job)"
    )
    here = os.nice(0)
    assert run(code) == [str(here), str(max(13, here)), str(max(13, here))]
