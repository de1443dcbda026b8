"""The regime by rule, without a model: one definition for the service, the backtest and the evidence."""

import numpy as np
import numpy.typing as npt

from pipelines.compiled import kernel
from pipelines.contracts import REGIMES, Floats
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS

TRENDING, RANGING, VOLATILE, QUIET = (float(code) for code in range(len(REGIMES)))
_VOLATILITY, _ADX = FEATURES.index["volatility_regime"], FEATURES.index["adx_14"]
_TREND = SIGNALS.index["ma_cross.direction"]


def market_state(features: Floats, signals: Floats) -> tuple[Floats, Floats]:
    """Return (regime codes, trend signs) of rows (n, kf), (n, ks) or of one row; NaN = unknown."""
    if features.ndim == 1:  # scalars, not arrays of none dimension: a tenth of the time
        row = features.item(_VOLATILITY), features.item(_ADX), signals.item(_TREND)
        return rule_regime(*row), np.asarray(row[2])
    trend = signals[..., _TREND]
    return rule_regime(features[..., _VOLATILITY], features[..., _ADX], trend), trend


def rule_regime(volatility_percentile: npt.ArrayLike, adx: npt.ArrayLike, trend_sign: npt.ArrayLike) -> Floats:
    """Return regime codes in the order of contracts.REGIMES; scalars or (n,) arrays; NaN where any input is NaN.

    VOLATILE above the 0.8 percentile of trailing volatility, QUIET under 0.2, else TRENDING from ADX 25 (Wilder 1978),
    else RANGING. trend_sign (−1, 0, 1) does not choose the regime: it chooses bull or bear in the limit table.
    """
    if isinstance(volatility_percentile, float) and isinstance(adx, float) and isinstance(trend_sign, float):
        return np.float64(_rule_regime(volatility_percentile, adx, trend_sign))
    inputs = np.broadcast_arrays(*(np.asarray(x, float) for x in (volatility_percentile, adx, trend_sign)))
    codes = np.empty(inputs[0].shape)
    _rule_regimes(*(x.ravel() for x in inputs), codes.ravel())
    return codes


@kernel
def _rule_regime(percentile: float, adx: float, sign: float) -> float:
    """Return the regime code of one row (float64); NaN where an input is."""
    if percentile + adx + sign != percentile + adx + sign:
        return np.nan
    if percentile > 0.8:
        return VOLATILE
    if percentile < 0.2:
        return QUIET
    return TRENDING if adx >= 25.0 else RANGING


@kernel
def _rule_regimes(percentiles: Floats, adx: Floats, signs: Floats, codes: Floats) -> None:
    """Fill codes (n,) float64 with the regime of each row; all inputs (n,) float64."""
    for i in range(codes.shape[0]):
        codes[i] = _rule_regime(percentiles[i], adx[i], signs[i])
