"""The detectors: each reads a few inputs and gives the probabilities of its own labels at every bar of the window.

A detector whose inputs the snapshot lacks abstains: it leaves the vote, and the bundle records why. A new one is a row
of DETECTORS, its labels in tables.TABLES and its weight in params.yaml. Fitting and serving use numpy and our kernels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Bools, Floats, Ints
from pipelines.models.regime import kernels
from pipelines.models.regime.gaussian import BOUND, fit_gaussians, transition_interval
from pipelines.models.regime.inputs import missing_columns
from pipelines.models.regime.tables import TABLES
from pipelines.params import Params

Parameters = Mapping[str, Floats]
DAY_BARS = 96  # bars of a bootstrap block of the transition matrix: a day of 15 minutes
_GUESS_BARS = 4
_STARTS = ("above", "below", "either")  # EM finds local optima: the best of these starts is used
_DRAWS = 1000
_VOLATILITY_BARS = 20  # of the column volatility_20
_PERSISTENCE_BARS = 60  # of the column persistence_60


@dataclass(frozen=True, slots=True)
class Detector:
    """Define one detector.

    labels   its labels, in the order of its columns
    reads    inputs (inputs.INPUTS) it requires
    also     inputs it reads if the snapshot has them
    fit      (input → (m,) values of training bars in time order, in the order of `reads` + `also`; (m,) where segments
             start; params) → parameters
    predict  (inputs it reads (n, steps) each, parameters, out (n, steps, labels)) → None; fills out with
             probabilities given the window up to each bar, NaN where an input is missing
    """

    labels: tuple[str, ...]
    reads: tuple[str, ...]
    also: tuple[str, ...]
    fit: Callable[[Mapping[str, Floats], Bools, Params], dict[str, Floats]]
    predict: Callable[[Sequence[Floats], Parameters, Floats], None]


def _spread(values: Floats) -> tuple[float, float]:
    """Return (median, standard deviation of a normal with this interquartile range), robust to tails."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(middle), float(max(high - low, 1e-12) / 1.349)


# ---- hidden Markov model ------------------------------------------------------------------------------------------
# fixed momentum of bull, bear, high_vol, low_vol, rotation in standard deviations: in a market of little drift a free
# fit would spend all five states on volatility and leave bull and bear without a meaning. Their ranges are fitted.
_PINS = np.array([[np.nan, 1.0], [np.nan, -1.0], [np.nan, 0.0], [np.nan, 0.0], [np.nan, 0.0]])


def name_states(means: Floats) -> Ints:
    """Return the order of states as TABLES["hmm"] names them: bull, bear, high_vol, low_vol, rotation.

    means  (5, 2) of range and momentum. The highest momentum is bull, the lowest bear; of the rest the widest range is
           high_vol, the narrowest low_vol. So every refit gives the same states the same names
    """
    by_momentum = np.argsort(means[:, 1], kind="stable")
    bear, rest, bull = by_momentum[0], by_momentum[1:-1], by_momentum[-1]
    low, rotation, high = rest[np.argsort(means[rest, 0], kind="stable")]
    return np.array([bull, bear, high, low, rotation])


def first_states(width: Floats, momentum: Floats, trending: str) -> Ints:
    """Return (m,) initial states for EM by quarters of the recent range.

    The narrowest quarter is low_vol, the widest high_vol; of the two between them the upper (`above`), the lower
    (`below`) or both (`either`) are bull and bear by momentum.
    """
    smooth = np.convolve(width - width.mean(), np.full(_GUESS_BARS, 1.0 / _GUESS_BARS))[: len(width)]
    quarter = np.digitize(smooth, np.quantile(smooth, [0.25, 0.5, 0.75]))
    moving = {"above": quarter == 2, "below": quarter == 1, "either": np.abs(momentum) >= np.median(np.abs(momentum))}
    side = np.where(momentum >= 0, 0, 1)
    return np.asarray(np.select([quarter == 0, quarter == 3, moving[trending]], [3, 2, side], 4), dtype=np.int64)


def fit_hmm(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return the hidden Markov model fitted on range and momentum.

    A bar's log range is nearly normal and far more informative of volatility than its return; momentum over ten bars
    counts by `momentum_share`.
    """
    rows, shares = np.column_stack(list(inputs.values())), np.array([1.0, params.regime.momentum_share])
    width, momentum = rows.T
    ends = [
        fit_gaussians(rows, starts, first_states(width, momentum, trending), shares, _PINS, params.regime, True)
        for trending in _STARTS
    ]
    found, moves, _ = max(ends, key=lambda end: end[2])
    order = name_states(found.means)
    low, high = transition_interval(
        moves[:, order][:, :, order], DAY_BARS, _DRAWS, params.seed, params.regime.prior_moves
    )
    return found.reordered(order).parameters() | {"transition_low": low, "transition_high": high}


def predict_gaussians(inputs: Sequence[Floats], p: Parameters, out: Floats) -> None:
    """Fill out (n, steps, labels) with the filtered state probabilities."""
    kernels.filter_windows(
        np.stack(inputs), p["centre"], p["scale"], BOUND, p["means"], p["deviations"], p["shares"], p["peaks"],
        p["transition"], p["stationary"], out,
    )  # fmt: skip


def change_probability(filtered: Floats, transition: Floats) -> Floats:
    """Return (n,) 1 − P(the newest bar's state is that of the bar before | the window): a change at the newest bar.

    filtered  (n, steps ≥ 2, S) of `predict_gaussians`. The likelihood of the newest observation in a state is
              proportional to its filtered probability over the predicted one, so no density is computed again
    """
    out = np.empty(len(filtered))
    before, now = (np.ascontiguousarray(filtered[:, step]) for step in (-2, -1))  # one row or many: one compiled kernel
    kernels.changed(before, now, transition, out)
    return out


# ---- clusters -----------------------------------------------------------------------------------------------------
def name_clusters(means: Floats, volatility: int, strength: int) -> Ints:
    """Return the order of clusters as TABLES["clustering"] names them: trending, ranging, volatile, quiet."""
    by_volatility = np.argsort(means[:, volatility], kind="stable")
    quiet, rest, volatile = by_volatility[0], by_volatility[1:-1], by_volatility[-1]
    ranging, trending = rest[np.argsort(means[rest, strength], kind="stable")]
    return np.array([trending, ranging, volatile, quiet])


def fit_clusters(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return a mixture of four Gaussians, started from the calmest fifth, the wildest fifth and the rest by ADX."""
    rows = np.column_stack(list(inputs.values()))
    calm, wild = np.quantile(rows[:, 0], [0.2, 0.8])
    strong = rows[:, 1] >= np.median(rows[:, 1])
    guess = np.select([rows[:, 0] <= calm, rows[:, 0] >= wild, strong], [3, 2, 0], 1).astype(np.int64)
    found, *_ = fit_gaussians(
        rows,
        starts,
        guess,
        np.ones(rows.shape[1]),
        np.full((4, rows.shape[1]), np.nan),
        params.regime,
        markov=False,
    )
    return found.reordered(name_clusters(found.means, volatility=0, strength=1)).parameters()


# ---- soft thresholds ----------------------------------------------------------------------------------------------
def predict_ordered(inputs: Sequence[Floats], p: Parameters, out: Floats) -> None:
    """Fill out (n, steps, labels) with soft labels of one value between edges."""
    kernels.ordered_labels(inputs[0], p["edges"], float(p["softness"]), out)


def fit_volatility(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return the edges of params.yaml and a softness from the sampling error of a volatility of 20 returns.

    The error of a log volatility is √((kurtosis − 1) / 4n) (delta method), converted to percentiles by the slope of the
    training quantiles.
    """
    standard = inputs["return"] / np.exp(inputs["volatility"])
    kurtosis = float(np.mean(standard**4) / np.mean(standard**2) ** 2)
    error = np.sqrt(max(kurtosis - 1.0, 0.1) / (4.0 * _VOLATILITY_BARS))
    low, high = np.quantile(inputs["volatility"], [0.1, 0.9])
    percentiles = min(error * 0.8 / max(high - low, 1e-9), 0.25)
    logistic = np.sqrt(3.0) / np.pi  # width of the logistic curve with a standard deviation of one
    return {"edges": np.array(params.regime.volatility_edges), "softness": np.array(max(percentiles, 0.01) * logistic)}


def fit_momentum(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return edges at `momentum_edge` training spreads of momentum around zero."""
    spread = _spread(inputs["momentum"])[1]
    edge = params.regime.momentum_edge * spread
    return {"edges": np.array([-edge, edge]), "softness": np.array(params.regime.softness * spread)}


def fit_volume(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return edges at the quantiles of the training bars that params.yaml states."""
    edges = np.quantile(inputs["volume"], params.regime.volume_quantiles)
    return {"edges": edges, "softness": np.array(params.regime.softness * _spread(inputs["volume"])[1])}


def fit_sentiment(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return the published bands of the fear-and-greed index as edges in −1 … 1."""
    edges = np.array(params.regime.sentiment_edges)
    return {"edges": edges, "softness": np.array(params.regime.softness * np.diff(edges).min())}


# ---- trend --------------------------------------------------------------------------------------------------------
def fit_trend(inputs: Mapping[str, Floats], starts: Bools, params: Params) -> dict[str, Floats]:
    """Return the edge, softness and scale of the three trend criteria."""
    return {
        "bars": np.array(float(params.regime.trend_bars)),
        "adx_edge": np.array(params.regime.adx_edge),
        "adx_softness": np.array(params.regime.softness * _spread(inputs["adx"])[1]),
        "persistence_scale": np.array(1.0 / np.sqrt(_PERSISTENCE_BARS)),  # sampling error of an autocorrelation
    }


def predict_trend(inputs: Sequence[Floats], p: Parameters, out: Floats) -> None:
    """Fill out (n, steps, 3) with P(up), P(down), P(flat)."""
    kernels.trend_labels(
        *inputs, int(p["bars"]), float(p["adx_edge"]), float(p["adx_softness"]), float(p["persistence_scale"]), out
    )


def _labels(name: str) -> tuple[str, ...]:
    """Return a detector's labels in the order of its table."""
    return tuple(TABLES[name])


DETECTORS: dict[str, Detector] = {
    "hmm": Detector(_labels("hmm"), ("range", "momentum"), (), fit_hmm, predict_gaussians),
    "volatility": Detector(
        _labels("volatility"), ("percentile", "volatility", "return"), (), fit_volatility, predict_ordered
    ),
    "trend": Detector(_labels("trend"), ("return", "adx", "persistence"), (), fit_trend, predict_trend),
    "clustering": Detector(
        _labels("clustering"), ("volatility", "adx", "momentum_size", "spread"), ("volume", "correlation", "beta"),
        fit_clusters, predict_gaussians,
    ),
    "momentum": Detector(_labels("momentum"), ("momentum",), (), fit_momentum, predict_ordered),
    "sentiment": Detector(_labels("sentiment"), ("sentiment",), (), fit_sentiment, predict_ordered),
    "volume": Detector(_labels("volume"), ("volume",), (), fit_volume, predict_ordered),
}  # fmt: skip


def readings(columns: tuple[str, ...]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return (detector → inputs it reads, detector → why it is unavailable) for a snapshot with these columns."""
    reads, unavailable = {}, {}
    for name, detector in DETECTORS.items():
        if lacking := missing_columns(detector.reads, columns):
            unavailable[name] = f"MISSING_FEATURE:{','.join(lacking)}"
        else:
            reads[name] = detector.reads + tuple(x for x in detector.also if not missing_columns((x,), columns))
    return reads, unavailable
