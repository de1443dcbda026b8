"""Trees as ONNX graphs, as releases up to 0.13.0 served them: what compiled trees are compared with."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnxruntime

from pipelines.models.calibration_and_novelty import open_session
from pipelines.models.predictor import to_onnx

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from xgboost import XGBClassifier


def boosted_to_onnx(model: "XGBClassifier", width: int) -> bytes:
    """Return XGBoost trees as ONNX: rows (n, width) float32 → "probabilities" (n, 2)."""
    from onnxmltools.convert import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    rows = [("rows", FloatTensorType([None, width]))]
    exported = convert_xgboost(model, name="boosted", initial_types=rows, target_opset=15)
    return bytes(exported.SerializeToString())


def boosted_session(model: "XGBClassifier", width: int) -> onnxruntime.InferenceSession:
    """Return a session of XGBoost trees, opened as serving opens one."""
    return _opened(boosted_to_onnx(model, width))


def forest_session(model: "RandomForestClassifier", width: int) -> onnxruntime.InferenceSession:
    """Return a session of a forest, opened as serving opens one."""
    return _opened(to_onnx("forest", model, width))


def _opened(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session of ONNX bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return open_session(path)
