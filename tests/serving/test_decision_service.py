"""The decision service over its own HTTP: what it answers, what it refuses and how it says so, what it survives."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from support.decision_service import AT, KEY, as_json, running_service
from support.serving_fixture import SYMBOL, make_bundle, slot_entry

from pipelines.context_layout import tape_of
from pipelines.contracts import HALF_SPREAD, OPEN_TIME
from pipelines.errors import StateError
from pipelines.features.catalog import FEATURES
from pipelines.models.runtime import load_bundle
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT
from serving.inference.feature_rows import predict_on_features
from serving.inference.generation import acknowledged
from serving.inference.model_slots import Slot
from serving.service.answers import BriefResponse, FeaturesResponse, FullResponse
from serving.service.schemas import MAX_BODY, MAX_OBSERVE_BODY


@pytest.fixture(scope="module")
def client(stand, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    with running_service(stand, home) as client:
        yield client


@pytest.fixture
def served(client):
    """A champion and a challenger that was refused, whatever test runs first."""
    answer = client.http.get("/models").json()["families"]["validator"]
    if (answer["champion"] or {}).get("version") != "1":
        client.serve(slot_entry("1", client.champion), slot_entry("2", client.challenger, "refused"))
    return client


# ---- the whole way


def test_it_is_not_ready_and_says_why_before_anything_was_promoted(client):
    if acknowledged(client.home / "serving"):
        pytest.skip("another test has promoted already")
    answer = client.http.get("/ready")
    assert answer.status_code == 503
    assert "bellwether run" in answer.text
    assert client.http.get("/readyz").status_code == 503
    assert client.call("/decide", {"symbol": SYMBOL}).status_code == 404


def test_with_a_warm_start_but_no_champion_the_traditional_tier_decides(client):
    client.serve(None, slot_entry("2", client.challenger, "refused"))
    decision = client.decide()
    assert (decision["tier"], decision["arm"]) == (3, "traditional")
    assert decision["p"] in (None, 0.46)
    assert decision["models"]["validator"]["challenger"]["role"] == "shadow"
    assert decision["models"]["validator"]["challenger"]["verdict"] == "refused"
    assert any(reason.startswith("TIER_3: no validator champion") for reason in decision["reasons"])
    assert client.http.get("/readyz").status_code == 200


def test_a_champion_of_another_market_is_not_used_on_this_one(client):
    stand = client.stand
    foreign = make_bundle(client.home / "bundles", stand.columns, stand.rows, bias=0.3, symbol="BTC/USDT")
    client.serve(slot_entry("7", foreign), None)
    decision = client.decide()
    assert decision["tier"] == 3
    assert decision["models"]["validator"]["champion"]["p"] is None
    assert any("UNSEEN_SYMBOL:BTC/USDT" in reason for reason in decision["reasons"])


def test_every_decision_names_its_models_and_lineage_and_is_in_the_ledger_with_its_bytes(served):
    assert served.observe(8).json()["closed"] == ["2024-01-09T08:00:00+00:00"]
    decision = served.decide()
    assert decision["tier"] == 2
    assert decision["models"]["validator"]["champion"]["digest"] == served.champion
    assert decision["lineage"].keys() >= {"data_hash", "git_commit", "catalogue_hash", "warm_start", "run_id"}
    stored = served.store().decision(decision["id"])
    row = round((stored.decision.as_of.timestamp() - served.stand.decision[0, OPEN_TIME]) / 900) - 1
    assert stored.features == served.stand.features[row].tobytes()
    assert stored.signals == served.stand.signals[row].tobytes()
    assert stored.decision.reasons == tuple(decision["reasons"])


def test_live_decisions_come_from_the_rows_training_would_have_read(served):
    """Law L2 over HTTP: a day of bars, and every stored row equals the batch fold's, bit for bit."""
    seen, slot = 0, slot_of(served, served.champion)
    for _ in range(96):
        served.observe(15)
        decision = served.decide()
        stored = served.store().decision(decision["id"])
        row = round((stored.decision.as_of.timestamp() - served.stand.decision[0, OPEN_TIME]) / 900) - 1
        assert stored.features == served.stand.features[row].tobytes()
        champion = decision["models"]["validator"]["champion"]
        shown = served.http.get("/features", params={"symbol": SYMBOL, "family": "validator"}).json()
        validator = shown["families"]["validator"]
        values = validator["values"]
        assert datetime.fromisoformat(shown["close"]) == stored.decision.as_of
        assert validator["champion"]["reason"] == (champion["reason"] if values is None else None)
        if champion["status"] == "OK":
            seen += 1
            assert predict_on_features(slot, validator).p.tolist() == [champion["p"]]  # JSON lost nothing
            assert (validator["event"], validator["direction"]) == (champion["event"], champion["direction"])
            assert None in values.values()  # this market has no order books
            assert 0.0 <= champion["p_low"] <= champion["p"] <= 1.0
            assert champion["event"] == decision["event"]
            assert champion["p"] != decision["models"]["validator"]["challenger"]["p"]  # both arms score every event
        else:
            abstained = predict_on_features(slot, validator)
            assert (abstained.status, abstained.reason) == (["ABSTAIN"], [champion["reason"]])
    assert seen > 0
    other = slot_of(served, served.challenger)
    with pytest.raises(StateError, match="validator champion: version 1 is served here, 1 by the decision service"):
        predict_on_features(other, validator)


def slot_of(served, digest):
    """A bundle in the slot of the champion."""
    model = load_bundle(served.home / "bundles" / digest, None)
    return Slot("validator", "champion", "1", digest, "", "", "", "", model)


def test_features_are_those_of_every_family_with_who_reads_them_and_null_where_missing(served):
    shown = served.http.get("/features", params={"symbol": SYMBOL}).json()
    FeaturesResponse.model_validate_json(json.dumps(shown))
    assert shown == served.call("/features", {"symbol": SYMBOL}).json()
    close = served.close()
    assert datetime.fromisoformat(shown["close"]).timestamp() == close
    assert list(shown["families"]) == ["validator", "pattern", "regime", "predictor"]
    validator = shown["families"]["validator"]
    assert validator["champion"]["columns"] == list(served.stand.columns)
    assert (validator["champion"]["digest"], validator["challenger"]["digest"]) == (served.champion, served.challenger)
    assert validator["champion"]["reason"] == validator["reason"]  # NO_EVENT, or null where there is one
    row = round((close - served.stand.decision[0, OPEN_TIME]) / 900) - 1
    predictor, view = shown["families"]["predictor"], VIEWS["predictor"]
    assert (predictor["champion"], predictor["steps"], list(predictor["values"])) == (None, 60, list(view.columns))
    window = np.array(list(predictor["values"].values()), dtype=np.float64).T  # null becomes NaN
    expected = served.stand.features[row - 59 : row + 1, [FEATURES.index[name] for name in view.columns]]
    assert window.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("", 400, "symbol: Field required (add it)"),
        ("symbol=", 400, "symbol: "),
        ("symbol=SIM%2FUSDT&symbol=SIM%2FUSDT", 400, "symbol: Input should be a valid string"),
        ("symbol=SIM%2FUSDT&mood=1", 400, "mood: Extra inputs are not permitted (remove it"),
        ("symbol=SIM%2FUSDT&family=oracle", 404, "no model family 'oracle'; known: validator, "),
        ("symbol=ABC%2FUSDT", 404, "no live state for 'ABC/USDT'; known: SIM/USDT"),
        ("symbol=%ff%00", 400, "symbol: "),
    ],
)
def test_a_query_that_cannot_be_answered_is_a_4xx_naming_the_field(served, query, status, says):
    answer = served.http.get(f"/features?{query}")
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text


def test_a_second_request_on_the_same_bar_gives_the_same_decision(served):
    first = served.decide()
    assert served.decide()["id"] == first["id"]
    served.observe(7)
    assert served.decide() == first  # the market's clock has moved on, and no other bar has closed
    served.observe(8)
    assert served.decide()["id"] != first["id"]


def test_many_symbols_are_answered_in_their_order(served):
    body = {"symbols": [SYMBOL, SYMBOL]}
    assert [d["symbol"] for d in served.call("/decide", body).json()["decisions"]] == [SYMBOL, SYMBOL]


def test_a_symbol_may_be_spelled_as_on_the_command_line_and_one_of_two_readings_is_a_400(served):
    assert served.call("/decide", {"symbol": "sim-usdt"}).json()["symbol"] == SYMBOL
    refused = served.call("/decide", {"symbol": "ARBUSD"})
    assert refused.status_code == 400
    assert "ARB/USD or AR/BUSD" in refused.text


def test_an_outcome_is_taken_once_and_only_for_a_decision_of_ours(served):
    decision = served.decide()
    outcome = {
        "decision_id": decision["id"], "resolved_at": decision["as_of"], "label": 1, "barrier": "target",
        "gross_bps": 60.0, "net_bps": 55.0, "cost_bps": 5.0,
    }  # fmt: skip
    assert served.call("/outcome", outcome).json() == {"api": 1, "decision_id": decision["id"], "new": True}
    assert served.call("/outcome", outcome).json()["new"] is False
    assert served.call("/outcome", outcome | {"label": 0}).status_code == 400
    assert served.call("/outcome", outcome | {"decision_id": "never"}).status_code == 404


def test_risk_shows_what_is_used_of_every_limit_and_what_would_be_refused(served):
    risk = served.http.get("/risk").json()
    names = [row["limit"] for row in risk["limits"]]
    assert set(names) >= {"gross", "es", "stress", "open_count", "trades_today", "daily_loss", "drawdown"}
    assert all(row["at_most"] > 0 and 0 <= row["share"] <= 1 for row in risk["limits"])
    assert (risk["stage"], risk["stage_size_multiplier"]) == ("normal", 1.0)
    assert risk["tail"]["by_asset"].keys() == {p["symbol"] for p in risk["positions"]}
    sides = {(n["side"], n["symbol"]): n for n in risk["next"]}
    assert {side for side, _ in sides} == {"long", "short"}
    assert all(n["refused"] == [] and n["max_size"] > 0 and n["capped_by"] for n in sides.values())


def test_risk_shows_that_a_breaker_would_refuse_before_a_decision_is_requested(served):
    served.store().trip("daily_loss", AT, "-2.3 %")
    until(lambda: served.http.get("/risk").json()["breakers"])
    risk = served.http.get("/risk").json()
    assert all("BREAKER_LATCHED: daily_loss" in n["refused"] and n["max_size"] == 0 for n in risk["next"])
    served.store().reset("daily_loss", AT, "ann", "test over")
    until(lambda: not served.http.get("/risk").json()["breakers"])


def until(holds):
    for _ in range(100):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("never came true")


def test_a_breaker_tripped_by_anyone_stops_emission(served):
    served.store().trip("daily_loss", AT, "-2.3 %")
    for _ in range(100):
        if served.http.get("/status").json()["breakers"]:
            break
        time.sleep(0.05)
    served.observe(15)
    assert any(reason.startswith("BREAKER_LATCHED") for reason in served.decide()["reasons"])
    served.store().reset("daily_loss", AT, "ann", "test over")


def test_a_swap_changes_the_answering_model_and_the_generation(served):
    generation = served.serve(slot_entry("2", served.challenger), None)
    served.observe(15)
    decision = served.decide()
    assert (decision["generation"], decision["models"]["validator"]["champion"]["version"]) == (generation, "2")
    assert "challenger" not in decision["models"]["validator"]
    status = served.http.get("/status").json()
    assert status["families"]["validator"]["champion"]["run_id"] == "run2"
    assert status["families"]["predictor"] == {"champion": None, "challenger": None}
    assert served.http.get("/models").json()["generation"] == generation


# ---- what it refuses


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        (lambda bar: bar.pop("close"), "bars.0.close", "add it"),
        (lambda bar: bar.update(colour="red"), "bars.0.colour", "remove it"),
        (lambda bar: bar.update(high=float("nan")), "bars.0.high", "finite number"),
        (lambda bar: bar.update(low="cheap"), "bars.0.low", "send a number"),
        (lambda bar: bar.update(open_time="2024-01-09T08:00:00"), "bars.0.open_time", "add the zone"),
        (lambda bar: bar.update(open_time="soon"), "bars.0.open_time", "ISO 8601"),
        (lambda bar: bar.update(high=1.0), "bars.0.high", "below low"),
        (lambda bar: bar.update(open=-1.0, low=-1.0), "bars.0.open", "above 0"),
        (lambda bar: bar.update(open_time="2099-01-01T00:00:00Z"), "bars.0.open_time", "not closed yet"),
        (lambda bar: bar.update(open_time="2024-01-01T00:00:00Z"), "open_time", "Send bars in order"),
    ],
)
def test_a_bad_bar_is_a_400_naming_field_and_remedy_and_nothing_is_stored(served, change, field, remedy):
    before = len(served.store().bars(SYMBOL))
    bar = as_json(served.stand.live[served.sent])
    change(bar)
    body = json.dumps({"symbol": SYMBOL, "bars": [bar]})
    answer = served.http.post("/observe", content=body, headers=KEY | {"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert field in answer.json()["error"]
    assert remedy in answer.json()["error"]
    assert len(served.store().bars(SYMBOL)) == before


def test_the_same_bars_again_change_nothing_and_a_changed_one_is_refused(served):
    again = [as_json(row) for row in served.stand.live[served.sent - 3 : served.sent]]
    assert served.call("/observe", {"symbol": SYMBOL, "bars": again}).json()["new"] == 0
    again[1]["volume"] += 1.0
    answer = served.call("/observe", {"symbol": SYMBOL, "bars": again})
    assert (answer.status_code, "volume=" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("half_spread", [-0.1, 1e9, "0.1", True])
def test_a_half_spread_that_is_none_is_refused_with_its_field(served, half_spread):
    (bar,) = served.bars(1)
    served.sent -= 1
    answer = served.call("/observe", {"symbol": SYMBOL, "bars": [bar | {"half_spread": half_spread}]})
    assert 400 <= answer.status_code < 500
    assert "half_spread" in answer.text


def test_a_half_spread_is_stored_as_it_was_sent(served):
    first, *others = served.bars(15)  # left out of the others: not recorded
    body = {"symbol": SYMBOL, "bars": [first | {"half_spread": 0.5}, *others]}
    assert served.call("/observe", body).json()["new"] == 15
    np.testing.assert_array_equal(served.store().bars(SYMBOL)[-15:-13, HALF_SPREAD], [0.5, np.nan])


# ---- books and context


def book(served, after=30.0, **changes):
    """A book known `after` seconds into the decision bar that is open now."""
    record = {
        "known_at": moment(served, after), "bids": [[99.5, 2.0, 3], [99.0, 1.0]], "asks": [[100.0, 1.0, None]],
        "order_flow": 1.5, "tape": {"order_flow_fast": None, "vpin": 0.25},
    }  # fmt: skip
    return record | changes


def interest(served, after=40.0, **changes):
    """Open interest, which no column reads: the rows of the other tests stay what they are."""
    return {"field": "open_interest", "known_at": moment(served, after), "value": 7.0} | changes


def moment(served, after):
    return datetime.fromtimestamp(served.close() + after, tz=UTC).isoformat()


def stored_records(served):
    """Books and context in the store, as this or any other process would read them."""
    return [0 if records is None else len(records.known) for records in served.store().records(SYMBOL)]


def test_books_and_context_are_durable_before_the_answer_and_sent_again_change_nothing(served):
    served.observe(15)
    books, values = stored_records(served)
    body = {"symbol": SYMBOL, "books": [book(served, 31.0), book(served)], "context": [interest(served)]}
    first = served.call("/observe", {**body, "bars": served.bars(1)}).json()
    assert (first["new"], first["records"], first["reason"]) == (1, 3, None)
    assert stored_records(served) == [books + 2, values + 1]
    again = served.call("/observe", body).json()  # records alone, without a bar
    assert (again["received"], again["new"], again["records"]) == (0, 0, 0)
    assert stored_records(served) == [books + 2, values + 1]
    newest = served.store().records(SYMBOL)[0]
    np.testing.assert_array_equal(newest.levels[-1, :, 0], [[99.5, 2.0, 3.0], [100.0, 1.0, np.nan]])
    assert newest.known[-1] - newest.known[-2] == 1.0
    np.testing.assert_array_equal(newest.tape[-1:], tape_of(1, order_flow=1.5, vpin=0.25))


@pytest.mark.parametrize(
    ("books", "context", "says"),
    [
        ([{"bids": [[101.0, 1.0]]}], [], "books.0: book crossed: bid 101 is not under ask 100"),
        ([{}, {"asks": [[101.0, 1.0], [100.0, 1.0]]}], [], "books.1: ask prices must go away"),
        ([{"bids": [[99.0, 1.0], [98.0, 0.0]]}], [], "books.0.bids.1"),
        ([{"bids": [[99.0, None]]}], [], "books.0.bids.0"),
        ([{"bids": [[99.0, 1.0, -1]]}], [], "books.0.bids.0"),
        ([{"bids": []}], [], "books.0.bids"),
        ([{"asks": [[100.0 + i, 1.0] for i in range(6)]}], [], "books.0.asks"),
        ([{"asks": [["much", 1.0]]}], [], "books.0.asks.0.0: "),
        ([{"order_flow": "up"}], [], "books.0.order_flow: "),
        ([{"tape": {"vpin": "high"}}], [], "books.0.tape.vpin: "),
        ([{"tape": {"mood": 1.0}}], [], "'vpin'"),
        ([{"colour": "red"}], [], "books.0.colour: "),
        ([{"known_at": "2024-01-09T08:00:00"}], [], "books.0.known_at: "),
        ([{"known_at": "2099-01-01T00:00:00Z"}], [], "lies in the future"),
        ([{"known_at": "2024-01-01T00:00:00Z"}], [], "the past is not rewritten"),
        ([{}, {"order_flow": 2.5}], [], "two different book records"),
        ([], [{"field": "moon_phase"}], "context.0.field: "),
        ([], [{"value": None}], "context.0.value: "),
        ([], [{"known_at": "2024-01-01T00:00:00Z"}], "open_interest known at 2024-01-01"),
        ([], [], "give at least one of bars, books and context"),
    ],
)
def test_a_record_that_cannot_be_is_a_400_naming_it_and_nothing_of_the_request_is_stored(served, books, context, says):
    before = stored_records(served), len(served.store().bars(SYMBOL))
    bars = {"bars": [as_json(served.stand.live[served.sent])]} if books or context else {}
    body = {
        "symbol": SYMBOL, "books": [book(served, 50.0, **changes) for changes in books],
        "context": [interest(served, 50.0, **changes) for changes in context], **bars,
    }  # fmt: skip
    answer = served.call("/observe", body)
    assert (answer.status_code, says in answer.json()["error"]) == (400, True), answer.text
    assert (stored_records(served), len(served.store().bars(SYMBOL))) == before


def test_another_book_in_the_place_of_a_stored_one_is_refused(served):
    served.call("/observe", {"symbol": SYMBOL, "books": [book(served, 60.0)]})
    answer = served.call("/observe", {"symbol": SYMBOL, "books": [book(served, 60.0, order_flow=9.0)]})
    assert (answer.status_code, "The first one stands" in answer.json()["error"]) == (400, True)


def test_a_record_of_a_bar_that_has_been_folded_comes_late(served):
    late = interest(served, 70.0)
    served.observe(15)  # closes the bar it belongs to
    answer = served.call("/observe", {"symbol": SYMBOL, "context": [late]})
    assert (answer.status_code, "comes late" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"symbol": "DOGE/USDT"}, 404, SYMBOL),
        ({}, 400, "exactly one of symbol and symbols"),
        ({"symbol": SYMBOL, "as_of": "2099-01-01T00:00:00Z"}, 400, "bellwether replay"),
        ({"symbol": SYMBOL, "as_of": "2024-01-09T08:00:01Z"}, 400, "by the clock of its market"),
        ({"symbol": SYMBOL, "as_of": None}, 400, "as_of"),
    ],
)
def test_a_bad_request_is_a_4xx_naming_what_is_wrong(served, body, status, says):
    answer = served.call("/decide", body)
    assert answer.status_code == status
    assert says in answer.json()["error"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
@pytest.mark.parametrize("path", ["/observe", "/decide", "/outcome", "/fill"])
def test_writing_needs_the_key(served, path, headers):
    answer = served.call(path, {}, headers)
    assert answer.status_code == 401
    assert "write_key" in answer.json()["error"]


def test_a_body_over_the_limit_is_not_even_read(served):
    for path, limit in (("/decide", MAX_BODY), ("/observe", MAX_OBSERVE_BODY)):
        answer = served.http.post(path, content=b" " * (limit + 1), headers=KEY)
        assert (answer.status_code, f"limit {limit}" in answer.json()["error"]) == (413, True)


def test_the_api_page_lists_every_call_with_its_fields(served):
    paths = served.http.get("/docs.json").json()["paths"]
    assert {"/observe", "/decide", "/outcome", "/fill", "/models", "/status", "/ready"} <= paths.keys()
    views = paths["/decide"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    full, brief, many = (view["properties"].keys() for view in views)
    assert {"api", "action", "confidence", "reasons", "lineage", "generation", "tier"} <= full
    assert {"api", "action", "reason"} <= brief
    assert many == {"api", "decisions"}


def test_every_view_of_a_decision_is_as_the_api_page_says_and_carries_the_version(served):
    full = served.decide()
    FullResponse.model_validate_json(json.dumps(full))
    assert full.keys() == FullResponse.model_fields.keys()
    body = {"symbol": SYMBOL, "view": "brief"}
    brief = served.call("/decide", body).json()
    BriefResponse.model_validate_json(json.dumps(brief))
    assert brief == {name: full[name] for name in brief if name != "reason"} | {"reason": full["reasons"][0]}
    assert brief.keys() == BriefResponse.model_fields.keys()
    many = served.call("/decide", {"symbols": [SYMBOL], "view": "brief"}).json()
    assert many == {"api": 1, "decisions": [{k: v for k, v in brief.items() if k != "api"}]}
    assert served.call("/decide", body | {"view": "short"}).status_code == 400
    for path in ("/status", "/models", "/risk", "/account", "/ready"):
        assert served.call(path).json()["api"] == 1


def test_a_key_of_an_earlier_release_is_a_400_that_names_the_new_one(served):
    answer = served.call("/observe", {"symbol": SYMBOL, "asks": []})
    assert answer.status_code == 400
    (field,) = [found for found in answer.json()["fields"] if found["field"] == "asks"]
    assert "`inference_requests`" in field["remedy"]
    assert "`inference_requests`" in answer.json()["error"]


def test_the_serving_process_loads_no_training_library():
    code = "import sys, serving.service.decision_service, serving.service.model_service; print(*sys.modules)"
    env = {**os.environ, "BELLWETHER_HOME": "/nonexistent"}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert loaded.isdisjoint({"sklearn", "xgboost", "torch", "mlflow", "evidently", "prefect", "dvc", "pandas", "onnx"})
