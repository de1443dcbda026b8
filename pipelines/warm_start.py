"""Warm start: the state at the end of the training fold, from which the live service continues (L2).

Two steps. The features stage writes one next to its arrays (`write_warm_start`). When a data version goes live, it is
published under its digest with the facts that only a promotion knows (`publish_warm_start`). Pure arrays, bytes and
JSON, every file under a sha256; nothing in it can carry code.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipelines.clock import MODES, Mode
from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    OPEN_TIME,
    RETAINED_BARS,
    Arrays,
    Books,
    ContextFeed,
    Estimate,
    Floats,
    History,
    JsonObject,
)
from pipelines.data import embargo
from pipelines.data.alignment import prune_records
from pipelines.data.embargo import Window
from pipelines.data.series import Series, ages_of, series_in, to_json
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape, DigestMismatch, NotEnoughData, StateError
from pipelines.features.catalog import FEATURES
from pipelines.sealed_folder import read_files, read_manifest, seal
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores

_FIX = "`bellwether up` folds the history again."
SCORES_FILE = "category_scores.json"
CLOSES_KEPT = 16_384  # decision bars whose closing price is stored: half a year of 15 minutes, for the tails of risk
T = TypeVar("T", History, Books, ContextFeed)
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Hold the state of one symbol after the last base bar of a data version.

    last_open_time  epoch seconds: open of that base bar
    feature_state, signal_state  flat fold states after `bar`
    tail            (t, 9) base bars of the decision bar that is still open
    history         the newest RETAINED_BARS closed decision bars and everything known at their closes; the states are
                    those after the last of them
    books, feed     records that a later close can still read; None where the snapshot holds no such record
    closes          (n, 2) newest CLOSES_KEPT decision bars: close time, epoch s; price
    base_grid, grid  where base bars and decision bars open and close
    venue, market   where it trades, which decides its costs; None: the data version does not state it
    series          named series of the data version, in their fields of context
    events          windows of the calendar of events, in which nothing is opened
    clock           the clock of the data version, see pipelines.clock; None: not recorded
    data_hash       of the data version; None before publication
    traditional     hit rate of the traditional consensus on that history; None if it had no resolved event
    traditional_miss_atr  what its events returned that missed their target, in ATR before cost; None: none missed
    reference       reference of drift, as its writer defined it
    digest          sha256 of the manifest
    """

    symbol: str
    base_grid: Grid
    grid: Grid
    last_open_time: float
    feature_state: Floats
    signal_state: Floats
    tail: Floats
    history: History
    books: Books | None
    feed: ContextFeed | None
    closes: Floats
    category_scores: CategoryScores
    clock: Mode | None
    data_hash: str | None
    traditional: Estimate | None
    traditional_miss_atr: float | None
    reference: Mapping[str, Any]
    digest: str
    venue: str | None = None
    market: str | None = None
    series: tuple[Series, ...] = ()
    events: tuple[Window, ...] = ()


def write_warm_start(
    folder: Path,
    *,
    symbol: str,
    base_grid: Grid,
    grid: Grid,
    feature_state: Floats,
    signal_state: Floats,
    base: Floats,
    history: History,
    category_scores: CategoryScores,
    clock: Mode,
    books: Books | None = None,
    feed: ContextFeed | None = None,
    venue: str | None = None,
    market: str | None = None,
    series: Sequence[Series] = (),
    events: Sequence[Window] = (),
) -> None:
    """Write the part of a warm start that the features stage knows.

    base (n, 9) bars, `history` of all decision bars, books and feed of the snapshot. The states are the folds' after
    the last decision bar. Raises NotEnoughData without a closed decision bar.
    """
    if len(history) == 0:
        raise NotEnoughData(f"{symbol}: no closed {grid.timeframe} bar in {len(base)} {base_grid.timeframe} bars")
    open_from = grid.next_close(history.bars[-1, OPEN_TIME])
    books, feed = prune_records(open_from, grid.step_s, books, feed, ages_of(series))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.state").write_bytes(FEATURES.dump(feature_state))
    (folder / "signals.state").write_bytes(SIGNALS.dump(signal_state))
    newest = history.bars[-CLOSES_KEPT:]
    arrays = {
        "tail": base[base[:, OPEN_TIME] >= open_from],
        "closes": np.column_stack([grid.closes(newest[:, OPEN_TIME]), newest[:, CLOSE]]),
    }
    for kind, record in (("history", history), ("book", books), ("context", feed)):
        if record is not None:
            arrays |= {f"{kind}.{part.name}": getattr(record, part.name) for part in fields(record)}
    for name, array in arrays.items():
        stored = array[-RETAINED_BARS:] if name.startswith("history.") else array
        np.save(folder / f"{name}.npy", np.ascontiguousarray(stored), allow_pickle=False)
    (folder / SCORES_FILE).write_text(category_scores.to_json())
    meta: JsonObject = {
        "symbol": symbol,
        "base_grid": base_grid.to_dict(),
        "grid": grid.to_dict(),
        "clock": clock,
        "venue": venue,
        "market": market,
        "series": to_json(series),
        "events": embargo.to_json(events),
        "last_open_time": float(base[-1, OPEN_TIME]),
        "catalogue_hash": FEATURES.catalogue_hash,
        "signal_catalogue_hash": SIGNALS.catalogue_hash,
        "data_hash": None,
        "traditional": None,
        "reference": {},
    }
    _seal(folder, meta)


def publish_warm_start(
    stage: Path,
    into: Path,
    *,
    data_hash: str,
    hits: int,
    n: int,
    effective: float | None = None,
    miss_atr: float | None = None,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Copy a stage's warm start to `into/<digest>` with its data version; return {data_hash, digest, path}.

    hits, n    of the traditional consensus: events whose target was touched first, and resolved events
    effective  independent events these count as, see `hit_rate`; None: labels up to release 0.7, which did not say
    miss_atr   what its other events returned, see WarmStart; None = not known
    """
    read_warm_start(stage)  # an unreadable warm start is never published
    draft = into / f".{data_hash[:16]}"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(stage, draft)
    meta = json.loads((draft / "meta.json").read_text())
    traditional = {
        "hits": int(hits),
        "n": int(n),
        "effective": None if effective is None else float(effective),
        "miss_atr": miss_atr,
    }
    meta |= {"data_hash": data_hash, "traditional": traditional, "reference": dict(reference or {})}
    digest = _seal(draft, meta)
    path = into / digest
    if _is_whole(path, digest):
        shutil.rmtree(draft)
    else:
        shutil.rmtree(path, ignore_errors=True)  # damaged since it was published
        draft.rename(path)
    return {"data_hash": data_hash, "digest": digest, "path": str(path)}


def _is_whole(folder: Path, digest: str) -> bool:
    """Return whether the warm start in `folder` is intact and has this digest."""
    try:
        read_warm_start(folder, digest)
    except (StateError, DigestMismatch):
        return False
    return True


def read_warm_start(folder: Path, expected_digest: str | None = None) -> WarmStart:
    """Verify every byte and load a warm start.

    Raises DigestMismatch, StateError (absent, of another catalogue than this code's, or of a release before 0.9.0: it
    names no trading calendar; before 0.8.0 no venue either, and its costs would be those of another market).
    """
    try:
        manifest, digest = read_manifest(folder, expected_digest, _FIX)
    except FileNotFoundError as error:
        raise StateError(f"no warm start in {folder}. `bellwether run --once` trains and publishes one.") from error
    content = read_files(folder, manifest, _FIX)
    meta = json.loads(content["meta.json"])
    arrays = {name[:-4]: np.load(folder / name, allow_pickle=False) for name in content if name.endswith(".npy")}
    if lacking := sorted({"tail", "closes", "history.bars"} - arrays.keys()):
        raise StateError(
            f"{folder}: this warm start was written by an earlier release, without {', '.join(lacking)}; "
            "`bellwether run --once` trains and publishes a new one"
        )
    if not {"grid", "base_grid"} <= meta.keys():
        raise StateError(
            f"{folder}: this warm start was written by a release before 0.9.0, which named no trading calendar. {_FIX}"
        )
    feature_state, signal_state = FEATURES.load(content["features.state"]), SIGNALS.load(content["signals.state"])
    if lacking := sorted({"venue", "market"} - meta.keys()):
        raise StateError(
            f"{folder}: this warm start was written before release 0.8.0, without {', '.join(lacking)}, which decide "
            f"what a trade costs. {_FIX}"
        )
    tail, bars = arrays["tail"], arrays["history.bars"]
    if tail.shape[1:] != (BAR_WIDTH,) or bars.shape[1:] != (BAR_WIDTH,) or len(bars) == 0:
        raise BadShape(
            f"{folder}: tail {tail.shape} and bars {bars.shape}, wanted (t, {BAR_WIDTH}) and (1 or more, {BAR_WIDTH})"
        )
    traditional = meta["traditional"]
    return WarmStart(
        symbol=meta["symbol"],
        base_grid=Grid.from_dict(meta["base_grid"]),
        grid=Grid.from_dict(meta["grid"]),
        last_open_time=meta["last_open_time"],
        feature_state=feature_state,
        signal_state=signal_state,
        tail=tail,
        history=_parts(History, arrays, "history"),
        books=_parts(Books, arrays, "book") if "book.known" in arrays else None,
        feed=_parts(ContextFeed, arrays, "context") if "context.known" in arrays else None,
        closes=arrays["closes"],
        category_scores=CategoryScores.from_json(content[SCORES_FILE].decode()),
        clock=meta["clock"] if meta.get("clock") in MODES else None,
        data_hash=meta["data_hash"],
        traditional=_record_of(meta["traditional"]),
        traditional_miss_atr=traditional.get("miss_atr") if traditional else None,
        reference=meta["reference"],
        digest=digest,
        venue=meta["venue"],
        market=meta["market"],
        series=series_in(meta),
        events=embargo.windows_in(meta),
    )


def _record_of(stored: Mapping[str, float | None] | None) -> Estimate | None:
    """Return the stored record of the traditional consensus; None without a resolved event.

    One of releases up to 0.7 does not say how many independent events it counts as and keeps the interval it had.
    """
    if not stored or not (n := stored["n"]):
        return None
    return hit_rate(int(stored["hits"] or 0), int(n), stored.get("effective"))


def _parts(kind: type[T], arrays: Arrays, name: str) -> T:
    """Return a record of class `kind` from the arrays whose names begin with `name`."""
    return kind(**{part.name: arrays[f"{name}.{part.name}"] for part in fields(kind)})


def hit_rate(hits: int, n: int, effective: float | None = None) -> Estimate:
    """Return the share of hits among n cases with its 95 % Wilson interval.

    effective  how many independent cases they count as, in (0, n]: of events that overlap the sum of their uniqueness;
               None = they are independent
    Source     Wilson 1927, J. Am. Stat. Assoc. 22, 209-212; uniqueness López de Prado 2018, ch. 4
    """
    p, z2, m = hits / n, _Z * _Z, float(n) if effective is None else effective
    centre = (p + z2 / (2 * m)) / (1 + z2 / m)
    half = _Z / (1 + z2 / m) * float(np.sqrt(p * (1 - p) / m + z2 / (4 * m * m)))
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0), n)


def _seal(folder: Path, meta: Mapping[str, Any]) -> str:
    """Write meta.json and the manifest of every file's sha256; return the manifest's sha256."""
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return seal(folder, {"format": 1})
