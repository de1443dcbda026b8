"""Write fitted trees as the arrays that `compiled_trees` reads: XGBoost's from its JSON, a forest's from its nodes."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.contracts import Arrays
from pipelines.errors import BundleError
from pipelines.models.compiled_trees import LEAF

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from xgboost import XGBClassifier

INFINITY = np.float32(np.inf)


class Nodes(NamedTuple):
    """Hold the nodes of one tree, in any order from its root on; (nodes,) each.

    threshold      float32: a row goes left where its value < threshold
    missing_left   whether a missing value goes left
    left, right    numbers of the nodes below; left under 0 = a leaf
    value          of a leaf
    """

    feature: Any
    threshold: Any
    missing_left: Any
    left: Any
    right: Any
    value: Any


def boosted_arrays(model: "XGBClassifier") -> Arrays:
    """Return the trees of a binary XGBoost classifier: float32 leaves, added to the margin of its base score.

    Raises  BundleError for another objective or booster, and for splits on categories
    """
    booster = model.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    kind = (learner["gradient_booster"]["name"], learner["objective"]["name"])
    if kind != ("gbtree", "binary:logistic"):
        raise BundleError(f"trees of {' with '.join(kind)} cannot be written; fit gbtree with binary:logistic")
    trees = []
    for tree in learner["gradient_booster"]["model"]["trees"]:
        if any(tree["split_type"]):
            raise BundleError("splits on categories cannot be written; give them as numbers")
        feature, missing_left, left, right = (
            np.array(tree[name]) for name in ("split_indices", "default_left", "left_children", "right_children")
        )
        threshold = np.array(tree["split_conditions"], np.float32)  # of a leaf its value
        trees.append(Nodes(feature, threshold, missing_left, left, right, threshold))
    base_score = float(learner["learner_model_param"]["base_score"].strip("[]"))
    return _joined(trees, booster.num_features(), _base_margin(base_score), "logistic")


def _base_margin(base_score: float) -> Any:
    """Return the float32 that XGBoost adds the leaves to, by its own logarithm: the margin of no trees."""
    import xgboost

    one = xgboost.DMatrix(np.zeros((1, 1)), label=[0.0])
    empty = xgboost.train({"objective": "binary:logistic", "base_score": base_score, "nthread": 1}, one, 0)
    return empty.predict(one, output_margin=True)[0]


def forest_arrays(model: "RandomForestClassifier") -> Arrays:
    """Return the trees of a forest of two classes: float64 shares of the second, of which scikit-learn takes the mean.

    It goes left where float32(value) <= a float64 threshold: where it is < the float32 after the last such value. An
    infinite threshold parts missing values from all others.
    Raises  BundleError for another number of classes
    """
    if len(model.classes_) != 2:
        raise BundleError(f"a forest of {len(model.classes_)} classes cannot be written; fit one of two")
    trees = []
    for tree in (each.tree_ for each in model.estimators_):
        nodes = tree.__getstate__()["nodes"]
        near = nodes["threshold"].astype(np.float32)
        last = np.where(near > nodes["threshold"], np.nextafter(near, -INFINITY), near)
        trees.append(
            Nodes(
                nodes["feature"], np.nextafter(last, INFINITY), nodes["missing_go_to_left"], nodes["left_child"],
                nodes["right_child"], tree.value[:, 0, 1],
            )
        )  # fmt: skip
    return _joined(trees, model.n_features_in_, np.float64(0.0), "mean")


def _joined(trees: Sequence[Nodes], columns: int, base: Any, link: str) -> Arrays:
    """Return the arrays of trees over so many columns; a node whose missing values go left is turned around."""
    roots, begin = [], 0
    parts: dict[str, list[Any]] = {"feature": [], "threshold": [], "value": []}
    for tree in trees:
        order = _breadth_first(tree)
        feature, threshold, turned, left = (
            values[order] for values in (tree.feature, tree.threshold, tree.missing_left.astype(bool), tree.left)
        )
        leaf = left < 0
        parts["feature"].append(np.where(leaf, LEAF, feature + columns * turned).astype(np.int32))
        threshold = np.where(turned, np.nextafter(-threshold, INFINITY), threshold)
        parts["threshold"].append(np.where(leaf, np.float32(0.0), threshold))
        parts["value"].append(np.where(leaf, tree.value[order], 0).astype(tree.value.dtype))
        roots.append(begin)
        begin += len(order)
    return {name: np.concatenate(values) for name, values in parts.items()} | {
        "roots": np.array(roots, np.int32), "base": np.array(base), "link": np.array(link),
        "columns": np.array(columns, np.int64),
    }  # fmt: skip


def _breadth_first(tree: Nodes) -> list[int]:
    """Return the numbers of a tree's nodes level by level, those that pass a test before those that do not."""
    order = [0]
    for node in order:
        if tree.left[node] >= 0:
            below = [int(tree.left[node]), int(tree.right[node])]
            order += below[::-1] if tree.missing_left[node] else below
    return order
