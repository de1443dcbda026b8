"""Streams of paired losses with a known mean gain, for the evidence on experiments; no market's result is in here.

Four symbols of correlation one half are decided at about twenty events a market day each, on bars of 15 minutes. An
outcome takes HORIZON bars, so that neighbours share most of it; what a model knows moves slowly. A block is the grid of
`pipelines.experiments.eprocess.block_means`: five horizons and a gap of one, a market day.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import expit, logit, ndtri

from pipelines.contracts import Bools, Floats
from pipelines.experiments.eprocess import GAP_HORIZONS

HORIZON, HORIZONS, SYMBOLS, EVENTS_A_DAY = 16, 5, 4, 20
PERIOD = (HORIZONS + GAP_HORIZONS) * HORIZON  # bars of a block with its gap: a day
IN_COMMON = 0.5  # correlation of the symbols
MEMORY = 0.4 ** (EVENTS_A_DAY / PERIOD)  # of knowledge, a bar: 0.4 from event to event, as on a simulated year
BASE_RATE = 0.45
SKILL = 0.0075  # nats an outcome that a champion gains over the base rate: an AUC of .57
CHUNK = 2_000_000  # values of an array at a time
GARCH = (0.1, 0.85)  # of the newest square, of the variance before


@dataclass(frozen=True, slots=True)
class Stream:
    """Hold r runs of b blocks: `gains` (r, b * PERIOD, SYMBOLS), champion's loss less challenger's; `events` likewise.

    `champion` and `challenger` are the losses where the stream has them, zeros where it is made of gains alone. Values
    at bars without an event mean nothing.
    """

    gains: Floats
    events: Bools
    champion: Floats | None = None
    challenger: Floats | None = None

    def means(self, values: Floats | None = None) -> Floats:
        """Return the (r, b) block means of the gains, or of other values of their shape."""
        values = self.gains if values is None else values
        shape = (len(values), -1, PERIOD, SYMBOLS)
        inside = self.events.reshape(shape)[:, :, : HORIZONS * HORIZON]
        parts = np.where(inside, values.reshape(shape)[:, :, : HORIZONS * HORIZON], 0.0).sum(axis=(2, 3))
        return np.asarray(parts / np.maximum(inside.sum(axis=(2, 3)), 1))


def streams(kind: str, seed: int, runs: int, blocks: int, gain: float = 0.0) -> Iterator[Stream]:
    """Yield streams of `kind` until `runs` runs were made, a few at a time.

    kind  a key of NULLS; "better": the challenger knows the true chance, the champion is behind by `gain` nats an
          outcome; "worse": the champion knows it and is ahead of the challenger's base rate by `gain`
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{kind} {gain:g}".encode())])
    at_once = max(1, CHUNK // (blocks * PERIOD * SYMBOLS))
    for first in range(0, runs, at_once):
        shape = (min(at_once, runs - first), blocks * PERIOD, SYMBOLS)
        events = rng.random(shape) < EVENTS_A_DAY / PERIOD
        if kind in MADE_OF_GAINS:
            yield Stream(_summed(_noise(kind, rng, shape)) * np.sqrt(2.0 * SKILL), events)
        else:
            yield _predictors(kind, gain, rng, events)


# ---- gains alone -----------------------------------------------------------------------------------------------------

MADE_OF_GAINS = {"AR 0": 0.0, "AR .3": 0.3, "AR .6": 0.6, "GARCH": 0.0, "GARCH, skewed": 0.0}
NULLS = (*MADE_OF_GAINS, "labels")


def _noise(kind: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Return noise of variance one with HORIZON bars more than `shape`, which is (runs, bars, symbols)."""
    shape = (shape[0], shape[1] + HORIZON, shape[2])
    noise = together(rng, shape)
    if kind == "GARCH, skewed":  # rare large losses of the challenger: variance one, skewness -2
        noise = np.sqrt(1.0 - IN_COMMON) * (1.0 - rng.exponential(size=shape))
        noise += np.sqrt(IN_COMMON) * (1.0 - rng.exponential(size=(*shape[:2], 1)))
    if kind.startswith("GARCH"):
        newest, before = GARCH
        variance = np.ones((shape[0], shape[2]))
        for bar in range(shape[1]):
            noise[:, bar] *= np.sqrt(variance)
            variance = (1.0 - newest - before) + newest * noise[:, bar] ** 2 + before * variance
    return remembered(noise, MADE_OF_GAINS[kind])


def together(rng: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Return independent standard normals whose symbols have the correlation IN_COMMON."""
    own, common = rng.standard_normal(shape), rng.standard_normal((*shape[:2], 1))
    return np.asarray(np.sqrt(1.0 - IN_COMMON) * own + np.sqrt(IN_COMMON) * common)


def remembered(noise: Floats, memory: float) -> Floats:
    """Return noise (runs, bars, symbols) of the same variance whose neighbouring bars have the correlation `memory`."""
    if not memory:
        return noise
    scaled = np.sqrt(1.0 - memory**2) * noise
    scaled[:, 0] = noise[:, 0]  # stationary from the first bar on
    return np.asarray(lfilter([1.0], [1.0, -memory], scaled, axis=1))


def _summed(noise: Floats) -> Floats:
    """Return the sums of the HORIZON bars after each bar over the root of HORIZON: (runs, bars - HORIZON, symbols)."""
    total = np.cumsum(noise, axis=1)
    return np.asarray((total[:, HORIZON:] - total[:, :-HORIZON]) / np.sqrt(HORIZON))


# ---- two predictors of an outcome ------------------------------------------------------------------------------------


def outcomes(skill: float, rng: np.random.Generator, events: Bools) -> tuple[Floats, Bools]:
    """Return of each event the log-odds of its outcome and whether it happens; knowing them gains `skill`, nats."""
    shape = events.shape
    knowledge = logit(BASE_RATE) + spread_of(skill) * remembered(together(rng, shape), MEMORY)[events]
    shocks = together(rng, (shape[0], shape[1] + HORIZON, shape[2]))
    return knowledge, _summed(shocks)[events] < ndtri(expit(knowledge))  # neighbours share their shocks


def _predictors(kind: str, gain: float, rng: np.random.Generator, events: Bools) -> Stream:
    """Return the losses of two predictors of the same outcomes, whose kinds `streams` describes.

    labels  both know the true chance with errors of their own, of the same size: the gain is zero
    """
    shape = events.shape
    knowledge, happens = outcomes(gain if kind == "worse" else SKILL, rng, events)
    if kind == "labels":
        wrong = error_of(SKILL)
        first, second = (knowledge + wrong * remembered(together(rng, shape), MEMORY)[events] for _ in range(2))
    elif kind == "better":
        first = knowledge + error_of(gain) * remembered(together(rng, shape), MEMORY)[events]
        second = knowledge
    elif kind == "worse":
        first, second = knowledge, np.full(len(knowledge), logit(BASE_RATE))
    else:
        raise ValueError(f"no stream {kind!r}; known: {', '.join(NULLS)}, better, worse")
    losses = [np.zeros(shape) for _ in range(2)]
    for loss, log_odds in zip(losses, (first, second), strict=True):
        loss[events] = np.logaddexp(0.0, np.where(happens, -log_odds, log_odds))
    return Stream(losses[0] - losses[1], events, losses[0], losses[1])


def _mean_over_normals(of: Callable[[Floats, Floats], Floats]) -> float:
    """Return the mean of a function of two independent standard normals, by Gauss-Hermite quadrature."""
    at, weight = np.polynomial.hermite_e.hermegauss(40)
    weight = weight / weight.sum()
    return float(weight @ of(at[:, np.newaxis], at[np.newaxis, :]) @ weight)


def _divergence(log_odds: Floats, stated: Floats) -> Floats:
    """Return the mean loss of stated log-odds above that of the true ones, nats."""
    p = expit(log_odds)
    return np.asarray(p * (log_odds - stated) - np.logaddexp(0.0, log_odds) + np.logaddexp(0.0, stated))


@cache
def spread_of(skill: float) -> float:
    """Return the standard deviation of true log-odds with which knowing them gains `skill` over the base rate."""
    base = np.array(logit(BASE_RATE))
    return float(brentq(lambda s: _mean_over_normals(lambda z, _: _divergence(base + s * z + 0 * _, base)) - skill,
                        1e-4, 5.0))  # fmt: skip


@cache
def error_of(gain: float) -> float:
    """Return the standard deviation of an error in the log-odds that costs `gain` nats an outcome."""
    base, spread = logit(BASE_RATE), spread_of(SKILL)

    def excess(error: float) -> float:
        """Return by how much this error costs more than wanted."""
        return _mean_over_normals(lambda z, e: _divergence(base + spread * z, base + spread * z + error * e)) - gain

    return float(brentq(excess, 1e-4, 5.0)) if gain else 0.0
