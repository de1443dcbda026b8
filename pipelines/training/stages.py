"""The stages of dvc.yaml: files in, functions, files out. `python -P -m pipelines.training.stages NAME`.

Layout under `artifacts/` of the workspace:
features/   base.npy (n, 8), decision.npy (m, 8), features.npy (m, kf), signals.npy (m, ks), meta.json, warm/
labels/     events.npz, traditional.json; no other stage and no service reads prices after an event from here
<family>/   bundle/, oof.npz, fit.json
evaluation/ <family>.json: every figure with n, interval and cost assumption
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import CLOSE, OPEN_TIME, TIMEFRAME_SECONDS, Floats
from pipelines.data import schemas, timeframes
from pipelines.errors import NotEnoughData, UnknownName
from pipelines.features.catalog import FEATURES
from pipelines.features.validator_schema import VALIDATOR_COLUMNS
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.weights import average_uniqueness, time_decay
from pipelines.settings import Params, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import Events, event_rows, events, traditional_events
from pipelines.signals.voices import Voices
from pipelines.training.warm import write_warm_start
from pipelines.versioning import data_hash

OUT = Path("artifacts")


def say(line: str) -> None:
    print(line, flush=True)


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_features(params: Params) -> None:
    """data/ → decision bars, features, signals, and the warm start of the live service."""
    described: dict[str, Any] = json.loads(Path("data/manifest.json").read_text())
    frame = schemas.read_bars(Path("data") / described["file"])
    base = schemas.to_matrix(frame)
    base_tf, decision_tf = described["timeframe"], decision_timeframe(described["timeframe"], params)
    decision = timeframes.resample(base, TIMEFRAME_SECONDS[base_tf], TIMEFRAME_SECONDS[decision_tf])
    say(f"features: {len(base):,} {base_tf} bars → {len(decision):,} {decision_tf} bars of {described['symbol']}")
    feature_state, signal_state = FEATURES.fresh(), SIGNALS.fresh()
    features = FEATURES.run(decision, state=feature_state)
    signals = SIGNALS.run(decision, state=signal_state)
    voices = Voices.fit(signals)
    out = fresh(OUT / "features")
    for name, array in {"base": base, "decision": decision, "features": features, "signals": signals}.items():
        np.save(out / f"{name}.npy", array)
    meta = {
        "data_hash": data_hash(Path()),
        "symbol": described["symbol"],
        "base_timeframe": base_tf,
        "decision_timeframe": decision_tf,
        "feature_columns": list(FEATURES.columns),
        "signal_columns": list(SIGNALS.columns),
        "catalogue_hash": FEATURES.catalogue_hash,
        "signal_catalogue_hash": SIGNALS.catalogue_hash,
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    write_warm_start(
        out / "warm",
        symbol=described["symbol"],
        base_timeframe=base_tf,
        decision_timeframe=decision_tf,
        feature_state=feature_state,
        signal_state=signal_state,
        base=base,
        decision=decision,
        features=features,
        signals=signals,
        voices=voices,
    )


def decision_timeframe(base: str, params: Params) -> str:
    """The stated decision timeframe, or the source's own where that is coarser."""
    wanted = params.data.decision_timeframe
    return wanted if TIMEFRAME_SECONDS[base] <= TIMEFRAME_SECONDS[wanted] else base


def build_labels(params: Params) -> None:
    """Events and what became of them; cost only decides which events are worth taking, never the label."""
    folder = OUT / "features"
    meta = json.loads((folder / "meta.json").read_text())
    base, decision = np.load(folder / "base.npy"), np.load(folder / "decision.npy")
    features, signals = np.load(folder / "features.npy"), np.load(folder / "signals.npy")
    step_s = TIMEFRAME_SECONDS[meta["decision_timeframe"]]
    out = fresh(OUT / "labels")
    found = events(features, signals)
    rows = event_rows(features, found)
    labelled = _resolve(base, decision, found, step_s, params)
    keep, outcome = labelled["keep"], labelled
    say(f"labels: {len(found.index):,} events, {int(keep.sum()):,} worth their cost and resolved")
    if not keep.any():
        raise NotEnoughData(
            f"{len(found.index)} events on {len(decision):,} {meta['decision_timeframe']} bars, none with a target of "
            f"at least {params.labels.min_target_to_cost} × {params.costs.round_trip_bps:g} bps; use a coarser "
            "data.decision_timeframe or lower costs in params.yaml"
        )
    volatility_column = VALIDATOR_COLUMNS.index("volatility_regime")
    known = outcome["known"][keep]
    np.savez(
        out / "events.npz",
        columns=np.array(VALIDATOR_COLUMNS),
        rows=rows[keep],
        y=outcome["label"][keep],
        weight=outcome["uniqueness"][keep] * time_decay(known, params.labels.decay_half_life_days * 86400.0),
        uniqueness=outcome["uniqueness"][keep],
        known=known,
        ended=outcome["ended"][keep],
        gross_bps=outcome["gross_bps"][keep],
        direction=found.direction[keep],
        atr=found.atr[keep],
        index=found.index[keep],
        volatility=np.column_stack([rows[keep, volatility_column], np.log(found.atr[keep])]),
    )
    tradition = traditional_events(features, signals)
    told = _resolve(base, decision, tradition, step_s, params)
    hits, n = int(np.nansum(told["label"][told["keep"]])), int(told["keep"].sum())
    (out / "traditional.json").write_text(json.dumps({"hits": hits, "n": n}) + "\n")


def _resolve(base: Floats, decision: Floats, found: Events, step_s: int, params: Params) -> dict[str, Any]:
    close_time = decision[found.index, OPEN_TIME] + step_s
    labels = params.labels
    told = triple_barrier(
        base, close_time, decision[found.index, CLOSE], found.direction, found.atr, labels.target_atr, labels.stop_atr,
        float(labels.horizon_bars * step_s),
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


def embargo_seconds(params: Params, step_s: int) -> float:
    """max(horizon, feature memory) in seconds: nothing a test row saw may have fed a training label."""
    return float(max(params.labels.horizon_bars, int(FEATURES.warmup.max())) * step_s)


def fit_family(family: str, params: Params) -> None:
    # scikit-learn and xgboost take seconds to import: only the stages that fit pay for them
    from pipelines.models.catalog import recipe
    from pipelines.training.dataset import load_dataset
    from pipelines.training.fit import train

    meta = json.loads((OUT / "features" / "meta.json").read_text())
    context = {k: meta[k] for k in ("data_hash", "symbol", "base_timeframe", "decision_timeframe", "catalogue_hash")}
    embargo = embargo_seconds(params, TIMEFRAME_SECONDS[meta["decision_timeframe"]])
    digest = train(recipe(family), load_dataset(OUT / "labels"), fresh(OUT / family), params, context, embargo, say)
    say(f"{family}: bundle {digest[:12]}")


def evaluate(family: str, params: Params) -> None:
    from pipelines.evaluation.report import summarise

    figures = summarise(OUT / family, params)
    (fresh(OUT / "evaluation") / f"{family}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def main(words: list[str]) -> None:
    if log := os.environ.get("BELLWETHER_STAGE_LOG"):  # a flow asked for quiet: what we say goes to its file
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    params = load_params(Path("params.yaml"))
    match words:
        case ["features"]:
            build_features(params)
        case ["labels"]:
            build_labels(params)
        case ["train", family]:
            fit_family(family, params)
        case ["evaluate", family]:
            evaluate(family, params)
        case _:
            raise UnknownName(f"no stage {' '.join(words)!r}; known: features, labels, train FAMILY, evaluate FAMILY")


if __name__ == "__main__":
    main(sys.argv[1:])
