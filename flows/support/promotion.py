"""L5 in functions: nothing reaches the champion slot without evidence, and every move is a line of the ledger.

The ledger is fact, MLflow aliases are intent, the generation file is what serving follows. The verdict a promotion
rests on is the ledger's own `challenge` line with the same digest: a tag edited in a web page proves nothing.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.support.installation import Installation, hold_lease, now
from pipelines.contracts import Verdict
from pipelines.errors import BundleError, GateRefused, StateError, UnknownName
from pipelines.families import FAMILIES
from pipelines.store import Alarm, Promotion, Store
from pipelines.tracking import Version
from serving.inference.generation import read_generation, write_generation

log = logging.getLogger("bellwether.promotion")
FAULT = "family_fault"


@dataclass(frozen=True, slots=True)
class LedgerSlots:
    """What the ledger says is in the two slots of a family."""

    champion: Promotion | None
    challenger: Promotion | None


def slots_of(store: Store, family: str) -> LedgerSlots:
    """Replay the ledger of one family."""
    champion: Promotion | None = None
    challenger: Promotion | None = None
    for line in store.promotions(family):
        if line.action == "challenge":
            challenger = line
        elif line.action in ("promote", "rollback"):
            champion = line
            if challenger is not None and challenger.to_version == line.to_version:
                challenger = None
    return LedgerSlots(champion, challenger)


def _line(
    version: Version,
    action: Any,
    arm: str,
    actor: str,
    reason: str,
    old: str | None,
    passed: bool,
    evidence: dict[str, Any],
) -> Promotion:
    return Promotion(
        at=now(), actor=actor, action=action, family=version.family, arm=arm, from_version=old,
        to_version=version.version, digest=version.digest, run_id=version.run_id, data_hash=version.data_hash,
        git_commit=version.git_commit, verdict_passed=passed, reason=reason, evidence=evidence,
    )  # fmt: skip


def challenge(
    installation: Installation, version: Version, verdict: Verdict, figures: list[list[str]], actor: str
) -> None:
    """Ledger the gate's verdict on a candidate and its figures, and put it in the challenger slot, in shadow."""
    held = slots_of(installation.store, version.family).challenger
    reason = "passed the gate" if verdict.passed else "refused by the gate: " + "; ".join(verdict.reasons)
    line = _line(
        version,
        "challenge",
        "challenger",
        actor,
        reason,
        held.to_version if held else None,
        verdict.passed,
        {**asdict(verdict), "figures": figures, "symbol": version.tags.get("symbol")},
    )
    installation.store.add_promotion(line)
    installation.tracking.set_alias(version.family, "challenger", version.version)


def verdict_line(store: Store, family: str, version: str, digest: str) -> Promotion | None:
    """The newest ledgered verdict on exactly these bytes, None if the gate never judged them."""
    lines = [
        p
        for p in store.promotions(family)
        if p.action == "challenge" and p.to_version == version and p.digest == digest
    ]
    return lines[-1] if lines else None


def champions(store: Store, family: str) -> list[str]:
    """Versions that became champion one after the other; the last one is champion now, a rollback took the top off."""
    held: list[str] = []
    for line in store.promotions(family):
        if line.action == "promote" and line.to_version not in held[-1:]:
            held.append(str(line.to_version))
        elif line.action == "rollback":
            held.pop()
    return held


def promotion_lease(installation: Installation) -> AbstractContextManager[None]:
    """One move of a champion at a time, alias and ledger together. Raises LeaseHeld after half a minute."""
    return hold_lease(installation, "promotion", timedelta(minutes=2), timeout_s=30.0)


def promote(installation: Installation, family: str, version: str, actor: str, reason: str) -> Promotion:
    """Make a version champion. Raises GateRefused (and ledgers the refusal) without a passing verdict on its digest."""
    with promotion_lease(installation):
        return _promote(installation, family, version, actor, reason)


def _promote(installation: Installation, family: str, version: str, actor: str, reason: str) -> Promotion:
    wanted = installation.tracking.version(family, version)
    held = slots_of(installation.store, family).champion
    old = held.to_version if held else None
    verdict = verdict_line(installation.store, family, version, wanted.digest)
    if verdict is None or not verdict.verdict_passed:
        why = verdict.reason if verdict else "the gate never judged this digest"
        installation.store.add_promotion(_line(wanted, "refuse", "champion", actor, why, old, False, {}))
        raise GateRefused(
            f"{family} version {version} is not promoted: {why}. Its evidence is in run {wanted.run_id}; "
            f"`bellwether retrain {family}` makes a new candidate."
        )
    fetch_bundle(installation, wanted)  # verified and smoke-tested before anything moves
    line = _line(wanted, "promote", "champion", actor, reason, old, True, {"verdict": verdict.id})
    _move(installation, line)
    return line


def rollback(installation: Installation, family: str, actor: str, reason: str) -> Promotion:
    """Back to the version the champion replaced: preloaded, smoke-tested, then the pointer moves."""
    with promotion_lease(installation):
        held = champions(installation.store, family)
        if len(held) < 2:
            raise UnknownName(
                f"{family} has no previous champion to go back to; the ledger shows {held[-1] if held else 'none'}. "
                f"`bellwether promote {family} VERSION` makes another version champion."
            )
        previous = installation.tracking.version(family, held[-2])
        fetch_bundle(installation, previous)
        line = _line(previous, "rollback", "champion", actor, reason, held[-1], True, {})
        _move(installation, line)
        return line


def _move(installation: Installation, line: Promotion) -> None:
    """Alias first: if we are stopped half-way, `reconcile` finds a request to finish and not one to undo the line."""
    family = line.family
    installation.tracking.set_alias(family, "champion", line.to_version)
    installation.store.add_promotion(line)
    installation.tracking.set_alias(family, "previous", next(iter(champions(installation.store, family)[-2:-1]), None))
    challenger = slots_of(installation.store, family).challenger
    installation.tracking.set_alias(family, "challenger", challenger.to_version if challenger else None)
    _publish(installation)


def reconcile(installation: Installation, families: Iterable[str] = FAMILIES) -> list[str]:
    """Compare the `champion` aliases with the ledger. A moved alias is a request: taken over with a passing verdict
    (actor `mlflow-ui`), put back and alarmed without one. Returns what was done, in words."""
    with promotion_lease(installation):  # what somebody else is moving right now is not a request
        done = []
        for family in families:
            with alone(installation, family, "alias"):
                if told := _reconcile(installation, family):
                    done.append(told)
        return done


@contextmanager
def alone(installation: Installation, family: str, what: str) -> Iterator[None]:
    """A fault of one family is logged and alarmed once and ends here: the others go on. Gone, its alarm is cleared."""
    known = [alarm for alarm in installation.store.alarms() if alarm.kind == FAULT and _about(alarm) == (family, what)]
    try:
        yield
    except Exception as fault:
        if not known:
            log.exception("%s %s", family, what)
            told = f"{family} {what}: {type(fault).__name__}: {' '.join(str(fault).split())}"[:400]
            installation.store.raise_alarm(FAULT, "high", told, now())
    else:
        for alarm in known:
            installation.store.clear_alarm(alarm.id, now())


def faulty(installation: Installation) -> set[str]:
    """The families whose fault is still alarmed."""
    return {_about(alarm)[0] for alarm in installation.store.alarms() if alarm.kind == FAULT}


def _about(alarm: Alarm) -> tuple[str, str]:
    family, _, what = alarm.detail.partition(":")[0].partition(" ")
    return family, what


def _reconcile(installation: Installation, family: str) -> str | None:
    alias = installation.tracking.version_by_alias(family, "champion")
    held = slots_of(installation.store, family).champion
    fact = held.to_version if held else None
    if (alias.version if alias else None) == fact:
        return None
    told = f"{family}: alias was removed by hand, put back to version {fact}"
    if alias is not None:
        try:
            _promote(installation, family, alias.version, "mlflow-ui", "alias moved in MLflow")
            return f"{family}: version {alias.version} promoted on request of the MLflow UI"
        except (GateRefused, BundleError) as refusal:
            installation.store.raise_alarm("alias_refused", "warning", str(refusal), now())
            told = f"{family}: alias put back to {fact or 'nothing'}: {refusal}"
    installation.tracking.set_alias(family, "champion", fact)
    return told


def fetch_bundle(installation: Installation, version: Version) -> Path:
    """The verified local bundle of a version: fetched once, checked against the registry's digest, golden rows run."""
    path = installation.settings.bundles / version.digest
    if not path.exists():
        landing = installation.settings.bundles / f".landing-{version.digest[:16]}"
        if landing.exists():
            shutil.rmtree(landing)
        bundle = installation.tracking.download_bundle(version, landing)
        _servable(bundle, version)
        bundle.rename(path)
        shutil.rmtree(landing)
    _servable(path, version)
    return path


def _servable(bundle: Path, version: Version) -> None:
    """What serving will ask of it. Raises BundleError."""
    from pipelines.models.runtime import check_golden, load_bundle  # half a second that `status` does not wait for
    from pipelines.models.views import check_schema

    model = load_bundle(bundle, version.digest, version.version)
    check_schema(model)
    check_golden(model)


def publish(installation: Installation, fresh: bool = False) -> int:
    """Write the generation file from the ledger, so that serving follows fact. Returns the generation.

    fresh  take the warm start of the newest snapshot too; otherwise the published one stays, since the build graph
           may be rewriting its outputs right now
    One writer at a time; a second one waits its turn. Raises LeaseHeld after half a minute.
    """
    with promotion_lease(installation):
        return _publish(installation, fresh)


def _publish(installation: Installation, fresh: bool = False) -> int:
    published = _published(installation) or {}
    named = published.get("families") or {}
    families: dict[str, Any] = {}
    for family in FAMILIES:
        families[family] = named.get(family) or {"champion": None, "challenger": None}  # what stays if it has a fault
        with alone(installation, family, "bundle"):
            families[family] = _servable_arms(installation, family)
    warm_start = None if fresh else published.get("warm_start")
    if warm_start and families == named:
        return int(published["generation"])  # nobody has anything to follow
    return write_generation(
        installation.settings.serving_dir, families, warm_start or install_warm_start(installation), now()
    )


def _servable_arms(installation: Installation, family: str) -> dict[str, dict[str, Any] | None]:
    """Both slots of a family as the generation file names them, their bundles fetched. Raises for a bad champion."""
    slots = slots_of(installation.store, family)
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
            told = f"{family} challenger {line.to_version}: {refusal}"
            installation.store.raise_alarm("bundle_refused", "high", told, now())
    return arms


def _published(installation: Installation) -> dict[str, Any] | None:
    """The generation file; None where there is none, or where it is broken and about to be written anew."""
    try:
        return read_generation(installation.settings.serving_dir)
    except StateError:
        return None


def _served(line: Promotion | None) -> dict[str, Any] | None:
    if line is None:
        return None
    verdict = "passed" if line.verdict_passed else "refused"
    return {
        "version": line.to_version, "digest": line.digest, "run_id": line.run_id, "data_hash": line.data_hash,
        "git_commit": line.git_commit, "verdict": verdict, "promotion": line.id,
    }  # fmt: skip


def install_warm_start(installation: Installation) -> dict[str, str]:
    """Publish the folds' last state of the newest snapshot, with the measured hit rate of the traditional consensus."""
    from pipelines.warm_start import publish_warm_start  # all kernels, which `status` does not need

    stage = installation.workspace / "artifacts"
    told = json.loads((stage / "labels" / "traditional.json").read_text())
    into = installation.settings.serving_dir / "warm"
    into.mkdir(parents=True, exist_ok=True)
    # of the data these states were folded over: the workspace may hold a newer version by now
    data_hash = installation.meta()["data_hash"]
    return publish_warm_start(stage / "features" / "warm", into, data_hash=data_hash, hits=told["hits"], n=told["n"])


def gate_evidence(store: Store, line: Promotion | None) -> dict[str, Any]:
    """The evidence the gate ledgered on the version of a slot: checks, figures, symbol; empty for an empty slot."""
    verdict = line and verdict_line(store, line.family, str(line.to_version), str(line.digest))
    return verdict.evidence if verdict else {}


def live(installation: Installation) -> dict[str, Any]:
    """families.<name>.champion|challenger from stored state alone; answers with every server down."""
    answer: dict[str, Any] = {}
    for family in FAMILIES:
        slots = slots_of(installation.store, family)
        answer[family] = {}
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            served = _served(line)
            answer[family][arm] = served and {**served, "symbol": gate_evidence(installation.store, line).get("symbol")}
    return json.loads(json.dumps(answer))  # type: ignore[no-any-return]
