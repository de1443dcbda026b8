"""The stages of dvc.yaml: files in, functions, files out. `python -P -m pipelines.training.stages NAME`.

Layout under `artifacts/` of the workspace:
features/   base.npy (n, 9), decision.npy (m, 9), books.npy (m, 2, levels, 3), context.npy (m, CONTEXT_WIDTH),
            features.npy (m, kf), signals.npy (m, ks), funding.npy (r, 2) known time and rate, meta.json, warm/
labels/     <name>.npz (one per entry of labelling.LABELS), traditional.json; no service reads outcomes from here
<family>/   bundle/, oof.npz, importance.json, fit.json
paired/     <family>.npz: losses of the family's recipe fitted up to the end of the champion's data; not in dvc.yaml,
            as it depends on the champion
evaluation/ <family>.json: every figure with n, interval and cost
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from pipelines.clock import mode_of
from pipelines.context_layout import CONTEXT_FIELDS
from pipelines.contracts import OPEN_TIME, History, JsonObject
from pipelines.costs import funding_rates, venue_of
from pipelines.data import timeframes
from pipelines.data.alignment import align
from pipelines.data.bar_clock import clocked
from pipelines.data.embargo import inside, to_json, windows_in
from pipelines.data.series import ages_of, names_of, series_in
from pipelines.data.sessions import grid_of, grids_of
from pipelines.data.timeframes import Grid
from pipelines.errors import NOT_ENOUGH_DATA, NotEnoughData, UnknownName
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.params import Params
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.versioning import data_hash
from pipelines.warm_start import write_warm_start

OUT = Path("artifacts")
# rows of the first training window before its purged tail, under which a family is not fitted (its LEAST_ROWS) …
FIRST_ROWS = {"validator": 50, "pattern": 200, "regime": 500, "predictor": 200}
LEAST_KNOWN = 500  # … of a family that states none
FIRST_SHARE = 0.75  # … and the share of the window that lies before that tail


def log_line(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)


def ensure_folder(folder: Path) -> Path:
    """Create `folder` if it does not exist and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_features(params: Params) -> None:
    """Compute decision bars, books, context, features, signals and the live service's warm start from data/."""
    from pipelines.data import records, schemas  # pandas and Parquet take a second to import; a fit needs neither

    described: JsonObject = json.loads(Path("data/manifest.json").read_text())
    frame = schemas.read_bars(Path("data") / described["file"])
    base = schemas.to_matrix(frame)
    base_grid = grid_of(described, base[:, OPEN_TIME])
    grid = base_grid.at(timeframes.decision_timeframe(base_grid.timeframe, params.data.decision_timeframe))
    decision = timeframes.resample(base, base_grid, grid)
    log_line(
        f"features: {len(base):,} {base_grid.timeframe} bars → {len(decision):,} {grid.timeframe} bars of "
        f"{described['symbol']}"
    )
    books, feed = records.read_snapshot(Path("data"), described)
    series, windows = series_in(described), windows_in(described)
    levels, context = align(decision[:, OPEN_TIME], grid, books, feed, ages_of(series))
    present = [name for name, values in zip(CONTEXT_FIELDS, context.T, strict=True) if not np.isnan(values).all()]
    if books is not None or feed is not None:
        closes_with_book = int((~np.isnan(levels[:, 0, :1, 0])).sum())
        log_line(f"features: a book at {closes_with_book:,} closes; context: {', '.join(present) or 'none'}")
    for each in series:
        log_line(f"features: {each.field} is {each.name}, in {each.unit}")
    feature_state, signal_state = FEATURES.fresh(), SIGNALS.fresh()
    rows = clocked(decision, grid)
    features = FEATURES.run(rows, levels, context, feature_state)
    signals = SIGNALS.run(rows, levels, context, signal_state)
    category_scores = CategoryScores.fit(signals)
    out = ensure_folder(OUT / "features")
    arrays = {"base": base, "decision": decision, "books": levels, "context": context, "features": features,
              "signals": signals, "funding": funding_rates(feed)}  # fmt: skip
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    venue, market = venue_of(described)
    meta = {
        "data_hash": data_hash(Path()),
        "symbol": described["symbol"],
        "venue": venue,
        "market": market,
        "base_timeframe": base_grid.timeframe,
        "decision_timeframe": grid.timeframe,
        "base_grid": base_grid.to_dict(),
        "grid": grid.to_dict(),
        "feature_columns": list(FEATURES.columns),
        "signal_columns": list(SIGNALS.columns),
        "catalogue_hash": FEATURES.catalogue_hash,
        "signal_catalogue_hash": SIGNALS.catalogue_hash,
        "has_book": books is not None,
        "has_funding": len(arrays["funding"]) > 0,
        "context": present,
        "series": names_of(series),
        "events": to_json(windows),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    write_warm_start(
        out / "warm",
        symbol=described["symbol"],
        base_grid=base_grid,
        grid=grid,
        feature_state=feature_state,
        signal_state=signal_state,
        base=base,
        history=History(decision, features, signals, levels, context),
        category_scores=category_scores,
        clock=mode_of(described),
        venue=venue,
        market=market,
        books=books,
        feed=feed,
        series=series,
        events=windows,
    )


def build_labels(params: Params) -> None:
    """Compute the outcomes of each family's rows, in files that serving never reads."""
    from pipelines.signals.events import events
    from pipelines.training.labelling import LABELS, read_sources, traditional_record, without_broken_rows

    sources, out = read_sources(OUT / "features"), ensure_folder(OUT / "labels")
    for name, label in LABELS.items():
        labels, left_out = without_broken_rows(label(sources, params), name, sources)
        np.savez(out / f"{name}.npz", allow_pickle=False, **labels)
        gone = f", {left_out:,} left out, whose windows have missing bars" if left_out else ""
        log_line(f"labels: {len(labels['known']):,} rows of {name}{gone}")
    if sources.windows:
        shut = int(inside(sources.closes[events(sources.features, sources.signals).index], sources.windows).sum())
        log_line(f"labels: {shut:,} events inside {len(sources.windows):,} windows of the calendar are left out")
    traditional = traditional_record(sources, params)
    (out / "traditional.json").write_text(json.dumps(traditional) + "\n")


def embargo_seconds(params: Params, grid: Grid) -> float:
    """Return the embargo in seconds: the larger of label horizon and feature memory, with the closures between."""
    return grid.span_s(max(params.labels.horizon_bars, int(FEATURES.warmup.max()), int(SIGNALS.warmup.max())))


def read_meta() -> JsonObject:
    """Return what the features stage wrote of its data."""
    meta: JsonObject = json.loads((OUT / "features" / "meta.json").read_text())
    return meta


def fit_family(family: str, params: Params) -> None:
    """Train one family on the stage outputs and write its bundle, figures and out-of-fold rows."""
    # scikit-learn, xgboost and torch take seconds to import: only the stages that fit need them
    from pipelines.models.catalog import model_family
    from pipelines.training.fit import train

    meta = read_meta()
    named = (
        "data_hash", "symbol", "venue", "market", "has_funding", "base_timeframe", "decision_timeframe",
        "catalogue_hash",
    )  # fmt: skip
    context = {name: meta[name] for name in named} | {"series": meta.get("series", {})}  # stages of 0.8 had none
    embargo = embargo_seconds(params, grids_of(meta)[0])
    chosen = model_family(family)
    data = chosen.dataset(OUT, params)
    enough = sufficient_bars(family, len(data), params)
    too_short = "" if enough is None else f"; {enough}"
    if int(len(data) * (1 - params.splits.min_train_fraction)) < params.gate.min_events:
        raise NotEnoughData(f"{family}: {len(data):,} labelled rows, too few for the gate{too_short}")
    try:
        digest = train(
            chosen, data, ensure_folder(OUT / family), params, context, embargo, log_line,
            reference_of_history(OUT / "features", float(data.ended.max()), params),
        )  # fmt: skip
    except NotEnoughData as error:
        raise NotEnoughData(f"{family}: {error}{too_short}") from error
    log_line(f"{family}: bundle {digest[:12]}")


def sufficient_bars(family: str, rows: int, params: Params) -> str | None:
    """Return in words how many bars of history suffice for the first fold and for the gate; None without a row.

    rows   labelled ones in the bars there are, which show how many bars a row takes
    """
    bars = len(np.load(OUT / "features" / "decision.npy", mmap_mode="r"))
    warm = min(int(FEATURES.warmup.max()), bars)
    if rows == 0 or bars == warm:
        return None
    bars_a_row, first = (bars - warm) / rows, params.splits.min_train_fraction
    gate = params.gate.min_events / (1 - first) * bars_a_row
    embargo = max(params.labels.horizon_bars, int(FEATURES.warmup.max()), int(SIGNALS.warmup.max()))
    fold = ((FIRST_ROWS.get(family, LEAST_KNOWN) * bars_a_row + embargo) / FIRST_SHARE + embargo) / first
    return f"{warm + math.ceil(max(gate, fold)):,} bars of history suffice at this rate of rows, these are {bars:,}"


def pair(family: str, through: float, params: Params) -> None:
    """Score the recipe of the family's newest fit, fitted on the rows up to `through`, on the later rows.

    Writes `paired/<family>.npz`: `loss` (n,) aligned with the rows of `oof.npz`, `through`, and the fit's `digest`.
    """
    from pipelines.models.catalog import model_family
    from pipelines.training.paired import paired_losses

    fit = json.loads((OUT / family / "fit.json").read_text())
    with np.load(OUT / family / "oof.npz", allow_pickle=False) as f:
        at = f["row"]
    chosen = model_family(family)
    embargo = embargo_seconds(params, grids_of(read_meta())[0])
    losses = paired_losses(
        chosen, chosen.dataset(OUT, params), at, through, tuple(fit.get("left_out", ())), params, embargo, log_line
    )
    np.savez(
        ensure_folder(OUT / "paired") / f"{family}.npz",
        allow_pickle=False, loss=losses, through=np.float64(through), digest=np.array(fit["digest"]),
    )  # fmt: skip
    log_line(f"{family}: {int(np.isfinite(losses).sum()):,} rows paired")


def reference_of_history(folder: Path, until_s: float, params: Params) -> dict[str, bytes]:
    """Return the files of the drift reference of a snapshot's features.

    folder   the output of the `features` stage; until_s: epoch seconds after which no row counts
    """
    from pipelines.models.reference import reference_files

    meta = json.loads((folder / "meta.json").read_text())
    closes = grids_of(meta)[0].closes(np.load(folder / "decision.npy", mmap_mode="r")[:, OPEN_TIME])
    watched = [FEATURES.index[name] for name in WATCHED_COLUMNS]
    rows = np.load(folder / "features.npy", mmap_mode="r")[:, watched]
    return reference_files(np.ascontiguousarray(rows[closes <= until_s]), WATCHED_COLUMNS, params.drift, params.seed)


def evaluate(family: str, params: Params) -> None:
    """Write the figures of one family's out-of-fold rows."""
    from pipelines.evaluation.report import summarise

    figures = summarise(OUT / family, params)
    (ensure_folder(OUT / "evaluation") / f"{family}.json").write_text(
        json.dumps(figures, indent=1, sort_keys=True) + "\n"
    )


def main(words: list[str]) -> None:
    """Run the stage that `words` name. Raises UnknownName."""
    if log := os.environ.get("BELLWETHER_STAGE_LOG"):  # a quiet flow run: output goes to its file
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
        case ["paired", family, through]:
            pair(family, float(through), params)
        case _:
            raise UnknownName(
                f"no stage {' '.join(words)!r}; use features, labels, train FAMILY, evaluate FAMILY or "
                "paired FAMILY THROUGH"
            )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NotEnoughData as too_few:
        log_line(str(too_few))
        sys.exit(NOT_ENOUGH_DATA)
