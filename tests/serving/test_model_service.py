"""Both bentos as they are built, and the model service served from its own: predictions equal the bundle's own."""

import asyncio
import signal
import warnings
from datetime import UTC, datetime

import bentoml
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bentoml_process import wait_until_ready
from support.bentos import build_bentos, serve_bento
from support.serving_fixture import make_bundle, slot_entry

from benchmarks.fixture import serve_arms
from benchmarks.ports import free_ports
from pipelines.models.runtime import load_bundle
from pipelines.settings import ROOT, Settings
from serving.inference.model_client import packed, unpacked
from serving.service.schemas import Packed
from serving.service.startup import require_home

KEY = {"Authorization": "Bearer test-key"}
CLIENTS = 64


class Served:
    def __init__(self, url, bundle, stand):
        self.url, self.bundle, self.stand = url, bundle, stand

    def predict(self, **body):
        return self.post("/predict", {"family": "validator", **body})

    def post(self, path, body, headers=KEY):
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both bentos as they are built, name → folder."""
    return build_bentos(tmp_path_factory.mktemp("bentoml"), ("decision", "models"))


@pytest.fixture(scope="module")
def homeless(built, tmp_path_factory):
    """The decision bento without a home, started before the others: process and log."""
    bentoml_home = built["decision"].parents[2].parent
    return serve_bento("decision", bentoml_home, 0, tmp_path_factory.mktemp("homeless"))


@pytest.fixture(scope="module")
def served(stand, built, homeless, tmp_path_factory):
    """The models bento on a home with one champion."""
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    digest = make_bundle(home / "bundles", stand.columns, stand.rows)
    families = {"validator": {"champion": slot_entry("1", digest), "challenger": None}}
    serve_arms(Settings(home=home), families, None, datetime(2024, 1, 1, tzinfo=UTC))
    port, nobody = free_ports(2)
    bentoml_home = built["models"].parents[2].parent
    env = {"BELLWETHER_HOME": str(home), "BELLWETHER_DECISION_PORT": str(nobody)}
    process, log = serve_bento("models", bentoml_home, port, home, **env)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        yield Served(url, home / "bundles" / digest, stand)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_a_bento_holds_code_and_parameters_and_no_model_data_or_key(built):
    lock = (ROOT / "requirements.lock").read_text().split()
    for name, folder in built.items():
        assert folder.parent.name == f"bellwether-{name}"
        held = {path.relative_to(folder / "src") for path in (folder / "src").rglob("*") if path.is_file()}
        assert {path.parts[0] for path in held} == {"serving", "pipelines", "params.yaml", "LICENSE", "bentofile.yaml"}
        assert {path.suffix for path in held if len(path.parts) > 1} == {".py"}
        assert sorted(set((folder / "env" / "python" / "requirements.txt").read_text().split())) == sorted(lock)


def test_a_bento_without_a_home_ends_in_one_line_that_says_what_it_needs(homeless, built):
    process, log = homeless
    assert process.wait(60) == 1
    (line,) = log.read_text().splitlines()
    assert line.startswith("cannot start: BELLWETHER_HOME is not set. A bento holds code and parameters, no models")
    assert not (built["decision"] / "src" / "artifacts").exists()


@pytest.mark.parametrize(
    ("home", "says"), [("", "is not set"), ("artifacts", "not a whole path"), ("/nowhere", "no such")]
)
def test_a_home_that_is_none_is_named_in_a_bento_and_nowhere_else(home, says, tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", home)
    require_home(tmp_path / "bento.yaml")
    (tmp_path / "bento.yaml").touch()
    with pytest.raises(SystemExit, match=says):
        require_home(tmp_path / "bento.yaml")
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    require_home(tmp_path / "bento.yaml")


def test_a_symbol_needs_the_decision_service_and_says_so(served):
    answer = served.predict(symbol="sim/usdt")
    assert (answer.status_code, answer.json()["kind"]) == (503, "ServiceDown")
    assert "which holds the newest row of SIM/USDT, does not answer" in answer.json()["error"]
    assert "`bellwether up`" in answer.json()["error"]


def test_predictions_over_http_equal_the_bundle_by_order_and_by_name(served):
    rows = served.stand.rows[:5]
    expected = load_bundle(served.bundle, None).predict(rows)
    by_order = served.predict(rows=rows.tolist()).json()
    by_name = served.predict(
        features=[dict(zip(served.stand.columns, row, strict=True)) for row in rows.tolist()]
    ).json()
    np.testing.assert_array_equal(by_order["p"], expected.p)
    np.testing.assert_array_equal(by_name["p_low"], expected.p_low)
    assert (by_order["digest"], by_order["device"], by_order["version"]) == (expected.digest, "cpu", "1")


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_64_clients_at_once_each_get_the_answer_to_their_own_rows(served, seed):
    rng, here = np.random.default_rng(seed), load_bundle(served.bundle, None)
    payloads = [served.stand.rows[:n] + rng.normal(scale=1e-3) for n in rng.integers(1, 4, CLIENTS)]

    async def ask_all():
        async with httpx.AsyncClient(base_url=served.url, headers=KEY, timeout=60) as client:
            bodies = [{"family": "validator", "rows": rows.tolist()} for rows in payloads]
            return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    for rows, answer in zip(payloads, asyncio.run(ask_all()), strict=True):
        expected = here.predict(rows)
        np.testing.assert_array_equal(np.array(answer.json()["p"], dtype=float), expected.p)
        np.testing.assert_array_equal(np.array(answer.json()["novelty"], dtype=float), expected.novelty)


def test_a_missing_value_is_an_abstention_with_its_reason_never_a_number(served):
    answer = served.predict(features=[{}]).json()
    assert (answer["p"], answer["status"]) == ([None], ["ABSTAIN"])
    assert answer["reason"] == [f"MISSING_FEATURE:{served.stand.columns[0]}"]


def test_a_batched_call_gives_the_bundles_own_bytes_row_by_row_and_only_from_the_digest_it_names(served):
    here = load_bundle(served.bundle, None)
    common = {"family": "validator", "columns": list(served.stand.columns)}
    requests = [
        {**common, "digests": {"champion": here.digest, "challenger": "0" * 64}, "rows": packed(row[np.newaxis])}
        for row in served.stand.rows[:7]
    ]
    batch = served.post("/predict_batch", {"inference_requests": requests}).json()
    for row, answer in zip(served.stand.rows[:7], batch["predictions"], strict=True):
        local = here.predict(row[np.newaxis])
        assert unpacked(Packed(**answer["champion"]["p"])).tobytes() == local.p.tobytes()
        assert unpacked(Packed(**answer["champion"]["p_low"])).tobytes() == local.p_low.tobytes()
        assert answer["champion"]["digest"] == here.digest
        assert answer["challenger"] == {"fault": "MODEL_SERVICE_BEHIND: its generation 1 holds no 000000000000"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": {"shape": [1, 2], "f8": "AAAA"}}, "base64"),
        ({"rows": {"shape": [2, 2], "f8": "AAAAAAAA8D8="}}, "do not fill"),
        ({"columns": ["one", "two"]}, "2 columns"),
        ({"digests": {"winner": "0"}}, "digests"),
    ],
)
def test_a_bad_batched_call_is_a_400_naming_what_is_wrong(served, change, says):
    one = {"family": "validator", "digests": {}, "columns": ["one"], "rows": {"shape": [1, 1], "f8": "AAAAAAAA8D8="}}
    answer = served.post("/predict_batch", {"inference_requests": [one | change]})
    assert (answer.status_code, says in answer.json()["error"]) == (400, True), answer.text


def test_a_prediction_needs_the_key_and_bentomls_own_client_sends_it(served):
    for path in ("/predict", "/predict_batch"):
        assert served.post(path, {"inference_requests": []}, {}).status_code == 401
    assert served.post("/predict_batch", {"inference_requests": []}).status_code == 200
    body = {"family": "validator", "rows": served.stand.rows[:1].tolist()}
    with warnings.catch_warnings(), bentoml.SyncHTTPClient(served.url, token="test-key") as client:
        warnings.simplefilter("ignore", ResourceWarning)  # the client leaves its folder to the end of the process
        assert client.predict(**body)["p"] == served.predict(rows=body["rows"]).json()["p"]
        client._temp_dir.cleanup()


def test_readyz_shows_every_check(served):
    shown = httpx.get(f"{served.url}/readyz").json()
    assert shown["ready"] is True
    assert any(check["name"] == "golden:validator.champion" for check in shown["checks"])
    (device,) = [check["detail"] for check in shown["checks"] if check["name"] == "device"]
    assert device.startswith("cpu: auto: no break-even is measured here")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"rows": [[1.0]]}, 400, "rows.0: 1 values"),
        ({"features": [{"hope": 1.0}]}, 400, "hope"),
        ({"rows": []}, 400, "rows"),
        ({}, 400, "exactly one of rows, features and windows, or a symbol"),
        ({"symbol": "SIM/USDT", "rows": [[1.0]]}, 400, "exactly one of rows, features and windows, or a symbol"),
        ({"windows": [[[1.0], [1.0]]]}, 400, "looks back on 1"),
        ({"family": "oracle", "features": [{}]}, 404, "oracle"),
        ({"arm": "challenger", "features": [{}]}, 404, "validator champion. `bellwether retrain validator` trains one"),
        ({"features": [{}], "mood": 1}, 400, "mood"),
    ],
)
def test_a_bad_request_is_a_4xx_naming_the_field(served, body, status, says):
    answer = served.predict(**body)
    assert answer.status_code == status
    assert says in answer.json()["error"]
