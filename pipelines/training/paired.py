"""Score a challenger's recipe on the rows its champion never saw, by a fit that ends where the champion's data end.

The challenger's out-of-fold losses on those rows come from its last fold, whose training ended weeks before the
champion's: compared row by row, the older model loses for its age alone. So the recipe is fitted once more.
"""

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.models.base import Dataset, Log, ModelFamily
from pipelines.params import Params
from pipelines.training.fit import complete_rows, prepare
from pipelines.training.walk import fit_window, predict_in_batches


def paired_losses(
    model_family: ModelFamily,
    data: Dataset,
    at: Ints,
    through: float,
    left_out: tuple[str, ...],
    params: Params,
    embargo_s: float,
    log: Log,
) -> Floats:
    """Return (n,) losses of the recipe on the rows `at` of a family's dataset that were known after `through`.

    It is fitted on the rows whose labels had ended by then, as the champion was: neither has a gap before the rows it
    is scored on, since an embargo of one of them would make it the older model again.

    at         (n,) row numbers; -1 for a row that is not scored, as the champion was not trained on its market
    through    epoch seconds: `trained_through` of the champion's bundle
    left_out   columns the challenger leaves out
    embargo_s  seconds between the stretches on which the fit calibrates itself
    Returns    losses in the family's unit; NaN where a row is not scored, was known by `through` or has a missing
               value, and everywhere if the rows by then are too few for a fit: the log says so
    """
    losses = np.full(len(at), np.nan)
    later = np.flatnonzero((at >= 0) & (data.known[at] > through))
    if not len(later):
        return losses
    try:
        read = prepare(model_family.family, data.select_rows(data.ended <= through), left_out).data
        log(f"paired fit on {len(read):,} rows known to the champion too, {len(later):,} later ones to score")
        fitted = fit_window(model_family, read, params, embargo_s, log).fitted
    except NotEnoughData as fault:
        log(f"not paired: {fault}")
        return losses
    rows = data.select_rows(at[later]).select_columns(np.array([name in read.columns for name in data.columns]))
    whole = complete_rows(rows)
    rows = rows.select_rows(whole)
    if len(rows):
        losses[later[whole]] = model_family.loss(predict_in_batches(fitted, rows).p, rows, fitted.loss_params)
    return losses
