"""M9: what every model has to beat, fitted on the same rows and scored on the same rows."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.contracts import Floats

# (train rows, train y, train weight, train volatility, test rows, test volatility) → (n_test,) probabilities
Baseline = Callable[[Floats, Floats, Floats, Floats, Floats, Floats], Floats]


def base_rate(rows: Floats, y: Floats, weight: Floats, vol: Floats, test: Floats, test_vol: Floats) -> Floats:
    """The training share of winners, for everybody."""
    return np.full(len(test), float(np.average(y, weights=weight)))


def _logistic(rows: Floats, y: Floats, weight: Floats, test: Floats) -> Floats:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    model.fit(rows, y, logisticregression__sample_weight=weight)
    return np.asarray(model.predict_proba(test)[:, 1])


def volatility_only(rows: Floats, y: Floats, weight: Floats, vol: Floats, test: Floats, test_vol: Floats) -> Floats:
    """Logistic regression on barrier width and volatility regime alone: catches a model that learnt only the width."""
    return _logistic(vol, y, weight, test_vol)


def logistic(rows: Floats, y: Floats, weight: Floats, vol: Floats, test: Floats, test_vol: Floats) -> Floats:
    """Logistic regression on all of the model's columns."""
    return _logistic(rows, y, weight, test)


BASELINES: dict[str, Baseline] = {"base_rate": base_rate, "volatility_only": volatility_only, "logistic": logistic}
