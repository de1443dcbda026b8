"""Compiled pieces of the detectors: emissions, the forward filter, soft labels, the vote with its hysteresis."""

import math

import numpy as np

from pipelines.compiled import kernel


@kernel
def log_densities(x, means, deviations, shares, peaks, out):  # type: ignore[no-untyped-def]
    """Log density of one observation x (d,) under S Gaussians with independent inputs, into out (S,), up to a constant.

    means, deviations (S, d); shares (d,) how much of an observation each input counts (see gaussian); peaks (S,)
    log of the densities' peaks. An observation with a missing value says nothing: all zeros.
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
def posterior(prior, log_density, out):  # type: ignore[no-untyped-def]
    """out (S,) ∝ prior · exp(log_density), summing to 1; returns the log of what it was divided by."""
    top = log_density.max()
    total = 0.0
    for s in range(out.shape[0]):
        out[s] = prior[s] * math.exp(log_density[s] - top)
        total += out[s]
    for s in range(out.shape[0]):
        out[s] /= total
    return math.log(total) + top


@kernel
def predicted(filtered, transition, out):  # type: ignore[no-untyped-def]
    """out (S,) = filtered (S,) one step on."""
    for j in range(out.shape[0]):
        total = 0.0
        for i in range(out.shape[0]):
            total += filtered[i] * transition[i, j]
        out[j] = total


@kernel
def standardise(planes, at, step, centre, scale, bound, out):  # type: ignore[no-untyped-def]
    """Observation (d,) of one bar: (value − centre) / scale, held within ± bound; NaN stays."""
    for k in range(out.shape[0]):
        z = (planes[k, at, step] - centre[k]) / scale[k]
        out[k] = min(max(z, -bound), bound) if z == z else np.nan


@kernel
def filter_windows(planes, centre, scale, bound, means, deviations, shares, peaks, transition, stationary, out):  # type: ignore[no-untyped-def]
    """P(state | the window up to this bar) of every bar, from the stationary distribution at the first.

    planes (d, n, steps) → out (n, steps, S). With a transition whose rows are all equal this is a mixture's posterior.
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
def sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + math.exp(-x))


@kernel
def normal_cdf(x):  # type: ignore[no-untyped-def]
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


@kernel
def ordered_labels(values, edges, softness, out):  # type: ignore[no-untyped-def]
    """Labels in the order of a value: values (n, steps), edges (L − 1,) ascending → out (n, steps, L), NaN if missing.

    Between two labels the vote passes over as a logistic curve of width `softness`, in the value's unit.
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


@kernel
def trend_labels(planes, bars, adx_edge, adx_softness, persistence_scale, out):  # type: ignore[no-untyped-def]
    """up, down, flat from three equal votes on whether there is a trend; the sign is that of the last `bars` bars.

    planes  (3, n, steps): log return, ADX, persistence
    votes   ADX above its edge · lag-1 persistence above nought, by its sampling error · the walk of `bars` bars: the
            share of driftless walks that go less far
    out     (n, steps, 3); NaN until `bars` bars are there
    """
    for i in range(out.shape[0]):
        for t in range(out.shape[1]):
            walk, energy = 0.0, 0.0
            if t + 1 >= bars:
                for k in range(t + 1 - bars, t + 1):
                    walk += planes[0, i, k]
                    energy += planes[0, i, k] * planes[0, i, k]
            z = walk / math.sqrt(energy) if energy > 0.0 else np.nan
            strong = sigmoid((planes[1, i, t] - adx_edge) / adx_softness)
            lasting = normal_cdf(planes[2, i, t] / persistence_scale)
            there = (strong + lasting + 2.0 * normal_cdf(abs(z)) - 1.0) / 3.0
            up = normal_cdf(z)
            out[i, t, 0], out[i, t, 1], out[i, t, 2] = there * up, there * (1.0 - up), 1.0 - there


@kernel
def vote(said, first, weights, table, margin, dwell, p, voices, label):  # type: ignore[no-untyped-def]
    """The ensemble: mapped voices averaged over who speaks (as `ensemble.average`), then hysteresis and dwell.

    said     (n, steps, L) every detector's labels side by side; detector d has columns first[d]:first[d + 1]
    weights  (D,); table (L, R) rows sum to 1
    margin   by how much another regime must lead the present one; dwell: bars a regime stays at least
    Into     p (n, R) and voices (D, n, R) of the newest bar, NaN where nobody speaks; label (n,) code, −1 = none
    """
    detectors, regimes = weights.shape[0], table.shape[1]
    mean = np.empty(regimes)
    for i in range(said.shape[0]):
        present, since, newest = -1, 0, said.shape[1] - 1
        for t in range(said.shape[1]):
            mean[:] = 0.0
            total = 0.0
            for d in range(detectors):
                speaks = said[i, t, first[d]] == said[i, t, first[d]]
                if t == newest:
                    voices[d, i, :] = 0.0 if speaks else np.nan
                if speaks:
                    total += weights[d]
                    for j in range(first[d], first[d + 1]):
                        for r in range(regimes):
                            share = said[i, t, j] * table[j, r]
                            mean[r] += weights[d] * share
                            if t == newest:
                                voices[d, i, r] += share
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
