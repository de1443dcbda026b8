"""Experiments: which challenger is compared with the champion of a family, by which rules, and how it ends.

One runs at a time a family. It begins when a candidate passes the gate while a champion serves, or when a person starts
it; the newest candidate that passed waits for the one that runs. What it spends of the year's budget of false
promotions is spent when it begins. Scores of blocks: `flows.support.experiment_blocks`.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path

import numpy as np

from flows.support.alarms import end_alarm, keep_alarm
from flows.support.frozen import frozen
from flows.support.installation import Installation, hold_lease, now
from flows.support.market_time import learning_now, market_speed
from pipelines.compiled import cpu_type
from pipelines.contracts import Floats, JsonObject, finite_or_none
from pipelines.errors import ChainBroken, GateRefused, StateError
from pipelines.evaluation.experiment_view import ExperimentView
from pipelines.evaluation.verdicts import is_leak_suspected
from pipelines.experiments.budget import alpha_left, next_alpha
from pipelines.experiments.guardrails import BLOCK_WORDS, Harm, Metric, block_harm, guardrail_rows, limit_of
from pipelines.experiments.verdict import CLIPPED_FLAG, Progress, progress_of
from pipelines.families import ACTING, DECISION_FAMILY
from pipelines.params import GuardrailParams
from pipelines.store import RUNNING, BlockScore, Experiment, ExperimentState, Promotion, Transition

POLICY_ARMS = "policy"  # in place of the family, of a standing arm
LIVE = "live policy"
NO_MODEL = "no_model"  # every event of the signals is taken
TRADITIONAL = "traditional"  # the policy of tier 3, see flows.support.traditional_arm
STANDING = (TRADITIONAL, NO_MODEL)
CLIPPED = "experiment_clipped"
STAGE_LEAD_S = 10.0  # of wall time: services take up a published generation within a second
PAGES = "experiments"  # folder of the pages: under the home's reports, and in a run's artifacts


# ---- which there are ------------------------------------------------------------------------------------------------


def running(installation: Installation, family: str) -> Experiment | None:
    """Return the experiment of a family that runs; None without one."""
    return installation.store.running_experiment(family)


def won(installation: Installation, family: str, digest: str) -> Experiment | None:
    """Return the experiment that these bytes have won against the champion that serves now; None without one."""
    champion = installation.store.slots(family).champion
    for experiment in reversed(installation.store.experiments(family)):
        same = champion is not None and experiment.champion_digest == champion.digest
        if same and experiment.challenger_digest == digest and not experiment.is_probation:
            return experiment if installation.store.experiment_state(experiment.number) == "won" else None
    return None


def lost_probation(installation: Installation, family: str) -> Experiment | None:
    """Return the probation in which the version before was shown to be better, while its champion still serves."""
    champion, found = installation.store.slots(family).champion, installation.store.experiments(family)
    if champion is None or not found:
        return None
    newest = found[-1]
    is_lost = newest.is_probation and installation.store.experiment_state(newest.number) == "won"
    return newest if is_lost and newest.champion_digest == champion.digest else None


def queued(installation: Installation, family: str) -> Promotion | None:
    """Return the verdict of the newest candidate that may begin the family's next experiment; None without one.

    It passed the gate against the champion that serves now, and no experiment with it ever began. A newer candidate
    replaces an older one.
    """
    store = installation.store
    champion = store.slots(family).champion
    if champion is None:
        return None
    began = {
        e.challenger_digest
        for e in store.experiments(family)
        if e.champion_digest == champion.digest and not e.is_probation
    }
    for line in reversed(store.proven_promotions(family)):
        if line.action == "challenge" and obstacle(installation, line, champion) is None:
            return None if line.digest in began else line
    return None


def obstacle(installation: Installation, verdict: Promotion | None, champion: Promotion | None) -> str | None:
    """Return why a version may not begin an experiment, by the gate's verdict on it; None if it may."""
    if champion is None:
        return "the family has no champion to be compared with: a version that passed the gate is promoted"
    if verdict is None:
        return "the gate never judged this digest"
    if is_leak_suspected(verdict.evidence.get("reasons", [verdict.reason])):
        return f"a leak is suspected: {verdict.reason}"
    if not verdict.verdict_passed:
        return f"it may serve in shadow and can never win: {verdict.reason}"
    if verdict.digest == champion.digest:
        return "it is the champion"
    if verdict.evidence.get("compared_with") != champion.digest:
        return f"it was judged against another champion than version {champion.to_version}"
    if not verdict.evidence.get("experiment"):
        return "its verdict does not state what an experiment rests on: too few rows, or a release before 0.13.0"
    return None


# ---- how one begins -------------------------------------------------------------------------------------------------


def begin(installation: Installation, verdict: Promotion, actor: str, reason: str) -> Experiment:
    """Begin the experiment of the version that this verdict of the gate is of. The ledger's slot is the caller's.

    Raises  GateRefused with the obstacle, StateError while another one of the family runs
    """
    from flows.support.live_outcomes import longest_horizon_s  # labels and kernels, which `status` does not wait for

    champion = installation.store.slots(verdict.family).champion
    if (why := obstacle(installation, verdict, champion)) is not None:
        raise GateRefused(
            f"{verdict.family} version {verdict.to_version} begins no experiment: {why}. "
            f"`bellwether retrain {verdict.family}` makes a new candidate"
        )
    assert champion is not None
    basis, params = verdict.evidence["experiment"], installation.params
    at, symbols = learning_now(installation), installation.symbols
    rules = params.experiment
    # where a person approves, the approval comes before any model decides
    is_ramped = verdict.family in ACTING and params.retrain.approval == "auto"
    alpha = next_alpha(spent(installation), at, rules.year_budget, rules.budget_share)
    return installation.store.begin_experiment(
        Experiment(
            at=now(), family=verdict.family,
            champion=str(champion.to_version), champion_digest=str(champion.digest),
            challenger=str(verdict.to_version), challenger_digest=str(verdict.digest),
            unit=basis["unit"], origin_s=at.timestamp(),
            horizon_s=longest_horizon_s(installation, verdict.family, symbols), horizons=rules.block_horizons,
            alpha=alpha, bound=basis["bound"], least_gain=basis["least_gain"], futility_alpha=rules.futility_alpha,
            max_blocks=rules.expires_after_blocks,
            evidence={
                **basis, "symbols": list(symbols), "verdict": verdict.id,
                "year_budget": rules.year_budget, "budget_share": rules.budget_share, "cpu": cpu_type(),
                "key": secrets.token_hex(32), "ramp": rules.ramp.model_dump() if is_ramped else None,
                "guardrails": rules.guardrails.model_dump(),
            },
        ),
        actor, reason,
    )  # fmt: skip


def begin_probation(installation: Installation, family: str, previous: Promotion | None) -> Experiment | None:
    """Begin the probation of a family's new champion, with the version before in shadow; None where none can be.

    It spends nothing: that version was champion. The ledger's slot is the caller's.
    """
    from flows.support.live_outcomes import longest_horizon_s  # as above

    champion = installation.store.slots(family).champion
    if champion is None or previous is None or previous.digest == champion.digest or not previous.digest:
        return None
    verdict = installation.store.verdict(family, str(champion.to_version), str(champion.digest))
    basis = (verdict.evidence.get("experiment") if verdict else None) or {}
    if "bound" not in basis or running(installation, family) is not None:
        return None
    rules, symbols = installation.params.experiment, installation.symbols
    return installation.store.begin_experiment(
        Experiment(
            at=now(), family=family,
            champion=str(champion.to_version), champion_digest=str(champion.digest),
            challenger=str(previous.to_version), challenger_digest=str(previous.digest),
            unit=basis["unit"], origin_s=learning_now(installation).timestamp(),
            horizon_s=longest_horizon_s(installation, family, symbols), horizons=rules.block_horizons,
            alpha=max(rules.futility_alpha, rules.guardrails.level), bound=basis["bound"], least_gain=0.0,
            futility_alpha=0.0, max_blocks=rules.probation_blocks,
            evidence={
                "probation": True, "symbols": list(symbols), "cpu": cpu_type(), "key": secrets.token_hex(32),
                "promotion": champion.id, "guardrails": rules.guardrails.model_dump(),
            },
        ),
        "policy", f"version {champion.to_version} became champion: {champion.reason}", "probation",
    )  # fmt: skip


def spent(installation: Installation) -> list[tuple[datetime, float]]:
    """Return (begin in market time, alpha) of every experiment; a probation promotes nothing new and spends nothing."""
    return [(e.begun, e.alpha) for e in installation.store.experiments() if not e.is_probation]


def budget_left(installation: Installation) -> float:
    """Return what the present market year has left of its budget of false promotions."""
    rules = installation.params.experiment
    return alpha_left(spent(installation), learning_now(installation), rules.year_budget)


def begin_standing(installation: Installation) -> list[Experiment]:
    """Begin the arms that never end, once a champion decides: they spend nothing and can win nothing."""
    from flows.support.live_outcomes import longest_horizon_s  # labels and kernels, which `status` does not wait for

    missing, bound = _missing_arms(installation), _trade_bound_bps(installation)
    if bound is None or not missing:
        return []
    origin = learning_now(installation)
    horizon_s = longest_horizon_s(installation, DECISION_FAMILY, installation.symbols)
    return [
        installation.store.begin_experiment(
            Experiment(
                at=now(), family=POLICY_ARMS, champion=LIVE, champion_digest="", challenger=arm, challenger_digest="",
                unit="bps an event", origin_s=origin.timestamp(), horizon_s=horizon_s,
                horizons=installation.params.experiment.block_horizons, alpha=0.0, bound=bound, least_gain=0.0,
                futility_alpha=0.0, max_blocks=0, evidence={"symbols": list(installation.symbols)},
            ),
            "policy", "a standing arm: it never ends",
        )
        for arm in missing
    ]  # fmt: skip


def standing_waits(installation: Installation) -> str | None:
    """Return why standing arms have not begun; None once they have."""
    champion = installation.store.slots(DECISION_FAMILY).champion
    if not _missing_arms(installation):
        return None
    if champion is None:
        return "the standing arms begin when a champion decides"
    if _trade_bound_bps(installation) is None:
        return (
            f"the standing arms begin with the next champion: the verdict on version {champion.to_version} does not "
            "state how widely trades spread (too few rows, or a release before 0.13.0)"
        )
    return "the standing arms begin with the next run of the monitor"


def _missing_arms(installation: Installation) -> list[str]:
    """Return the standing arms that have not begun."""
    there = {e.challenger for e in installation.store.experiments(POLICY_ARMS)}
    return [arm for arm in STANDING if arm not in there]


def _trade_bound_bps(installation: Installation) -> float | None:
    """Return the bound of what trades return, as the gate's rows of the deciding champion have it; None if unknown."""
    champion = installation.store.slots(DECISION_FAMILY).champion
    if champion is None:
        return None
    verdict = installation.store.verdict(DECISION_FAMILY, str(champion.to_version), str(champion.digest))
    basis = (verdict.evidence.get("experiment") if verdict else None) or {}
    bound: float | None = basis.get("trade_bound_bps")
    return bound


# ---- how one goes on ------------------------------------------------------------------------------------------------


def progress_on(experiment: Experiment, blocks: Sequence[BlockScore]) -> Progress:
    """Return the test of an experiment on these of its blocks."""
    means = scored(blocks)
    return progress_of(means, experiment.rules, len(blocks) - len(means))


def scored(blocks: Sequence[BlockScore]) -> Floats:
    """Return (b,) means of the blocks that count, in their order."""
    return np.array([block.mean for block in blocks if block.mean is not None], dtype=np.float64)


def evidence_of(experiment: Experiment, blocks: Sequence[BlockScore], found: Progress) -> JsonObject:
    """Return the figures of an experiment after the block that decided it, or its newest one, JSON-ready; null before
    the first.

    Several blocks may be scored at once: those after the deciding one are stored and count for nothing.
    """
    until = len(found.e_values) if found.decided_at is None else found.decided_at + 1
    counting = [block for block in blocks if block.mean is not None][:until]
    means = scored(counting)
    last: Mapping[str, float | None] = dict.fromkeys(("e_value", "futility", "low", "high", "gain"))
    if len(means):
        last = {
            "e_value": float(found.e_values[until - 1]), "futility": float(found.futility[until - 1]),
            "low": float(found.low[until - 1]), "high": float(found.high[until - 1]),
            "gain": float(np.clip(means, -experiment.bound, experiment.bound).mean()),
        }  # fmt: skip
    return {
        "blocks": len(means), "void": sum(block.mean is None for block in blocks),
        "outcomes": sum(block.n for block in counting),
        "clipped_share": float(np.mean(np.abs(means) > experiment.bound)) if len(means) else 0.0,
        **{name: finite_or_none(value) if value is not None else None for name, value in last.items()},
    }  # fmt: skip


def harms(installation: Installation, experiment: Experiment, blocks: Sequence[BlockScore]) -> dict[Metric, Harm]:
    """Return what each guardrail on blocks has found, by the stored blocks."""
    limits, found = limits_of(installation, experiment), {}
    for metric in BLOCK_WORDS:
        means = np.array([block.harm[metric] for block in blocks if metric in block.harm], dtype=np.float64)
        found[metric] = block_harm(metric, means, limit_of(metric, limits), limits.level)
    return found


def limits_of(installation: Installation, experiment: Experiment) -> GuardrailParams:
    """Return the limits of an experiment's guardrails, as they were when it began; a standing arm has today's."""
    stored = experiment.evidence.get("guardrails")
    return GuardrailParams(**stored) if stored else installation.params.experiment.guardrails


def view_of(installation: Installation, experiment: Experiment, with_trades: bool = False) -> ExperimentView:
    """Return an experiment as its stored rows have it. `with_trades`: also what the arms traded since it began."""
    blocks, trades = installation.store.block_scores(experiment.number), list[JsonObject]()
    progress = progress_on(experiment, blocks)
    if with_trades:
        from flows.support.experiment_blocks import trades_by_arm  # as above

        trades = trades_by_arm(installation, experiment)
    return ExperimentView(
        experiment, installation.store.transitions(experiment.number), blocks, progress,
        evidence_of(experiment, blocks, progress), budget_left(installation),
        guardrail_rows(harms(installation, experiment, blocks), limits_of(installation, experiment)),
        trades,
    )  # fmt: skip


def lines(installation: Installation) -> list[str]:
    """Return a sentence on each experiment that runs, standing arms left out."""
    found = []
    for experiment in installation.store.experiments():
        if experiment.alpha > 0.0 and installation.store.experiment_state(experiment.number) in RUNNING:
            f = view_of(installation, experiment).figures
            so_far = "no block counts yet"
            if f["e_value"] is not None:
                so_far = f"{f['blocks']} blocks, gain {f['gain']:+.2g} [{f['low']:+.2g}, {f['high']:+.2g}] "
                so_far += f"{experiment.unit}, e-value {f['e_value']:.3g} of {1 / experiment.alpha:.3g}"
            found.append(f"{title_of(experiment)}: {so_far}")
    return found


def page_of(installation: Installation, experiment: Experiment) -> Path:
    """Return where the page of an experiment is, or will be."""
    return installation.settings.home / "reports" / PAGES / str(experiment.number) / "experiment.html"


def advance(installation: Installation, family: str) -> list[str]:
    """Score the whole blocks of a family's experiments that run, and end those that are decided. Return a line
    for each.

    family  or POLICY_ARMS. A winner is not promoted here, see `flows.promote.promote_winner`. One process at a time;
            another one waits
    """
    with hold_lease(installation, "experiments", timedelta(minutes=2), 30.0):
        lines = []
        if family == POLICY_ARMS:
            lines = [f"{title_of(each)} begins" for each in begin_standing(installation)]
        for experiment in installation.store.experiments(family):
            if installation.store.experiment_state(experiment.number) in RUNNING:
                lines += _advance(installation, experiment)
        return lines


def _advance(installation: Installation, experiment: Experiment) -> list[str]:
    """Score the new blocks of one experiment and move it on."""
    from flows.support.experiment_blocks import new_blocks  # as above

    store = installation.store
    store.add_block_scores(new_blocks(installation, experiment))
    blocks = store.block_scores(experiment.number)
    lost = set(range(blocks[-1].number + 1)) - {block.number for block in blocks} if blocks else set()
    if lost:
        raise ChainBroken(
            f"{title_of(experiment)}: block {min(lost)} is not as it was written, and without it the verdict would be "
            "another one. `bellwether verify` names what was edited"
        )
    found = progress_on(experiment, blocks)
    figures = evidence_of(experiment, blocks, found)
    _watch_clipping(installation, experiment, found)
    if found.state == "running":
        return []
    if found.state == "won" and not experiment.is_probation:
        return _ramp(installation, experiment, found, figures)
    reason = _why_decided(experiment, found, len(blocks), figures["void"])
    end(installation, experiment, found.state, "policy", reason, _decision(found, figures))
    return [f"{title_of(experiment)} {found.state}: {reason}"]


def _why_decided(experiment: Experiment, found: Progress, blocks: int, void: int) -> str:
    """Return in words what decided an experiment."""
    at = found.decided_at
    assert at is not None
    if found.state == "won":
        return f"e-value {found.e_values[at]:.3g} reached {1 / experiment.alpha:.3g} after {at + 1} blocks"
    if found.state == "stopped":
        return f"a gain of {experiment.least_gain:.2g} or more is ruled out after {at + 1} blocks"
    if experiment.is_probation:
        return f"version {experiment.challenger} was not shown to be better in {blocks} blocks, {void} of them void"
    return f"no verdict after {blocks} blocks, {void} of them void"


def _decision(found: Progress, figures: JsonObject) -> JsonObject:
    """Return the evidence of the transition that a verdict makes; `recompute` compares it."""
    return {**figures, "decided_at": found.decided_at, "verdict": found.state, "cpu": cpu_type()}


def _ramp(installation: Installation, experiment: Experiment, found: Progress, figures: JsonObject) -> list[str]:
    """Move an experiment that has won in shadow to its next stage; after the last one it is won. Return a line.

    A stage begins with a block that starts a horizon and STAGE_LEAD_S from now or later: services follow by then, so no
    symbol changes its arm in a block.
    """
    transitions = installation.store.transitions(experiment.number)
    why = _why_decided(experiment, found, len(found.e_values), figures["void"])
    evidence = {} if any("verdict" in t.evidence for t in transitions) else _decision(found, figures)
    at_s = learning_now(installation).timestamp()
    if (stop := frozen(installation.settings, "promotion")) is not None and stages_of(experiment):
        return [f"{title_of(experiment)} waits: {stop.describe()}"]
    stages = stages_of(experiment)
    begun = [t.evidence["stage"] for t in transitions if "stage" in t.evidence]
    if begun and experiment.assignment(transitions).block(at_s) < begun[-1]["until_block"]:
        return []
    following = [stage for stage in stages if stage[0] not in [t.state for t in transitions]]
    if not following:
        end(installation, experiment, "won", "policy", why, evidence)
        return [f"{title_of(experiment)} won: {why}"]
    state, weight, blocks = following[0]
    speed = market_speed(installation)
    lead_s = max(experiment.horizon_s, STAGE_LEAD_S * (speed if speed > 1.0 else 1.0))
    first = ceil((at_s + lead_s - experiment.origin_s) / experiment.period_s)
    stage = {"from_block": first, "until_block": first + blocks, "weight": weight}
    says = f"version {experiment.challenger} decides {weight:.0%} of symbols and blocks from block {first} on"
    installation.store.move_experiment(
        Transition(experiment.number, now(), at_s, state, "policy", f"{says}: {why}", {**evidence, "stage": stage})
    )
    return [f"{title_of(experiment)} {state}: {says}"]


def stages_of(experiment: Experiment) -> list[tuple[ExperimentState, float, int]]:
    """Return (state, weight of the challenger, blocks) of each stage that follows the win in shadow; none where its
    answers change nothing."""
    ramp = experiment.evidence.get("ramp") or {}
    named: tuple[ExperimentState, ...] = ("canary", "split")
    return [(s, ramp[f"{s}_weight"], ramp[f"{s}_blocks"]) for s in named if ramp and ramp[f"{s}_blocks"]]


def end(
    installation: Installation, experiment: Experiment, state: ExperimentState, actor: str, reason: str,
    evidence: JsonObject | None = None,
) -> None:  # fmt: skip
    """End an experiment. Raises StateError if it has ended otherwise."""
    as_of_s = learning_now(installation).timestamp()
    installation.store.move_experiment(
        Transition(experiment.number, now(), as_of_s, state, actor, reason, evidence or {})
    )
    end_alarm(installation.store, CLIPPED, title_of(experiment), now())


def override(installation: Installation, family: str, actor: str, reason: str) -> Experiment | None:
    """Close the running experiment of a family whose champion changes without it; return it."""
    experiment = running(installation, family)
    if experiment is not None:
        end(installation, experiment, "overridden", actor, reason)
    return experiment


def stop(installation: Installation, number: int, actor: str, reason: str) -> Experiment:
    """Stop an experiment on a person's request. Raises UnknownName, StateError if it has ended or is a standing arm."""
    experiment = installation.store.experiment(number)
    if experiment.family == POLICY_ARMS:
        raise StateError(f"experiment {number} is the standing arm {experiment.challenger}: it never ends")
    state = installation.store.experiment_state(number)
    if state not in RUNNING:
        raise StateError(f"experiment {number} has ended: {state}")
    end(installation, experiment, "stopped", actor, reason)
    return experiment


def title_of(experiment: Experiment) -> str:
    """Return an experiment in words."""
    if experiment.family == POLICY_ARMS:
        return f"experiment {experiment.number}: {experiment.challenger} against the {LIVE}"
    if experiment.is_probation:
        watched = f"probation of version {experiment.champion}, version {experiment.challenger} in shadow"
        return f"experiment {experiment.number}: {experiment.family} {watched}"
    versions = f"version {experiment.challenger} against champion version {experiment.champion}"
    return f"experiment {experiment.number}: {experiment.family} {versions}"


def _watch_clipping(installation: Installation, experiment: Experiment, found: Progress) -> None:
    """Keep the alarm of an experiment whose bound was too small: its test sees less than what happened."""
    if found.clipped_share > CLIPPED_FLAG and int(found.clipped.sum()) > 1:
        detail = (
            f"{found.clipped_share:.1%} of {len(found.clipped)} blocks were clipped to ±{experiment.bound:g}; the "
            "bound was measured on the gate's rows and live losses are wider"
        )
        keep_alarm(installation.store, CLIPPED, "warning", title_of(experiment), detail, now())
    else:
        end_alarm(installation.store, CLIPPED, title_of(experiment), now())
