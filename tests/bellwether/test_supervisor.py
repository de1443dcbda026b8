"""Real processes from a small Procfile: two servers, one of which has children that stray."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.small_services import SERVER, free_port, home, start, states

from bellwether.operations import start_stop
from flows.support import ports, processes
from pipelines.errors import BadValues, PortTaken, ServiceDown, UnknownName

__all__ = ["home"]  # the fixture

STRAYS = "(setsid sleep 600 &) ; (trap '' TERM; setsid sleep 601 &) ; "


def test_up_then_down_leaves_nothing_running(home):
    procfile = home.home.parent / "Procfile"
    procfile.write_text(procfile.read_text().replace("alpha: ", f"alpha: {STRAYS}"))
    lines = []
    assert start(home, progress=lines.append) == ["alpha", "beta"]
    assert states(home) == {"alpha": "up", "beta": "up"}
    assert [line.split(" up after")[0] for line in sorted(lines)] == ["alpha", "beta"]
    living = processes.home_processes(home)
    assert len([p for p in living if "sleep" in p.name()]) == 2
    assert sorted(start_stop.down(home)) == ["alpha", "beta"]
    assert not any(processes.is_alive(process) for process in living)
    assert states(home) == {"alpha": "down", "beta": "down"}
    assert sorted(file.name for file in (home.home / "run").rglob("*")) == ["lock", "orders"]


def test_the_supervisor_of_the_release_before_is_known(home):
    """What it runs is no orphan: `up` leaves it alone, and `down` stops it first."""
    marks = {processes.RUN_MARK: "test", "BELLWETHER_HOME": str(home.home.resolve())}
    command = [sys.executable, "-c", "import time; time.sleep(600)", "flows.supervise"]
    with subprocess.Popen(command, env=os.environ | marks) as earlier:
        try:
            for _ in range(100):  # its command line is there once it has begun
                if found := processes.supervisor_of(home):
                    break
                time.sleep(0.05)
            assert found is not None
            assert found.pid == earlier.pid
            start_stop.down(home)
            assert earlier.wait(10) != 0
        finally:
            earlier.kill()


def test_up_starts_only_what_is_missing(home):
    assert start(home, only=["alpha"]) == ["alpha"]
    assert start(home) == ["beta"]
    assert start(home) == []


def test_down_finds_everything_after_the_supervisor_and_its_state_are_gone(home):
    start(home)
    processes.supervisor_of(home).kill()
    for file in (home.home / "run").glob("*.json"):
        file.unlink()
    start_stop.down(home)
    assert processes.home_processes(home) == []


def test_the_state_of_a_crashed_run_is_forgotten(home):
    start(home)
    for process in processes.home_processes(home):
        process.kill()
    start_stop.end(processes.home_processes(home), 5.0)
    assert len(processes.leftovers(home)) == 1
    assert states(home) == {"alpha": "down", "beta": "down"}
    assert start(home) == ["alpha", "beta"]
    assert processes.leftovers(home) == []


def test_a_service_that_ends_while_starting_is_named_with_the_end_of_its_log(home):
    (home.home.parent / "Procfile").write_text(
        f'alpha: echo no database here; exit 3\nbeta: {SERVER} "$BELLWETHER_PREFECT_PORT"\n'
    )
    with pytest.raises(ServiceDown, match=r"alpha ended with code 3[\s\S]*alpha\.log[\s\S]*no database here"):
        start(home)
    assert processes.home_processes(home) == []


def test_a_service_that_never_answers_is_named_after_the_limit(home, monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 1.0)
    (home.home.parent / "Procfile").write_text("alpha: exec sleep 60\n")
    with pytest.raises(ServiceDown, match="alpha gave no answer in 1 s"):
        start(home, only=["alpha"])


def test_a_taken_port_names_service_holder_and_setting_before_anything_starts(home):
    with socket.socket() as other:
        other.bind((home.host, home.prefect_port))
        other.listen()
        with pytest.raises(
            PortTaken, match=rf"port {home.prefect_port} of beta.*process {os.getpid()}.*BELLWETHER_PREFECT_PORT=\d+"
        ):
            start(home)
    assert not processes.state_file(home).exists()
    assert processes.supervisor_of(home) is None


def test_two_services_with_one_port_are_refused(home):
    with pytest.raises(BadValues, match="beta and alpha were both given port"):
        start(home.model_copy(update={"prefect_port": home.mlflow_port}))


def test_a_port_that_was_just_closed_counts_as_free():
    server = subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port := free_port())],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while ports.is_free("127.0.0.1", port):
        time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", port)):
        server.terminate()
        server.wait()
    assert ports.is_free("127.0.0.1", port)


def test_an_unknown_service_is_refused(home):
    with pytest.raises(UnknownName, match="known: alpha, beta"):
        start(home, only=["gamma"])


def test_states_are_known_quickly_when_everything_is_down(home):
    began = time.monotonic()
    assert set(states(home).values()) == {"down"}
    assert time.monotonic() - began < 1.0


def test_every_tool_stays_under_home_and_sends_no_telemetry(home):
    variables = processes.environment(home)
    folders = ["PREFECT_HOME", "BENTOML_HOME", "DVC_GLOBAL_CONFIG_DIR", "DVC_SITE_CACHE_DIR", "MPLCONFIGDIR"]
    assert all(Path(variables[name]).is_relative_to(home.home) for name in folders)
    assert variables["PREFECT_API_URL"] == f"http://127.0.0.1:{home.prefect_port}/api"
    assert processes.TELEMETRY_OFF.items() <= variables.items()


def test_a_process_in_our_environment_leaves_the_home_folder_of_the_user_alone(home, tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    code = """
import numpy as np, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.ones(1, np.float32)})
"""
    outside = {name: value for name, value in os.environ.items() if name != "CI"}  # onnxruntime is silent in CI anyway
    variables = {**outside, **processes.environment(home), "HOME": str(user)}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    assert list(user.rglob("*")) == []
