"""The page of experiments on a live market says what was kept, and names what was not run."""

from benchmarks.ab_live_page import live_page
from benchmarks.live_experiments import CASES, live_figures

STORED = {
    "seconds": 300.0, "days": 10.0, "blocks": 42, "void": 0, "gain": 0.13, "low": -0.01, "high": 0.25, "e_value": 50.1,
    "clipped_share": 0.0, "decisions": 8000, "by_challenger": 845, "is_champion": True, "faulty_closes": 0,
    "to_end_s": None, "replayed": 1500, "replayed_equal": 1500, "same": True, "misassigned": 0, "chain": 0,
}  # fmt: skip
STATES = {
    "better": ("won", "shadow canary split won"), "equal": ("shadow", "shadow"), "worse": ("stopped", "shadow stopped"),
    "faulty": ("stopped", "shadow stopped"),
}  # fmt: skip


def found(**changes):
    cases = {
        name: {**STORED, "state": state, "states": states, "reason": f"why {name} ended", **changes.get(name, {})}
        for name, (state, states) in STATES.items()
    }
    cases["faulty"]["to_end_s"] = 2.1 if "faulty" not in changes else changes["faulty"]["to_end_s"]
    part = {"cases": cases, "figures": live_figures([{"case": name, **case} for name, case in cases.items()])}
    return {"ab_live": {**part, "machine": "a CPU", "at": "2026-12-01", "complete": True}}


def test_what_was_promised_is_said_to_be_kept():
    page = " ".join(live_page(found(), ()).split())
    assert "better kept, equal kept, worse kept, faulty kept" in page
    assert "| better | +1 | +0 | shadow, canary, split, won | 42 (0 void) |" in page
    assert "0 differ, kept" in page
    assert "Not run" not in page


def test_what_was_not_kept_and_not_run_is_said_too():
    broken = found(better={"state": "expired", "same": False}, faulty={"to_end_s": 9.0})
    del broken["ab_live"]["cases"]["equal"]
    page = " ".join(live_page(broken, ("ab_live",)).split())
    assert "better **not kept**, worse kept, faulty **not kept**" in page
    assert "1 differ, **not kept**" in page
    assert "**Not run: equal.**" in page
    assert set(CASES) == set(STATES)
