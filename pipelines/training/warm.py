"""Warm start: where the training fold ended, so that the live service goes on from exactly there (L2).

Two steps. The features stage writes one beside its arrays (`write_warm_start`). When a data version goes live, it is
published under its digest with what only a promotion knows (`publish_warm_start`). Pure arrays, bytes and JSON, every
file under a sha256; nothing in it can carry code.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, TIMEFRAME_SECONDS, Estimate, Floats
from pipelines.errors import BadShape, DigestMismatch, NotEnoughData, StateError
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.voices import Voices

MANIFEST = "manifest.json"
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class WarmStart:
    """The state of one symbol after the last base bar of a data version.

    last_open_time  epoch seconds: open of that base bar
    feature_state, signal_state  flat fold states after `bar`
    tail            (t, 8) base bars of the decision bar that is still open
    bar             (8,) last closed decision bar; features (kf,), signals (ks,): its rows
    data_hash       of the data version; None before publication
    traditional     hit rate of the traditional consensus on that history; None if it had no resolved event
    reference       what drift is measured against, as its writer defined it
    digest          sha256 of the manifest
    """

    symbol: str
    base_timeframe: str
    decision_timeframe: str
    last_open_time: float
    feature_state: Floats
    signal_state: Floats
    tail: Floats
    bar: Floats
    features: Floats
    signals: Floats
    voices: Voices
    data_hash: str | None
    traditional: Estimate | None
    reference: Mapping[str, Any]
    digest: str


def write_warm_start(
    folder: Path,
    *,
    symbol: str,
    base_timeframe: str,
    decision_timeframe: str,
    feature_state: Floats,
    signal_state: Floats,
    base: Floats,
    decision: Floats,
    features: Floats,
    signals: Floats,
    voices: Voices,
) -> None:
    """Write the stage's part.

    base (n, 8) and decision (m, 8) bars, features (m, kf), signals (m, ks): the whole history. The states are
    the folds' after the last decision bar. Raises NotEnoughData without a closed decision bar.
    """
    if len(decision) == 0:
        raise NotEnoughData(f"{symbol}: no closed {decision_timeframe} bar in {len(base)} {base_timeframe} bars")
    open_from = decision[-1, OPEN_TIME] + TIMEFRAME_SECONDS[decision_timeframe]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.state").write_bytes(FEATURES.dump(feature_state))
    (folder / "signals.state").write_bytes(SIGNALS.dump(signal_state))
    for name, array in {
        "tail": base[base[:, OPEN_TIME] >= open_from],
        "bar": decision[-1],
        "features": features[-1],
        "signals": signals[-1],
    }.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / "voices.json").write_text(voices.to_json())
    meta = {
        "symbol": symbol,
        "base_timeframe": base_timeframe,
        "decision_timeframe": decision_timeframe,
        "last_open_time": float(base[-1, OPEN_TIME]),
        "catalogue_hash": FEATURES.catalogue_hash,
        "signal_catalogue_hash": SIGNALS.catalogue_hash,
        "data_hash": None,
        "traditional": None,
        "reference": {},
    }
    _seal(folder, meta)


def publish_warm_start(
    stage: Path, into: Path, *, data_hash: str, hits: int, n: int, reference: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Copy a stage's warm start to `into/<digest>` with its data version; returns {data_hash, digest, path}.

    hits, n  of the traditional consensus: events whose target was touched first, and resolved events
    """
    read_warm_start(stage)  # what cannot be read back is never published
    draft = into / f".{data_hash[:16]}"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(stage, draft)
    meta = json.loads((draft / "meta.json").read_text())
    told = {"hits": int(hits), "n": int(n)}
    digest = _seal(draft, meta | {"data_hash": data_hash, "traditional": told, "reference": dict(reference or {})})
    path = into / digest
    if path.exists():
        shutil.rmtree(draft)
    else:
        draft.rename(path)
    return {"data_hash": data_hash, "digest": digest, "path": str(path)}


def read_warm_start(folder: Path, expected_digest: str | None = None) -> WarmStart:
    """Verify every byte and load. Raises DigestMismatch, StateError (absent, or another catalogue than this code's)."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise StateError(
            f"no warm start in {folder}; the features stage writes one, a promotion publishes it"
        ) from error
    digest = hashlib.sha256(raw).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise DigestMismatch(f"{folder}: warm start {digest[:12]}, the generation file promised {expected_digest[:12]}")
    content = {}
    for name, promised in json.loads(raw)["files"].items():
        content[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if hashlib.sha256(content[name]).hexdigest() != promised:
            raise DigestMismatch(f"{folder / name} is not what the manifest of this warm start says; publish it again")
    meta = json.loads(content["meta.json"])
    arrays = {n: np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("tail", "bar", "features", "signals")}
    if arrays["tail"].shape[1:] != (BAR_WIDTH,) or arrays["bar"].shape != (BAR_WIDTH,):
        raise BadShape(f"{folder}: tail {arrays['tail'].shape} and bar {arrays['bar'].shape}, want (t, 8) and (8,)")
    told = meta["traditional"]
    return WarmStart(
        symbol=meta["symbol"],
        base_timeframe=meta["base_timeframe"],
        decision_timeframe=meta["decision_timeframe"],
        last_open_time=meta["last_open_time"],
        feature_state=FEATURES.load(content["features.state"]),
        signal_state=SIGNALS.load(content["signals.state"]),
        tail=arrays["tail"],
        bar=arrays["bar"],
        features=arrays["features"],
        signals=arrays["signals"],
        voices=Voices.from_json(content["voices.json"].decode()),
        data_hash=meta["data_hash"],
        traditional=hit_rate(told["hits"], told["n"]) if told and told["n"] else None,
        reference=meta["reference"],
        digest=digest,
    )


def hit_rate(hits: int, n: int) -> Estimate:
    """Share of hits with its 95 % Wilson interval. Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212."""
    p, z2 = hits / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * float(np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)))
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0), n)


def _seal(folder: Path, meta: Mapping[str, Any]) -> str:
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != MANIFEST)
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    manifest = json.dumps({"format": 1, "files": hashes}, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()
