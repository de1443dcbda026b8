"""A challenger that has won acts on a few units, then on half of them; harm takes it back, also after its promotion."""

from dataclasses import replace

import pytest
from support.compared_flows import advance, challenger, champion, filled_home, home, propose, set_rules
from support.compared_home import BTC, ETH, QUARTER
from support.registry import empty_registry
from support.stack import quiet

from flows import reconciler
from flows.support import experiment_guardrails, experiment_verify, experiments, frozen, promotion
from flows.support.installation import now
from pipelines.errors import StateError
from pipelines.evaluation.experiment_page import _guardrails, _trades
from pipelines.params import GuardrailParams, RampParams
from pipelines.store import DecisionRecord, Transition
from serving.inference.generation import read_generation
from serving.service.ledger_check import disagreement

__all__ = ["empty_registry", "filled_home", "home"]
STATES = ["shadow", "canary", "split", "won"]
SOON = RampParams(canary_weight=0.4, canary_blocks=3, split_weight=0.6, split_blocks=3)


def generation(home):
    return read_generation(home.installation.settings.serving_dir)


def begin(home, **rules):
    set_rules(home, ramp=SOON, **rules)
    propose(home, home.candidate().version)
    return home.running().number


def live_until(home, number, state, days=60, **how):
    """Let market days pass, with a look after each, until an experiment is in a state."""
    while home.state(number) != state and days:
        home.live(15 if days == 60 else 1, gain=0.08, **how)  # under a fortnight nothing is won
        advance(home)
        days -= 1
    assert home.state(number) == state


def states(home, number):
    return [each.state for each in home.store.transitions(number)]


def promoted(home):
    """Promote a winner without a ramp; return its version and the number of its probation."""
    set_rules(home, ramp=RampParams(canary_blocks=0, split_blocks=0))
    before, version = champion(home), home.candidate().version
    propose(home, version)
    live_until(home, home.running().number, "won")
    assert (champion(home), challenger(home)) == (version, before)
    return version, home.running().number


def test_a_winner_acts_on_a_few_units_then_on_more_and_is_promoted_after_that(home):
    home.universe((BTC, ETH))
    number = begin(home)
    live_until(home, number, "canary", symbols=(BTC, ETH))
    assert champion(home) == "1"
    canary = home.store.transitions(number)[-1].evidence["stage"]
    stated = generation(home)["assignments"]["validator"]
    assert disagreement(home.store, home.installation.settings.home, generation(home)) is None
    assert sum(stated["stages"][0]["weights"].values()) == 1.0
    assert canary["from_block"] * 86_400 + home.running().origin_s > home.at.timestamp()  # no arm changes in a block
    live_until(home, number, "won", symbols=(BTC, ETH))
    assert states(home, number) == STATES
    assert champion(home) == home.store.experiment(number).challenger
    assignment = home.store.experiment(number).assignment(home.store.transitions(number))
    units = experiment_guardrails.decided_units(home.installation, "validator", assignment)
    first, last = assignment.stages[0].from_block, assignment.stages[1].from_block + SOON.split_blocks
    decided = {unit: arm for unit, arm in units.items() if first <= unit[1] < last}
    assert set(decided.values()) == {"champion", "challenger"}
    assert all(arm == assignment.arm(*unit) for unit, arm in decided.items())
    assert {record.decision.arm for record in home.store.decisions()} == {"champion", "challenger"}
    again = experiment_verify.recompute(home.installation, number)
    assert (again.same, again.state, again.recorded, again.misassigned) == (True, "won", "won", 0)
    assert "promoted_without_experiment" not in home.alarms()


def test_the_verdict_is_the_one_of_the_shadow_and_what_comes_later_changes_nothing_of_it(home):
    number = begin(home)
    live_until(home, number, "canary")
    won = home.store.transitions(number)[-1].evidence
    home.live(10, gain=-0.2)
    advance(home)
    assert home.store.transitions(number)[1].evidence == won
    assert experiments.view_of(home.installation, home.store.experiment(number)).figures["e_value"] == won["e_value"]
    assert experiment_verify.recompute(home.installation, number).same


def test_a_split_that_the_service_does_not_follow_is_stopped_by_name(home):
    number = begin(home)
    live_until(home, number, "canary")
    assignment = home.store.assignment("validator")
    theirs = next(b for b in range(assignment.stages[0].from_block, 999) if assignment.arm(BTC, b) == "challenger")
    while home.at.timestamp() < assignment.origin_s + (theirs + 1) * assignment.period_s and home.running():
        home.live(1, obeys=False)
        advance(home)
    assert (home.state(number), champion(home)) == ("stopped", "1")
    assert f"{BTC} in block" in home.alarms()["guardrail"]
    assert "not decided by the arm" in home.store.transitions(number)[-1].reason
    assert experiment_verify.recompute(home.installation, number).misassigned == 1
    assert "validator" not in generation(home)["assignments"]


@pytest.mark.parametrize(
    ("answer", "metric"),
    [
        ({"status": "ABSTAIN", "p": None, "reason": "MISSING_FEATURE:a"}, "abstention"),
        ({"status": "ABSTAIN", "p": None, "reason": "NOVEL:9>1"}, "abstention"),  # the smaller limit trips first
        ({"p": 0.05}, "calibration"),
    ],
)
def test_harm_that_many_closes_show_stops_a_challenger(home, answer, metric):
    number = begin(home)
    for _ in range(13):
        if home.running():
            home.live(2, answers=lambda close: answer if close % 9 else {})
            advance(home)
    last = home.store.transitions(number)[-1]
    assert last.state == "stopped"
    assert last.reason.startswith(f"guardrail {metric}: ")
    assert home.alarms()["guardrail"].startswith(f"experiment {number}: {metric}: ")
    novel = home.store.block_scores(number)[0].harm["novelty"]
    assert (novel > 0.7) == (answer.get("reason") == "NOVEL:9>1")


def test_a_guardrail_of_the_service_ends_the_experiment_within_one_poll_also_without_the_registry(home):
    number = begin(home)
    live_until(home, number, "canary")
    assert generation(home)["assignments"]["validator"]["experiment"] == number
    home.store.raise_alarm("guardrail", "high", f"experiment {number}: validator challenger version 2: a fault", now())
    done = reconciler.poll(home.installation, {})  # nothing listens at the registry's address
    assert any("stopped: guardrail" in line for line in done), done
    assert home.state(number) == "stopped"
    assert generation(home)["assignments"] == {}
    assert reconciler.poll(home.installation, {}) == []  # once


def test_while_promotions_are_frozen_no_stage_begins(home):
    number = begin(home)
    frozen.freeze(home.installation.settings, "promotion", "ann", "holidays", now())
    home.live(30, gain=0.05)
    (line,) = advance(home)
    assert "frozen by ann" in line
    assert home.state(number) == "shadow"
    frozen.unfreeze(home.installation.settings, "promotion")
    advance(home)
    assert home.state(number) == "canary"


def test_states_come_in_their_order_only(home):
    number = begin(home)
    live_until(home, number, "split")
    for state in ("canary", "shadow", "probation"):
        with pytest.raises(StateError, match=f"no {state} comes after split"):
            home.store.move_experiment(Transition(number, now(), 0.0, state, "ann", "back"))


def test_the_version_before_is_kept_in_shadow_and_the_probation_ends_by_itself(home):
    version, number = promoted(home)
    watched = home.store.experiment(number)
    assert (watched.champion, watched.challenger, home.state(number)) == (version, "1", "probation")
    assert experiments.budget_left(home.installation) == pytest.approx(0.98)  # it promotes nothing new
    other = home.candidate().version
    propose(home, other)  # waits for the probation
    assert challenger(home) == "1"
    home.live(12)
    advance(home)
    assert (home.state(number), champion(home)) == ("expired", version)
    assert home.running().challenger == other
    assert experiment_verify.recompute(home.installation, number).same


def test_a_champion_that_loses_more_than_the_version_before_is_replaced_by_it(home):
    version, number = promoted(home)
    home.live(12, gain=0.1)  # of the one in shadow, which is the version before
    advance(home)
    assert (home.state(number), champion(home)) == ("won", "1")
    line = home.store.promotions("validator")[-1]
    assert (line.action, line.actor, line.from_version) == ("rollback", "policy", version)
    assert "on the same blocks" in line.reason
    assert home.running() is None  # nothing is on probation after a rollback
    assert "promoted_without_experiment" not in home.alarms()


@pytest.mark.parametrize(("gain", "goes_back"), [(0.02, True), (-0.02, False)])
def test_a_guardrail_on_probation_serves_the_version_before_only_if_it_lost_less_on_the_same_blocks(
    home, gain, goes_back
):
    version, number = promoted(home)
    home.live(4, gain=gain)
    advance(home)
    home.store.raise_alarm("guardrail", "high", f"experiment {number}: validator champion: a fault", now())
    with quiet():
        reconciler.poll(home.installation, {})
    assert home.running() is None
    assert champion(home) == ("1" if goes_back else version)
    reason = home.store.transitions(number)[-1].reason
    assert ("rollback" if goes_back else "is not served again") in reason


def test_two_that_see_the_same_harm_go_back_one_version_and_not_two(home):
    promoted(home)
    home.live(12)
    advance(home)  # the first probation is over
    _, number = promoted(home)
    home.live(4, gain=0.02)
    advance(home)
    experiment = home.store.experiment(number)
    before = experiment.challenger
    with quiet():
        promotion.end_probation(home.installation, experiment, "guardrail: a fault")
        line = promotion.end_probation(home.installation, experiment, "guardrail: a fault")
    assert champion(home) == before != "1"
    assert "already" in line
    assert [each.action for each in home.store.promotions("validator")].count("rollback") == 1


def test_a_damaged_bundle_of_the_version_before_is_not_served_again(home):
    version, number = promoted(home)
    digest = home.store.experiment(number).challenger_digest
    (home.installation.settings.bundles / digest / "model.onnx").write_bytes(b"not what was judged")
    home.live(4, gain=0.02)
    advance(home)
    home.store.raise_alarm("guardrail", "high", f"experiment {number}: validator champion: a fault", now())
    with quiet():
        reconciler.poll(home.installation, {})
    assert champion(home) == version
    assert "validator experiment" in home.alarms()["family_fault"]


def test_a_file_that_says_otherwise_than_the_ledger_who_decides_is_not_served(home):
    number = begin(home)
    live_until(home, number, "canary")
    content = generation(home)
    content["assignments"]["validator"]["stages"][0]["from_block"] -= 1
    where = home.installation.settings.home
    assert "does not say so" in disagreement(home.store, where, content)
    with quiet():
        experiments.stop(home.installation, number, "ann", "enough")
    assert "does not say so" in disagreement(home.store, where, generation(home))
    assert reconciler.is_behind_ledger(home.installation)
    promotion.publish(home.installation)
    assert not reconciler.is_behind_ledger(home.installation)


def test_what_each_arm_traded_is_described_and_not_tested(home):
    number = begin(home)
    for name, arm, net_bps in (("a", "champion", 4.0), ("b", "challenger", -2.0), ("c", "challenger", 6.0)):
        made = replace(home.decision(name, BTC, home.at + QUARTER), action="BUY", arm=arm)
        home.store.add_decisions([DecisionRecord(made, b"", b"")])
        home.resolve(name, net_bps)
    home.live(2)
    view = experiments.view_of(home.installation, home.store.experiment(number), with_trades=True)
    assert view.trades == [
        {"arm": "challenger", "trades": 2, "net_bps": 2.0}, {"arm": "champion", "trades": 1, "net_bps": 4.0},
    ]  # fmt: skip
    text = _guardrails(view) + _trades(view.trades)
    for shown in ("Guardrails of version 2", "latency", "in the service", "challenger</td><td class=number>2", "+2.00"):
        assert shown in text


def test_limits_are_those_of_the_begin(home):
    number = begin(home)
    set_rules(home, guardrails=GuardrailParams(abstention=0.9))
    rows = experiments.view_of(home.installation, home.store.experiment(number)).guardrails
    assert {row["metric"]: row["limit"] for row in rows}["abstention"] == 0.1
