"""What the labels stage writes: one file a row of LABELS, each what came after the rows of a family.

A cost only decides which events are worth taking, never a label (SPEC section 4).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import CLOSE, OPEN_TIME, TIMEFRAME_SECONDS, Floats
from pipelines.errors import NotEnoughData
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.horizon import horizon_labels
from pipelines.labels.patterns import pattern_labels
from pipelines.labels.returns import return_labels
from pipelines.labels.weights import average_uniqueness, time_decay
from pipelines.params import Params
from pipelines.signals.events import Events, event_rows, events, traditional_events
from pipelines.signals.regimes import market_state
from pipelines.signals.setups import setups
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS

Labels = dict[str, Any]  # name → array; always `known` and `ended`, epoch seconds


@dataclass(frozen=True, slots=True)
class Sources:
    """base (n, 8) and decision (m, 8) bars, features (m, kf), signals (m, ks), levels and context of the snapshot."""

    base: Floats
    decision: Floats
    features: Floats
    signals: Floats
    context: Floats
    step_s: int
    timeframe: str

    @property
    def closes(self) -> Floats:
        """(m,) epoch seconds of the decision bars' closes."""
        return np.asarray(self.decision[:, OPEN_TIME] + self.step_s)


def read_sources(folder: Path) -> Sources:
    """Of the features stage's output `folder`."""
    timeframe = json.loads((folder / "meta.json").read_text())["decision_timeframe"]
    arrays = {n: np.load(folder / f"{n}.npy") for n in ("base", "decision", "features", "signals", "context")}
    return Sources(**arrays, step_s=TIMEFRAME_SECONDS[timeframe], timeframe=timeframe)


def event_labels(sources: Sources, params: Params) -> Labels:
    """The validator's: ICT events worth their cost, and whether the target came before the stop."""
    found = events(sources.features, sources.signals)
    rows = event_rows(sources.features, sources.signals, found)
    outcome = _resolve(sources, found, params)
    keep = outcome["keep"]
    if not keep.any():
        raise NotEnoughData(
            f"{len(found.index)} events on {len(sources.decision):,} {sources.timeframe} bars, none with a target of "
            f"at least {params.labels.min_target_to_cost} × {params.costs.round_trip_bps:g} bps; use a coarser "
            "data.decision_timeframe or lower costs in params.yaml"
        )
    volatility = VALIDATOR_COLUMNS.index("volatility_regime")
    known = outcome["known"][keep]
    return {
        "columns": np.array(VALIDATOR_COLUMNS),
        "rows": rows[keep],
        "y": outcome["label"][keep],
        "weight": outcome["uniqueness"][keep] * time_decay(known, params.labels.decay_half_life_days * 86400.0),
        "uniqueness": outcome["uniqueness"][keep],
        "known": known,
        "ended": outcome["ended"][keep],
        "gross_bps": outcome["gross_bps"][keep],
        "direction": found.direction[keep],
        "atr": found.atr[keep],
        "index": found.index[keep],
        "regime": market_state(sources.features, sources.signals)[0][found.index[keep]],
        "volatility": np.column_stack([rows[keep, volatility], np.log(found.atr[keep])]),
    }


def predictor_labels(sources: Sources, params: Params) -> Labels:
    return horizon_labels(sources.decision, sources.base, sources.step_s, params)


def setup_labels(sources: Sources, params: Params) -> Labels:
    reach = sources.features[:, FEATURES.index["atr_14"]] * sources.decision[:, CLOSE]
    return pattern_labels(sources.decision, sources.base, setups(sources.signals), reach, sources.step_s, params)


def hour_labels(sources: Sources, params: Params) -> Labels:
    return return_labels(sources.decision, sources.base, sources.step_s, params)


LABELS: dict[str, Callable[[Sources, Params], Labels]] = {
    "events": event_labels,
    "pattern": setup_labels,
    "predictor": predictor_labels,
    "returns": hour_labels,
}


def traditional_record(sources: Sources, params: Params) -> dict[str, int]:
    """Hits and resolved events of the traditional consensus: the probability tier 3 stands on."""
    told = _resolve(sources, traditional_events(sources.features, sources.signals), params)
    return {"hits": int(np.nansum(told["label"][told["keep"]])), "n": int(told["keep"].sum())}


def _resolve(sources: Sources, found: Events, params: Params) -> dict[str, Any]:
    base, close_time = sources.base, sources.closes[found.index]
    labels = params.labels
    told = triple_barrier(
        base, close_time, sources.decision[found.index, CLOSE], found.direction, found.atr,
        labels.target_atr, labels.stop_atr, float(labels.horizon_bars * sources.step_s),
    )  # fmt: skip
    worth = labels.target_atr * found.atr * 1e4 >= labels.min_target_to_cost * params.costs.round_trip_bps
    keep = worth & (told.barrier != UNRESOLVED)
    uniqueness = np.full(len(found.index), np.nan)
    if keep.any():
        uniqueness[keep] = average_uniqueness(told.start[keep], told.exit[keep], len(base))
    return {
        "keep": keep, "label": told.label, "gross_bps": told.gross_bps, "known": close_time, "ended": told.exit_time,
        "uniqueness": uniqueness,
    }  # fmt: skip
