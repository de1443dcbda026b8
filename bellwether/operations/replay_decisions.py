"""L4: decide again what was decided, from stored bars, records and bundles alone, and compare bit for bit.

A decision names its warm start, its models by digest, the account risk saw, the latched breakers and the policy's own
digest. From these and the observed bars the same code makes it again; what differs is named field by field.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.support.installation import Installation
from flows.support.progress import track
from pipelines.contracts import OPEN_TIME, Decision
from pipelines.errors import BellwetherError, StateError
from pipelines.models.runtime import load_bundle
from pipelines.store import DecisionRecord, decision_payload
from pipelines.warm_start import read_warm_start
from serving.inference.model_slots import Slot, Snapshot
from serving.inference.predictions import faulty
from serving.policy import decision_row
from serving.policy.decide import decide, predict_all
from serving.state.symbols import Symbol
from serving.state.tiers import Tier

SHOWN = 20  # differing decisions named one by one


@dataclass(slots=True)
class Replayed:
    """decisions were asked for, of which `equal` came out the same to the last bit; the others say why."""

    decisions: int = 0
    equal: int = 0
    different: list[dict[str, Any]] = field(default_factory=list)  # id, as_of, fields that differ
    not_replayable: Counter[str] = field(default_factory=Counter)  # why it could not be made again → how many
    models: set[tuple[str, str, str]] = field(default_factory=set)  # (family, arm, digest) that answered
    champions: set[tuple[str, str]] = field(default_factory=set)  # (family, digest)
    generations: set[int] = field(default_factory=set)
    warm_starts: set[str] = field(default_factory=set)

    @property
    def bit_for_bit(self) -> bool:
        return self.equal == self.decisions > 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "decisions": self.decisions, "equal": self.equal, "different": len(self.different),
            "not_replayable": dict(self.not_replayable), "first_different": self.different[:SHOWN],
            "models": len(self.models), "champions": len(self.champions), "generations": len(self.generations),
            "warm_starts": len(self.warm_starts), "bit_for_bit": self.bit_for_bit,
        }  # fmt: skip


def replay_decisions(installation: Installation, records: Sequence[DecisionRecord]) -> Replayed:
    """Make every one of these decisions again and compare it, feature and signal bytes included."""
    found, slots = Replayed(decisions=len(records)), _Bundles(installation)
    groups: dict[tuple[str, str], list[DecisionRecord]] = defaultdict(list)
    for record in records:
        groups[record.decision.symbol, record.decision.lineage.get("warm_start", "")].append(record)
    items = ((key, record) for key, group in groups.items() for record in sorted(group, key=_when))
    walked: dict[tuple[str, str], _Walk | str] = {}
    for key, record in track(items, f"replay: {len(records):,} decisions", len(records)):
        if key not in walked:
            walked.clear()  # one symbol's history at a time
            walked[key] = _walk(installation, groups[key], *key)
        walk = walked[key]
        why = walk if isinstance(walk, str) else _one(installation, walk, slots, record, found)
        if why is not None:
            found.not_replayable[why] += 1
    return found


def _when(record: DecisionRecord) -> tuple[Any, ...]:
    return record.decision.as_of, record.decision.ingested_at


@dataclass(slots=True)
class _Walk:
    """A symbol at some close, and the observed bars that come after it."""

    symbol: Symbol
    bars: Any
    flat: Any
    at: int = 0

    def to(self, close: float) -> bool:
        """Fold the bars up to the decision bar that closed then; False if no bar closed there."""
        until = int((self.bars[:, OPEN_TIME] + self.symbol.base_s <= close).sum())
        if until > self.at:
            self.symbol.advance(self.bars[self.at : until])
            self.at = until
        while self.symbol.closed.close_time < close and self.at < len(self.bars):  # its own last bars were missing
            self.symbol.advance(self.bars[self.at : self.at + 1])
            self.at += 1
        return bool(self.symbol.closed.close_time == close)


def _walk(installation: Installation, group: Sequence[DecisionRecord], name: str, warm_start: str) -> "_Walk | str":
    """The walk from a warm start through what was observed; in words why there is none."""
    folder = installation.settings.serving_dir / "warm" / warm_start
    if not warm_start or not folder.is_dir():
        return f"warm start {warm_start[:12] or 'not recorded'} is not kept under {folder.parent}"
    try:
        warm = read_warm_start(folder, warm_start)
    except BellwetherError as error:
        return str(error)
    symbol = Symbol(warm)
    last = max(record.decision.as_of for record in group).timestamp()
    symbol.ingest_records(*installation.store.records(name, symbol.closed.close_time, last))
    return _Walk(
        symbol, installation.store.bars(name, warm.last_open_time, last), decision_row.flatten(installation.params)
    )


def _one(
    installation: Installation, walk: _Walk, slots: "_Bundles", record: DecisionRecord, found: Replayed
) -> str | None:
    """Make one decision again; why that cannot be, or None after `found` was told how it compares."""
    old = record.decision
    if not old.account:
        return "the account was not recorded: an earlier release wrote it"
    if old.lineage.get("policy") != decision_row.policy_digest(installation.params, walk.flat):
        return f"params.yaml has changed since: policy {str(old.lineage.get('policy'))[:12]} decided"
    if not walk.to(old.as_of.timestamp()):
        return f"no stored bar of {old.symbol} closes at its as_of"
    try:
        snapshot = slots.snapshot(old)
    except (BellwetherError, OSError) as error:
        return str(error)
    new = decide(
        walk.symbol, snapshot, installation.params, walk.flat, lambda *_: decision_row.ExposureSnapshot.from_dict(old.account), old.breakers,
        tier=Tier(old.tier, old.tier_reason), learned=old.learned, predictions=_heard(walk.symbol, snapshot, old), id=old.id,
        known_at=old.known_at, now=old.ingested_at,
    )  # fmt: skip
    closed = walk.symbol.closed
    differs = differences(decision_payload(old), decision_payload(new))
    differs += ["features"] if closed.features.tobytes() != record.features else []
    differs += ["signals"] if closed.signals.tobytes() != record.signals else []
    found.generations.add(old.generation)
    found.warm_starts.add(walk.symbol.warm.digest)
    for (family, arm), slot in snapshot.slots.items():
        found.models.add((family, arm, slot.digest))
        if arm == "champion":
            found.champions.add((family, slot.digest))
    if differs:
        found.different.append({"id": old.id, "as_of": old.as_of.isoformat(), "fields": differs})
    else:
        found.equal += 1
    return None


def _heard(symbol: Symbol, snapshot: Snapshot, old: Decision) -> dict[str, Any]:
    """What the models say now; where one had failed then, what was recorded: a fault follows from no row."""
    return {
        family: {
            arm: said if faulty(old.models[family][arm]) is None else old.models[family][arm]
            for arm, said in arms.items()
        }
        for family, arms in predict_all(symbol, snapshot).items()
    }


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Paths at which two plain JSON values are not the same, numbers to the last bit."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(old) + [name for name in new if name not in old]
        return [
            path
            for name in names
            for path in (
                differences(old[name], new[name], f"{at}.{name}".lstrip("."))
                if name in old and name in new
                else [f"{at}.{name}".lstrip(".")]
            )
        ]
    return [] if old == new else [at]


class _Bundles:
    """Verified bundles by digest, and snapshots as a decision saw them; each is loaded once."""

    def __init__(self, installation: Installation) -> None:
        self._site = installation
        self._slots: dict[tuple[str, str, str, str], Slot] = {}
        self._lines = {(p.family, str(p.to_version), p.digest): p for p in installation.store.promotions()}

    def snapshot(self, decision: Decision) -> Snapshot:
        """Raises BundleError for a bundle that is gone or damaged, StateError for one the ledger does not know."""
        slots = {
            (family, arm): self._slot(family, arm, said)
            for family, arms in decision.models.items()
            for arm, said in arms.items()
        }
        return Snapshot(generation=decision.generation, slots=slots)

    def _slot(self, family: str, arm: str, said: Mapping[str, Any]) -> Slot:
        key = (family, arm, str(said["version"]), str(said["digest"]))
        if key not in self._slots:
            line = self._lines.get((family, key[2], key[3]))
            if line is None:
                raise StateError(f"{family} version {key[2]} with digest {key[3][:12]} has no line on the ledger")
            self._slots[key] = Slot(
                family=family, arm=arm, version=key[2], digest=key[3], run_id=str(line.run_id or ""),
                data_hash=str(line.data_hash or ""), git_commit=str(line.git_commit or ""),
                verdict=str(said["verdict"]), model=load_bundle(self._site.settings.bundles / key[3], key[3], key[2]),
            )  # fmt: skip
        return self._slots[key]
