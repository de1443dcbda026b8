"""The page of faults shows what was stored: each fault, also if undetected, not recovered from or not run."""

import json
from dataclasses import replace

from benchmarks import evidence, faults, results, standing_arms, tool_databases, workers
from benchmarks.probes import CALLS, READS, Log, shorten

SEEN = {
    "description": "kill -9: decision, worker", "detected_s": 1.04, "by": "/livez", "heals": "by itself", "person": "",
    "answers_s": 5.2, "healed_s": 7.9,
    "responses": {"/livez": ["200", "silent"], "services": ["up", "decision starting"]},
    "slowest_s": dict.fromkeys((*READS, *CALLS), 0.1) | {"/observe": 6.4}, "alarms": ["service_died"], "doctor": [],
    "lost": 0, "doubled": 0, "lost_bars": 0, "faults": [],
}  # fmt: skip
UNSEEN = SEEN | {
    "description": "store locked | by another, 20 s", "detected_s": None, "by": "", "heals": "not in time",
    "answers_s": None, "healed_s": None, "person": "`bellwether up`", "lost": 2, "alarms": [],
    "faults": ["observe answered 504"],
}  # fmt: skip
HOLE = {"description": "disk full, 10 s", "not_run": "nothing can be mounted: not permitted"}


def stored_part(folder, name, cases):
    evidence.save(folder / f"{name}.json", evidence.PARTS[name], cases)


def test_the_page_has_each_fault_and_names_what_is_missing(tmp_path):
    stored_part(tmp_path, "faults", {"decision_worker_killed": SEEN, "store_locked": UNSEEN, "disk_full": HOLE})
    page = tmp_path / "docs" / "faults.md"
    summary = results.write_page(page, tmp_path, results.PARTS, results.faults_page)
    assert "incomplete: faults, crashes, " in summary
    text = page.read_text()
    assert "**Not run, or not to its end: faults, crashes, " in text
    rows = [line for line in text.splitlines() if line.startswith(("| kill -9", "| store"))]
    assert (
        rows[0] == "| kill -9: decision, worker | 1.0 s, /livez | 5.2 s; 7.9 s | 0 | 0 | 0 | nothing | service_died |"
    )
    assert rows[1] == (
        "| store locked / by another, 20 s | never | never; not in time | 2 | 0 | 0 | `bellwether up` | none |"
    )
    assert "200 → silent" in rows[2]
    assert "[6.4 s]" in rows[2]
    assert "- store locked | by another, 20 s: observe answered 504" in text
    assert "- disk full, 10 s: nothing can be mounted: not permitted" in text
    assert evidence.machine() in text


def test_a_page_of_which_nothing_is_stored_stays_as_it_is_and_the_terminal_shows_that(tmp_path, monkeypatch, capsys):
    pages = tmp_path / "docs" / "results"
    pages.mkdir(parents=True)
    for name in (
        "faults",
        "gate",
        "drift",
        "universe",
        "live",
        "ab",
        "ab-live",
        "standing-arms",
        "serving",
        "soak",
        "tool-databases",
        "ledger-size",
        "workers",
    ):
        (pages / f"{name}.md").write_text("measured elsewhere")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["evidence", "--write"])
    evidence.main()
    assert capsys.readouterr().out.splitlines() == [
        f"{pages / name}.md: nothing stored, left as it is"
        for name in (
            "faults",
            "gate",
            "drift",
            "universe",
            "live",
            "ab",
            "ab-live",
            "standing-arms",
            "serving",
            "soak",
            "tool-databases",
            "ledger-size",
            "workers",
        )
    ]
    assert {page.read_text() for page in pages.iterdir()} == {"measured elsewhere"}


def test_the_figures_of_the_matrix_count_undetected_faults_and_losses():
    found = evidence.fault_figures([SEEN, UNSEEN, HOLE])
    values = {name: figure["value"] for name, figure in found.items()}
    assert values == {
        "faults caused": 2, "detected": 1, "healed by themselves": 1, "healed after a person": 0, "lost": 2,
        "doubled": 0, "lost bars": 0, "not run": 1,
    }  # fmt: skip


def test_one_case_can_be_repeated_and_the_others_stay(tmp_path):
    done = dict.fromkeys(faults.FAULTS, SEEN)
    stored_part(tmp_path, "faults", done)
    part = replace(evidence.PARTS["faults"], run=dict.fromkeys, sums=lambda found: {})  # a case that needs little
    evidence.run("faults", part, tmp_path, True, 1, evidence.Console(stderr=True), ["disk_full"])
    done_again = dict.fromkeys("disk_full")
    assert json.loads((tmp_path / "faults.json").read_text())["cases"] == done | {"disk_full": done_again}


def test_the_code_of_serving_and_flows_counts_where_a_part_runs_them():
    assert evidence.fingerprint() != evidence.fingerprint(("serving", "flows"))
    parts = ("faults", "crashes", "crashes_on_postgresql", "swaps", "odd_inputs", "upgrade")
    assert all(evidence.PARTS[name].code == ("serving", "flows") for name in parts)


def test_a_log_stores_changes_only_and_the_time_of_the_newest_request():
    log = Log()
    for words in ("200", "200", "503 store", "200"):
        log.add("/ready", words, 0.25)
    answers = log.of("/ready")
    assert [words for _, words in answers.changes] == ["200", "503 store", "200"]
    assert answers.between(answers.changes[1][0], answers.changes[2][0]) == ["503 store", "200"]
    assert answers.requested_at == answers.took[-1][0]


def test_a_refusal_is_shortened_to_its_code_and_kind():
    assert shorten('http://x/observe answered 503: {"error":"…","kind":"StoreFault"}') == "503 StoreFault"
    assert shorten('decide was refused (401): {"kind": "Unauthorized"}') == "401 Unauthorized"
    assert shorten("the decision service does not answer at http://x: timed out. Start it") == "silent"
    assert shorten("the decision service does not answer at http://x: Connection refused") == "refused"


def test_the_page_of_the_standing_arms_has_both_with_their_confidence_sequences(tmp_path):
    arm = {"blocks": 15, "void": 1, "outcomes": 900, "gain": -0.7, "low": -9.1, "high": 8.2, "clipped_share": 0.0}
    arm |= {"unit": "bps an event", "trades": [{"arm": "champion", "trades": 49, "net_bps": 17.94}]}
    case = {
        "symbols": ["A", "B"],
        "speed": 900.0,
        "decisions": 6000,
        "repeated_rows": 60,
        "arms": {"no_model": arm, "traditional": arm},
    }
    stored_part(tmp_path, "standing_arms", {"default market": case})
    page = tmp_path / "page.md"
    results.write_page(page, tmp_path, ("standing_arms",), standing_arms.page_of)
    text = page.read_text()
    assert "| no_model | -0.7 [-9.1, +8.2] | 15 (1 void) | 900 | 0.0% |" in text
    assert "champion 49 trades, mean +17.9 bps net" in text
    assert "hit 60 times in 6,000 decisions (1.0%)" in " ".join(text.split())
    assert "**Not run" not in text


def test_the_page_of_databases_has_a_column_each_and_no_figure_where_none_was_measured(tmp_path):
    both = {"tasks": 100, "writers": 4, "map_s": [2.0, 3.0, 2.5], "run_s": [0.4, 0.5], "both_s": 20.0, "locked": 0,
            "server_errors": 0}  # fmt: skip
    cases = {
        "SQLite": {"database": "SQLite", **both, "server_errors": 3},
        "PostgreSQL": {"database": "PostgreSQL", **both, "map_wal_bytes": 2_500_000, "run_wal_bytes": 67_000,
                       "connections": {"mlflow": 9, "prefect": 11}},
    }  # fmt: skip
    part = evidence.PARTS["tool_databases"]
    assert set(part.cases) == set(cases)
    evidence.save(tmp_path / "tool_databases.json", part, cases)
    results.write_page(tmp_path / "page.md", tmp_path, ("tool_databases",), tool_databases.page_of)
    rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("|")]
    assert rows[0] == "| figure | SQLite | PostgreSQL |"
    assert "| seconds of a map of 100 tasks | 2.5 [2, 3] | 2.5 [2, 3] |" in rows
    assert "| lock errors in the servers' logs | 3 | 0 |" in rows
    assert "| most connections of Prefect | – | 11 |" in rows


def test_the_page_of_workers_names_what_it_assumes_and_models_only_what_is_measured(tmp_path):
    fit = {"folds": 5, "days": 365, "sizes": [{"rows": 1_000, "seconds": 1.0, "sent": 10**6},
                                              {"rows": 4_000, "seconds": 8.0, "sent": 4 * 10**6}]}  # fmt: skip
    folded = {"days": 365, "bars": 525_600, "seconds": {"features": 2.0, "labels": 1.0},
              "bytes": {"data": 10**7, "features": 10**8, "labels": 10**7}}  # fmt: skip
    times = {"copies_1": [10.0, 10.0], "copies_2": [10.0, 12.5], "workers_1": [11.0, 11.0], "workers_2": [6.0, 6.875],
             "load": [0.1, 0.2]}  # fmt: skip
    part = evidence.PARTS["workers"]
    cases = {case: fit for case in part.cases if case.startswith("fits ")} | {"folding": folded}
    cases["backtest"] = {"days": 365, "seconds": [0.1, 0.3, 0.1]}
    assert "a retrain, dollars" in evidence.save(tmp_path / "workers.json", part, {"speed-up": times, **cases})
    results.write_page(tmp_path / "page.md", tmp_path, ("workers",), workers.page_of)
    page = (tmp_path / "page.md").read_text()
    assert "| two workers, times as fast as one | 1.72 [1.6, 1.83] | 2 |" in page
    assert "| share of what two copies reach (target 0.9) | 0.958 [0.917, 1] | 2 |" in page
    assert "| validator, exponent of its rows | 1.5 | 1 |" in page
    assert "| folding, core-hours | 4.17 | 1 |" in page
    assert "| backtests, core-hours | 0.139 | 1 |" in page
    assert all(line in page for line in workers.ASSUMED)
    made = evidence.save(tmp_path / "workers.json", part, {"speed-up": times})
    assert not [name for name in made if "retrain" in name]
