"""Time compiled trees against ONNX Runtime, which served them up to 0.13.0, XGBoost, treelite, and C code of tl2cgen.

Of the sizes that the default universe trains: as many events, the settings of params.yaml. `inference` has the rows.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.contracts import Floats
from pipelines.models.calibration_and_novelty import open_session
from pipelines.models.compiled_trees import CompiledTrees, compiled_trees
from pipelines.models.predictor import to_onnx
from pipelines.models.trees import fit_boosted, fit_forest
from pipelines.models.trees_export import boosted_arrays, forest_arrays
from pipelines.params import Params
from pipelines.settings import load_params

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from xgboost import XGBClassifier

EVENTS, COLUMNS = 31_000, 16  # of the validator after a year of the four markets of params.yaml
SIZES = (1, 64)


def boosted_session(model: "XGBClassifier", width: int) -> onnxruntime.InferenceSession:
    """Return XGBoost trees as an ONNX graph of "rows" (n, width) → "probabilities" (n, 2), opened as serving does."""
    from onnxmltools.convert import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    rows = [("rows", FloatTensorType([None, width]))]
    exported = convert_xgboost(model, name="boosted", initial_types=rows, target_opset=15)
    return _opened(bytes(exported.SerializeToString()))


def forest_session(model: "RandomForestClassifier", width: int) -> onnxruntime.InferenceSession:
    """Return a forest as an ONNX graph, opened as serving opens one."""
    return _opened(to_onnx("forest", model, width))


def _opened(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session of ONNX bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return open_session(path)


def in_session(session: onnxruntime.InferenceSession, rows: Floats) -> Any:
    """Return probabilities (n, 2) of rows (n, k) in one call of the graph."""
    return session.run(["probabilities"], {"rows": rows.astype(np.float32)})[0]


def treelite_peers(model: "XGBClassifier", folder: Path) -> dict[str, Callable[[Floats], Any] | str]:
    """Return name → call of treelite's interpreter and of the C code that tl2cgen writes, or why there is none."""
    import tl2cgen
    import treelite

    loaded = treelite.frontend.from_xgboost(model.get_booster())
    interpreter = partial(treelite.gtil.predict, loaded, nthread=1)
    peers: dict[str, Any] = {f"treelite {version('treelite')}, its interpreter": lambda x: interpreter(np.float32(x))}
    name = "C code by tl2cgen"
    if shutil.which("gcc") is None:
        return peers | {name: "needs a C compiler where the model is loaded, and there is no gcc"}
    library = folder / "trees.so"
    tl2cgen.export_lib(loaded, toolchain="gcc", libpath=str(library), params={"parallel_comp": 1})
    predictor = tl2cgen.Predictor(str(library), nthread=1)
    return peers | {f"{name} {version('tl2cgen')}, gcc": lambda x: predictor.predict(tl2cgen.DMatrix(np.float32(x)))}


def fitted(params: Params, events: int) -> tuple["XGBClassifier", "RandomForestClassifier", Floats]:
    """Return trees of the validator and a forest of the predictor, fitted on a weak signal, and rows (n, COLUMNS)."""
    rng = np.random.default_rng(params.seed)
    rows = rng.normal(size=(events, COLUMNS))
    odds = 0.3 * rows[:, 0] * rows[:, 1] + 0.2 * np.tanh(rows[:, 2]) - 0.4
    y, weight = (rng.random(events) < 1 / (1 + np.exp(-odds))).astype(int), np.ones(events)
    boosted = fit_boosted(rows, y, weight, float(events), params.validator, params.seed)
    forest = fit_forest(rows, y, weight, events / 2, params.predictor.forest, params.seed)
    return boosted, forest, rows[:6_400]


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of compiled trees; `tiny` measures too little to be quoted."""
    repeats, params = (3, load_params()) if tiny else (25, load_params())
    boosted, forest, rows = fitted(params, 2_000 if tiny else EVENTS)
    ours = {"boosted trees": boosted_arrays(boosted), "forest": forest_arrays(forest)}
    trees = {name: compiled_trees(arrays, COLUMNS) for name, arrays in ours.items()}
    graphs = {"boosted trees": boosted_session(boosted, COLUMNS), "forest": forest_session(forest, COLUMNS)}
    booster, found = boosted.get_booster(), []
    booster.set_param({"nthread": 1})
    with tempfile.TemporaryDirectory(prefix="bellwether-bench-") as folder:
        peers = {} if tiny else treelite_peers(boosted, Path(folder))
        for name, graph in graphs.items():
            same = np.abs(trees[name].probabilities(rows)[:, 0] - in_session(graph, rows)[:, 1]).max()
            leaves = (ours[name]["feature"] < 0).sum() / len(ours[name]["roots"])
            note = f"{len(ours[name]['roots'])} trees of {leaves:.0f} leaves; largest difference {same:.0e}"
            found += compare(name, trees[name], "ONNX Runtime", partial(in_session, graph), rows, repeats, note)
        sums = trees["boosted trees"].sums(rows)[:, 0]
        note = (
            f"margins differ in {(sums != booster.inplace_predict(rows, predict_type='margin')).sum()} of {len(rows):,}"
        )
        native = partial(booster.inplace_predict)
        found += compare("boosted trees", trees["boosted trees"], "XGBoost, one thread", native, rows, repeats, note)
        for name, peer in peers.items():
            found += compare("boosted trees", trees["boosted trees"], name, peer, rows, repeats)
    return found


def compare(
    what: str, trees: CompiledTrees, name: str, peer: Callable[[Floats], Any] | str, rows: Floats, repeats: int,
    note: str = "",
) -> list[Row]:  # fmt: skip
    """Return a row a size; a peer that is not there is the reason, and leaves our side alone."""
    found = []
    for size in SIZES:
        parts = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        label = f"compiled {what}, {'one row' if size == 1 else f'batch of {size}'}"
        mine = cycling(trees.probabilities, parts)
        if isinstance(peer, str):
            took = np.array([cpu_seconds(mine, len(parts)) for _ in range(repeats)])
            found.append(Row(label, "us", spread(took * 1e6), note=f"{name} {peer}"))
        else:
            took, theirs = in_turn(mine, cycling(peer, parts), repeats)
            found.append(pairs(label, "us", took * 1e6, name, theirs * 1e6, note))
    return found


def cycling(predict: Callable[[Floats], Any], parts: list[Floats]) -> Callable[[], Any]:
    """Return a call that predicts the next part each time, so that no result is cached from the last one."""
    turn = cycle(parts)
    return lambda: predict(next(turn))
