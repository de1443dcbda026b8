"""Our own probes and the tools' clients with the key: they send it to our servers only, and report a refusal."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bellwether.operations import doctor
from flows.support import processes, service_table
from flows.support.service_table import Service
from pipelines.errors import ServiceDown
from pipelines.settings import Settings
from serving.service import keys


@contextmanager
def server(answer):
    """A server in this process. `answer(path, headers)` gives its status and, for a redirect, the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, location = answer(self.path, self.headers)
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield running.server_address[1]
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def home(tmp_path):
    return Settings(_env_file=None, home=tmp_path / "home", write_key=None)


def state(home, port, health="/"):
    at = home.model_copy(update={"mlflow_port": port})
    return processes.services(at, {"mlflow": Service("mlflow_port", health)})["mlflow"]


@pytest.mark.parametrize("closed", [("/", "/session"), ("/session",)])
def test_a_server_with_another_key_is_a_state_of_its_own_even_where_its_health_is_open(home, closed):
    keys.write_key(home)
    with server(lambda path, _: (401 if path in closed else 200, None)) as port:
        found = state(home, port)
        assert (found["state"], found["pid"]) == ("key refused", None)
        assert "BELLWETHER_WRITE_KEY" in found["detail"]
        with pytest.raises(ServiceDown, match="refuses our key"):
            processes.await_healthy(
                home.model_copy(update={"mlflow_port": port}), ["mlflow"], known={"mlflow": Service("mlflow_port")}
            )


def test_a_server_that_takes_the_key_or_knows_none_is_up(home):
    key = keys.write_key(home)
    taken = f"Bearer {key}"
    with server(lambda _, headers: (200 if headers["Authorization"] == taken else 401, None)) as port:
        assert state(home, port)["state"] == "up"
    with server(lambda path, _: (404 if path == "/session" else 200, None)) as port:
        assert state(home, port)["state"] == "up"


def test_a_redirected_probe_does_not_send_the_key(home):
    keys.write_key(home)
    seen = []

    def elsewhere(path, headers):
        seen.append(headers["Authorization"])
        return 200, None

    with server(elsewhere) as other, server(lambda path, _: (302, f"http://127.0.0.1:{other}{path}")) as port:
        state(home, port)
    assert seen
    assert set(seen) == {None}


def test_doctor_names_the_server_that_refuses_the_key_and_what_to_do(home, monkeypatch):
    refused = {name: processes.State(state="key refused", url=None, port=1, pid=None, since=None, detail="do this")
               for name in service_table.SERVICES}  # fmt: skip
    monkeypatch.setattr(processes, "services", lambda _: refused)
    findings = list(doctor.open_ports(home))
    assert {(f.state, f.remedy) for f in findings} == {("fail", "do this")}
    assert "mlflow refuses our key" in {f.detail for f in findings}


def test_the_clients_of_the_tools_are_given_the_key_once_there_is_one(home):
    before = processes.environment(home)
    assert not {"PREFECT_CLIENT_CUSTOM_HEADERS", "MLFLOW_TRACKING_TOKEN"} & before.keys()
    assert not home.home.exists()  # asking creates nothing
    key = keys.write_key(home)
    after = processes.environment(home)
    assert json.loads(after["PREFECT_CLIENT_CUSTOM_HEADERS"]) == {"Authorization": f"Bearer {key}"}
    assert after["MLFLOW_TRACKING_TOKEN"] == key


def test_behind_our_guard_the_tools_accept_the_same_hosts_and_no_other_origin(home):
    at = home.model_copy(update={"allowed_hosts": "desk.example", "host": "10.0.0.5"})
    variables = processes.environment(at)
    assert variables["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")[0] == at.prefect_url
    assert "*" not in variables["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] + variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]
    assert {"desk.example", "10.0.0.5:*", "127.0.0.1:*"} <= set(variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
