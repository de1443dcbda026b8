"""The ledger at size, in small: a case on each database, its figures, its page and its extrapolation."""

import json
import math
import select

import pytest

from benchmarks import evidence, ledger_size, ledger_size_page, results
from benchmarks.four_families import decisions, four_families
from benchmarks.ledger_size import CASES, SYMBOLS, close_of, decision_number, id_of, symbol_of
from benchmarks.postgres import programs

N = 400


@pytest.fixture(scope="module")
def measured():
    databases = ("SQLite", "PostgreSQL") if programs() is not None else ("SQLite",)
    served, records = four_families(True), decisions(True)
    return {name: ledger_size.measure(name, N, served, records, 3) for name in databases}


def test_each_case_writes_all_decisions_and_restores_what_it_backed_up(measured):
    for case in measured.values():
        assert case["written"]["decisions"] == case["backup"]["decisions"] == case["restore"]["decisions"] == N
        assert case["written"]["outcomes"] > 0
        assert all(0.0 < query["p50"] <= query["p99"] <= query["most"] for query in case["queries"].values())
        assert all(size > 0 for size in case["disk"].values())


def test_only_postgresql_counts_the_bytes_of_its_log(measured):
    for name, case in measured.items():
        assert (case["written"]["log_bytes"] > 0) == (name == "PostgreSQL")


def test_a_repeated_decision_has_an_id_symbol_and_times_of_its_own_and_the_rest_of_the_real_one():
    records = decisions(True)
    made = decision_number(records, SYMBOLS + 3)
    real = records[(SYMBOLS + 3) % len(records)]
    assert (made.decision.id, made.decision.symbol) == (id_of(SYMBOLS + 3), symbol_of(3))
    assert made.decision.as_of == close_of(SYMBOLS) > close_of(SYMBOLS - 1)
    assert made.decision.id[:8] == f"{int(made.decision.as_of.timestamp()):08x}"
    assert made.decision.ingested_at - made.decision.as_of == real.decision.ingested_at - real.decision.as_of
    assert (made.features, made.signals, made.decision.models) == (real.features, real.signals, real.decision.models)


def test_a_child_that_is_not_done_in_time_is_ended_and_says_so():
    found = ledger_size.in_child(select.select, [], [], [], 0.0)  # which waits for nothing, without end
    assert "limit of a case" in found["not_done"]


def test_the_page_has_every_case_found_names_those_missing_and_the_plan(measured, tmp_path):
    one = measured["SQLite"]
    server = measured.get("PostgreSQL", one) | {"database": "PostgreSQL"}
    known = {"PostgreSQL 10,000": server, "PostgreSQL 100,000": server | {"n": 10 * N}, "SQLite 10,000": one}
    evidence.save(tmp_path / "ledger_size.json", evidence.PARTS["ledger_size"], known)
    page = tmp_path / "page.md"
    results.write_page(page, tmp_path, ledger_size_page.PARTS, ledger_size_page.page_of)
    text = page.read_text()
    assert all(f"| {case} |" in text for case in known)
    assert "**Not run: SQLite 100,000, PostgreSQL 300,000, PostgreSQL 1,000,000.**" in text
    assert set(known) < set(CASES)
    assert "## Partitioning, on paper" in text
    assert "nan" not in text
    figures = json.loads((tmp_path / "ledger_size.json").read_text())["figures"]
    assert all(figure["value"] > 0.0 for figure in figures.values())


@pytest.mark.parametrize(
    ("cost", "grows", "far"),
    [
        (lambda n: 3.0, "constant", 3.0),
        (lambda n: math.log(n), "log n", math.log(1e7)),
        (lambda n: 5.0 + 2e-3 * n, "n", 5.0 + 2e-3 * 1e7),
    ],
)
def test_a_cost_is_extrapolated_by_how_it_grows(cost, grows, far):
    found = ledger_size_page.growth([(n, cost(n)) for n in (10_000, 100_000, 1_000_000)])
    assert found == (grows, pytest.approx(far))
