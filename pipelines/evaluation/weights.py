"""Weights of a pooled forecast: optimisers, evaluated on events outside their training.

The log loss of a pooled forecast is convex in the weights, so one solver finds the optimum. A genetic search is
compared with it, and also maximises what has no gradient, the net return of the most confident share. Every candidate
that an optimiser evaluates counts as a trial.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.contracts import Bools, Floats, Ints
from pipelines.errors import BadShape, NotEnoughData
from pipelines.evaluation.pooling import fit_pool, held_out_evidence
from pipelines.labels.splits import walk_forward
from pipelines.models.losses import log_losses

POPULATION = 50
GENERATIONS = 100
MUTATION = 0.1  # share of the offspring that is mutated instead of crossed over
_SPREAD = 0.2  # standard deviation of a mutated gene; genes lie in [0, 1]
_TOURNAMENT = 3


@dataclass(frozen=True, slots=True)
class Events:
    """Hold n resolved events in the order in which they were known.

    category_scores  (n, C) direction × confidence in [-1, 1], 0 = neutral, NaN = unavailable
    side       (n,) -1 or 1; label (n,) 1 target first, 0 not; gross_bps (n,) return from fill to exit, before cost
    known      (n,) epoch seconds of each decision, ascending; ended (n,) of its resolution
    """

    category_scores: Floats
    side: Floats
    label: Floats
    gross_bps: Floats
    known: Floats
    ended: Floats

    def __len__(self) -> int:
        """Return the number of events, n."""
        return len(self.side)


@dataclass(frozen=True, slots=True)
class Problem:
    """Hold what weights are optimised on: held-out log-odds, evidence (n, C) and base (n,); label, gross_bps (n,).

    is_fitted  (all categories,) True for the C fitted ones; weights here are theirs alone and sum to 1
    floor      least weight of a category
    coverage   share of the most confident events in `net_return`
    """

    evidence: Floats
    base: Floats
    label: Floats
    gross_bps: Floats
    is_fitted: Bools
    floor: float
    coverage: float

    @property
    def categories(self) -> int:
        """Return the number of fitted categories, C."""
        return int(self.evidence.shape[1])

    def odds(self, weights: Floats) -> Floats:
        """Return (n,) pooled log-odds."""
        return np.asarray(self.base + self.categories * (self.evidence @ weights))

    def log_loss(self, weights: Floats) -> float:
        """Return the mean log loss in nats."""
        odds = self.odds(weights)
        return float((np.logaddexp(0.0, odds) - self.label * odds).mean())

    def gradient(self, weights: Floats) -> Floats:
        """Return (C,) the gradient of the log loss."""
        missed = 1.0 / (1.0 + np.exp(-self.odds(weights))) - self.label
        return np.asarray(self.categories * (missed @ self.evidence) / len(missed))

    def net_return(self, weights: Floats) -> float:
        """Return mean gross bps of the most confident share; a cost common to all trades would not change the order."""
        odds = self.odds(weights)
        count = max(1, round(len(odds) * self.coverage))
        return float(self.gross_bps[np.argpartition(-odds, count - 1)[:count]].mean())


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hold weights (C,) that sum to 1, and the number of candidates evaluated to find them."""

    weights: Floats
    trials: int


Optimiser = Callable[[Problem, int], Chosen]  # (problem, seed)


def equal(problem: Problem, seed: int) -> Chosen:
    """Return equal weights."""
    return Chosen(np.full(problem.categories, 1.0 / problem.categories), 0)


def stated(weights: Floats) -> Optimiser:
    """Return an optimiser that always gives these weights (all categories,)."""
    return lambda problem, seed: Chosen(weights[problem.is_fitted] / weights[problem.is_fitted].sum(), 0)


def convex(problem: Problem, seed: int) -> Chosen:
    """Return the weights of least log loss above the floor, by sequential quadratic programming (Kraft 1988)."""
    from scipy.optimize import minimize

    c = problem.categories
    solved = minimize(
        problem.log_loss, np.full(c, 1.0 / c), jac=problem.gradient, method="SLSQP", bounds=[(problem.floor, 1.0)] * c,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like}],
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    if not solved.success:
        raise NotEnoughData(
            f"no weights of least log loss over {len(problem.label)} events: {solved.message}; bring a longer history"
        )
    weights = np.clip(solved.x, problem.floor, 1.0)
    return Chosen(weights / weights.sum(), int(solved.nfev))


def genetic_loss(problem: Problem, seed: int) -> Chosen:
    """Search genetically for the least log loss."""
    return genetic(problem, lambda weights: -problem.log_loss(weights), seed)


def genetic_return(problem: Problem, seed: int) -> Chosen:
    """Search genetically for the highest net return of the most confident share."""
    return genetic(problem, problem.net_return, seed)


def genetic(problem: Problem, fitness: Callable[[Floats], float], seed: int) -> Chosen:
    """Return the fittest weights of all generations: tournaments, blend crossover, Gaussian mutation.

    Genes in [0, 1] are each category's share above the floor, before normalisation. The library (DEAP) draws from
    Python's global generator, whose state is restored.
    """
    from deap import algorithms, base, tools

    class Fitness(base.Fitness):
        """Hold the single value to maximise."""

        weights = (1.0,)

    class Candidate(list[float]):
        """Hold one candidate's weights (genes) with their fitness."""

        def __init__(self, genes: Iterable[float]) -> None:
            """Start without a fitness."""
            super().__init__(genes)
            self.fitness = Fitness()

    c = problem.categories

    def clone(candidate: Candidate) -> Candidate:
        """Return a copy with its fitness."""
        copy = Candidate(candidate)
        copy.fitness.wvalues = candidate.fitness.wvalues
        return copy

    def clipped(change: Callable[..., tuple[Any, ...]], *genes: Candidate, **options: Any) -> tuple[Any, ...]:
        """Apply a change and clip the genes to [0, 1]."""
        changed = change(*genes, **options)
        for candidate in changed:
            candidate[:] = [min(max(gene, 0.0), 1.0) for gene in candidate]
        return changed

    toolbox = base.Toolbox()
    toolbox.register("clone", clone)  # the library's own deep copy takes ten times as long
    toolbox.register("evaluate", lambda genes: (fitness(expressed(np.array(genes), problem.floor)),))
    toolbox.register("mate", clipped, tools.cxBlend, alpha=0.5)
    toolbox.register("mutate", clipped, tools.mutGaussian, mu=0.0, sigma=_SPREAD, indpb=1.0 / c)
    toolbox.register("select", tools.selTournament, tournsize=_TOURNAMENT)
    before = random.getstate()
    random.seed(seed)
    try:
        population = [Candidate(random.random() for _ in range(c)) for _ in range(POPULATION)]
        best = tools.HallOfFame(1)
        _, book = algorithms.eaMuPlusLambda(
            population, toolbox, mu=POPULATION, lambda_=POPULATION, cxpb=1.0 - MUTATION, mutpb=MUTATION,
            ngen=GENERATIONS, halloffame=best, verbose=False,
        )  # fmt: skip
    finally:
        random.setstate(before)
    return Chosen(expressed(np.array(best[0]), problem.floor), int(sum(book.select("nevals"))))


def expressed(genes: Floats, floor: float) -> Floats:
    """Return (C,) weights of genes (C,): the floor plus a share of the rest; equal weights if all genes are 0."""
    total = genes.sum()
    shares = genes / total if total > 0.0 else np.full(len(genes), 1.0 / len(genes))
    return np.asarray(floor + (1.0 - floor * len(genes)) * shares)


# ---- on events outside their training -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WalkForwardForecasts:
    """Hold each optimiser's pooled forecasts of the same m events, out of sample.

    rows     (m,) row numbers of the events; base_rate (m,) share of targets among the training rows
    p        optimiser → (m,) probability; weights: optimiser → (folds, C), 0 = not fitted, or those given (m, C)
    trials   optimiser → candidates evaluated, over all folds
    """

    rows: Ints
    base_rate: Floats
    p: dict[str, Floats]
    weights: dict[str, Floats]
    trials: dict[str, int] = field(default_factory=dict)


def judge(
    events: Events, optimisers: Mapping[str, Optimiser], given: Mapping[str, Floats], folds: int,
    min_train_fraction: float, embargo_s: float, floor: float, coverage: float, seed: int,
) -> WalkForwardForecasts:  # fmt: skip
    """Walk forward: in each training window optimise weights on held-out evidence, and forecast the next stretch.

    given   name → (n, C) weights in force at each event, found elsewhere without looking ahead
    Raises  BadShape on other weights; NotEnoughData if no category can be fitted
    """
    if any(weights.shape != events.category_scores.shape for weights in given.values()):
        raise BadShape(
            f"given weights {[w.shape for w in given.values()]}, scores {events.category_scores.shape}: must be equal"
        )
    splits = walk_forward(events.known, events.ended, folds, min_train_fraction, embargo_s)
    names = (*optimisers, *given)
    p: dict[str, list[Floats]] = {name: [] for name in names}
    found: dict[str, list[Floats]] = {name: [] for name in names}
    trials, base_rate = dict.fromkeys(names, 0), []
    for number, split in enumerate(splits):
        train, test = split.train, split.test
        scores, side, label = events.category_scores[train], events.side[train], events.label[train]
        evidence, base = held_out_evidence(scores, side, label, events.known[train], events.ended[train], embargo_s)
        pool, known = fit_pool(scores, side, label), np.isfinite(base)
        if not (known.any() and pool.is_fitted.any()):
            raise NotEnoughData(f"{len(train)} training events: no category has enough scores; bring a longer history")
        problem = Problem(
            evidence[np.ix_(known, pool.is_fitted)], base[known], label[known], events.gross_bps[train][known],
            pool.is_fitted, floor, coverage,
        )  # fmt: skip
        test_evidence = pool.evidence(events.category_scores[test], events.side[test])
        base_rate.append(np.full(len(test), _chance(np.array(pool.base))))
        for name, optimise in optimisers.items():
            chosen = optimise(problem, seed + number)
            weights = np.zeros(len(pool.is_fitted))
            weights[pool.is_fitted] = chosen.weights
            p[name].append(_chance(pool.pooled(test_evidence, weights)))
            found[name].append(weights[np.newaxis])
            trials[name] += chosen.trials
        for name, in_force in given.items():
            p[name].append(_chance(pool.pooled(test_evidence, in_force[test])))
            found[name].append(in_force[test])
    return WalkForwardForecasts(
        np.concatenate([split.test for split in splits]),
        np.concatenate(base_rate),
        {name: np.concatenate(parts) for name, parts in p.items()},
        {name: np.concatenate(parts) for name, parts in found.items()},
        trials,
    )


def losses(judged: WalkForwardForecasts, label: Floats) -> dict[str, Floats]:
    """Return optimiser → (m,) log losses of its forecasts, nats; label (n,) of all events."""
    return {name: log_losses(p, label[judged.rows]) for name, p in judged.p.items()}


def _chance(odds: Floats) -> Floats:
    """Return probabilities of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))
