"""M9: the baselines every model must beat, fitted and scored on the same rows."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Floats
from pipelines.models.base import Baseline, Dataset
from pipelines.models.losses import log_losses
from pipelines.params import Params

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

ITERATIONS = 500  # far more than L-BFGS needs on standardised columns: it converges, so this changes no figure


def base_rate(y: Floats, weight: Floats, n: int) -> Floats:
    """Return the training share of class 1 as the probability of each of n rows, (n,)."""
    return np.full(n, float(np.average(y, weights=weight)))


def fit_logistic(rows: Any, y: Any, weight: Floats, c: float) -> "Pipeline":
    """Return a logistic regression on standardised columns, with L2 strength 1/c (scikit-learn's C)."""
    from sklearn.linear_model import LogisticRegression  # a second of imports that only a fit needs
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS))
    return model.fit(rows, y, logisticregression__sample_weight=weight)


def logistic(rows: Floats, y: Floats, weight: Floats, test: Floats, params: Params) -> Floats:
    """Return (n,) probabilities of `test` (n, k) by a regularised logistic regression on standardised columns."""
    return np.asarray(fit_logistic(rows, y, weight, params.baselines.logistic_c).predict_proba(test)[:, 1])


def log_loss_baseline(p: Floats, test: Dataset) -> Baseline:
    """Return the baseline with probabilities p (n,), scored by log loss in nats."""
    return Baseline(log_losses(p, test.y), p)


def always_base_rate(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict the training share of class 1 for every test row."""
    return log_loss_baseline(base_rate(train.y, train.weight, len(test)), test)
