"""M1, the signal validator: P(a signal's target is touched before its stop), by gradient-boosted trees."""

import numpy as np
import xgboost
from onnxmltools.convert import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from pipelines.contracts import Floats
from pipelines.features.validator_schema import VALIDATOR_COLUMNS
from pipelines.models.base import Recipe
from pipelines.settings import Params


def fit(rows: Floats, y: Floats, weight: Floats, params: Params) -> xgboost.XGBClassifier:
    """100 trees of depth 6 at rate 0.1 unless params.yaml says otherwise; one thread, so the same bits every time."""
    p = params.validator
    model = xgboost.XGBClassifier(
        n_estimators=p.trees,
        max_depth=p.depth,
        learning_rate=p.learning_rate,
        min_child_weight=p.min_child_weight,
        subsample=p.subsample,
        reg_lambda=p.reg_lambda,
        tree_method="hist",
        random_state=params.seed,
        n_jobs=1,
    )
    # weights are rescaled to mean 1: min_child_weight is then a number of typical events
    return model.fit(rows, y.astype(int), sample_weight=weight / weight.mean())


def raw(model: xgboost.XGBClassifier, rows: Floats) -> Floats:
    return np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64)


def to_onnx(model: xgboost.XGBClassifier, width: int) -> bytes:
    # a name of our own: the converter's default is random, and the same model must give the same bytes
    rows = [("rows", FloatTensorType([None, width]))]
    exported = convert_xgboost(model, name="validator", initial_types=rows, target_opset=15)
    return bytes(exported.SerializeToString())


VALIDATOR = Recipe(
    family="validator",
    title="Signal validator: P(target before stop) of a signal",
    candidate_columns=VALIDATOR_COLUMNS,
    fit=fit,
    raw=raw,
    to_onnx=to_onnx,
)
