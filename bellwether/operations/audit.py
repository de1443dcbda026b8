"""One day of decisions in one zip, with what proves them and a verifier that a stranger can run.

Rows stand in it as their digests cover them; the verifier is `audit_verifier.py`, which imports nothing of ours. The
chain's key stays here. Cards and parameters explain the day, and are proven by the digests that its decisions name.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from flows.support import ledger_chain, processes
from flows.support.installation import Installation
from flows.support.progress import step, track
from pipelines.backup import refuse_existing
from pipelines.contracts import JsonObject
from pipelines.errors import BadTimes, BundleError, UnknownName
from pipelines.models.runtime import read_manifest
from pipelines.sealed_folder import MANIFEST
from pipelines.settings import Settings
from pipelines.store import StoredDay, StoredDecision, decision_of
from serving.policy.decision_row import flatten, policy_digest
from serving.service import keys

FORMAT = 1  # of the zip
CARD = "card.md"
VERIFIER = Path(__file__).with_name("audit_verifier.py")
README = """\
Audit of {day} (UTC), made {made_at} by Bellwether {release}

Verify it with Python 3.8 or later, and nothing else:

    python verify.py                    # in this folder, once unpacked
    python verify.py --key chain_key    # with the key of the ledger, if you were given it

One line a check; a FAULT names the first row that is wrong, and the exit code is 1. verify.py has under 100 lines: read
it before you trust it, or compare it with bellwether/operations/audit_verifier.py of that release.

What is inside, one JSON object a line where a name ends in .jsonl:

    decisions.jsonl      decision: what was decided, on what, by which models. features, signals: what it was made from,
                         little-endian float64 in base 64. row: the columns as stored, of which the digest is made.
                         seal: the line of chain.jsonl whose root it is under, and its Merkle proof; null: none yet
    record_parts.jsonl   what the records in these rows share
    outcomes.jsonl       what became of these decisions, as far as it was known when the audit was made
    promotions.jsonl     verdicts, promotions, rollbacks and refusals, from the first up to the end of the day and the
                         one after it. The champion of a family at a moment is the newest promote or rollback before it
    corrections.jsonl    changes of observed bars, as far
    chain.jsonl          every line of the ledger's chain
    anchors.jsonl        what the chain ended with at earlier moments, as written down outside of the store
    parameters.json      the digest of the parameters that decisions name (lineage.params), and their text, of which
                         it is the sha256; null where they were not stored. Decisions before 0.10.0 name
                         lineage.policy, the digest of a part of them
    cards/               the card of each model that answered, and the manifest of its bundle, which has the sha256 of
                         the card. The sha256 of the manifest is the digest that decisions name (models.*.*.digest)
    manifest.json        sha256 of every file, counts, the end of the chain, and what is missing

What the verification shows:

  - every row has the digest that the chain states; no line of the chain, no outcome of the day, and no promotion or
    correction up to its end is left out;
  - every sealed decision is one of those whose root the chain holds, and reads as its row;
  - with the key: every line of the chain was made under it, in this order;
  - the chain holds every anchor of this audit.

What it does not show:

  - without the key: that the chain is the one of this ledger. Compare an anchor with one that you received earlier, in
    another way: an anchor that you hold fixes all lines before it. The mac of the end of this chain is
    {mac} (line {seq}). Keep it.
  - that someone with the key did not write another chain. Only an anchor that you hold yourself shows that.
  - that no decision of the day is left out: a root is over all decisions of a span, and the proof of one does not show
    the others. The detail of a line has how many they are. A line of kind pruned follows where old ones were deleted.
  - anything of decisions that are not sealed yet: a later audit of the same day has their proofs. Of a day that is long
    over every decision is sealed.
  - that a decision was right, or that its order was filled.

Lines of kind accepted name faults that a person accepted, with the reason; they are faults here all the same.
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """Hold what was written.

    counts   rows by kind; cards
    missing  cards and parameters that this home does not have, with why
    checks   what its own verifier printed, with the key; `intact` if it found no fault
    over     whether the day was over, so that no later audit has more decisions
    """

    file: Path
    counts: dict[str, int]
    missing: tuple[str, ...]
    checks: tuple[str, ...]
    intact: bool
    over: bool


def day_of(text: str) -> date:
    """Return a day as a person types it. Raises BadTimes."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise BadTimes(f"{text} is no day ({error}); write 2024-01-31") from error


def default_file(settings: Settings, day: date) -> Path:
    """Return the path of the audit of a day, if none is given."""
    return settings.home / "audits" / f"{day}.zip"


def preview(installation: Installation, day: date, to: Path) -> dict[str, int]:
    """Return how many rows of each kind the audit would have. Raises what `make` would raise."""
    refuse_existing(to)
    with installation.store.day(*_span(day)) as stored:
        return _counts(stored, day)


def make(installation: Installation, day: date, to: Path, at: datetime) -> Audit:
    """Write the audit of a day (UTC, of the decisions' as_of) to a new file, and run its verifier on it.

    Services may run meanwhile. The file is written whatever the verifier finds: it is evidence of that too.
    Raises  WouldOverwrite if `to` exists, UnknownName if nothing was decided on that day, StateError if a record is
            damaged
    """
    refuse_existing(to)
    anchors = ledger_chain.anchors_of(installation)  # before the rows: the chain that is read then has all of them
    with _new_file(to) as (raw, draft):
        with (
            installation.store.day(*_span(day)) as stored,
            zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as zipped,
        ):
            counts = _counts(stored, day)
            archive, seen = _Archive(zipped), _Seen()
            items = track(stored.decisions(), f"audit: {counts['decisions']:,} decisions", counts["decisions"])
            archive.add_lines("decisions", map(seen.entry, items))
            archive.add_lines("record_parts", stored.parts())
            archive.add_lines("outcomes", stored.outcomes())
            for table in ("promotions", "corrections"):
                archive.add_lines(table, stored.ledger(table))
            names = ("seq", "kind", "ref", "digest", "detail", "mac")
            archive.add_lines("chain", ({name: getattr(line, name) for name in names} for line in stored.lines))
            archive.add_lines("anchors", ({"seq": a.seq, "mac": a.mac, "at": a.at, "where": a.where} for a in anchors))
            parameters = {digest: parameters_of(installation, digest) for digest in sorted(seen.parameters)}
            archive.add("parameters.json", _json([
                {"digest": digest, "decisions": seen.parameters[digest], "content": found}
                for digest, found in parameters.items()
            ]))  # fmt: skip
            cards, missing = _add_cards(installation, archive, seen)
            missing += [f"parameters {digest[:12]}" for digest, found in parameters.items() if found is None]
            made = {"day": str(day), "made_at": at.isoformat(timespec="seconds"), "release": version("bellwether")}
            seq, mac = (stored.lines[-1].seq, stored.lines[-1].mac) if stored.lines else (0, "0" * 64)
            archive.add("README.txt", README.format(**made, seq=seq, mac=mac).encode())
            archive.add("verify.py", VERIFIER.read_bytes())
            counts["cards"], over = len(cards), _span(day)[1] <= at
            head = {"seq": seq, "mac": mac, "at": made["made_at"]}
            manifest = {"format": FORMAT, **made, "over": over, "head": head, "counts": counts, "cards": cards}
            zipped.writestr(MANIFEST, _json({**manifest, "missing": missing, "files": archive.files}))
        raw.flush()
        with step("audit: verified as a stranger would"):
            intact, checks = _verify(installation.settings, draft)
    return Audit(to, counts, tuple(missing), checks, intact, over)


def parameters_of(installation: Installation, digest: str) -> str | None:
    """Return the stored parameters of a digest; of a digest of rules, which decisions before release 0.10.0 name, those
    in force if it is theirs; None if they are not known.
    """
    stored, params = installation.store.parameters(digest), installation.params
    if stored is None and digest == policy_digest(params, flatten(params)):
        return params.model_dump_json()
    return stored


# ---- what goes in ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Archive:
    """Write files into a zip and note their sha256."""

    zipped: zipfile.ZipFile
    files: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, content: bytes) -> None:
        """Write one file."""
        self.zipped.writestr(name, content)
        self.files[name] = hashlib.sha256(content).hexdigest()

    def add_lines(self, name: str, rows: Iterable[JsonObject]) -> None:
        """Write one file with a line of JSON a row, one row in memory at a time."""
        found = hashlib.sha256()
        with self.zipped.open(f"{name}.jsonl", "w", force_zip64=True) as member:
            for row in rows:
                line = json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n"
                found.update(line)
                member.write(line)
        self.files[f"{name}.jsonl"] = found.hexdigest()


@dataclass(slots=True)
class _Seen:
    """Collect, while decisions pass, which models answered and by which parameters they were made."""

    models: set[tuple[str, str, str]] = field(default_factory=set)  # family, version, digest
    parameters: Counter[str] = field(default_factory=Counter)

    def entry(self, stored: StoredDecision) -> JsonObject:
        """Return the line of a decision, and note what it names."""
        decision = stored.decision if "record" in stored.row else decision_of(stored.decision).to_dict()
        for arms in decision["models"].values():
            self.models |= {(a["family"], a["version"], a["digest"]) for a in arms.values() if a["digest"]}
        if digest := decision["lineage"].get("params") or decision["lineage"].get("policy"):
            self.parameters[digest] += 1
        features, signals = (base64.b64encode(each).decode() for each in (stored.features, stored.signals))
        return {"decision": stored.decision, "features": features, "signals": signals, "row": stored.row,
                "seal": stored.seal}  # fmt: skip


def _add_cards(installation: Installation, archive: _Archive, seen: _Seen) -> tuple[dict[str, str], list[str]]:
    """Add the card and the manifest of every model that answered; return name → digest, and what is missing, why."""
    cards: dict[str, str] = {}
    missing = []
    for family, number, digest in sorted(seen.models):
        name = f"{family}-{number}"
        if name in cards:  # another registry's version of that number
            name += f"-{digest[:8]}"
        found = _card(installation, family, number, digest)
        if isinstance(found, str):
            missing.append(f"card of {name}: {found}")
            continue
        card, manifest = found
        archive.add(f"cards/{name}.md", card)
        archive.add(f"cards/{name}.manifest.json", manifest)
        cards[name] = digest
    return cards, missing


def _card(installation: Installation, family: str, number: str, digest: str) -> tuple[bytes, bytes] | str:
    """Return the card and the manifest of a verified bundle, of this home or of MLflow if it is up; else why not."""
    try:
        return _read_card(installation.settings.bundles / digest, digest)
    except BundleError as error:
        why = str(error)
    if processes.is_responding(installation.settings, "mlflow"):
        try:
            with TemporaryDirectory() as folder:
                registered = installation.tracking.version(family, number)
                return _read_card(installation.tracking.download_bundle(registered, Path(folder)), digest)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises: a card that is missing is named, no more
            why = str(error)
    return why


def _read_card(bundle: Path, digest: str) -> tuple[bytes, bytes]:
    """Return the card and the manifest of a bundle. Raises BundleError."""
    manifest, _ = read_manifest(bundle, digest)
    if CARD not in manifest["files"]:
        raise BundleError(f"{bundle}: this bundle has no {CARD}")
    return (bundle / CARD).read_bytes(), (bundle / MANIFEST).read_bytes()


# ---- the file -------------------------------------------------------------------------------------------------------


def _span(day: date) -> tuple[datetime, datetime]:
    """Return where a day begins and where it ends, UTC."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begin, begin + timedelta(days=1)


def _counts(stored: StoredDay, day: date) -> dict[str, int]:
    """Return the rows of each kind. Raises UnknownName if nothing was decided on that day."""
    counts = stored.counts()
    if not counts["decisions"]:
        ends = stored.first_and_last()
        held = "the ledger has none at all" if ends is None else f"the ledger has {ends[0]:%F} to {ends[1]:%F}"
        raise UnknownName(f"no decision of {day} (UTC, by as_of); {held}. Nothing was written.")
    return counts


@contextmanager
def _new_file(to: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Yield a draft that only its user can open, and its path; it becomes `to` if nothing is raised."""
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
            yield raw, draft
            raw.flush()
            os.fsync(raw.fileno())
        refuse_existing(to)
        draft.rename(to)
    finally:
        draft.unlink(missing_ok=True)


def _verify(settings: Settings, file: Path) -> tuple[bool, tuple[str, ...]]:
    """Run the verifier as a stranger who was given the key; return whether it found no fault, and what it printed."""
    words = [sys.executable, "-I", str(VERIFIER), str(file), "--key", str(keys.chain_key_file(settings))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = tuple(done.stdout.splitlines())
    return not done.returncode, lines if not done.stderr else (*lines, done.stderr.strip().splitlines()[-1])


def _json(value: object) -> bytes:
    """Return JSON as a person reads it."""
    return json.dumps(value, indent=1).encode()
