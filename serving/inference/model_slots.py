"""Hold champion and challenger of each family: load, verify, golden check, atomic swap (Y8).

Every serving process follows the generation file and acknowledges what it serves. A bundle that fails any check is
refused with its reason and the previous model stays. Readers take one immutable `Snapshot`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipelines.contracts import Floats, JsonObject, Model, Predictions
from pipelines.errors import BundleError, StateError
from pipelines.experiments.assignment import Assignment, read_assignment
from pipelines.families import FAMILIES
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.views import check_schema, select
from serving.inference.generation import GENERATION_FILE, read_generation, write_atomically

ARMS = ("champion", "challenger")
POLL_SECONDS = 0.25

Alarm = Callable[[str, str, str], object]  # kind, severity, detail
Disagreement = Callable[[JsonObject], str | None]  # of a generation file
Place = Callable[[Model, Path], Model]  # (loaded model, its bundle) → the model where its networks have to run


def on_cpu(model: Model, bundle: Path) -> Model:
    """Leave a model as it was loaded."""
    return model


@dataclass(frozen=True, slots=True)
class Slot:
    """Hold one loaded model and its origin as the generation file states it."""

    family: str
    arm: str
    version: str
    digest: str
    run_id: str
    data_hash: str
    git_commit: str
    verdict: str
    model: Model

    def lineage(self) -> dict[str, str]:
        """Return version, digest, run, data and code of the model, and the gate's verdict on it."""
        names = ("version", "digest", "run_id", "data_hash", "git_commit", "verdict")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Hold a bundle that the generation file names and this process refused, with the reason."""

    family: str
    arm: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold everything served at one moment; `generation` 0 = no generation file was read yet."""

    generation: int = 0
    written_at: str | None = None
    slots: Mapping[tuple[str, str], Slot] = field(default_factory=dict)  # (family, arm)
    refused: tuple[Refusal, ...] = ()
    warm_starts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # symbol → data_hash, digest, path
    assignments: Mapping[str, Assignment] = field(default_factory=dict)  # family → of the experiment that runs

    def slot(self, family: str, arm: str) -> Slot | None:
        """Return the slot of one arm, None where nothing is served."""
        return self.slots.get((family, arm))

    def predict(
        self, family: str, rows: Floats, columns: tuple[str, ...], arms: Sequence[str] = ARMS
    ) -> dict[str, Predictions]:
        """Return arm → predictions of the same rows, for the arms with a model.

        rows  (n, …, len(columns)) float64, NaN = missing; a model column that is not in `columns` counts as missing
        """
        predictions = {}
        for arm in arms:
            slot = self.slots.get((family, arm))
            if slot is not None:
                predictions[arm] = slot.model.predict(select(rows, columns, slot.model.columns))
        return predictions


class ModelSlots:
    """Follow the generation file and swap `snapshot` as one reference; not thread-safe."""

    def __init__(
        self,
        serving_dir: Path,
        bundles_dir: Path,
        alarm: Alarm,
        disagreement: Disagreement | None = None,
        place: Place = on_cpu,
    ) -> None:
        """Start without a snapshot; `refresh` loads the first one, each model where `place` puts it.

        disagreement  returns what of a generation file the ledger does not bear out, None if nothing;
                      without it the file alone counts
        """
        self._serving_dir, self._bundles_dir, self._alarm = serving_dir, bundles_dir, alarm
        self._disagreement, self._place = disagreement, place
        self.snapshot = Snapshot()
        self.refusal: str | None = None  # why the newest generation file is not in force; None while it is
        self._file_id: tuple[int, int, int] | None = None  # of the generation file: changes with every rename

    def refresh(self) -> bool:
        """Load and swap in what a new generation file names; return whether there was one."""
        new = self.pending()
        if new is not None:
            self.swap(new)
        return new is not None

    def pending(self) -> Snapshot | None:
        """Load and check what a new generation file names, without swapping; None where nothing is new.

        A file that is invalid, or that the ledger does not bear out, is refused as a whole, with an alarm. Raises
        OSError if the file cannot be read; the next poll tries again.
        """
        try:
            stat = (self._serving_dir / GENERATION_FILE).stat()
        except FileNotFoundError:
            return None
        file_id = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if file_id == self._file_id:
            return None
        try:
            content = read_generation(self._serving_dir)
        except StateError as error:
            if str(error) != self.refusal:
                self._alarm("generation_refused", "high", str(error))
            self.refusal = str(error)
            self._file_id = None if isinstance(error.__cause__, OSError) else file_id  # a disk error may pass
            return None
        new = None
        if content is not None and content["generation"] != self.snapshot.generation:
            if self._disagreement is not None and (why := self._disagreement(content)) is not None:
                self._refuse(f"generation {content['generation']} is not served: {why}")
                return None
            new = self._load(content)
        self._file_id, self.refusal = file_id, None
        return new

    def _refuse(self, why: str) -> None:
        """Keep what is served; alarm once. The file is checked again at each poll, as the ledger may follow."""
        if why != self.refusal:
            self._alarm("generation_refused", "high", why)
        self.refusal = why

    def swap(self, new: Snapshot) -> None:
        """Serve `new` from now on and acknowledge its generation."""
        self.snapshot = new
        self._acknowledge()

    def close(self) -> None:
        """Withdraw the acknowledgement."""
        with suppress(OSError):  # what stays behind is found stale by its process id
            (self._serving_dir / "ack" / f"{os.getpid()}.json").unlink(missing_ok=True)

    def _load(self, content: JsonObject) -> Snapshot:
        """Return the snapshot of a generation file; a refused model leaves the previous one in its slot."""
        slots: dict[tuple[str, str], Slot] = {}
        refused = []
        for family, arms in content["families"].items():
            for arm in ARMS:
                entry = arms.get(arm)
                if entry is None:
                    continue
                try:
                    slots[family, arm] = self._slot(family, arm, entry)
                except (BundleError, OSError, LookupError, TypeError, ValueError) as error:
                    refusal = Refusal(family, arm, str(entry.get("version")), f"{type(error).__name__}: {error}")
                    refused.append(refusal)
                    self._alarm("bundle_refused", "high", f"{family} {arm} {refusal.version}: {refusal.reason}")
                    if (previous := self.snapshot.slot(family, arm)) is not None:
                        slots[family, arm] = previous
        return Snapshot(
            generation=content["generation"],
            written_at=content.get("written_at"),
            slots=slots,
            refused=tuple(refused),
            warm_starts=content["warm_starts"],
            assignments={family: read_assignment(found) for family, found in content.get("assignments", {}).items()},
        )

    def _slot(self, family: str, arm: str, entry: Mapping[str, object]) -> Slot:
        """Load, verify and check one model; the same bytes are loaded once for both arms and across generations."""
        if family not in FAMILIES:
            raise BundleError(f"no model family {family!r}; known: {', '.join(FAMILIES)}")
        digest = str(entry["digest"])
        if not (digest.isalnum() and digest.isascii()):
            raise BundleError(f"{family} {arm}: {digest!r} is not a sha256; a bundle folder is named by its digest")
        loaded = {slot.digest: slot.model for slot in self.snapshot.slots.values()}.get(digest)
        folder = self._bundles_dir / digest
        model = loaded or self._place(load_bundle(folder, digest, str(entry["version"])), folder)
        if model.family != family:
            raise BundleError(f"{digest[:12]} is a {model.family} model, the generation file puts it under {family}")
        check_schema(model)
        check_golden(model)  # also its first inference, so that no request pays for it
        text = {
            name: str(entry.get(name) or "") for name in ("version", "run_id", "data_hash", "git_commit", "verdict")
        }
        return Slot(family=family, arm=arm, digest=digest, model=model, **text)

    def _acknowledge(self) -> None:
        """Write which generation this process serves and what it refused."""
        folder = self._serving_dir / "ack"
        folder.mkdir(exist_ok=True)
        pid, snapshot = os.getpid(), self.snapshot
        refused = [
            {"family": r.family, "arm": r.arm, "version": r.version, "reason": r.reason} for r in snapshot.refused
        ]
        content = {
            "pid": pid,
            "generation": snapshot.generation,
            "at": datetime.now(UTC).isoformat(),
            "refused": refused,
        }
        write_atomically(folder / f"{pid}.json", content)
