"""Promotion (law L5): nothing reaches the champion slot without evidence, and every move is a line of the ledger.

The ledger is fact, MLflow aliases are intent, the generation file is what serving follows. The verdict a promotion
rests on is the ledger's own `challenge` line with the same digest: a tag edited in a web page proves nothing.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.support import experiments
from flows.support.installation import Installation, hold_lease, now
from flows.support.ledger_chain import anchor, require_intact
from flows.support.version_tags import mark_states
from pipelines.contracts import JsonObject, Verdict
from pipelines.errors import BundleError, GateRefused, StateError, UnknownName
from pipelines.evaluation.verdicts import is_leak_suspected, verdict_record
from pipelines.families import FAMILIES
from pipelines.models.trained_on import symbols_of
from pipelines.stage_outputs import as_stored, features_of, labels_of, symbols_in
from pipelines.store import NO_ARM, Alarm, Experiment, Promotion, Store
from pipelines.tracking import Version
from serving.inference.generation import read_generation, write_generation

log = logging.getLogger("bellwether.promotion")
FAULT = "family_fault"
WITHOUT_EXPERIMENT = "promoted_without_experiment"
POLICY = "policy"  # the actor of a promotion that no person made
# what of a family has the fault, besides its alias and its bundle: the watch for drift and loss, or its experiment
WATCH, EXPERIMENT = "watch", "experiment"

Arm = Mapping[str, Any]  # a slot as the generation file names it: version, digest, run, data, verdict
Arms = dict[str, Arm | None]  # champion, challenger


def _line(
    version: Version,
    action: Any,
    arm: str,
    actor: str,
    reason: str,
    old: str | None,
    passed: bool,
    evidence: Mapping[str, Any],
) -> Promotion:
    """Return a ledger line on this version, as of now."""
    return Promotion(
        at=now(), actor=actor, action=action, family=version.family, arm=arm, from_version=old,
        to_version=version.version, digest=version.digest, run_id=version.run_id, data_hash=version.data_hash,
        git_commit=version.git_commit, verdict_passed=passed, reason=reason, evidence=dict(evidence),
    )  # fmt: skip


def challenge(
    installation: Installation,
    version: Version,
    verdict: Verdict,
    figures: list[list[str]],
    actor: str,
    basis: JsonObject | None = None,
) -> None:
    """Write the gate's verdict on a candidate and its figures to the ledger; it becomes challenger, in shadow.

    Not while an experiment of the family runs, whose challenger stays, and not if a leak is suspected: such a version
    is judged and serves nowhere.

    figures  rows of (figure, value, 95 % interval, n) for people
    basis    of an experiment with this version, `ExperimentBasis.to_dict`; None if its rows make none
    """
    with promotion_lease(installation):  # the alias may not be taken for a person's request meanwhile
        slots = installation.store.slots(version.family)
        replaced, champion = slots.challenger, slots.champion
        serves = experiments.running(installation, version.family) is None and not is_leak_suspected(verdict.reasons)
        reason = "passed the gate" if verdict.passed else "refused by the gate: " + "; ".join(verdict.reasons)
        line = _line(
            version,
            "challenge",
            "challenger" if serves else NO_ARM,
            actor,
            reason,
            replaced.to_version if replaced and serves else None,
            verdict.passed,
            {
                **verdict_record(verdict),
                "figures": figures,
                "symbols": list(symbols_of(version.tags)),
                "compared_with": str(champion.digest) if champion else "",
                "experiment": basis,
            },
        )
        installation.store.add_promotion(line)
        if serves:
            installation.tracking.set_alias(version.family, "challenger", version.version)
        mark_states(installation, version.family)


def begin_experiment(installation: Installation, family: str, version: str, actor: str, reason: str) -> Experiment:
    """Compare a version that passed the gate with the champion from now on; it becomes challenger, in shadow.

    Raises  GateRefused with what stands in the way, StateError while another experiment of the family runs, ChainBroken
    """
    with promotion_lease(installation):
        return begin_under_lease(installation, family, version, actor, reason)


def begin_under_lease(installation: Installation, family: str, version: str, actor: str, reason: str) -> Experiment:
    """Begin an experiment, under the lease of the caller."""
    require_intact(installation)
    wanted = installation.tracking.version(family, version)
    verdict = installation.store.verdict(family, version, wanted.digest)
    slots = installation.store.slots(family)
    if (why := experiments.obstacle(installation, verdict, slots.champion)) is not None:
        raise GateRefused(f"{family} version {version} begins no experiment: {why}")
    assert verdict is not None
    if (other := experiments.running(installation, family)) is not None:
        raise StateError(
            f"{family} version {version} begins no experiment: {experiments.title_of(other)} still runs. "
            f"`bellwether ab stop {other.number}` ends it"
        )
    fetch_bundle(installation, wanted)
    begun = experiments.begin(installation, verdict, actor, reason)
    if slots.challenger is None or slots.challenger.digest != wanted.digest:
        replaced = slots.challenger.to_version if slots.challenger else None
        evidence = {"experiment": begun.number, "verdict": verdict.id}
        installation.store.add_promotion(_line(wanted, "shadow", "challenger", actor, reason, replaced, True, evidence))
        installation.tracking.set_alias(family, "challenger", version)
    _publish(installation)
    mark_states(installation, family)
    return begun


def champions(store: Store, family: str) -> list[str]:
    """Return the versions that became champion, one after the other; the last one is champion now.

    A rollback removes the last one.
    """
    stack: list[str] = []
    for line in store.proven_promotions(family):
        if line.action == "promote" and line.to_version not in stack[-1:]:
            stack.append(str(line.to_version))
        elif line.action == "rollback":
            stack.pop()
    return stack


def promotion_lease(installation: Installation, timeout_s: float = 30.0) -> AbstractContextManager[None]:
    """Hold the lease under which alias and ledger move together, one at a time. Raises LeaseHeld after the timeout."""
    return hold_lease(installation, "promotion", timedelta(minutes=2), timeout_s)


def promote(installation: Installation, family: str, version: str, actor: str, reason: str) -> Promotion:
    """Make a version champion. Raises GateRefused, and records it, without a passing verdict on its digest; ChainBroken
    on a ledger that is not as it was written."""
    with promotion_lease(installation):
        return promote_under_lease(installation, family, version, actor, reason, {})


def promote_under_lease(
    installation: Installation, family: str, version: str, actor: str, reason: str, asked: Mapping[str, Any]
) -> Promotion:
    """Make a version champion, under the lease of the caller; `asked` goes on the ledger as evidence."""
    require_intact(installation)
    wanted = installation.tracking.version(family, version)
    champion = installation.store.slots(family).champion
    old = champion.to_version if champion else None
    verdict = installation.store.verdict(family, version, wanted.digest)
    if verdict is None or not verdict.verdict_passed:
        why = verdict.reason if verdict else "the gate never judged this digest"
        installation.store.add_promotion(_line(wanted, "refuse", "champion", actor, why, old, False, asked))
        raise GateRefused(
            f"{family} version {version} is not promoted: {why}. Its evidence is in run {wanted.run_id}; "
            f"`bellwether retrain {family}` makes a new candidate."
        )
    compared = verdict.evidence.get("compared_with")  # None: a verdict of a release before 0.11.0
    if actor == POLICY and champion and compared is not None and champion.digest not in (compared, wanted.digest):
        why = f"it was judged against another champion, not against version {old}"
        installation.store.add_promotion(_line(wanted, "refuse", "champion", actor, why, old, False, {}))
        raise GateRefused(
            f"{family} version {version} is not promoted by itself: {why}. `bellwether retrain {family}` makes a "
            "candidate that is; a person may promote this one."
        )
    experiment = experiments.won(installation, family, wanted.digest)
    if actor == POLICY and champion and champion.digest != wanted.digest and experiment is None:
        why = f"it has won no experiment against version {old}"
        installation.store.add_promotion(_line(wanted, "refuse", "champion", actor, why, old, False, {}))
        raise GateRefused(
            f"{family} version {version} is not promoted by itself: {why}. `bellwether ab list` shows what is "
            "compared; a person may promote this one."
        )
    if experiment is not None:
        asked = {**asked, "experiment": experiment.number}
    elif champion and champion.digest != wanted.digest:
        asked = {**asked, "without_experiment": True}
    fetch_bundle(installation, wanted)  # verified and smoke-tested before anything moves
    line = _line(wanted, "promote", "champion", actor, reason, old, True, {"verdict": verdict.id, **asked})
    _move(installation, line)
    return line


def rollback(installation: Installation, family: str, actor: str, reason: str) -> Promotion:
    """Go back to the version the champion replaced: load it, smoke-test it, then move the pointer.

    Raises UnknownName where there is none, ChainBroken as `promote`.
    """
    with promotion_lease(installation):
        return _rollback(installation, family, actor, reason)


def _rollback(installation: Installation, family: str, actor: str, reason: str) -> Promotion:
    """Go back to the version before, under the lease of the caller. Raises as `rollback`."""
    require_intact(installation)
    stack = champions(installation.store, family)
    if len(stack) < 2:
        raise UnknownName(
            f"{family} has no previous champion to go back to; the ledger shows {stack[-1] if stack else 'none'}. "
            f"`bellwether promote {family} VERSION` makes another version champion."
        )
    previous = installation.tracking.version(family, stack[-2])
    fetch_bundle(installation, previous)
    line = _line(previous, "rollback", "champion", actor, reason, stack[-1], True, {})
    _move(installation, line)
    return line


def _move(installation: Installation, line: Promotion) -> None:
    """Move the champion: alias first, so that after a stop half-way `reconcile` finishes the move.

    An experiment that runs has lost its champion and is closed. A new champion is on probation: the one before goes on
    predicting in shadow.
    """
    family = line.family
    before = installation.store.slots(family).champion
    installation.tracking.set_alias(family, "champion", line.to_version)
    installation.store.add_promotion(line)
    moved = f"version {line.to_version} became champion by {line.action}: {line.reason}"
    closed = experiments.override(installation, family, line.actor, moved)
    closed = None if closed is not None and closed.is_probation else closed
    if closed is not None or line.evidence.get("without_experiment"):
        ended = f"; {experiments.title_of(closed)} is overridden" if closed else ""
        detail = f"{family} {moved} ({line.actor}), without an experiment{ended}"
        installation.store.raise_alarm(WITHOUT_EXPERIMENT, "warning", detail, now())
    if line.action == "promote":
        _begin_probation(installation, family, before)
    there = {version.version for version in installation.tracking.versions(family)}
    previous = [version for version in champions(installation.store, family)[-2:-1] if version in there]
    installation.tracking.set_alias(family, "previous", next(iter(previous), None))
    challenger = installation.store.slots(family).challenger
    installation.tracking.set_alias(family, "challenger", challenger.to_version if challenger else None)
    _publish(installation)
    anchor(installation)
    mark_states(installation, family)


def _begin_probation(installation: Installation, family: str, before: Promotion | None) -> None:
    """Keep the champion before in shadow while the new one is on probation, where there is one to go back to."""
    begun = experiments.begin_probation(installation, family, before)
    if begun is None:
        return
    assert before is not None
    replaced = installation.store.slots(family).challenger
    reason = f"experiment {begun.number}: kept while version {begun.champion} is on probation"
    shadow = replace(
        before, id=None, at=now(), actor=POLICY, action="shadow", arm="challenger", reason=reason,
        from_version=replaced.to_version if replaced else None, evidence={"experiment": begun.number},
    )  # fmt: skip
    installation.store.add_promotion(shadow)


def stop_by_guardrail(installation: Installation, experiment: Experiment, why: str) -> str:
    """End an experiment whose guardrail tripped; nothing of it decides from then on. Return a line.

    The champion before a version on probation is served again if it lost less on the same blocks; its bundle and its
    golden rows are checked before anything moves.
    """
    title = experiments.title_of(experiment)
    if not experiment.is_probation:
        experiments.end(installation, experiment, "stopped", POLICY, f"guardrail {why}")
        publish(installation)
        return f"{title} stopped: guardrail {why}"
    return end_probation(installation, experiment, f"guardrail {why}")


def end_probation(installation: Installation, experiment: Experiment, why: str) -> str:
    """End a probation with harm: serve the version before again if it lost less on the same blocks. Return a line.

    Raises what `rollback` does: nothing has ended then, and the next look tries again.
    """
    family, title = experiment.family, experiments.title_of(experiment)
    gain = experiments.view_of(installation, experiment).figures["gain"]
    if gain is not None and gain > 0.0:
        reason = f"{why}; it lost {gain:.2g} {experiment.unit} less on the same blocks"
        with promotion_lease(installation):  # monitor and reconciler may both come here: the second finds it done
            champion = installation.store.slots(family).champion
            if champion is None or champion.digest != experiment.champion_digest:
                return f"{title} has ended: its champion is replaced already"
            _rollback(installation, family, POLICY, reason)
        return f"{title} ends: version {experiment.challenger} is champion again: {why}"
    lost = "no block of both is scored yet" if gain is None else f"it lost {-gain:.2g} {experiment.unit} more"
    reason = f"{why}; version {experiment.challenger} is not served again: {lost}. A person may roll back"
    experiments.end(installation, experiment, "stopped", POLICY, reason)
    publish(installation)
    return f"{title} ends: {reason}"


@contextmanager
def isolate_fault(installation: Installation, family: str, what: str) -> Iterator[None]:
    """Log and alarm a fault of one family once, and go on with the others; clear the alarm when the fault is gone."""
    known = [alarm for alarm in installation.store.alarms() if alarm.kind == FAULT and _about(alarm) == (family, what)]
    try:
        yield
    except Exception as fault:
        if not known:
            log.exception("%s %s", family, what)
            detail = f"{family} {what}: {type(fault).__name__}: {' '.join(str(fault).split())}"[:400]
            installation.store.raise_alarm(FAULT, "high", detail, now())
    else:
        for alarm in known:
            installation.store.clear_alarm(alarm.id, now())


def faulty(installation: Installation) -> set[str]:
    """Return the families with an open fault of alias or bundle: the others change nothing that is served."""
    found = [_about(alarm) for alarm in installation.store.alarms() if alarm.kind == FAULT]
    return {family for family, what in found if what not in (WATCH, EXPERIMENT)}


def _about(alarm: Alarm) -> tuple[str, str]:
    """Return (family, what) of a fault, from the start of the detail as `isolate_fault` writes it."""
    family, _, what = alarm.detail.partition(":")[0].partition(" ")
    return family, what


def fetch_bundle(installation: Installation, version: Version) -> Path:
    """Return the local bundle of a version: fetched once, checked against the registry's digest, golden rows run.

    Raises BundleError.
    """
    path = installation.settings.bundles / version.digest
    if not path.exists():
        landing = installation.settings.bundles / f".landing-{version.digest[:16]}"
        if landing.exists():
            shutil.rmtree(landing)
        bundle = installation.tracking.download_bundle(version, landing)
        _check_servable(bundle, version)
        bundle.rename(path)
        shutil.rmtree(landing)
    _check_servable(path, version)
    return path


def _check_servable(bundle: Path, version: Version) -> None:
    """Check what serving will check. Raises BundleError."""
    from pipelines.models.runtime import check_golden, load_bundle  # half a second that `status` does not wait for
    from pipelines.models.views import check_schema

    model = load_bundle(bundle, version.digest, version.version)
    check_schema(model)
    check_golden(model)


def publish(installation: Installation, fresh: bool = False) -> int:
    """Write the generation file from the ledger, so that serving follows fact. Return the generation; 0 in a worker.

    fresh  publish the warm start of the newest snapshot too; otherwise the published one stays, since the build graph
           may be rewriting its outputs right now
    One writer at a time; a second one waits. Raises LeaseHeld after 30 s.
    """
    with promotion_lease(installation):
        return _publish(installation, fresh)


def _publish(installation: Installation, fresh: bool = False) -> int:
    """Write the generation file, under the lease of the caller; `fresh` as of `publish`."""
    if installation.settings.worker:
        return 0  # its home serves nobody: the reconciler of the home that serves publishes what the ledger has
    published = _published(installation) or {}
    named = published.get("families") or {}
    families: dict[str, Arms] = {}
    for family in FAMILIES:
        families[family] = named.get(family) or {"champion": None, "challenger": None}  # what stays if it has a fault
        with isolate_fault(installation, family, "bundle"):
            families[family] = _servable_arms(installation, family)
    warm_starts = {} if fresh else published.get("warm_starts") or {}
    assigned = assignments(installation, families)
    if warm_starts and families == named and assigned == (published.get("assignments") or {}):
        return int(published["generation"])  # unchanged: services have nothing to follow
    return write_generation(
        installation.settings.serving_dir, families, warm_starts or install_warm_starts(installation), now(), assigned
    )


def assignments(installation: Installation, families: Mapping[str, Arms]) -> dict[str, JsonObject]:
    """Return family → who decides when, of each experiment that runs and whose two versions are served."""
    found = {}
    for family, arms in families.items():
        assignment = installation.store.assignment(family)
        served = {str(arm["digest"]) for arm in arms.values() if arm is not None}
        if assignment is not None and {assignment.champion, assignment.challenger} <= served:
            found[family] = assignment.to_dict()
    return found


def _servable_arms(installation: Installation, family: str) -> Arms:
    """Fetch the bundles of both slots of a family and return them as the generation file names them.

    Raises BundleError for a bad champion; the place of a bad challenger stays empty.
    """
    slots = installation.store.slots(family)
    arms = {"champion": _served(slots.champion), "challenger": _served(slots.challenger)}
    for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
        if line is None or not line.digest or (installation.settings.bundles / line.digest).exists():
            continue
        try:
            fetch_bundle(installation, installation.tracking.version(family, str(line.to_version)))
        except BundleError as refusal:
            if arm == "champion":
                raise
            arms[arm] = None  # one that only watches must not hold up those that decide
            detail = f"{family} challenger {line.to_version}: {refusal}"
            installation.store.raise_alarm("bundle_refused", "high", detail, now())
    return arms


def _published(installation: Installation) -> Mapping[str, Any] | None:
    """Return the generation file; None where there is none, or where it is broken and about to be rewritten."""
    try:
        return read_generation(installation.settings.serving_dir)
    except StateError:
        return None


def _served(line: Promotion | None) -> Arm | None:
    """Return a slot as the generation file names it; None for an empty one."""
    if line is None:
        return None
    verdict = "passed" if line.verdict_passed else "refused"
    return {
        "version": line.to_version, "digest": line.digest, "run_id": line.run_id, "data_hash": line.data_hash,
        "git_commit": line.git_commit, "verdict": verdict, "promotion": line.id,
    }  # fmt: skip


def install_warm_starts(installation: Installation) -> dict[str, dict[str, str]]:
    """Publish the last fold states of every market of the newest snapshot, with the hit rate of its consensus.

    Return the entries of the generation file: symbol → data hash, digest, path.
    """
    from pipelines.warm_start import publish_warm_start  # all kernels, which `status` does not need

    artifacts, meta = installation.workspace / "artifacts", installation.meta()
    into = installation.settings.serving_dir / "warm"
    into.mkdir(parents=True, exist_ok=True)
    published = {}
    for symbol in symbols_in(meta):
        consensus = json.loads((as_stored(labels_of(artifacts, symbol)) / "traditional.json").read_text())
        # of the data these states were folded over: the workspace may hold a newer version by now
        published[symbol] = publish_warm_start(
            as_stored(features_of(artifacts, symbol)) / "warm", into, data_hash=meta["data_hash"], **consensus
        )
    return published


def gate_evidence(store: Store, line: Promotion | None) -> Mapping[str, Any]:
    """Return the gate's evidence on the version of a slot: checks, figures, symbols; empty for an empty slot."""
    verdict = line and store.verdict(line.family, str(line.to_version), str(line.digest))
    return verdict.evidence if verdict else {}


def live(installation: Installation) -> dict[str, Arms]:
    """Return family → champion and challenger from stored state alone; works with every server down."""
    families: dict[str, Arms] = {}
    for family in FAMILIES:
        slots = installation.store.slots(family)
        families[family] = {}
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            served = _served(line)
            symbols = list(symbols_of(gate_evidence(installation.store, line)))
            families[family][arm] = (
                None if served is None else {**served, "symbols": symbols, "symbol": ", ".join(symbols)}
            )
    return families
