"""Hostile origins, hosts and callers against the five real servers, over HTTP and WebSocket; a person logs in."""

import json
import re
import time
from datetime import UTC, datetime

import httpx
import pytest
from support.browser import chromium
from support.servers import CALLS, TOOLS, url_of
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.support import processes
from pipelines.settings import Settings
from serving.service.client_keys import LOOK_S, add_client, revoke_client
from serving.service.keys import create_ticket

pytestmark = pytest.mark.stack
FOREIGN = ("http://evil.example", "null", "http://localhost:5000", "http://127.0.0.1:9")


@pytest.fixture(params=TOOLS)
def server(request, stack):
    """A connection to one of the five servers, and its name; it sends no key by itself."""
    with httpx.Client(base_url=url_of(stack, request.param), timeout=30) as client:
        yield request.param, client


def test_a_page_of_another_origin_gets_nothing_from_any_server_whatever_it_sends(stack, server):
    tool, client = server
    reads, writes, _ = CALLS[tool]
    for origin in FOREIGN:
        for method, path in (("GET", reads), ("POST", writes), ("PATCH", writes), ("OPTIONS", writes), ("GET", "/")):
            for key in ({}, stack.key):
                headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **key}
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 403, (origin, method, path, answer.text)
                assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_host_name_that_is_not_ours_is_refused_by_every_server(stack, server):
    tool, client = server
    port = client.base_url.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:9", f"localhost.evil.example:{port}"):
        for path in ("/", CALLS[tool][0]):
            answer = client.get(path, headers={"Host": host, **stack.key})
            assert (answer.status_code, answer.json()["kind"]) == (400, "UnknownHost"), (host, path)


def test_no_server_changes_or_returns_anything_without_the_key(stack, server):
    tool, client = server
    reads, writes, _ = CALLS[tool]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "bellwether_prefect=x"}):
        assert client.post(writes, json={}, headers=headers).status_code == 401
        if tool not in ("decision", "models"):
            assert client.get(reads, headers=headers).status_code == 401
        assert client.get("/", headers=headers).status_code == 200
    assert client.post(writes, json={}, headers=stack.key).status_code not in (401, 403)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_socket_of_a_foreign_page_or_name_or_without_the_key_is_never_opened(stack, tool):
    url = url_of(stack, tool).replace("http", "ws") + CALLS[tool][2]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Host": "evil.example", **stack.key},
                    *({"Origin": origin, **stack.key} for origin in FOREIGN)):  # fmt: skip
        with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers, proxy=None):
            pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_prefects_sockets_open_with_the_key_only(stack, path):
    url = stack.settings.prefect_url.replace("http", "ws") + path
    with connect(url, additional_headers=stack.key, subprotocols=["prefect"], proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": None}))
        assert json.loads(socket.recv(timeout=20))["type"] == "auth_success"
    for headers in ({}, {"Origin": "http://evil.example"}):
        with (
            pytest.raises(InvalidStatus),
            connect(url, additional_headers=headers, subprotocols=["prefect"], proxy=None),
        ):
            pass


def test_a_client_uses_the_tool_of_its_scope_until_its_key_is_revoked_and_no_other_server(stack, monkeypatch):
    from mlflow import MlflowClient

    _, prefects = add_client(stack.settings, "flows-team", ["prefect"], datetime.now(UTC))
    _, mlflows = add_client(stack.settings, "models-team", ["mlflow"], datetime.now(UTC))
    time.sleep(LOOK_S + 0.1)
    url = stack.settings.prefect_url.replace("http", "ws") + "/api/events/in"
    bearer = {"Authorization": f"Bearer {prefects}"}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", mlflows)
    assert MlflowClient(stack.settings.mlflow_url).search_experiments()
    assert httpx.get(stack.settings.mlflow_url + CALLS["mlflow"][0], headers=bearer).status_code == 403
    with connect(url, additional_headers=bearer, subprotocols=["prefect"], proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": None}))
        assert json.loads(socket.recv(timeout=20))["type"] == "auth_success"
        revoke_client(stack.settings, "flows-team")
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv(timeout=20)
        assert ended.value.rcvd.code == 4401
    revoke_client(stack.settings, "models-team")
    time.sleep(LOOK_S + 0.1)
    headers = {"Authorization": f"Bearer {mlflows}"}
    assert httpx.get(stack.settings.mlflow_url + CALLS["mlflow"][0], headers=headers).status_code == 401


def test_a_web_page_can_no_longer_make_a_deployment_run_its_command(stack):
    """What worked before: a page PATCHed the pull steps of a deployment to a shell command and started it."""
    found = stack.prefect("deployments/name/monitor/monitor")
    url = f"{stack.settings.prefect_url}/api/deployments/{found['id']}"
    step = {"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/was_here"}}
    own = {"Origin": stack.settings.prefect_url}
    for headers, status in [({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({}, 401), (own, 401),
                            ({"Host": "evil.example"}, 400)]:  # fmt: skip
        assert httpx.patch(url, json={"pull_steps": [step]}, headers=headers).status_code == status
        assert httpx.post(f"{url}/create_flow_run", json={}, headers=headers).status_code == status
    # a page needs no answer, nor JSON, to do harm
    plain = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    assert httpx.post(f"{url}/create_flow_run", content="{}", headers=plain).status_code == 403
    after = stack.prefect("deployments/name/monitor/monitor")
    assert (after["pull_steps"], after["updated"]) == (found["pull_steps"], found["updated"])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("tool", ["decision", "models"])
def test_our_services_take_json_only(stack, tool, kind):
    answer = httpx.post(
        url_of(stack, tool) + CALLS[tool][1], content=b"{}", headers={"Content-Type": kind, **stack.key}
    )
    assert answer.status_code == 415


def test_a_one_time_link_lets_one_browser_in_once(stack, server):
    tool, client = server
    ticket = create_ticket(stack.settings, tool)
    assert client.get("/session", params={"ticket": ticket}).status_code == 303
    assert [re.sub(r"\d+$", "", cookie.name) for cookie in client.cookies.jar] == [f"bellwether_{tool}_"]
    assert client.get("/session").status_code == 204
    assert 'name="key"' not in client.get("/").text
    client.cookies.clear()
    assert client.get("/session", params={"ticket": ticket}).status_code == 401
    assert client.get("/session").status_code == 401
    for log in (stack.settings.home / "logs").iterdir():
        assert ticket not in log.read_text(errors="replace")


def test_no_server_sends_the_key_to_a_browser_that_has_only_a_session(stack):
    """Prefect lists its settings, those of its clients among them."""
    answer = httpx.get(f"{stack.settings.prefect_url}/api/admin/settings", headers=stack.key)
    assert answer.json()["server"]
    assert stack.key["Authorization"].removeprefix("Bearer ") not in answer.text


def test_open_prints_a_link_of_the_tool_it_is_asked_for(stack):
    link = stack.json("open", "prefect")["url"]
    assert link.startswith(f"{stack.settings.prefect_url}/session?ticket=")
    answer = httpx.get(link, follow_redirects=True)
    assert (answer.status_code, "<title>Prefect" in answer.text) == (200, True)
    assert stack.cli("open", "mlflow", "--no-browser").stdout.startswith(f"{stack.settings.mlflow_url}/session?ticket=")
    assert "known: mlflow" in stack.cli("open", "grafana").stderr


def test_a_key_that_is_not_theirs_is_a_state_of_its_own_with_its_remedy(stack):
    other = Settings(_env_file=None, **{**stack.settings.model_dump(), "write_key": "another-key"})
    states = processes.services(other)
    keyed = {name: state for name, state in states.items() if name != "feed"}  # it listens on no port
    assert {name: state["state"] for name, state in keyed.items()} == dict.fromkeys((*TOOLS, "flows"), "key refused")
    assert all("BELLWETHER_WRITE_KEY" in state["detail"] for state in keyed.values())
    env = {**stack.env, "BELLWETHER_WRITE_KEY": "another-key"}
    assert "refuses our key" in stack.cli("doctor", env=env).stdout.replace("\n", " ")
    refused = stack.cli("key", "rotate", env=env)
    assert refused.returncode == 1
    assert "Set another there" in refused.stderr


def test_a_person_logs_in_and_tries_a_call_in_a_real_browser(stack, tmp_path):
    """The login page of a tool with its form, one click to each UI, and Authorize and Try it out in the API page."""
    key = stack.key["Authorization"].removeprefix("Bearer ")
    shows = {"mlflow": "Experiments", "evidently": "Bellwether", "models": "/predict", "prefect": "Dashboard"}
    with chromium(tmp_path / "browser") as page:
        page.open(stack.settings.prefect_url)
        page.fill("input[name=key]", "wrong")
        page.click("button")
        page.until("document.body.innerText.includes('Wrong key')")
        page.fill("input[name=key]", key)
        page.click("button")
        page.until("document.body.innerText.includes('Dashboard')")
        assert "bellwether" not in page.run("document.cookie + JSON.stringify(localStorage)")
        assert key not in page.run("JSON.stringify(localStorage)")
        for tool, text in shows.items():
            page.open(f"{url_of(stack, tool)}/session?ticket={create_ticket(stack.settings, tool)}")
            page.until(
                f"document.URL.startsWith('{url_of(stack, tool)}') && document.body.innerText.includes('{text}')"
            )
        page.open(stack.settings.decision_url)
        page.click(".btn.authorize")
        page.fill(".auth-container input", key)
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        page.click('[id*="decide"] .opblock-summary-control')
        page.click(".try-out__btn")
        page.fill("textarea.body-param__text", json.dumps({"symbol": "NO/SUCH"}))
        page.click(".btn.execute")
        page.until("document.querySelector('.live-responses-table')?.innerText.includes('NO/SUCH')")
        assert page.run("document.querySelector('.live-responses-table tbody .response-col_status').innerText") == "404"
