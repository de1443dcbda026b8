"""What the watch knows of a served version: its bundle's drift references and edge, and where its training ended.

Everything is read from the verified bundle, so that neither a newer snapshot nor a refused retrain changes it. A bundle
of a release before 0.8 has no reference: it is computed again from the data version it was trained on, once.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.support import promotion
from flows.support.installation import Installation
from flows.support.progress import report_progress
from pipelines import versioning
from pipelines.contracts import utc
from pipelines.errors import BellwetherError, NotEnoughData, StateError
from pipelines.features.catalog import WATCHED_COLUMNS
from pipelines.models.edge import Edge
from pipelines.models.reference import DriftReference, has_reference, read_reference, without_reference
from pipelines.models.runtime import read_manifest
from pipelines.models.trained_on import symbols_of
from pipelines.renamed_keys import current_names
from pipelines.sealed_folder import seal
from pipelines.settings import ROOT
from pipelines.stage_outputs import read_meta, symbols_in
from pipelines.store import Promotion
from pipelines.training.stages import reference_of_history

PREDATES = "INSUFFICIENT_DATA: champion predates 0.8"
PREDATES_LOSS = f"{PREDATES}: its bundle states no gain over the base rate"
REBUILD_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """Hold a version under watch.

    line             the ledger line that put it into its slot
    trained_through  end of its newest training label: the watch starts there
    references       symbol → the drift reference of its training inputs there, or why there is none; the markets it was
                     trained on, in the order of its bundle: no other market is watched for it
    edge             its gain over the base rate as the gate saw it; None where the bundle states none
    predates         its bundle is of a release that stored neither, and the reference could not be computed again: its
                     data are gone or too few
    """

    line: Promotion
    trained_through: datetime
    references: Mapping[str, DriftReference | str]
    edge: Edge | None
    predates: bool

    @property
    def family(self) -> str:
        """Return the family of the version."""
        return self.line.family

    @property
    def predated(self) -> str | None:
        """Return why a version of an earlier release cannot be watched in full; None for one that can."""
        if not self.predates:
            return None
        return next((why for why in self.references.values() if isinstance(why, str)), PREDATES_LOSS)


def watched_model(installation: Installation, line: Promotion, symbol: str | None = None) -> WatchedModel:
    """Return what the watch of one market needs of the version on a ledger line, from its verified bundle.

    symbol  None = the first that the model was trained on
    Raises  BundleError and its children
    """
    bundle = local_bundle(installation, line)
    read_manifest(bundle, line.digest)
    schema = current_names("bundle schema", json.loads((bundle / "schema.json").read_text()))
    edge = Edge(**schema["edge"]) if schema.get("edge") else None
    stored = has_reference(bundle)
    # a bundle of the first releases names no symbol: theirs was the one market of the home
    markets = symbols_of(schema) or installation.symbols[:1]
    references = {symbol: _reference(installation, line, schema, bundle if stored else None, symbol)
                  for symbol in markets}  # fmt: skip
    older = any(isinstance(found, str) and found.startswith(PREDATES) for found in references.values())
    return WatchedModel(
        line, utc(float(schema["trained_through"])), references, edge, older or (not stored and "edge" not in schema)
    )


def _reference(
    installation: Installation, line: Promotion, schema: dict[str, Any], bundle: Path | None, symbol: str
) -> DriftReference | str:
    """Return the reference of a market, or why there is none. bundle: which stores it; None: of an older release."""
    try:
        found = read_reference(bundle, symbol) if bundle else rebuilt_reference(installation, line, schema)
    except BellwetherError as error:
        if bundle and isinstance(error, NotEnoughData):
            return f"INSUFFICIENT_DATA: {error}"
        return f"{PREDATES}, {one_line(error)}"
    if found.columns != WATCHED_COLUMNS:
        return f"{PREDATES} columns: other features are watched now"
    return found


def one_line(error: BellwetherError) -> str:
    """Return the text of an error in one line: DVC and stages report in several."""
    return " ".join(str(error).split())


def local_bundle(installation: Installation, line: Promotion) -> Path:
    """Return the folder of the bundle on a ledger line, fetched from the registry where it is not here."""
    path = installation.settings.bundles / str(line.digest)
    if path.exists():
        return path
    return promotion.fetch_bundle(installation, installation.tracking.version(line.family, str(line.to_version)))


def rebuilt_reference(installation: Installation, line: Promotion, schema: dict[str, Any]) -> DriftReference:
    """Return the reference of an older bundle, computed from the data version it was trained on and kept under `home`.

    It is tried once: a failure is kept in its place, and its folder has to be deleted for another attempt.
    Raises  NotEnoughData as of training, or with the reason of the failure; StateError where the data version is gone
    """
    kept = installation.settings.home / "references" / str(line.digest)
    if not kept.exists():
        pointer = installation.versions / str(line.data_hash) / "data.dvc"
        if not pointer.is_file():
            raise StateError(f"and its data version {line.data_hash} is not kept here")
        _rebuild(installation, pointer, float(schema["trained_through"]), kept)
    read_manifest(kept, None)
    return read_reference(kept)


def _rebuild(installation: Installation, pointer: Path, until_s: float, kept: Path) -> None:
    """Restore a data version next to the workspace, compute its features and write the sealed reference to `kept`.

    Where that fails, `kept` says why, as a reference of too short a history does.
    """
    scratch, draft = installation.settings.home / "reference-workspace", kept.with_name(f".{kept.name}")
    for folder in (scratch, draft):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        report_progress(f"drift reference: computed again from data version {pointer.parent.name[:12]}")
        try:
            versioning.prepare(scratch, ROOT, installation.settings.params_file, installation.settings.remote)
            versioning.restore(scratch, pointer)
            versioning.run_stage(scratch, "features", REBUILD_TIMEOUT_S, lambda _: None)
            symbol = symbols_in(read_meta(scratch / "artifacts"))[0]  # such a version has one
            files = reference_of_history(scratch / "artifacts", symbol, until_s, installation.params)
        except BellwetherError as error:
            files = without_reference(f"it could not be computed again: {one_line(error)}. Delete {kept} to try again.")
        draft.mkdir(parents=True)
        for name, content in files.items():
            (draft / name).write_bytes(content)
        seal(draft, {"format": 1})
        draft.rename(kept)
    finally:
        for folder in (scratch, draft):
            shutil.rmtree(folder, ignore_errors=True)
