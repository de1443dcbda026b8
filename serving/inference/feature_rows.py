"""The rows that the models see at the newest close of a symbol, by column name: the answer of `/features`.

`feature_rows` writes it where the symbol is live, and `rows_for` reads it again for one model: JSON holds a float64
exactly, so a prediction on it is that of the decision at the same close, bit for bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.contracts import Floats, JsonObject, Model, finite_or_none, utc
from pipelines.errors import UnknownName
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.models.views import VIEWS, select
from pipelines.signals.events import Events
from serving.inference.model_slots import ARMS, Snapshot
from serving.inference.predictions import InferenceRequest, Unseen, events_at_close, not_applicable, request_of
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


def rows_for(model: Model, values: Mapping[str, Any]) -> Floats:
    """Return (1, columns), or (1, steps, columns) where the model looks back, from `values` of `feature_rows`."""
    by_column = np.array(list(values.values()), dtype=np.float64)  # (columns,) or (columns, steps); None becomes NaN
    return select(by_column.T[np.newaxis], tuple(values), model.columns)


def _family(snapshot: Snapshot, symbol: Symbol, raised: Events | None, unseen: Unseen, family: str) -> JsonObject:
    """Return the values that a family sees, or why there are none, and who reads them."""
    reason = _nothing_to_see(symbol, raised, family)
    request = None if raised is None or reason is not None else request_of(family, (), symbol, raised)
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
