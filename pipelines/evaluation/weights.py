"""Who should weigh how much: ways to the weights of a pooled forecast, judged on events none of them had seen.

The log loss of a pooled forecast is convex in the weights, so one solver has the answer; a genetic search is held to
it, and is also asked for what has no gradient, the net return of the most confident share. Every candidate that a way
looks at counts as a trial.
"""

import random
from collections.abc import Callable, Mapping
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
    """n resolved events in the order in which they were known.

    category_scores       (n, C) direction × confidence in [-1, 1], 0 = silent, NaN = unavailable
    side       (n,) -1 or 1; label (n,) 1 target first, 0 not; gross_bps (n,) return from fill to exit, before cost
    known      (n,) epoch seconds at which each was decided on, ascending; ended (n,) at which it resolved
    """

    category_scores: Floats
    side: Floats
    label: Floats
    gross_bps: Floats
    known: Floats
    ended: Floats

    def __len__(self) -> int:
        return len(self.side)


@dataclass(frozen=True, slots=True)
class Problem:
    """What weights are chosen on: held-out log-odds, evidence (n, C) counted once and base (n,); label, gross_bps (n,).

    is_fitted     (all categories,) which of them the C are; weights here are theirs alone and sum to 1
    floor     least weight of a category
    coverage  share of the most confident that `net_return` counts
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
        return int(self.evidence.shape[1])

    def odds(self, weights: Floats) -> Floats:
        return np.asarray(self.base + self.categories * (self.evidence @ weights))

    def log_loss(self, weights: Floats) -> float:
        """Mean, in nats."""
        odds = self.odds(weights)
        return float((np.logaddexp(0.0, odds) - self.label * odds).mean())

    def gradient(self, weights: Floats) -> Floats:
        missed = 1.0 / (1.0 + np.exp(-self.odds(weights))) - self.label
        return np.asarray(self.categories * (missed @ self.evidence) / len(missed))

    def net_return(self, weights: Floats) -> float:
        """Mean gross bps of the most confident share: a round trip costs each trade the same and changes no order."""
        odds = self.odds(weights)
        count = max(1, round(len(odds) * self.coverage))
        return float(self.gross_bps[np.argpartition(-odds, count - 1)[:count]].mean())


@dataclass(frozen=True, slots=True)
class Chosen:
    """weights (C,) that sum to 1, and how many candidates were looked at for them."""

    weights: Floats
    trials: int


Way = Callable[[Problem, int], Chosen]  # (problem, seed)


def equal(problem: Problem, seed: int) -> Chosen:
    return Chosen(np.full(problem.categories, 1.0 / problem.categories), 0)


def stated(weights: Floats) -> Way:
    """The same weights (all categories,) whatever the past says."""
    return lambda problem, seed: Chosen(weights[problem.is_fitted] / weights[problem.is_fitted].sum(), 0)


def convex(problem: Problem, seed: int) -> Chosen:
    """Least log loss over the simplex above the floor, by sequential quadratic programming (Kraft 1988)."""
    from scipy.optimize import minimize

    c = problem.categories
    solved = minimize(
        problem.log_loss, np.full(c, 1.0 / c), jac=problem.gradient, method="SLSQP", bounds=[(problem.floor, 1.0)] * c,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like}],
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    if not solved.success:
        raise NotEnoughData(f"no weights of least log loss over {len(problem.label)} events: {solved.message}")
    weights = np.clip(solved.x, problem.floor, 1.0)
    return Chosen(weights / weights.sum(), int(solved.nfev))


def genetic_loss(problem: Problem, seed: int) -> Chosen:
    """Genetic search for the least log loss."""
    return genetic(problem, lambda weights: -problem.log_loss(weights), seed)


def genetic_return(problem: Problem, seed: int) -> Chosen:
    """Genetic search for the highest net return of the most confident share."""
    return genetic(problem, problem.net_return, seed)


def genetic(problem: Problem, fitness: Callable[[Floats], float], seed: int) -> Chosen:
    """The fittest weights of all generations: tournaments of parents and offspring, blend crossover, Gaussian mutation.

    Genes in [0, 1] are what each category gets above the floor, before they are made to sum to 1. The library (DEAP)
    draws from Python's one generator, which is put back as it was.
    """
    from deap import algorithms, base, tools

    class Fitness(base.Fitness):  # type: ignore[misc]
        weights = (1.0,)

    class Candidate(list[float]):
        def __init__(self, genes: Any) -> None:
            super().__init__(genes)
            self.fitness = Fitness()

    c = problem.categories

    def clone(one: Candidate) -> Candidate:
        other = Candidate(one)
        other.fitness.wvalues = one.fitness.wvalues
        return other

    def held(change: Callable[..., tuple[Any, ...]], *genes: Candidate, **how: Any) -> tuple[Any, ...]:
        changed = change(*genes, **how)
        for candidate in changed:
            candidate[:] = [min(max(gene, 0.0), 1.0) for gene in candidate]
        return changed

    toolbox = base.Toolbox()
    toolbox.register("clone", clone)  # its own copies whatever hangs on a candidate, at ten times the price
    toolbox.register("evaluate", lambda genes: (fitness(expressed(np.array(genes), problem.floor)),))
    toolbox.register("mate", held, tools.cxBlend, alpha=0.5)
    toolbox.register("mutate", held, tools.mutGaussian, mu=0.0, sigma=_SPREAD, indpb=1.0 / c)
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
    """(C,) weights of genes (C,): the floor each, and the rest in proportion; equal weights where all genes are 0."""
    total = genes.sum()
    shares = genes / total if total > 0.0 else np.full(len(genes), 1.0 / len(genes))
    return np.asarray(floor + (1.0 - floor * len(genes)) * shares)


# ---- on events that none had seen ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WalkForwardForecasts:
    """What each way's pooled forecast said of the same m events, out of sample.

    rows     (m,) row numbers of the events; base_rate (m,) what the training rows' share of targets said of them
    p        way → (m,) probability; weights way → (folds, C), 0 = not heard, or those given (m, C)
    trials   way → candidates looked at, over all folds
    """

    rows: Ints
    base_rate: Floats
    p: dict[str, Floats]
    weights: dict[str, Floats]
    trials: dict[str, int] = field(default_factory=dict)


def judge(
    events: Events, ways: Mapping[str, Way], given: Mapping[str, Floats], folds: int, min_train_fraction: float,
    embargo_s: float, floor: float, coverage: float, seed: int,
) -> WalkForwardForecasts:  # fmt: skip
    """Walk forward; within each training window evidence is held out again before a way may choose weights on it.

    given  name → (n, C) weights in force at each event, found elsewhere and without a look ahead
    """
    if any(weights.shape != events.category_scores.shape for weights in given.values()):
        raise BadShape(f"weights given for {[w.shape for w in given.values()]}, events {events.category_scores.shape}")
    splits = walk_forward(events.known, events.ended, folds, min_train_fraction, embargo_s)
    names = (*ways, *given)
    p: dict[str, list[Floats]] = {name: [] for name in names}
    found: dict[str, list[Floats]] = {name: [] for name in names}
    trials, base_rate = dict.fromkeys(names, 0), []
    for number, split in enumerate(splits):
        train, test = split.train, split.test
        said, side, label = events.category_scores[train], events.side[train], events.label[train]
        evidence, base = held_out_evidence(said, side, label, events.known[train], events.ended[train], embargo_s)
        pool, told = fit_pool(said, side, label), np.isfinite(base)
        if not (told.any() and pool.is_fitted.any()):
            raise NotEnoughData(f"{len(train)} training events: no category spoke often enough; bring a longer history")
        problem = Problem(
            evidence[np.ix_(told, pool.is_fitted)], base[told], label[told], events.gross_bps[train][told], pool.is_fitted,
            floor, coverage,
        )  # fmt: skip
        brought = pool.evidence(events.category_scores[test], events.side[test])
        base_rate.append(np.full(len(test), _chance(np.array(pool.base))))
        for name, way in ways.items():
            chosen = way(problem, seed + number)
            weights = np.zeros(len(pool.is_fitted))
            weights[pool.is_fitted] = chosen.weights
            p[name].append(_chance(pool.pooled(brought, weights)))
            found[name].append(weights[np.newaxis])
            trials[name] += chosen.trials
        for name, in_force in given.items():
            p[name].append(_chance(pool.pooled(brought, in_force[test])))
            found[name].append(in_force[test])
    return WalkForwardForecasts(
        np.concatenate([split.test for split in splits]),
        np.concatenate(base_rate),
        {name: np.concatenate(parts) for name, parts in p.items()},
        {name: np.concatenate(parts) for name, parts in found.items()},
        trials,
    )


def losses(judged: WalkForwardForecasts, label: Floats) -> dict[str, Floats]:
    """way → (m,) log loss of its forecasts; label (n,) of all events."""
    return {name: log_losses(p, label[judged.rows]) for name, p in judged.p.items()}


def _chance(odds: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))
