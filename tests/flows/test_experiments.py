"""Experiments from a passed gate to a promotion: who begins, what counts, what ends one, and what a person may do."""

import json

import numpy as np
import pytest
import sqlalchemy as sa
from support.compared_flows import advance, challenger, champion, filled_home, home, propose, set_rules
from support.compared_home import BASIS, BTC, ETH, LEAKED, REFUSED
from support.registry import empty_registry
from support.stack import quiet

from flows import promote as promote_module
from flows.support import aliases, experiment_pages, experiment_verify, experiments, promotion, traditional_arm
from pipelines.errors import ChainBroken, GateRefused, StateError
from pipelines.experiments.verdict import progress_of
from pipelines.migrations import tables as t
from pipelines.params import RampParams

__all__ = ["empty_registry", "filled_home", "home"]
NO_RAMP = RampParams(canary_blocks=0, split_blocks=0)


def test_a_candidate_that_passes_while_a_champion_serves_begins_an_experiment_and_is_not_promoted(home):
    version = home.candidate().version
    propose(home, version)
    begun = home.running()
    assert (begun.champion, begun.challenger, begun.begun) == ("1", version, home.at)
    assert (begun.alpha, begun.bound, begun.least_gain) == (0.02, BASIS["bound"], BASIS["least_gain"])
    assert (champion(home), challenger(home)) == ("1", version)
    assert experiments.budget_left(home.installation) == pytest.approx(0.98)
    title = f"experiment {begun.number}: validator version {version} against champion version 1"
    assert experiments.lines(home.installation) == [f"{title}: no block counts yet"]
    home.live(2, gain=0.01)
    experiments.advance(home.installation, "validator")
    (line,) = experiments.lines(home.installation)
    assert line.startswith(f"{title}: 2 blocks, gain +")
    assert line.endswith("of 50")


def test_a_better_challenger_wins_after_looking_at_every_block_and_becomes_champion_by_itself(home):
    set_rules(home, ramp=NO_RAMP)
    version = home.candidate().version
    propose(home, version)
    number, days = home.running().number, 0
    while home.state(number) != "won" and days < 60:
        home.live(1, gain=0.02)
        days += 1
        advance(home)
    assert (champion(home), challenger(home), home.state(number)) == (version, "1", "won")
    line = next(line for line in reversed(home.store.promotions("validator")) if line.action == "promote")
    assert (line.actor, line.evidence["experiment"]) == ("policy", number)
    won = home.store.transitions(number)[1]
    assert won.evidence["e_value"] >= 1 / 0.02
    assert won.evidence["decided_at"] + 1 == won.evidence["blocks"] >= 5
    assert "promoted_without_experiment" not in home.alarms()
    again = experiment_verify.recompute(home.installation, number)
    assert again.same
    assert (again.state, again.blocks, again.wrong, again.outcomes_gone) == ("won", won.evidence["blocks"], (), 0)


def test_a_worse_challenger_is_stopped_and_the_newest_that_waited_begins_with_what_the_year_has_left(home):
    first = home.candidate().version
    propose(home, first)
    number = home.running().number
    waiting = [home.candidate().version, home.candidate(REFUSED).version, home.candidate().version]
    for version in waiting[::2]:
        propose(home, version)
    assert challenger(home) == first  # no later candidate takes its place
    assert experiments.queued(home.installation, "validator").to_version == waiting[-1]
    home.live(20, gain=-0.05)
    (line,) = advance(home)
    assert "ruled out" in line
    assert home.state(number) == "stopped"
    begun = home.running()
    assert (begun.challenger, begun.alpha) == (waiting[-1], pytest.approx(0.02 * 0.98))
    assert challenger(home) == waiting[-1]
    assert home.store.promotions("validator")[-1].action == "shadow"
    assert champion(home) == "1"
    assert home.installation.tracking.aliases()["validator"]["challenger"] == waiting[-1]


def test_an_equal_challenger_expires(home):
    set_rules(home, expires_after_blocks=20)
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(21)
    advance(home)
    assert home.state(number) == "expired"
    assert "20 blocks" in home.store.transitions(number)[-1].reason


def test_one_whose_blocks_are_all_void_expires_too(home):
    home.universe((BTC, ETH))  # ETH never comes
    set_rules(home, expires_after_blocks=10)
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(13, symbols=(BTC,))
    advance(home)
    assert home.state(number) == "expired"
    assert home.store.transitions(number)[-1].reason == "no verdict after 10 blocks, 10 of them void"
    assert len(home.store.block_scores(number)) == 10
    assert experiment_verify.recompute(home.installation, number).same


def test_a_refused_candidate_serves_in_shadow_and_never_wins_and_a_suspected_leak_serves_nowhere(home):
    leak = home.candidate(LEAKED).version
    assert challenger(home) is None
    refused = home.candidate(REFUSED).version
    assert challenger(home) == refused
    for version, why in ((leak, "leak"), (refused, "never win")):
        with pytest.raises(GateRefused, match=why), quiet():
            promotion.begin_experiment(home.installation, "validator", version, "ann", "I like it")
    assert home.running() is None


def test_what_differs_inside_a_block_besides_the_models_voids_it_by_name(home):
    home.universe((BTC, ETH))
    home.live(0.25)
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(1, symbols=(BTC, ETH))
    home.live(1, symbols=(BTC, ETH), skip=(3.0, 3.25))  # no decision at two closes
    home.live(1, symbols=(BTC,))  # ETH does not come
    home.live(1, symbols=(BTC, ETH))
    home.live(0.5, symbols=(BTC, ETH))
    experiments.advance(home.installation, "validator")
    scores = home.store.block_scores(number)
    assert [score.number for score in scores] == [0, 1, 2, 3]
    assert [score.mean is None for score in scores] == [False, True, True, False]
    assert scores[1].void == f"{BTC} was decided at 78 of 80 closes; {ETH} was decided at 78 of 80 closes"
    assert scores[2].void == f"{ETH} was decided at 0 of 80 closes"
    assert scores[0].n == 160
    view = experiments.view_of(home.installation, home.running())
    assert (view.figures["blocks"], view.figures["void"]) == (2, 2)


def test_a_block_waits_for_the_outcomes_of_the_market_that_is_looked_at_last(home):
    """Markets are looked at one after the other, and a fast one is hours further on by then."""
    home.universe((BTC, ETH))
    home.live(0.25)
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(2.4, symbols=(BTC, ETH), gain=0.01, late=(ETH,))
    experiments.advance(home.installation, "validator")
    assert home.store.block_scores(number) == []
    home.settle(ETH)
    experiments.advance(home.installation, "validator")
    assert [(score.n, score.void) for score in home.store.block_scores(number)] == [(160, ""), (160, "")]
    assert experiment_verify.recompute(home.installation, number).same


def test_a_block_without_the_outcomes_of_a_market_that_has_no_bars_any_more_is_void(home):
    home.universe((BTC, ETH))
    home.live(0.25)
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(1, symbols=(BTC, ETH), late=(ETH,))  # its last decisions are never settled
    home.live(3, symbols=(BTC,))
    experiments.advance(home.installation, "validator")
    first, second, *_ = home.store.block_scores(number)
    assert first.void == f"the outcomes of {ETH} are not known"
    assert second.void == f"{ETH} was decided at 0 of 80 closes"


def test_an_open_block_is_resumed_after_a_restart_and_no_block_is_scored_twice(home):
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(0.6, gain=0.01)
    experiments.advance(home.installation, "validator")
    assert home.store.block_scores(number) == []
    home.live(0.6, gain=0.01)
    experiments.advance(home.installation, "validator")
    once = home.store.block_scores(number)
    experiments.advance(home.installation, "validator")
    assert [score.number for score in once] == [0]
    assert home.store.block_scores(number) == once
    assert once[0].n == 80


def test_a_person_may_promote_without_an_experiment_which_closes_the_one_that_runs_and_is_alarmed(home):
    version = home.candidate().version
    propose(home, version)
    number = home.running().number
    with quiet():
        with pytest.raises(GateRefused, match="won no experiment"):
            promotion.promote(home.installation, "validator", version, promotion.POLICY, "by itself")
        line = promotion.promote(home.installation, "validator", version, "ann", "I looked at it")
    assert line.evidence["without_experiment"] is True
    assert home.state(number) == "overridden"
    assert home.store.transitions(number)[-1].actor == "ann"
    assert f"experiment {number}" in home.alarms()["promoted_without_experiment"]
    with quiet():
        promotion.rollback(home.installation, "validator", "ann", "no good")
    assert champion(home) == "1"


def test_the_alias_challenger_moved_in_mlflow_begins_an_experiment_and_one_that_may_not_is_put_back(home):
    tracking = home.installation.tracking
    version, refused = home.candidate(), home.candidate(REFUSED)
    assert challenger(home) == refused.version
    with quiet():
        tracking.tag_version(version, {"bellwether.by": "ann", "bellwether.reason": "a second look"})
        tracking.set_alias("validator", "challenger", version.version)
        (line,) = aliases.reconcile(home.installation, ["validator"])
    assert "begun on request" in line
    begun = home.running()
    first = home.store.transitions(begun.number)[0]
    assert (begun.challenger, first.actor, first.reason) == (version.version, "ann", "a second look")
    tags = tracking.version("validator", version.version).tags
    assert tags["bellwether.request"] == f"promoted to challenger, experiment {begun.number}"
    with quiet():
        tracking.set_alias("validator", "challenger", refused.version)
        (line,) = aliases.reconcile(home.installation, ["validator"])
    assert tracking.aliases()["validator"]["challenger"] == version.version
    assert tracking.version("validator", refused.version).tags["bellwether.request"].startswith("refused: ")
    with quiet():
        tracking.set_alias("validator", "challenger", None)  # asks for nothing
    assert aliases.reconcile(home.installation, ["validator"]) == []


def test_one_experiment_runs_at_a_time_and_a_person_ends_one(home):
    first, second = home.candidate().version, home.candidate().version
    propose(home, first)
    number = home.running().number
    with pytest.raises(StateError, match=f"ab stop {number}"), quiet():
        promotion.begin_experiment(home.installation, "validator", second, "ann", "now")
    experiments.stop(home.installation, number, "ann", "it makes no sense")
    assert home.running() is None
    with pytest.raises(StateError, match="has ended: stopped"):
        experiments.stop(home.installation, number, "ann", "again")
    with quiet():
        promote_module.begin_queued(home.installation, "validator")
    assert home.running().challenger == second


def test_a_score_that_was_edited_counts_for_nothing_and_the_chain_names_it(home):
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(4, gain=0.01)
    experiments.advance(home.installation, "validator")
    before = home.store.block_scores(number)
    with home.store.writing() as connection:
        connection.execute(sa.update(t.block_scores).where(t.block_scores.c.number == 1).values(mean=0.14))
    assert [score.number for score in before] == [0, 1, 2, 3]
    assert [score.number for score in home.store.block_scores(number)] == [0, 2, 3]
    with pytest.raises(ChainBroken, match="block 1"):  # a verdict without it would be another one
        experiments.advance(home.installation, "validator")
    (fault,) = home.store.verify_chain([], incremental=False).faults
    assert "block_scores" in fault.describe()
    assert "edited" in fault.describe()


def test_a_block_that_its_outcomes_do_not_give_is_found(home):
    propose(home, home.candidate().version)
    number = home.running().number
    home.live(3, gain=0.01)
    experiments.advance(home.installation, "validator")
    assert experiment_verify.recompute(home.installation, number).same
    family = t.family_outcomes
    with home.store.writing() as connection:
        one = connection.execute(sa.select(family.c.id, family.c.losses).order_by(family.c.id.desc())).first()
        worse = {digest: loss + 1.0 for digest, loss in json.loads(one.losses).items() if digest == home.arms()[0]}
        edited = json.dumps({**json.loads(one.losses), **worse})
        connection.execute(sa.update(family).where(family.c.id == one.id - 40).values(losses=edited))
    again = experiment_verify.recompute(home.installation, number)
    assert not again.same
    assert again.wrong == (2,)


def test_clipping_is_shown_and_alarmed(home):
    propose(home, home.candidate(basis={**BASIS, "bound": 0.01}).version)
    experiment = home.running()
    home.live(10)
    experiments.advance(home.installation, "validator")
    view = experiments.view_of(home.installation, experiment)
    assert view.figures["clipped_share"] > 0.2
    assert "clipped" in home.alarms()["experiment_clipped"]
    means = np.clip([block.mean for block in view.blocks], -0.01, 0.01)
    assert view.progress.e_values.tolist() == progress_of(means, experiment.rules).e_values.tolist()


def test_a_candidate_judged_against_another_champion_begins_nothing(home):
    old = home.candidate().version
    newer = home.candidate().version
    with quiet():
        promotion.promote(home.installation, "validator", newer, "ann", "by hand")
    with pytest.raises(GateRefused, match="against another champion"), quiet():
        promotion.begin_experiment(home.installation, "validator", old, "ann", "now")
    assert experiments.queued(home.installation, "validator") is None


def test_without_an_approval_a_winner_waits_and_without_a_basis_nothing_begins(home, monkeypatch):
    asked = []
    monkeypatch.setattr(promote_module, "request_approval", lambda *what: asked.append(what))
    manual = home.installation.params.retrain.model_copy(update={"approval": "manual"})
    home.installation.params = home.installation.params.model_copy(update={"retrain": manual})
    propose(home, home.candidate(basis=None).version)
    assert home.running() is None
    version = home.candidate().version
    propose(home, version)
    number = home.running().number
    home.live(40, gain=0.03)
    advance(home)
    assert (home.state(number), champion(home)) == ("won", "1")
    assert asked == [("validator", version, f"won experiment {number}")]
    shown = promote_module.evidence_text(home.installation, "validator", version)
    assert f"Experiment {number}: won after" in shown
    assert f"won after {home.store.transitions(number)[-1].evidence['blocks']} blocks" in shown
    won = home.store.transitions(number)[-1].evidence
    assert won["blocks"] == won["decided_at"] + 1 < len(home.store.block_scores(number))  # 40 were scored at once
    assert won["e_value"] >= 1 / 0.02
    assert experiment_verify.recompute(home.installation, number).same
    old = promote_module.evidence_text(home.installation, "validator", "1")
    assert "none was won" in old
    promote_module.decline(home.installation, "validator", version, "ann", "not before the holidays")
    last = home.store.transitions(number)[-1]
    assert (last.state, last.actor, last.reason) == ("refused", "ann", "declined: not before the holidays")
    advance(home)
    assert len(asked) == 1  # nobody is asked again


def test_a_winner_whose_bundle_is_damaged_is_refused_and_stays_challenger(home):
    set_rules(home, ramp=NO_RAMP)
    version = home.candidate()
    propose(home, version.version)
    number = home.running().number
    (home.installation.settings.bundles / version.digest / "model.onnx").write_bytes(b"not what was judged")
    home.live(40, gain=0.03)
    advance(home)
    assert (home.state(number), champion(home), challenger(home)) == ("refused", "1", version.version)
    assert [each.state for each in home.store.transitions(number)] == ["shadow", "won", "refused"]
    advance(home)
    assert home.state(number) == "refused"


def test_the_standing_arms_are_compared_at_every_event_and_never_end(home, monkeypatch):
    installation = home.installation
    took = {}  # what the policy of tier 3 would have taken
    monkeypatch.setattr(traditional_arm, "taken_by_tradition", lambda installation, symbol, records: took)
    assert "next run of the monitor" in experiments.standing_waits(installation)
    lines = experiments.advance(installation, experiments.POLICY_ARMS)
    assert experiments.standing_waits(installation) is None
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["traditional", "no_model"]
    traditional, no_model = home.store.experiments(experiments.POLICY_ARMS)
    assert {(arm.alpha, arm.bound) for arm in (traditional, no_model)} == {(0.0, BASIS["trade_bound_bps"])}
    assert experiments.budget_left(installation) == 1.0
    home.live(3)
    decisions = [record.decision for record in home.store.decisions()]
    for decision in decisions:
        home.resolve(decision.id, -6.0)
    took |= {decision.as_of: 4.0 for decision in decisions[::2]}
    experiments.advance(installation, experiments.POLICY_ARMS)
    figures = [experiments.view_of(installation, arm).figures for arm in (traditional, no_model)]
    assert [one["blocks"] for one in figures] == [3, 3]
    assert [one["gain"] for one in figures] == [pytest.approx(2.0), pytest.approx(-6.0)]  # the live policy took none
    assert {home.state(arm.number) for arm in (traditional, no_model)} == {"shadow"}
    with pytest.raises(StateError, match="standing arm"):
        experiments.stop(installation, no_model.number, "ann", "enough")


def test_the_page_shows_rules_evidence_and_what_happens_next(home, monkeypatch):
    linked = []
    monkeypatch.setattr(experiment_pages, "create_link_artifact", lambda **what: linked.append(what))
    propose(home, home.candidate().version)
    experiment = home.running()
    with quiet():
        (page,) = experiment_pages.write_pages(home.installation, "validator")
        home.live(6, gain=0.01, skip=(30.0,))
        experiments.advance(home.installation, "validator")
        assert experiment_pages.write_pages(home.installation, "validator") == [page]
        assert experiment_pages.write_pages(home.installation, "validator") == []
    text = page.read_text()
    assert "10% of symbols and blocks for 5 blocks (canary), then 50%" in text
    for shown in ("wins when the e-value reaches 50", "confidence sequence", "Void blocks", "79 of 80", "±0.15 nats"):
        assert shown in text
    assert len(linked) == 2
    kept = json.loads(page.with_name("experiment.json").read_text())
    assert (kept["id"], kept["blocks"], kept["void"]) == (experiment.number, 5, 1)
    run = home.installation.tracking.version("validator", experiment.challenger).run_id
    metrics = home.installation.tracking.metrics(run)
    assert metrics["ab.e_value"] == pytest.approx(kept["e_value"])
