"""Compiled parts of the detectors: emissions, the forward filter, soft labels, the vote with its hysteresis.

All arrays are float64 unless a docstring gives another dtype.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints


@kernel
def log_densities(x: Floats, means: Floats, deviations: Floats, shares: Floats, peaks: Floats, out: Floats) -> None:
    """Fill out (S,) with log densities, up to a constant, of observation x (d,) under Gaussians of independent inputs.

    means, deviations (S, d); shares (d,) weight of each input (see gaussian); peaks (S,) logs of the densities' peaks.
    An observation with a missing value is uninformative: all zeros.
    """
    d = x.shape[0]
    for i in range(d):
        if x[i] != x[i]:
            out[:] = 0.0
            return
    for s in range(out.shape[0]):
        total = 0.0
        for i in range(d):
            away = (x[i] - means[s, i]) / deviations[s, i]
            total += shares[i] * away * away
        out[s] = peaks[s] - 0.5 * total


@kernel
def posterior(prior: Floats, log_density: Floats, out: Floats) -> float:
    """Fill out (S,) with prior · exp(log_density), normalised to 1; return the log of the normaliser in nats."""
    top: float = log_density[0]
    for s in range(1, out.shape[0]):  # the method `max` takes longer than all the rest
        top = max(top, log_density[s])
    total: float = 0.0
    for s in range(out.shape[0]):
        out[s] = prior[s] * math.exp(log_density[s] - top)
        total += out[s]
    for s in range(out.shape[0]):
        out[s] /= total
    return math.log(total) + top


@kernel
def predicted(filtered: Floats, transition: Floats, out: Floats) -> None:
    """Fill out (S,) with the state probabilities one step after filtered (S,)."""
    for j in range(out.shape[0]):
        total = 0.0
        for i in range(out.shape[0]):
            total += filtered[i] * transition[i, j]
        out[j] = total


@kernel
def standardise(planes: Floats, at: int, step: int, centre: Floats, scale: Floats, bound: float, out: Floats) -> None:
    """Fill out (d,) with one bar's (value − centre) / scale, clipped to ± bound; NaN stays. at, step int64."""
    for k in range(out.shape[0]):
        z = (planes[k, at, step] - centre[k]) / scale[k]
        out[k] = min(max(z, -bound), bound) if z == z else np.nan


@kernel(nogil=True)
def filter_windows(
    planes: Floats, centre: Floats, scale: Floats, bound: float, means: Floats, deviations: Floats, shares: Floats,
    peaks: Floats, transition: Floats, stationary: Floats, out: Floats,
) -> None:  # fmt: skip
    """Fill out (n, steps, S) with P(state | the window up to this bar), from the stationary distribution at the first.

    planes (d, n, steps). If all rows of the transition are equal, this is the posterior of a mixture.
    """
    states = means.shape[0]
    x, density, prior = np.empty(planes.shape[0]), np.empty(states), np.empty(states)
    for i in range(out.shape[0]):
        prior[:] = stationary
        for t in range(out.shape[1]):
            if t > 0:
                predicted(out[i, t - 1], transition, prior)
            standardise(planes, i, t, centre, scale, bound, x)
            log_densities(x, means, deviations, shares, peaks, density)
            posterior(prior, density, out[i, t])


@kernel
def changed(before: Floats, now: Floats, transition: Floats, out: Floats) -> None:
    """Fill out (n,) with 1 − P(the state is that of the step before); before, now (n, S) filtered at both steps.

    Compiled, because numpy's matrix product gives a row alone other last bits than the same row among others.
    """
    ahead = np.empty(before.shape[1])
    for i in range(before.shape[0]):
        predicted(before[i], transition, ahead)
        stayed = 0.0
        for s in range(before.shape[1]):
            if now[i, s] != 0.0:
                stayed += before[i, s] * transition[s, s] * now[i, s] / ahead[s]
        out[i] = max(1.0 - stayed, 0.0)


@kernel
def sigmoid(x: float) -> float:
    """Return the logistic function of a float64."""
    return 1.0 / (1.0 + math.exp(-x))


@kernel
def normal_cdf(x: float) -> float:
    """Return the standard normal distribution function of a float64."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


@kernel(nogil=True)
def ordered_labels(values: Floats, edges: Floats, softness: float, out: Floats) -> None:
    """Fill out (n, steps, L) with soft labels of values (n, steps) between edges (L − 1,), ascending; NaN if missing.

    From one label to the next the probability passes over as a logistic curve of width `softness`, in the value's unit.
    """
    labels = out.shape[2]
    for i in range(values.shape[0]):
        for t in range(values.shape[1]):
            value, below = values[i, t], 1.0
            for j in range(labels - 1):
                above = sigmoid((value - edges[j]) / softness)
                out[i, t, j] = below - above
                below = above
            out[i, t, labels - 1] = below if value == value else np.nan


@kernel(nogil=True)
def trend_labels(
    log_return: Floats, adx: Floats, persistence: Floats, bars: int, adx_edge: float, adx_softness: float,
    persistence_scale: float, out: Floats,
) -> None:  # fmt: skip
    """Fill out (n, steps, 3) with P(up), P(down), P(flat); the sign is that of the last `bars` (int64) bars.

    log_return, adx, persistence  (n, steps)
    P(trend) is the mean of three criteria: ADX above its edge; lag-1 persistence above zero, by its sampling error; and
    the share of driftless walks of `bars` bars that go less far. NaN in the first `bars` - 1 bars.
    """
    for i in range(out.shape[0]):
        for t in range(out.shape[1]):
            walk, energy = 0.0, 0.0
            if t + 1 >= bars:
                for k in range(t + 1 - bars, t + 1):
                    walk += log_return[i, k]
                    energy += log_return[i, k] * log_return[i, k]
            z = walk / math.sqrt(energy) if energy > 0.0 else np.nan
            strong = sigmoid((adx[i, t] - adx_edge) / adx_softness)
            lasting = normal_cdf(persistence[i, t] / persistence_scale)
            trend = (strong + lasting + 2.0 * normal_cdf(abs(z)) - 1.0) / 3.0
            up = normal_cdf(z)
            out[i, t, 0], out[i, t, 1], out[i, t, 2] = trend * up, trend * (1.0 - up), 1.0 - trend


@kernel(nogil=True)
def vote(
    probabilities: Floats, first: Ints, weights: Floats, table: Floats, margin: float, dwell: int, p: Floats,
    by_detector: Floats, label: Ints,
) -> None:  # fmt: skip
    """Fill p, by_detector and label: mapped labels averaged over available detectors, then hysteresis and dwell.

    probabilities  (n, steps, L) every detector's labels side by side; detector d has columns first[d]:first[d + 1];
                   NaN where a detector is not available. first (D + 1,) int64
    weights        (D,); table (L, R), rows sum to 1
    margin, dwell  by how much another regime must lead the present one; bars (int64) a regime lasts at least
    p              (n, R) mean of the newest bar as `directional_ensemble.average`, NaN where no detector is available
    by_detector    (D, n, R) of the newest bar; label (n,) int64 code of the regime, −1 = none
    """
    detectors, regimes = weights.shape[0], table.shape[1]
    mean = np.empty(regimes)
    for i in range(probabilities.shape[0]):
        present, since, newest = -1, 0, probabilities.shape[1] - 1
        for t in range(probabilities.shape[1]):
            mean[:] = 0.0
            total = 0.0
            for d in range(detectors):
                available = probabilities[i, t, first[d]] == probabilities[i, t, first[d]]
                if t == newest:
                    by_detector[d, i, :] = 0.0 if available else np.nan
                if available:
                    total += weights[d]
                    for j in range(first[d], first[d + 1]):
                        for r in range(regimes):
                            share = probabilities[i, t, j] * table[j, r]
                            mean[r] += weights[d] * share
                            if t == newest:
                                by_detector[d, i, r] += share
            since += 1
            if total > 0.0:
                mean /= total
                best = int(np.argmax(mean))
                if present < 0 or (since >= dwell and mean[best] - mean[present] >= margin and best != present):
                    present, since = best, 0
            else:
                mean[:] = np.nan
            if t == newest:
                p[i] = mean
                label[i] = present if total > 0.0 else -1
