"""Decide again what was decided, from stored bars, records and bundles alone, and compare (L4).

A decision names its warm start, its models by digest, the account, the tripped breakers, the digest of its parameters
(which are stored) and the type of the CPU; bundle and warm start hold what a missed target returns. From these and the
observed bars the same code makes it again; differences are named by field. Bars are read as the decision read them, or
with every correction since. On the same CPU type every number must be equal to the last bit, on another one within
OTHER_CPU_TOLERANCE. Answers that a card gave are taken from the decision, which has every answer that it used; with
`recompute` their models are run here as well, and may differ by the tolerance of that card. What another release
decided, and this one decides otherwise, is named so; what an earlier release decided without recording what it rests on
is not made again.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import isclose
from typing import Literal

import numpy as np

from flows.support.installation import Installation
from flows.support.progress import track
from pipelines.compiled import cpu_type
from pipelines.contracts import OPEN_TIME, Decision, Floats, JsonObject, ModelAnswer, ModelAnswers
from pipelines.errors import BellwetherError, StateError
from pipelines.models.runtime import load_bundle, tolerance_of
from pipelines.store import DecisionRecord
from pipelines.warm_start import read_warm_start
from serving.inference.model_slots import Slot, Snapshot
from serving.inference.predictions import faulty
from serving.policy import decision_row
from serving.policy.decide import assigned_in, decide, predict_all
from serving.policy.decision_row import policy_of_content
from serving.state.symbols import Symbol
from serving.state.tiers import Tier

Reading = Literal["then", "now"]
BEFORE_ALL = "1970-01-01T00:00:00+00:00"  # the reading of a decision made before any correction
SHOWN = 20  # differing decisions named one by one
OTHER_CPU_TOLERANCE = 1e-12  # relative; math libraries of two CPU types differ in the last bit


@dataclass(slots=True)
class Replayed:
    """Count the replayed decisions: `equal` came out the same, the others say why."""

    decisions: int = 0
    equal: int = 0
    different: list[JsonObject] = field(default_factory=list)  # id, as_of, fields that differ, made_on
    not_replayable: Counter[str] = field(default_factory=Counter)  # why it could not be made again → how many
    other_cpu: Counter[str] = field(default_factory=Counter)  # "other CPU: <type>" → how many were made on it
    models: set[tuple[str, str, str]] = field(default_factory=set)  # (family, arm, digest) that predicted
    champions: set[tuple[str, str]] = field(default_factory=set)  # (family, digest)
    reading: Reading = "then"
    generations: set[int] = field(default_factory=set)
    warm_starts: set[str] = field(default_factory=set)
    stored_answers: Counter[str] = field(default_factory=Counter)  # device → answers of its that were not made again
    recomputed: Counter[str] = field(default_factory=Counter)  # device → answers of its that were made again, and agree

    @property
    def same(self) -> bool:
        """Return whether every decision came out the same, those of another CPU type within the tolerance."""
        return self.equal == self.decisions > 0

    @property
    def bit_for_bit(self) -> bool:
        """Return whether every decision came out the same to the last bit, as demanded of this CPU type."""
        return self.same and not self.other_cpu

    def to_dict(self) -> JsonObject:
        """Return the counts as plain JSON."""
        return {
            "reading": self.reading, "decisions": self.decisions, "equal": self.equal, "different": len(self.different),
            "not_replayable": dict(self.not_replayable), "other_cpu": dict(self.other_cpu),
            "first_different": self.different[:SHOWN], "models": len(self.models), "champions": len(self.champions),
            "generations": len(self.generations), "warm_starts": len(self.warm_starts), "same": self.same,
            "bit_for_bit": self.bit_for_bit, "stored_answers": dict(self.stored_answers),
            "recomputed": dict(self.recomputed),
        }  # fmt: skip


def replay_decisions(
    installation: Installation,
    records: Sequence[DecisionRecord],
    reading: Reading = "then",
    recompute: bool = False,
) -> Replayed:
    """Make every one of these decisions again and compare it, feature and signal bytes included.

    reading    then: on the bars as each decision read them; now: with every correction made since
    recompute  also run the models whose answers came from a card, here, and compare within that card's tolerance
    """
    found, bundles = Replayed(decisions=len(records), reading=reading), _Bundles(installation)
    policies = _Policies(installation)
    groups: dict[tuple[str, str, str], list[DecisionRecord]] = defaultdict(list)
    for record in records:
        lineage = record.decision.lineage
        read_as = lineage.get("reading", BEFORE_ALL) if reading == "then" else ""
        groups[record.decision.symbol, lineage.get("warm_start", ""), read_as].append(record)
    items = ((key, record) for key, group in groups.items() for record in sorted(group, key=_time_order))
    walks: dict[tuple[str, str, str], _Walk | str] = {}
    for key, record in track(items, f"replay: {len(records):,} decisions", len(records)):
        if key not in walks:
            walks.clear()  # one symbol's history at a time
            walks[key] = _walk(installation, groups[key], *key)
        walk = walks[key]
        why = walk if isinstance(walk, str) else _replay_one(walk, bundles, policies, record, found, recompute)
        if why is not None:
            found.not_replayable[why] += 1
    return found


def _time_order(record: DecisionRecord) -> tuple[datetime, datetime]:
    """Return the sort key of a decision: its close, then its arrival."""
    return record.decision.as_of, record.decision.ingested_at


@dataclass(slots=True)
class _Walk:
    """Hold a symbol at some close, and the observed bars (n, 9) after it, of which the first `at` were processed.

    closes  (n,) when each of the bars closes, epoch seconds
    """

    symbol: Symbol
    bars: Floats
    closes: Floats
    at: int = 0

    def to(self, close: float) -> bool:
        """Process bars up to the decision bar that closed at `close`, epoch s; return whether one closed then."""
        until = int(np.searchsorted(self.closes, close, side="right"))
        if until > self.at:
            self.symbol.advance(self.bars[self.at : until])
            self.at = until
        while self.symbol.closed.close_time < close and self.at < len(self.bars):  # its own last bars were missing
            self.symbol.advance(self.bars[self.at : self.at + 1])
            self.at += 1
        return bool(self.symbol.closed.close_time == close)


def _walk(
    installation: Installation, group: Sequence[DecisionRecord], name: str, warm_start: str, reading: str
) -> "_Walk | str":
    """Return the walk from a warm start through the observed bars, or why there is none.

    reading  moment up to which corrections are applied, ISO 8601; "" = all
    """
    folder = installation.settings.serving_dir / "warm" / warm_start
    if not warm_start or not folder.is_dir():
        return f"warm start {warm_start[:12] or 'not recorded'} is not kept under {folder.parent}"
    try:
        warm = read_warm_start(folder, warm_start)
    except BellwetherError as error:
        return str(error)
    symbol = Symbol(warm, reading="" if reading == BEFORE_ALL else reading)
    last = max(record.decision.as_of for record in group).timestamp()
    symbol.ingest_records(*installation.store.records(name, symbol.closed.close_time, last))
    moment = datetime.fromisoformat(reading) if reading else None
    bars = installation.store.bars(name, warm.last_open_time, last, moment)
    return _Walk(symbol, bars, symbol.base_grid.closes(bars[:, OPEN_TIME]))


def _replay_one(
    walk: _Walk,
    bundles: "_Bundles",
    policies: "_Policies",
    record: DecisionRecord,
    found: Replayed,
    recompute: bool,
) -> str | None:
    """Make one decision again and add the comparison to `found`; return why that is impossible, None if it is not."""
    old = record.decision
    if not old.account:
        return "the account was not recorded: an earlier release wrote it"
    if "miss" not in old.lineage:
        return "an earlier release decided it: edge and size followed other rules"
    policy = policies.policy(old)
    if isinstance(policy, str):
        return policy
    if not walk.to(old.as_of.timestamp()):
        return f"no stored bar of {old.symbol} closes at its as_of"
    try:
        snapshot = bundles.snapshot(old)
    except (BellwetherError, OSError) as error:
        return str(error)
    again = predict_all(walk.symbol, snapshot, policy.params.models.unseen_symbols)
    new = decide(
        walk.symbol, snapshot, policy,
        lambda *_: decision_row.ExposureSnapshot.from_dict(old.account), old.breakers,
        tier=Tier(old.tier, old.tier_reason), assigned=assigned_in(old.lineage), learned=old.learned,
        predictions=_answers_used(old, again), id=old.id, known_at=old.known_at,
        now=old.ingested_at,
    )  # fmt: skip
    _compare(record, new, walk.symbol, found, _card_answers(old, again, found, recompute))
    found.generations.add(old.generation)
    found.warm_starts.add(walk.symbol.warm.digest)
    for (family, arm), slot in snapshot.slots.items():
        found.models.add((family, arm, slot.digest))
        if arm == "champion":
            found.champions.add((family, slot.digest))
    return None


def _compare(
    record: DecisionRecord, new: Decision, symbol: Symbol, found: Replayed, differing_answers: Sequence[str]
) -> None:
    """Add to `found` how the decision made again, and its rows, compare with the record.

    differing_answers  paths of a card's answers that are too far from those made here
    """
    old, closed = record.decision, symbol.closed
    made_on = old.lineage.get("cpu")  # None = an earlier release wrote it, on this machine as far as is known
    tolerance = 0.0 if made_on in (None, cpu_type()) else OTHER_CPU_TOLERANCE
    if tolerance:
        found.other_cpu[f"other CPU: {made_on}"] += 1
    differs = [*differences(_comparable(old), _comparable(new), tolerance), *differing_answers]
    differs += [
        name
        for name, stored, row in (
            ("features", record.features, closed.features),
            ("signals", record.signals, closed.signals),
        )
        if not _same_row(stored, row, tolerance)
    ]
    if not differs:
        found.equal += 1
        return
    if (made_by := old.lineage.get("release")) not in (None, new.lineage["release"]):
        found.not_replayable[f"other release: {made_by} decided otherwise than this one, {new.lineage['release']}"] += 1
        return
    where = f"other CPU: {made_on}, this is {cpu_type()}" if tolerance else made_on or "not recorded"
    found.different.append({"id": old.id, "as_of": old.as_of.isoformat(), "fields": differs, "made_on": where})


def _comparable(decision: Decision) -> JsonObject:
    """Return the decision as plain JSON without the CPU and release that made it, and the name of its reading."""
    record = decision.to_dict()
    lineage = {name: value for name, value in record["lineage"].items() if name not in ("cpu", "reading", "release")}
    return record | {"lineage": lineage}


def _same_row(stored: bytes, row: Floats, tolerance: float) -> bool:
    """Return whether a stored row equals one made again: to the last bit, or within a relative tolerance."""
    if not tolerance or len(stored) != row.nbytes:
        return row.tobytes() == stored
    before = np.frombuffer(stored, dtype=np.float64)
    return bool(np.allclose(before, row, rtol=tolerance, atol=tolerance, equal_nan=True))


def _answers_used(old: Decision, again: ModelAnswers) -> ModelAnswers:
    """Return the answers to decide on: made again on this CPU, or the recorded ones of a card or of a fault.

    No row reproduces a fault, nor why this process answered for the model service.
    """
    found: ModelAnswers = {}
    for family, arms in again.items():
        for arm, answer in arms.items():
            before = old.models[family][arm]
            is_stored = before.device != "cpu" or faulty(before) is not None
            found.setdefault(family, {})[arm] = before if is_stored else replace(answer, fallback=before.fallback)
    return found


def _card_answers(old: Decision, again: ModelAnswers, found: Replayed, recompute: bool) -> list[str]:
    """Count the answers that a card gave; return the paths of those that differ from `again` by more than it may.

    The label follows from p and is compared as part of the decision.
    """
    differs: list[str] = []
    for family, arms in old.models.items():
        for arm, before in arms.items():
            if before.device == "cpu":
                continue
            if not recompute:
                found.stored_answers[before.device] += 1
                continue
            tolerance = tolerance_of(before.device)
            paths = [
                f"models.{family}.{arm}.{name}"
                for name in ("p", "p_low", "members", "status", "reason")
                if not _near(getattr(before, name), getattr(again[family][arm], name), tolerance)
            ]
            found.recomputed[before.device] += not paths
            differs += paths
    return differs


def _near(old: object, new: object, tolerance: float) -> bool:
    """Return whether two values are equal, numbers in them to an absolute tolerance."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_near(old[name], new[name], tolerance) for name in old)
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= tolerance
    return old == new


def differences(old: object, new: object, tolerance: float = 0.0, at: str = "") -> list[str]:
    """Return the paths at which two plain JSON values differ; numbers may differ by a relative tolerance."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(old) + [name for name in new if name not in old]
        return [
            path
            for name in names
            for path in (
                differences(old[name], new[name], tolerance, f"{at}.{name}".lstrip("."))
                if name in old and name in new
                else [f"{at}.{name}".lstrip(".")]
            )
        ]
    return [] if old == new or (tolerance and _close(old, new, tolerance)) else [at]


def _close(old: object, new: object, tolerance: float) -> bool:
    """Return whether two numbers, or the numbers of two lists, agree within a tolerance."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(a == b or _close(a, b, tolerance) for a, b in zip(old, new, strict=True))
    return isinstance(old, float) and isinstance(new, float) and isclose(old, new, rel_tol=tolerance, abs_tol=tolerance)


class _Policies:
    """Make the policies that decisions were made by, each once, from the parameters stored with them."""

    def __init__(self, installation: Installation) -> None:
        """Make the policy of the present params.yaml."""
        self._store = installation.store
        self._present = decision_row.policy_of(installation.params)
        self._made: dict[str, decision_row.Policy | str] = {self._present.digest: self._present}

    def policy(self, decision: Decision) -> "decision_row.Policy | str":
        """Return what a decision was made by, or why that is not known."""
        digest, rules = decision.lineage.get("params"), str(decision.lineage.get("policy"))
        if digest is None:  # release 0.9.0 and earlier named the rules and stored no parameters
            return self._present if rules == self._present.rules else f"params.yaml has changed since: {rules[:12]}"
        if digest not in self._made:
            self._made[digest] = self._read(digest)
        return self._made[digest]

    def _read(self, digest: str) -> "decision_row.Policy | str":
        """Return the policy of stored parameters, or why there is none."""
        try:
            content = self._store.parameters(digest)
            return f"parameters {digest[:12]} are not stored" if content is None else policy_of_content(content)
        except BellwetherError as error:
            return str(error)


class _Bundles:
    """Load verified bundles by digest, each once, and build the snapshots that decisions were made with."""

    def __init__(self, installation: Installation) -> None:
        """Read the promotion ledger; bundles are loaded at their first use."""
        self._installation = installation
        self._slots: dict[tuple[str, str, str, str], Slot] = {}
        self._lines = {(p.family, str(p.to_version), p.digest): p for p in installation.store.promotions()}

    def snapshot(self, decision: Decision) -> Snapshot:
        """Return the snapshot of a decision.

        Raises BundleError for a bundle that is gone or damaged, StateError for one that the ledger does not know.
        """
        slots = {
            (family, arm): self._slot(family, arm, answer)
            for family, arms in decision.models.items()
            for arm, answer in arms.items()
        }
        return Snapshot(generation=decision.generation, slots=slots)

    def _slot(self, family: str, arm: str, answer: ModelAnswer) -> Slot:
        """Return the slot of one recorded answer; errors as in `snapshot`."""
        version, digest = answer.version, answer.digest
        key = (family, arm, version, digest)
        if key not in self._slots:
            line = self._lines.get((family, version, digest))
            if line is None:
                raise StateError(f"{family} version {version} with digest {digest[:12]} has no line on the ledger")
            model = load_bundle(self._installation.settings.bundles / digest, digest, version)
            self._slots[key] = Slot(
                family=family, arm=arm, version=version, digest=digest, run_id=str(line.run_id or ""),
                data_hash=str(line.data_hash or ""), git_commit=str(line.git_commit or ""), verdict=answer.verdict,
                model=model,
            )  # fmt: skip
        return self._slots[key]
