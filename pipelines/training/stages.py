"""The stages of dvc.yaml: files in, functions, files out. `python -P -m pipelines.training.stages NAME`.

Layout under `artifacts/` of the workspace:
features/   meta.json, and of each market <slug>/: base.npy (n, 9), decision.npy (m, 9), books.npy (m, 2, levels, 3),
            context.npy (m, CONTEXT_WIDTH), features.npy (m, kf), signals.npy (m, ks), funding.npy (r, 2) known time
            and rate, warm/
labels/     of each market <slug>/: <name>.npz (one per entry of labelling.LABELS), traditional.json; no service reads
            outcomes from here
<family>/   bundle/, oof.npz, importance.json, fit.json
timings/    <family>.json: what the fit took. No output of a stage, whose digest is the same wherever it ran
paired/     <family>.npz: losses of the family's recipe fitted up to the end of the champion's data; not in dvc.yaml,
            as it depends on the champion
evaluation/ <family>.json: every figure with n, interval and cost

docs/results/dvc/ of the current folder holds <family>.json, the figures one reads first, and <family>-saved.json, a
chart's points.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
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
from pipelines.data.timeframes import Grid
from pipelines.errors import NOT_ENOUGH_DATA, BellwetherError, NotEnoughData, StateError, UnknownName
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.params import Params
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.stage_outputs import facts_of, features_of, grids_of, labels_of, read_meta, symbols_in
from pipelines.training.side_by_side import Each, Job, in_order, side_by_side
from pipelines.versioning import data_hash
from pipelines.warm_start import write_warm_start

OUT = Path("artifacts")
SHOWN = Path("docs/results/dvc")  # what `dvc metrics` and `dvc plots` show; committed in the repository
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


def build_features(params: Params, each: Each = side_by_side) -> None:
    """Compute decision bars, books, context, features, signals and the live service's warm start of every market.

    A market is one part: its fold carries a state from each bar to the next, so a period of it has to wait for the one
    before.
    """
    from pipelines.data.data_version import MANIFEST, read_manifest  # pandas and Parquet take a second to import

    if not Path("data", MANIFEST).is_file():
        raise StateError(
            "data/ is not here: `bellwether data restore` brings that of a clone, as data.dvc describes it"
        )
    version = read_manifest(Path("data"))
    shutil.rmtree(OUT / "features", ignore_errors=True)
    ensure_folder(OUT / "features")
    found = each(features_of_market, [_features_job(version.market(symbol)) for symbol in version.symbols], params)
    timeframes_found = {str(facts.pop("decision_timeframe")) for facts in found}
    if len(timeframes_found) > 1:
        raise StateError(
            f"the markets of this data version decide on {', '.join(sorted(timeframes_found))} bars; a universe "
            "decides on one timeframe: raise data.decision_timeframe, or `bellwether symbols remove` the coarser ones"
        )
    meta = {
        "data_hash": data_hash(Path()),
        "symbols": list(version.symbols),
        "decision_timeframe": timeframes_found.pop(),
        "feature_columns": list(FEATURES.columns),
        "signal_columns": list(SIGNALS.columns),
        "catalogue_hash": FEATURES.catalogue_hash,
        "signal_catalogue_hash": SIGNALS.catalogue_hash,
        "markets": dict(zip(version.symbols, found, strict=True)),
    }
    (OUT / "features" / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def _features_job(described: JsonObject) -> Job:
    """Return the part of `build_features` that is one market, by its facts in the data version."""
    symbol, files = str(described["symbol"]), described.get("files")
    reads = sorted(Path("data").iterdir()) if files is None else [Path("data", name) for name in files]
    return Job(
        f"features {symbol}", described, tuple(path for path in reads if path.is_file()), features_of(OUT, symbol)
    )


def features_of_market(workspace: Path, params: Params, described: JsonObject) -> JsonObject:
    """Compute what `build_features` writes of one market of data/, and return its facts.

    described  the market's facts in the data version
    """
    from pipelines.data import data_version, schemas
    from pipelines.data.sessions import grid_of

    data = workspace / "data"
    base = schemas.to_matrix(data_version.read_bars(data, described))
    base_grid = grid_of(described, base[:, OPEN_TIME])
    grid = base_grid.at(timeframes.decision_timeframe(base_grid.timeframe, params.data.decision_timeframe))
    decision = timeframes.resample(base, base_grid, grid)
    symbol = str(described["symbol"])
    log_line(
        f"features: {len(base):,} {base_grid.timeframe} bars → {len(decision):,} {grid.timeframe} bars of {symbol}"
    )
    books, feed = data_version.read_records(data, described)
    series, windows = series_in(described), windows_in(described)
    levels, context = align(decision[:, OPEN_TIME], grid, books, feed, ages_of(series))
    present = [name for name, values in zip(CONTEXT_FIELDS, context.T, strict=True) if not np.isnan(values).all()]
    if books is not None or feed is not None:
        closes_with_book = int((~np.isnan(levels[:, 0, :1, 0])).sum())
        known = ", ".join(present) or "none"
        log_line(f"features: a book at {closes_with_book:,} closes of {symbol}; context: {known}")
    for each in series:
        log_line(f"features: {each.field} of {symbol} is {each.name}, in {each.unit}")
    feature_state, signal_state = FEATURES.fresh(), SIGNALS.fresh()
    rows = clocked(decision, grid)
    features = FEATURES.run(rows, levels, context, feature_state)
    signals = SIGNALS.run(rows, levels, context, signal_state)
    category_scores = CategoryScores.fit(signals)
    out = ensure_folder(features_of(workspace / OUT, symbol))
    arrays = {"base": base, "decision": decision, "books": levels, "context": context, "features": features,
              "signals": signals, "funding": funding_rates(feed)}  # fmt: skip
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    venue, market = venue_of(described)
    write_warm_start(
        out / "warm",
        symbol=symbol,
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
    return {
        "venue": venue,
        "market": market,
        "base_timeframe": base_grid.timeframe,
        "decision_timeframe": grid.timeframe,
        "base_grid": base_grid.to_dict(),
        "grid": grid.to_dict(),
        "has_book": books is not None,
        "has_funding": len(arrays["funding"]) > 0,
        "context": present,
        "series": names_of(series),
        "events": to_json(windows),
    }


def build_labels(params: Params, each: Each = side_by_side) -> None:
    """Compute the outcomes of each family's rows of every market, in files that serving never reads."""
    shutil.rmtree(OUT / "labels", ignore_errors=True)
    each(labels_of_market, [_labels_job(symbol) for symbol in symbols_in(read_meta(OUT))], params)


def _labels_job(symbol: str) -> Job:
    """Return the part of `build_labels` that is one market; it reads no warm start."""
    arrays = sorted(path for path in features_of(OUT, symbol).iterdir() if path.is_file())
    return Job(f"labels {symbol}", symbol, (OUT / "features" / "meta.json", *arrays), labels_of(OUT, symbol))


def labels_of_market(workspace: Path, params: Params, symbol: str) -> None:
    """Compute the outcomes of one market."""
    from pipelines.family_labels import LABELS, without_broken_rows
    from pipelines.signals.events import events
    from pipelines.training.labelling import read_sources, traditional_record

    sources, out = read_sources(workspace / OUT, symbol), ensure_folder(labels_of(workspace / OUT, symbol))
    for name, label in LABELS.items():
        labels, left_out = without_broken_rows(label(sources, params), name, sources)
        np.savez(out / f"{name}.npz", allow_pickle=False, **labels)
        gone = f", {left_out:,} left out, whose windows have missing bars" if left_out else ""
        log_line(f"labels: {len(labels['known']):,} rows of {name} of {symbol}{gone}")
    if sources.windows:
        shut = int(inside(sources.closes[events(sources.features, sources.signals).index], sources.windows).sum())
        log_line(
            f"labels: {shut:,} events of {symbol} inside {len(sources.windows):,} windows of the calendar are left out"
        )
    (out / "traditional.json").write_text(json.dumps(traditional_record(sources, params)) + "\n")


def embargo_seconds(params: Params, *grids: Grid) -> float:
    """Return the embargo in seconds: the larger of label horizon and feature memory, with the closures between.

    grids  of the decision bars of every market: the longest span counts for all
    """
    bars = max(params.labels.horizon_bars, int(FEATURES.warmup.max()), int(SIGNALS.warmup.max()))
    return max(grid.span_s(bars) for grid in grids)


def decision_grids(meta: JsonObject) -> list[Grid]:
    """Return the grid of the decision bars of every market."""
    return [grids_of(facts_of(meta, symbol))[0] for symbol in symbols_in(meta)]


def pooled_series(meta: JsonObject) -> tuple[dict[str, str], dict[str, str]]:
    """Return (the series whose field holds the same one in every market, column → why it is not pooled).

    A field that holds one series in one market and another, or none, in the next is no column of both.
    """
    by_market = {symbol: facts_of(meta, symbol).get("series", {}) for symbol in symbols_in(meta)}
    held = sorted({field for series in by_market.values() for field in series})
    names = {field: {series.get(field) for series in by_market.values()} for field in held}
    shared = {field: next(iter(of)) for field, of in names.items() if len(of) == 1}
    unshared = {
        column: f"{field} holds {', '.join(f'{series.get(field)} of {name}' for name, series in by_market.items())}"
        for field in held if field not in shared for column in (field, f"{field}_change")
    }  # fmt: skip
    return shared, unshared


def fit_family(family: str, params: Params, each: Each = in_order) -> None:
    """Train one family on the stage outputs and write its bundle, figures and out-of-fold rows."""
    # scikit-learn, xgboost and torch take seconds to import: only the stages that fit need them
    from pipelines.models.catalog import model_family
    from pipelines.training.fit import train

    shutil.rmtree(OUT / family, ignore_errors=True)
    meta = read_meta(OUT)
    shared, unshared = pooled_series(meta)
    context = {name: meta[name] for name in ("data_hash", "decision_timeframe", "catalogue_hash")} | {
        "series": shared,
        "markets": {symbol: _market_facts(meta, symbol) for symbol in symbols_in(meta)},
    }
    embargo = embargo_seconds(params, *decision_grids(meta))
    chosen = model_family(family)
    data = chosen.dataset(OUT, params)
    enough = sufficient_bars(family, len(data), params)
    too_short = "" if enough is None else f"; {enough}"
    if int(len(data) * (1 - params.splits.min_train_fraction)) < params.gate.min_events:
        raise NotEnoughData(f"{family}: {len(data):,} labelled rows, too few for the gate{too_short}")
    try:
        digest = train(
            chosen, data, ensure_folder(OUT / family), params, context, embargo, log_line,
            references_of_history(OUT, [name for name, _ in data.by_market()], float(data.ended.max()), params),
            unshared, each,
        )  # fmt: skip
    except NotEnoughData as error:
        raise NotEnoughData(f"{family}: {error}{too_short}") from error
    log_line(f"{family}: bundle {digest[:12]}")


def _market_facts(meta: JsonObject, symbol: str) -> JsonObject:
    """Return what a bundle says of one of its markets."""
    facts, named = facts_of(meta, symbol), ("venue", "market", "base_timeframe", "has_funding", "series")
    return {name: facts[name] for name in named if name in facts}


def sufficient_bars(family: str, rows: int, params: Params) -> str | None:
    """Return in words how many bars of history suffice for the first fold and for the gate; None without a row.

    rows   labelled ones in the bars there are, which show how many bars a row takes
    """
    bars = max(
        len(np.load(features_of(OUT, symbol) / "decision.npy", mmap_mode="r")) for symbol in symbols_in(read_meta(OUT))
    )
    warm = min(int(FEATURES.warmup.max()), bars)
    if rows == 0 or bars == warm:
        return None
    bars_a_row, first = (bars - warm) / rows, params.splits.min_train_fraction
    gate = params.gate.min_events / (1 - first) * bars_a_row
    embargo = max(params.labels.horizon_bars, int(FEATURES.warmup.max()), int(SIGNALS.warmup.max()))
    fold = ((FIRST_ROWS.get(family, LEAST_KNOWN) * bars_a_row + embargo) / FIRST_SHARE + embargo) / first
    return f"{warm + math.ceil(max(gate, fold)):,} bars of history suffice at this rate of rows, these are {bars:,}"


def pair(family: str, through: float, symbols: Sequence[str], params: Params) -> None:
    """Score the recipe of the family's newest fit, fitted on the rows up to `through`, on the later ones of `symbols`.

    Writes `paired/<family>.npz`: `loss` (n,) aligned with the rows of `oof.npz`, `through`, and the fit's `digest`.
    """
    from pipelines.models.catalog import model_family
    from pipelines.training.paired import paired_losses

    fit = json.loads((OUT / family / "fit.json").read_text())
    with np.load(OUT / family / "oof.npz", allow_pickle=False) as f:
        at = f["row"]
    chosen = model_family(family)
    meta = read_meta(OUT)
    data = chosen.dataset(OUT, params)
    left_out = tuple(name for name in data.columns if name not in fit["columns"])  # the recipe is the candidate's own
    at = np.where(np.isin(np.array(data.symbols)[data.symbol[at]], symbols), at, -1)
    losses = paired_losses(
        chosen, data, at, through, left_out, params,
        embargo_seconds(params, *decision_grids(meta)), log_line,
    )  # fmt: skip
    np.savez(
        ensure_folder(OUT / "paired") / f"{family}.npz",
        allow_pickle=False, loss=losses, through=np.float64(through), digest=np.array(fit["digest"]),
    )  # fmt: skip
    log_line(f"{family}: {int(np.isfinite(losses).sum()):,} rows paired")


def references_of_history(artifacts: Path, symbols: Iterable[str], until_s: float, params: Params) -> dict[str, bytes]:
    """Return the files of the drift references of these markets, as a bundle keeps them; `until_s` as below."""
    from pipelines.models.reference import of_market

    files: dict[str, bytes] = {}
    for symbol in symbols:
        files |= of_market(reference_of_history(artifacts, symbol, until_s, params), symbol)
    return files


def reference_of_history(artifacts: Path, symbol: str, until_s: float, params: Params) -> dict[str, bytes]:
    """Return the files of the drift reference of one market's features in a snapshot.

    artifacts  with the output of the `features` stage; until_s: epoch seconds after which no row counts
    """
    from pipelines.models.reference import reference_files

    folder = features_of(artifacts, symbol)
    grid = grids_of(facts_of(read_meta(artifacts), symbol))[0]
    closes = grid.closes(np.load(folder / "decision.npy", mmap_mode="r")[:, OPEN_TIME])
    watched = [FEATURES.index[name] for name in WATCHED_COLUMNS]
    rows = np.load(folder / "features.npy", mmap_mode="r")[:, watched]
    return reference_files(np.ascontiguousarray(rows[closes <= until_s]), WATCHED_COLUMNS, params.drift, params.seed)


def evaluate(family: str, params: Params) -> None:
    """Write the figures of one family's out-of-fold rows, whole and as DVC shows and compares them."""
    from pipelines.evaluation.report import headline, loss_saved, summarise

    figures = summarise(OUT / family, params)
    _write_json(OUT / "evaluation" / f"{family}.json", figures)
    _write_json(SHOWN / f"{family}.json", headline(figures))
    _write_json(SHOWN / f"{family}-saved.json", loss_saved(OUT / family))


def _write_json(path: Path, content: object) -> None:
    """Write a JSON file by rename: it is there whole, or as it was before."""
    draft = ensure_folder(path.parent) / f".{path.name}"
    draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    draft.replace(path)


def main(words: list[str], each: Each | None = None) -> None:
    """Run the stage that `words` name. Raises UnknownName.

    each  who computes the parts of a stage that has several; None = this machine
    """
    if log := os.environ.get("BELLWETHER_STAGE_LOG"):  # a quiet flow run: output goes to its file
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    params = load_params(Path("params.yaml"))
    match words:
        case ["features"]:
            build_features(params, each or side_by_side)
        case ["labels"]:
            build_labels(params, each or side_by_side)
        case ["train", family]:
            fit_family(family, params, each or in_order)
        case ["evaluate", family]:
            evaluate(family, params)
        case ["paired", family, through, symbols]:
            pair(family, float(through), symbols.split(","), params)
        case _:
            raise UnknownName(
                f"no stage {' '.join(words)!r}; use features, labels, train FAMILY, evaluate FAMILY or "
                "paired FAMILY THROUGH SYMBOL[,SYMBOL …]"
            )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BellwetherError as error:
        log_line(str(error))
        sys.exit(NOT_ENOUGH_DATA if isinstance(error, NotEnoughData) else 1)
