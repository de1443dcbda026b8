"""The rows that the models see at the newest close of a symbol, by column name: the answer of `/features`.

`feature_rows` writes it where the symbol is live, and `predict_on_features` reads it again for one model: JSON holds a
float64 exactly, so a prediction on it is that of the decision at the same close, bit for bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.contracts import JsonObject, Predictions, finite_or_none, utc
from pipelines.errors import StateError, UnknownName
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.models.views import VIEWS, select
from pipelines.signals.events import Events
from serving.inference.model_slots import ARMS, Slot, Snapshot
from serving.inference.predictions import InferenceRequest, Unseen, events_at_close, not_applicable, requests_of
from serving.state.symbols import Symbol


def feature_rows(snapshot: Snapshot, symbol: Symbol, unseen: Unseen, family: str | None) -> JsonObject:
    """Return what the models of every family see at the symbol's newest close, or those of one `family`.

    Raises UnknownName for a family that there is not.
    """
    if family is not None and family not in FAMILIES:
        raise UnknownName(f"family: no model family {family!r}; known: {', '.join(FAMILIES)}")
    raised = events_at_close(symbol)
    return {
        "symbol": symbol.name,
        "close": utc(symbol.closed.close_time).isoformat(),
        "generation": snapshot.generation,
        "families": {
            name: _family(snapshot, symbol, raised, unseen, name)
            for name in ((family,) if family is not None else FAMILIES)
        },
    }


def predict_on_features(slot: Slot, seen: Mapping[str, Any]) -> Predictions:
    """Return what the model of a slot predicts on what its family sees, or the abstention of a decision at that close.

    seen    one family of `feature_rows`
    Raises  StateError where the process that wrote it holds another model in this arm
    """
    arm = seen[slot.arm]
    if arm is None or arm["digest"] != slot.digest:
        raise StateError(
            f"{slot.family} {slot.arm}: version {slot.version} is served here, "
            f"{'none' if arm is None else arm['version']} by the decision service. Both follow a promotion within a "
            "second: send it again. If it stays so, `bellwether status` says what was refused"
        )
    if arm["reason"] is not None:
        nothing = np.full(1, np.nan)
        return Predictions(nothing, nothing, ["ABSTAIN"], [arm["reason"]], nothing, slot.digest)
    by_column = np.array(list(seen["values"].values()), dtype=np.float64)  # (columns,) or (columns, steps); None: NaN
    rows = select(by_column.T[np.newaxis], tuple(seen["values"]), slot.model.columns)
    return slot.model.predict(rows)


def _family(snapshot: Snapshot, symbol: Symbol, raised: Events | None, unseen: Unseen, family: str) -> JsonObject:
    """Return the values that a family sees, or why there are none, and who reads them."""
    reason = _nothing_to_see(symbol, raised, family)
    request = None if raised is None or reason is not None else requests_of(family, [(symbol, raised, ())])[0]
    found: JsonObject = {
        "steps": 1 if family == DECISION_FAMILY else VIEWS[family].steps,
        "event": None if request is None else request.event,
        "direction": 0 if request is None else request.direction,
        "reason": reason,
        "values": None if request is None else _by_column(request),
    }
    for arm in ARMS:
        slot = snapshot.slot(family, arm)
        found[arm] = slot and {
            "version": slot.version,
            "digest": slot.digest,
            "columns": list(slot.model.columns),
            "reason": not_applicable(slot, symbol, raised, unseen),
        }
    return found


def _nothing_to_see(symbol: Symbol, raised: Events | None, family: str) -> str | None:
    """Return why a family has no row at this close; None where it has."""
    if (waits := symbol.reason or symbol.waits_of(family)) is not None:
        return waits
    return "NO_EVENT" if family == DECISION_FAMILY and not len(raised or ()) else None


def _by_column(request: InferenceRequest) -> JsonObject:
    """Return column → number of a row (1, columns), or → `steps` numbers of a window (1, steps, columns)."""
    if request.rows.ndim == 2:
        values: list[Any] = [finite_or_none(value) for value in request.rows[0].tolist()]
    else:
        values = [[finite_or_none(value) for value in column] for column in request.rows[0].T.tolist()]
    return dict(zip(request.columns, values, strict=True))
