"""The page of faults says what was stored: each fault, also one that nobody saw, did not heal or did not run."""

import json
from dataclasses import replace

from benchmarks import evidence, faults, results
from benchmarks.probes import CALLS, READS, Log, in_short

SEEN = {
    "told": "kill -9: decision, worker", "detected_s": 1.04, "by": "/livez", "heals": "by itself", "person": "",
    "answers_s": 5.2, "healed_s": 7.9, "said": {"/livez": ["200", "silent"], "services": ["up", "decision starting"]},
    "slowest_s": dict.fromkeys((*READS, *CALLS), 0.1) | {"/observe": 6.4}, "alarms": ["service_died"], "doctor": [],
    "lost": 0, "doubled": 0, "lost_bars": 0, "faults": [],
}  # fmt: skip
UNSEEN = SEEN | {
    "told": "store locked | by another, 20 s", "detected_s": None, "by": "", "heals": "not in time", "answers_s": None,
    "healed_s": None, "person": "`bellwether up`", "lost": 2, "alarms": [], "faults": ["observe answered 504"],
}  # fmt: skip
HOLE = {"told": "disk full, 10 s", "not_run": "nothing can be mounted: not permitted"}


def kept(folder, name, cases):
    evidence.save(folder / f"{name}.json", evidence.PARTS[name], cases)


def test_the_page_has_each_fault_and_says_what_is_missing(tmp_path):
    kept(tmp_path, "faults", {"decision_worker_killed": SEEN, "store_locked": UNSEEN, "disk_full": HOLE})
    page = tmp_path / "docs" / "faults.md"
    told = results.write_faults(tmp_path, page)
    assert "not whole: faults, crashes, " in told
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


def test_the_figures_of_the_matrix_count_what_nobody_saw_and_what_was_lost():
    found = evidence.fault_figures([SEEN, UNSEEN, HOLE])
    values = {name: figure["value"] for name, figure in found.items()}
    assert values == {
        "faults caused": 2, "detected": 1, "healed by themselves": 1, "healed after a person": 0, "lost": 2,
        "doubled": 0, "lost bars": 0, "not run": 1,
    }  # fmt: skip


def test_one_case_can_be_done_again_and_the_others_stay(tmp_path):
    done = dict.fromkeys(faults.FAULTS, SEEN)
    kept(tmp_path, "faults", done)
    part = replace(evidence.PARTS["faults"], run=dict.fromkeys, sums=lambda found: {})  # a case that asks for little
    evidence.run("faults", part, tmp_path, True, 1, evidence.Console(stderr=True), ["disk_full"])
    anew = dict.fromkeys("disk_full")
    assert json.loads((tmp_path / "faults.json").read_text())["cases"] == done | {"disk_full": anew}


def test_what_serving_and_flows_are_made_of_counts_where_a_part_runs_them():
    assert evidence.fingerprint() != evidence.fingerprint(("serving", "flows"))
    parts = ("faults", "crashes", "crashes_on_postgresql", "swaps", "odd_inputs", "upgrade")
    assert all(evidence.PARTS[name].code == ("serving", "flows") for name in parts)


def test_what_is_asked_keeps_changes_only_and_the_newest_time():
    log = Log()
    for words in ("200", "200", "503 store", "200"):
        log.add("/ready", words, 0.25)
    said = log.of("/ready")
    assert [words for _, words in said.changes] == ["200", "503 store", "200"]
    assert said.between(said.changes[1][0], said.changes[2][0]) == ["503 store", "200"]
    assert said.asked == said.took[-1][0]


def test_refusals_are_told_by_code_and_kind():
    assert in_short('http://x/observe answered 503: {"error":"…","kind":"StoreFault"}') == "503 StoreFault"
    assert in_short('decide was refused (401): {"kind": "Unauthorized"}') == "401 Unauthorized"
    assert in_short("the decision service does not answer at http://x: timed out. Start it") == "silent"
    assert in_short("the decision service does not answer at http://x: Connection refused") == "refused"
