"""Two slots a family: load, verify, warm, golden check, atomic swap (Y8).

Every serving process follows the generation file and acknowledges what it serves. A bundle that fails any check is
refused with its reason and the model before it stays. Readers take one immutable `Snapshot`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.contracts import Floats, Model, Predictions
from pipelines.errors import BundleError, StateError
from pipelines.families import FAMILIES
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.views import check_schema, select
from serving.inference.generation import GENERATION_FILE, read_generation, write_atomically

ARMS = ("champion", "challenger")
POLL_SECONDS = 0.25

Alarm = Callable[[str, str, str], object]  # kind, severity, detail


@dataclass(frozen=True, slots=True)
class Slot:
    """One loaded model and where it comes from, as the generation file says."""

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
        names = ("version", "digest", "run_id", "data_hash", "git_commit", "verdict")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bundle the generation file names and this process will not serve."""

    family: str
    arm: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything served at one moment. `generation` 0 = no generation file was ever read."""

    generation: int = 0
    written_at: str | None = None
    slots: Mapping[tuple[str, str], Slot] = field(default_factory=dict)  # (family, arm)
    refused: tuple[Refusal, ...] = ()
    warm_start: Mapping[str, str] | None = None  # data_hash, digest, path

    def slot(self, family: str, arm: str) -> Slot | None:
        return self.slots.get((family, arm))

    def predict(
        self, family: str, rows: Floats, columns: tuple[str, ...], arms: Sequence[str] = ARMS
    ) -> dict[str, Predictions]:
        """The arms' answers to the same rows.

        rows     (n, …, len(columns)) float64, NaN = missing; a model column that is not in `columns` counts as missing
        Returns  arm → Predictions, for the arms that hold a model
        """
        answers = {}
        for arm in arms:
            slot = self.slots.get((family, arm))
            if slot is not None:
                answers[arm] = slot.model.predict(select(rows, columns, slot.model.columns))
        return answers


class ModelSlots:
    """Follows the generation file; `snapshot` is swapped as one reference. One thread at a time follows."""

    def __init__(self, serving_dir: Path, bundles_dir: Path, alarm: Alarm) -> None:
        self._serving_dir, self._bundles_dir, self._alarm = serving_dir, bundles_dir, alarm
        self.snapshot = Snapshot()
        self.refusal: str | None = None  # why the newest generation file is not followed; None while it is
        self._seen: tuple[int, int, int] | None = None  # of the generation file: changes with every rename

    def refresh(self) -> bool:
        """Follow the generation file; True if something was swapped."""
        new = self.pending()
        if new is not None:
            self.swap(new)
        return new is not None

    def pending(self) -> Snapshot | None:
        """Look at the generation file; load and check what a new one names. Nothing is swapped yet.

        A file that is none is refused as a whole, with an alarm, and what is served stays. Raises OSError if the file
        cannot be looked at; the next look tries again.
        """
        try:
            stat = (self._serving_dir / GENERATION_FILE).stat()
        except FileNotFoundError:
            return None
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen:
            return None
        try:
            content = read_generation(self._serving_dir)
        except StateError as error:
            if str(error) != self.refusal:
                self._alarm("generation_refused", "high", str(error))
            self.refusal = str(error)
            self._seen = None if isinstance(error.__cause__, OSError) else seen  # a disk may read it the next time
            return None
        new = None
        if content is not None and content["generation"] != self.snapshot.generation:
            new = self._load(content)
        self._seen, self.refusal = seen, None
        return new

    def swap(self, new: Snapshot) -> None:
        """Serve `new` from here on, and tell whoever wrote it."""
        self.snapshot = new
        self._acknowledge()

    def close(self) -> None:
        """Take the acknowledgement back; a disk that refuses leaves it to be found stale, by its process id."""
        with suppress(OSError):
            (self._serving_dir / "ack" / f"{os.getpid()}.json").unlink(missing_ok=True)

    def _load(self, content: dict[str, Any]) -> Snapshot:
        slots: dict[tuple[str, str], Slot] = {}
        refused = []
        for family, arms in content["families"].items():
            for arm in ARMS:
                told = arms.get(arm)
                if told is None:
                    continue
                try:
                    slots[family, arm] = self._slot(family, arm, told)
                except (BundleError, OSError, LookupError, TypeError, ValueError) as error:
                    refusal = Refusal(family, arm, str(told.get("version")), f"{type(error).__name__}: {error}")
                    refused.append(refusal)
                    self._alarm("bundle_refused", "high", f"{family} {arm} {refusal.version}: {refusal.reason}")
                    if (before := self.snapshot.slot(family, arm)) is not None:
                        slots[family, arm] = before
        return Snapshot(
            generation=content["generation"],
            written_at=content.get("written_at"),
            slots=slots,
            refused=tuple(refused),
            warm_start=content.get("warm_start"),
        )

    def _slot(self, family: str, arm: str, told: Mapping[str, Any]) -> Slot:
        """Load, verify and check one model; the same bytes are loaded once for both arms and across generations."""
        if family not in FAMILIES:
            raise BundleError(f"no model family {family!r}; known: {', '.join(FAMILIES)}")
        digest = str(told["digest"])
        if not (digest.isalnum() and digest.isascii()):
            raise BundleError(f"{family} {arm}: {digest!r} is not a sha256; a bundle folder is named by its digest")
        loaded = {slot.digest: slot.model for slot in self.snapshot.slots.values()}.get(digest)
        model = loaded or load_bundle(self._bundles_dir / digest, digest, str(told["version"]))
        if model.family != family:
            raise BundleError(f"{digest[:12]} is a {model.family} model, the generation file puts it under {family}")
        check_schema(model)
        check_golden(model)  # also its first inference, so that no request pays for it
        text = {name: str(told.get(name) or "") for name in ("version", "run_id", "data_hash", "git_commit", "verdict")}
        return Slot(family=family, arm=arm, digest=digest, model=model, **text)

    def _acknowledge(self) -> None:
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
