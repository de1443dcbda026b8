"""Tiers by installed models and faults, by table and at random: down at once, up by one, unchanged by a kill."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import BadValues
from pipelines.params import TierParams
from pipelines.settings import ROOT, load_params
from serving.state.tiers import Freshness, State, TierInputs, TierStore, best_tier, step, worst

RULES = TierParams(size={1: 1.0, 2: 0.8, 3: 0.5, 4: 0.0}, good_bars=3, faults_in_row=2)
ALL = {"validator": "v1", "regime": "r1", "pattern": "p1", "predictor": "q1"}
SIMPLE = {"validator": "v1"}


def bars(first, n, **seen):
    """n decisions on bars first, first + 1, …"""
    return [TierInputs(bar=float(first + i), **{"champions": ALL, **seen}) for i in range(n)]


def through(seen, state=None):
    """The tier after each step."""
    states = []
    for one in seen:
        state = step(state, one, RULES)
        states.append(state)
    return [s.tier for s in states], states[-1]


@pytest.mark.parametrize(
    ("families", "fallback", "tier", "text"),
    [
        ("validator regime pattern predictor", True, 1, "regime, pattern, predictor answer"),
        ("validator regime predictor", True, 1, "regime, predictor answer"),
        ("validator regime", True, 2, "no predictor champion serves"),
        ("validator pattern predictor", True, 2, "no regime champion serves"),
        ("validator", True, 2, "no regime champion serves"),
        ("regime pattern predictor", True, 3, "no validator champion serves; the traditional consensus decides"),
        ("", True, 3, "no validator champion serves"),
        ("regime", False, 4, "no track record; nobody decides"),
    ],
)
def test_the_serving_champions_set_the_best_tier(families, fallback, tier, text):
    seen = TierInputs(None, dict.fromkeys(families.split(), "d"), fallback=fallback)
    assert best_tier(seen)[0] == step(None, seen, RULES).tier == tier
    assert text in step(None, seen, RULES).reason


@pytest.mark.parametrize(
    ("fault", "tier"),
    [
        ({"service": "MODEL_SERVICE_DOWN: refused"}, 3),
        ({"service": "MODEL_SERVICE_DOWN: refused", "fallback": False}, 4),
        ({"emergency": "data stale"}, 4),
        ({"emergency": "data stale", "service": "MODEL_SERVICE_DOWN: refused"}, 4),
    ],
)
def test_a_fault_counts_at_once_and_good_bars_give_back_one_tier_at_a_time(fault, tier):
    path, state = through([*bars(0, 1), *bars(1, 1, **fault), *bars(2, 12)])
    back = [t for t in range(tier, 1, -1) for _ in range(3)]
    assert path == [1, tier, *back[1:], *[1] * (13 - len(back))]
    assert (state.tier_floor, state.good_bars, state.tier_floor_reason) == (1, 0, "")


def test_one_fault_of_a_champion_is_an_abstention_and_so_many_in_a_row_lower_the_tier():
    failed, fine = {"failed": {"validator": "MODEL_FAULT:x"}}, {"answered": ("validator",)}
    assert through([*bars(0, 1, **failed), *bars(1, 1, **fine), *bars(2, 1, **failed)])[0] == [1, 1, 1]
    path, state = through([*bars(0, 2, **failed), *bars(2, 5)])  # never called again: it has answered nothing since
    assert path == [1, 3, 3, 3, 3, 3, 3]
    assert state.reason.startswith("validator champion keeps failing")
    assert through(bars(7, 4, **fine), state)[0] == [3, 3, 2, 2]


@pytest.mark.parametrize(("family", "tier"), [("regime", 2), ("pattern", 1)])
def test_a_supporting_champion_that_keeps_failing_costs_its_part(family, tier):
    assert through(bars(0, 2, failed={family: "MODEL_FAULT:x"}))[0] == [1, tier]


def test_a_new_champion_starts_with_a_clean_record_but_under_the_floor_of_the_old():
    _, state = through(bars(0, 2, champions=SIMPLE, failed={"validator": "MODEL_FAULT:x"}))
    path, state = through(bars(2, 4, champions={"validator": "v2"}), state)
    assert path == [3, 3, 2, 2]
    assert state.faults == {}


def test_a_bar_counts_once_however_often_it_is_decided_on_and_a_poll_never_counts():
    _, state = through([*bars(0, 1), *bars(1, 1, emergency="store not writable")])
    again = [*bars(2, 1) * 9, *[TierInputs(None, ALL)] * 9]
    assert through(again, state)[1].good_bars == 1


def test_promotion_and_rollback_count_at_once():
    path, _ = through([TierInputs(0.0, {}), TierInputs(1.0, SIMPLE), TierInputs(2.0, ALL), TierInputs(3.0, {})])
    assert path == [3, 2, 1, 3]


def test_a_reason_states_when_the_tier_may_rise():
    _, state = through([*bars(0, 1), *bars(1, 1, emergency="data stale"), *bars(2, 1)])
    assert state.current_tier().reason == "TIER_4: data stale; back to tier 3 after 2 good bar(s)"


faults = st.fixed_dictionaries(
    {
        "champions": st.sampled_from([ALL, SIMPLE, {}]),
        "failed": st.sampled_from([{}, {"validator": "MODEL_FAULT:x"}, {"regime": "MODEL_FAULT:x"}]),
        "answered": st.sampled_from([(), ("regime",), tuple(ALL)]),
        "service": st.sampled_from([None, None, "MODEL_SERVICE_DOWN: x"]),
        "emergency": st.sampled_from([None, None, None, "data stale"]),
        "poll": st.booleans(),
    }
)


@given(steps=st.lists(faults, min_size=1, max_size=60), kill=st.integers(0, 60))
def test_it_falls_at_once_never_rises_faster_than_allowed_and_a_restart_changes_nothing(steps, kill):
    state = None
    for i, one in enumerate(steps):
        poll = one.pop("poll")
        seen = TierInputs(bar=None if poll else float(i), **one)
        if i == kill and state is not None:  # what a restart reads
            state = State(**json.loads(json.dumps({f: getattr(state, f) for f in State.__slots__})))
        before, state = state, step(state, seen, RULES)
        assert state.tier >= best_tier(seen)[0]
        assert state.tier == 4 or not seen.emergency
        assert state.tier >= 3 or not seen.service
        rose = before is not None and state.tier_floor < before.tier_floor
        if rose and before.tier_floor > best_tier(seen)[0]:
            assert not poll
            assert before.good_bars == RULES.good_bars - 1
            assert state.tier_floor == before.tier_floor - 1 or state.tier_floor <= best_tier(seen)[0]
        steps[i] = {**one, "poll": poll}


def test_a_tier_survives_kill_nine(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from pipelines.params import TierParams
from serving.state.tiers import TierInputs, TierStore
store = TierStore(Path({str(tmp_path)!r}) / "tiers.json", TierParams(**{RULES.model_dump()!r}))
store.update("SIM/USDT", TierInputs(1.0, {ALL!r}))
store.update("SIM/USDT", TierInputs(2.0, {ALL!r}, emergency="store not writable"))
store.save()
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    store = TierStore(tmp_path / "tiers.json", RULES)
    assert (store["SIM/USDT"].tier, store["SIM/USDT"].tier_floor_reason) == (4, "store not writable")
    assert store.update("SIM/USDT", TierInputs(2.0, ALL))[1].good_bars == 0  # that bar was counted before
    assert store.update("SIM/USDT", TierInputs(3.0, ALL))[1].good_bars == 1
    assert store["BTC/USDT"] is None


@pytest.mark.parametrize("content", ["{", "[]", '{"SIM/USDT": {"tier": 9, "reason": ""}}', '{"SIM/USDT": 1}'])
def test_a_state_that_cannot_be_read_is_earned_back_from_the_bottom(tmp_path, content):
    (tmp_path / "tiers.json").write_text(content)
    store = TierStore(tmp_path / "tiers.json", RULES)
    assert store.update("SIM/USDT", TierInputs(1.0, ALL))[1].tier == 4


def test_nothing_is_written_while_nothing_changes(tmp_path):
    store = TierStore(tmp_path / "tiers.json", RULES)
    store.update("SIM/USDT", TierInputs(1.0, ALL))
    store.save()
    store.update("SIM/USDT", TierInputs(2.0, ALL, answered=tuple(ALL)))
    assert store.unsaved is False


def test_only_a_symbol_that_was_fed_live_can_be_stale():
    fresh = Freshness()
    assert fresh.stale_reason("LAST/YEAR", 9e5, 2.0) is None
    assert fresh.stale_reason("SIM/USDT", 1.0, 2.0) is None
    assert fresh.stale_reason("SIM/USDT", 3.0, 2.0) == "data stale: last closed bar is 3 bars old, limit 2"


def test_the_worst_symbol_is_shown_first():
    good, low = step(None, TierInputs(0.0, ALL), RULES), step(None, TierInputs(0.0, {}), RULES)
    assert worst([good, low]) == low


@pytest.mark.parametrize("size", ["{1: 1.0}", "{1: 0.5, 2: 0.8, 3: 0.5, 4: 0.0}", "{1: 1.0, 2: 0.8, 3: 0.5, 4: 0.1}"])
def test_sizes_that_rise_or_open_in_an_emergency_are_refused(tmp_path, size):
    text = (ROOT / "params.yaml").read_text().replace("{1: 1.0, 2: 0.8, 3: 0.5, 4: 0.0}", size)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadValues, match="tiers"):
        load_params(tmp_path / "params.yaml")


def test_a_state_file_of_release_0_5_keeps_its_tier(tmp_path):
    old = {"tier": 4, "reason": "store; back to tier 3 after 2 good bar(s)", "held": 4, "held_reason": "store",
           "calm": 1, "bar": 2.0, "faults": {"v1": 1}}  # fmt: skip
    (tmp_path / "tiers.json").write_text(json.dumps({"SIM/USDT": old}))
    store = TierStore(tmp_path / "tiers.json", RULES)
    assert store["SIM/USDT"] == State(4, old["reason"], 4, "store", 1, 2.0, {"v1": 1})
    assert store.update("SIM/USDT", TierInputs(3.0, ALL))[1].good_bars == 2
