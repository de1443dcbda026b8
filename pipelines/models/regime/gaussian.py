"""Hidden Markov model and mixture with Gaussian emissions, fitted by EM (Baum–Welch).

Fitting smooths over the training rows, as EM must; serving only filters. A mixture is the same model whose next state
does not depend on the present one. Source: Rabiner 1989, Proc. IEEE 77(2), section III.

An input that looks back over many bars repeats itself: at full weight on every bar it would make the filter far too
certain. Its log density has a share under 1 (a composite likelihood: Varin, Reid and Firth 2011, Statistica Sinica).
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Bools, Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.family_params import RegimeParams
from pipelines.models.regime.kernels import log_densities, posterior, predicted

# standardised observations are clipped to this: one crash must not take a state of its own. Served filters clip alike,
# so it belongs to the bundle's format and is no parameter
BOUND = 5.0
LEAST_ROWS = 500  # to fit at all: a hundred bars a state


@dataclass(frozen=True, slots=True)
class Gaussians:
    """Hold a model of S states over d inputs.

    centre, scale, shares  (d,) of the inputs
    means, deviations      (S, d) of the scaled inputs
    transition             (S, S), rows sum to 1; stationary (S,)
    """

    centre: Floats
    scale: Floats
    shares: Floats
    means: Floats
    deviations: Floats
    transition: Floats
    stationary: Floats

    def reordered(self, order: Ints) -> "Gaussians":
        """Return the same model with its states in another order."""
        return replace(
            self, means=self.means[order], deviations=self.deviations[order],
            transition=np.ascontiguousarray(self.transition[np.ix_(order, order)]), stationary=self.stationary[order],
        )  # fmt: skip

    def parameters(self) -> dict[str, Floats]:
        """Return the arrays that `kernels.filter_windows` takes, ready to store."""
        return asdict(self) | {"peaks": self.peaks}

    @property
    def peaks(self) -> Floats:
        """Return (S,) logs of the densities' peaks, up to a constant."""
        return np.asarray(-np.log(self.deviations) @ self.shares)


def stationary_of(transition: Floats) -> Floats:
    """Return (S,) the stationary distribution of a transition matrix (S, S)."""
    states = len(transition)
    balance = np.vstack([transition.T - np.eye(states), np.ones(states)])
    found = np.linalg.lstsq(balance, np.append(np.zeros(states), 1.0), rcond=None)[0]
    return np.asarray(np.maximum(found, 0.0) / np.maximum(found, 0.0).sum())


@kernel
def smooth(
    x: Floats, starts: Bools, means: Floats, deviations: Floats, shares: Floats, peaks: Floats, transition: Floats,
    stationary: Floats, state: Floats, moves: Floats,
) -> float:  # fmt: skip
    """Make one E-step and return the log likelihood in nats. All arrays float64 but `starts` (bool).

    x       (m, d) complete observations; starts (m,) True where a segment begins, from the stationary distribution
    state   (m, S) filled with smoothed probabilities
    moves   (m, S, S) filled with the smoothed step *into* each row, zero at a start
    """
    m, states = state.shape
    density, filtered, ahead = np.empty((m, states)), np.empty((m, states)), np.empty((m, states))
    score: float = 0.0
    for t in range(m):
        if starts[t]:
            ahead[t] = stationary
        else:
            predicted(filtered[t - 1], transition, ahead[t])
        log_densities(x[t], means, deviations, shares, peaks, density[t])
        score += posterior(ahead[t], density[t], filtered[t])
    state[m - 1] = filtered[m - 1]
    for t in range(m - 1, -1, -1):
        if t == m - 1 or starts[t + 1]:
            state[t] = filtered[t]
            continue
        for i in range(states):
            total = 0.0
            for j in range(states):
                moved = 0.0
                if ahead[t + 1, j] > 0.0:
                    moved = filtered[t, i] * transition[i, j] * state[t + 1, j] / ahead[t + 1, j]
                moves[t + 1, i, j] = moved
                total += moved
            state[t, i] = total
    for t in range(m):
        if starts[t]:
            moves[t] = 0.0
    return score


def _moments(x: Floats, state: Floats, pins: Floats, prior_rows: float) -> tuple[Floats, Floats]:
    """Make the M-step: return means and deviations (S, d), with `prior_rows` of unit variance and pinned means."""
    weight, total = state.sum(axis=0)[:, np.newaxis], state.T @ x
    means = np.where(np.isnan(pins), total / np.maximum(weight, 1e-9), pins)
    squares = state.T @ x**2 - 2.0 * means * total + weight * means**2
    return means, np.sqrt((np.maximum(squares, 0.0) + prior_rows) / (weight + prior_rows))


def fit_gaussians(
    rows: Floats, starts: Bools, guess: Ints, shares: Floats, pins: Floats, settings: RegimeParams, markov: bool
) -> tuple[Gaussians, Floats, float]:
    """Fit by EM from a first guess, until the gain per row is under 1e-6 nats or after `em_iterations`.

    rows     (m, d) finite observations in time order; starts (m,) True where a segment begins
    guess    (m,) initial state of each row; shares (d,) weight of each input's log density
    pins     (S, d) fixed means in standard deviations of the training rows; NaN = fitted
    settings its em_iterations, prior_rows and prior_moves
    markov   False fits a mixture
    Returns  the model; (m, S, S) the smoothed step into each row, zero where a segment starts; the log likelihood
    Raises   NotEnoughData under LEAST_ROWS rows
    """
    states = len(pins)
    if len(rows) < LEAST_ROWS:
        raise NotEnoughData(
            f"{len(rows)} bars to fit {len(pins)} states on, needs {LEAST_ROWS}: bring a longer history"
        )
    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    x = np.ascontiguousarray(np.clip((rows - centre) / scale, -BOUND, BOUND))
    state = np.eye(states)[guess]
    moves = np.zeros((len(x), states, states))
    shared = np.tile(state.mean(axis=0), (states, 1))
    transition = 0.1 * shared + 0.9 * np.eye(states) if markov else shared
    before = -np.inf
    for _ in range(settings.em_iterations):
        means, deviations = _moments(x, state, pins, settings.prior_rows)
        model = Gaussians(centre, scale, shares, means, deviations, transition, stationary_of(transition))
        score = smooth(x, starts, means, deviations, shares, model.peaks, transition, model.stationary, state, moves)
        if score - before < 1e-6 * len(x):
            break
        before = score
        if markov:
            counts = moves.sum(axis=0) + settings.prior_moves
            transition = counts / counts.sum(axis=1, keepdims=True)
        else:
            transition = np.tile(state.mean(axis=0), (states, 1))
    return model, moves, score


def transition_interval(moves: Floats, block: int, draws: int, seed: int, prior_moves: float) -> tuple[Floats, Floats]:
    """Return 95 % bounds (S, S), (S, S) of a transition matrix, by a bootstrap of blocks of `block` neighbouring bars.

    moves  (m, S, S) smoothed steps into each row. The states are fixed: the bounds cover how often one state follows
           another, not how well the states are separated
    """
    size = max(1, len(moves) // block)
    blocks = np.array([part.sum(axis=0) for part in np.array_split(moves, size)])
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(size, np.full(size, 1.0 / size), size=draws).astype(np.float64)
    counts = np.tensordot(chosen, blocks, axes=1) + prior_moves
    low, high = np.quantile(counts / counts.sum(axis=2, keepdims=True), [0.025, 0.975], axis=0)
    return np.asarray(low), np.asarray(high)
