"""M9: the baselines every model must beat, fitted and scored on the same rows."""

import numpy as np

from pipelines.contracts import Floats
from pipelines.models.base import Baseline, Dataset
from pipelines.models.losses import log_losses
from pipelines.params import Params


def base_rate(y: Floats, weight: Floats, n: int) -> Floats:
    """Return the training share of class 1 as the probability of each of n rows, (n,)."""
    return np.full(n, float(np.average(y, weights=weight)))


def logistic(rows: Floats, y: Floats, weight: Floats, test: Floats) -> Floats:
    """Return (n,) probabilities of `test` (n, k) by a regularised logistic regression on standardised columns."""
    from sklearn.linear_model import LogisticRegression  # a second of imports that only a fit needs
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    model.fit(rows, y, logisticregression__sample_weight=weight)
    return np.asarray(model.predict_proba(test)[:, 1])


def log_loss_baseline(p: Floats, test: Dataset) -> Baseline:
    """Return the baseline with probabilities p (n,), scored by log loss in nats."""
    return Baseline(log_losses(p, test.y), p)


def always_base_rate(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict the training share of class 1 for every test row."""
    return log_loss_baseline(base_rate(train.y, train.weight, len(test)), test)
