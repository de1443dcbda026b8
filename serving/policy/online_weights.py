"""Learn the categories' weights from resolved outcomes (U5): Hedge with fixed share, and how often patterns pay.

The state is a value: `update` returns the next one, and the same outcomes in the same order give the same bits. Only a
window counts: of the last `history_decisions` outcomes, the newest `outcomes_a_source` on which each category had a
direction. Hedge runs over this window from the stated weights (U1), which gives a target; the weights in force move
there no faster than the step of a day allows and never below the floor.

Sources: Freund and Schapire 1997 (Hedge); Freund, Schapire, Singer and Warmuth 1997 (specialists: a neutral one is not
charged and keeps its share); Herbster and Warmuth 1998 (fixed share); Bousquet and Warmuth 2002 (the shared part goes
to the start vector, so that without evidence the weights stay as stated).
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite

import numpy as np

from pipelines.contracts import CATEGORIES, DAY_S, REGIMES, Floats
from pipelines.errors import BadShape, BadTimes, BadValues, StateError, UnknownName
from pipelines.params import LearningParams

UNKNOWN = "UNKNOWN"  # stands for a regime that was not known
N = len(CATEGORIES)
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ResolvedEvent:
    """Hold an event whose outcome is known.

    at               epoch seconds at which it resolved
    category_scores  (C,) of CATEGORIES at the decision: direction × confidence in [-1, 1]; 0 = neutral, NaN =
                     unavailable
    side             -1 or 1, of the event; label 1 = its target came first, 0 = stop or time
    kind             name of the signal that raised it; regime one of REGIMES, None = not known
    """

    at: float
    category_scores: tuple[float, ...]
    side: float
    label: float
    kind: str = ""
    regime: str | None = None


@dataclass(frozen=True, slots=True)
class OnlineWeights:
    """Hold the whole state of learning; weights (C,) in the order of CATEGORIES, each vector sums to 1.

    stated    weights to start from and to return to
    prior     chance that a target comes first, before any outcome
    weights   in force
    opened    in force when `day` (UTC days since 1970) began; None before the first outcome
    at        epoch seconds of the latest outcome; count: number of outcomes so far
    labels    of the newest `history_decisions`, oldest first
    losses    per category: (number of the outcome, loss) of those in its window, oldest first
    patterns  kind, regime, discounted number of targets, and of stops or times; sorted
    """

    stated: tuple[float, ...]
    prior: float
    weights: tuple[float, ...]
    opened: tuple[float, ...]
    day: int | None = None
    at: float | None = None
    count: int = 0
    labels: tuple[float, ...] = ()
    losses: tuple[tuple[tuple[int, float], ...], ...] = ((),) * N
    patterns: tuple[tuple[str, str, float, float], ...] = ()

    def to_json(self) -> str:
        """Return text that `from_json` reads back to the same bits; bound to these categories."""
        return json.dumps({"categories": CATEGORIES, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> "OnlineWeights":
        """Return the state that `to_json` wrote; raise StateError if it was learned for other categories."""
        record = json.loads(text)
        if (categories := record.pop("categories", None)) != list(CATEGORIES):
            raise StateError(
                f"weights learned for {categories}, these are {list(CATEGORIES)}; learn again from the ledger"
            )
        record["losses"] = tuple(tuple((int(number), loss) for number, loss in own) for own in record["losses"])
        record["patterns"] = tuple(tuple(row) for row in record["patterns"])
        return OnlineWeights(
            **record | {name: tuple(record[name]) for name in ("stated", "weights", "opened", "labels")}
        )


@dataclass(frozen=True, slots=True)
class BetaPosterior:
    """Hold the Beta posterior that a pattern's target comes first: mean with its 95 % interval.

    n  discounted number of outcomes it rests on; 0 = the prior alone
    """

    alpha: float
    beta: float
    mean: float
    low: float
    high: float
    n: float


def initial_state(stated: tuple[float, ...], prior: float, params: LearningParams) -> OnlineWeights:
    """Return the state before any outcome.

    stated  (C,) weights; prior in (0, 1), for instance stop / (target + stop)
    Raises BadShape, or BadValues where they do not sum to 1 or start below the floor.
    """
    if len(stated) != N:
        raise BadShape(f"{len(stated)} stated weights, expected one for each of {', '.join(CATEGORIES)}")
    floor = _floor(params)
    if not (abs(sum(stated) - 1.0) < _ROUNDING and min(stated) >= floor - _ROUNDING):
        raise BadValues(
            f"stated weights {stated} must sum to 1 and each be at least {floor:g} (learning.floor of an equal share); "
            "fix fusion.weights or lower learning.floor in params.yaml"
        )
    if not 0.0 < prior < 1.0:
        raise BadValues(f"prior {prior} is not a chance between 0 and 1; the usual one is 1 / (1 + labels.odds)")
    return OnlineWeights(stated, prior, stated, stated)


def update(state: OnlineWeights, outcome: ResolvedEvent, params: LearningParams) -> OnlineWeights:
    """Return the state after one more outcome; outcomes come in the order in which they resolved.

    A category's loss is that of a bet at the base rate's own odds: ½ - ½ · x · (label - π) / max(π, 1 - π), x its score
    in the event's direction, π the base rate of the outcomes in the window before this one. It lies in [0, 1], and a
    category without information loses ½ on average, however large its scores: a percentile claims an order, not a
    chance, so a squared error would only reward small scores.
    Raises BadTimes for an outcome from before the last one, BadValues, BadShape, UnknownName for a regime.
    """
    _check(state, outcome)
    rate = base_rate(state, params)
    oldest = state.count + 1 - params.history_decisions  # of the outcomes in the window
    losses = []
    for score, window in zip(outcome.category_scores, state.losses, strict=True):
        if score == score and score != 0.0:
            gain = score * outcome.side * (outcome.label - rate) / max(rate, 1.0 - rate)
            window = (*window, (state.count, 0.5 - 0.5 * gain))[-params.outcomes_a_source :]
        losses.append(tuple(one for one in window if one[0] >= oldest))
    day = int(outcome.at // DAY_S)
    opened = state.weights if day != state.day else state.opened
    after = replace(
        state,
        opened=opened,
        day=day,
        at=outcome.at,
        count=state.count + 1,
        labels=(*state.labels, outcome.label)[-params.history_decisions :],
        losses=tuple(losses),
        patterns=_counted(state, outcome, params),
    )
    return replace(after, weights=_bounded(target_weights(after, params), after, params))


def target_weights(state: OnlineWeights, params: LearningParams) -> tuple[float, ...]:
    """Return (C,) weights of Hedge with fixed share over the window, before floor and step; they sum to 1.

    A neutral category keeps its share; one that has the only direction on an outcome is compared with none and keeps
    it too.
    """
    by_outcome: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for c, window in enumerate(state.losses):
        for number, loss in window:
            by_outcome[number].append((c, loss))
    weights, stated, share = list(state.stated), state.stated, params.share
    for number in sorted(by_outcome):
        active = by_outcome[number]
        if len(active) < 2:
            continue
        mass = sum(weights[c] for c, _ in active)
        raised = [weights[c] * exp(-params.rate * loss) for c, loss in active]
        total, start = sum(raised), sum(stated[c] for c, _ in active)
        for (c, _), value in zip(active, raised, strict=True):
            weights[c] = mass * ((1.0 - share) * value / total + share * stated[c] / start)
    return tuple(weights)


def base_rate(state: OnlineWeights, params: LearningParams) -> float:
    """Return the share of outcomes in the window whose target came first, with the prior as `prior_outcomes` more."""
    extra = params.prior_outcomes
    return (sum(state.labels) + extra * state.prior) / (len(state.labels) + extra)


def pattern_posterior(state: OnlineWeights, kind: str, regime: str | None, params: LearningParams) -> BetaPosterior:
    """Return the posterior that events of this kind pay in this regime; the prior counts as `prior_outcomes`."""
    key = (kind, regime or UNKNOWN)
    won, lost = next(((row[2], row[3]) for row in state.patterns if row[:2] == key), (0.0, 0.0))
    alpha = params.prior_outcomes * state.prior + won
    beta = params.prior_outcomes * (1.0 - state.prior) + lost
    low, high = beta_quantiles(alpha, beta, (0.025, 0.975))
    return BetaPosterior(alpha, beta, alpha / (alpha + beta), low, high, won + lost)


def beta_quantiles(alpha: float, beta: float, levels: tuple[float, ...]) -> tuple[float, ...]:
    """Return quantiles of a Beta distribution to five digits.

    Sums the density over log-odds, where it is smooth for any alpha, beta above 0 and falls off as exp(-alpha·|t|) and
    exp(-beta·t).
    """
    centre, spread = np.log(alpha / beta), np.sqrt((alpha + beta) / (alpha * beta))
    t = np.linspace(centre - 10.0 * spread - 30.0 / alpha, centre + 10.0 * spread + 30.0 / beta, 8001)
    logs = alpha * t - (alpha + beta) * np.logaddexp(0.0, t)
    density = np.exp(logs - logs.max())
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return tuple(float(1.0 / (1.0 + np.exp(-q))) for q in np.interp(np.array(levels) * mass[-1], mass, t))


def weights_in_force(
    state: OnlineWeights,
    scores: Floats,
    side: Floats,
    label: Floats,
    at: Floats,
    decided: Floats,
    params: LearningParams,
) -> Floats:
    """Return (n, C) weights in force at the decision on each of n events, learned from what had resolved by then.

    scores (n, C), side, label, at (n,) as in ResolvedEvent; decided (n,) epoch seconds, in any order
    """
    n = len(side)
    if scores.shape != (n, N) or any(values.shape != (n,) for values in (label, at, decided)):
        raise BadShape(
            f"scores {scores.shape}, label {label.shape}, at {at.shape}, decided {decided.shape}: {n} events"
        )
    weights, resolved, known = np.empty((n, N)), np.argsort(at, kind="stable"), 0
    for i in np.argsort(decided, kind="stable"):
        while known < n and at[resolved[known]] <= decided[i]:
            k = resolved[known]
            event = ResolvedEvent(float(at[k]), tuple(scores[k].tolist()), float(side[k]), float(label[k]))
            state, known = update(state, event, params), known + 1
        weights[i] = state.weights
    return weights


def _check(state: OnlineWeights, outcome: ResolvedEvent) -> None:
    """Raise for an outcome that cannot be learned from; errors as in `update`."""
    if len(outcome.category_scores) != N:
        raise BadShape(f"{len(outcome.category_scores)} category scores, expected {N}: {', '.join(CATEGORIES)}")
    if not isfinite(outcome.at) or (state.at is not None and outcome.at < state.at):
        raise BadTimes(f"outcome at {outcome.at} after one at {state.at}; learn in the order in which they resolved")
    if outcome.side not in (-1.0, 1.0) or outcome.label not in (0.0, 1.0):
        raise BadValues(f"side {outcome.side} (expected -1 or 1) with label {outcome.label} (expected 0 or 1)")
    if any(abs(value) > 1.0 for value in outcome.category_scores):
        raise BadValues(
            f"category scores {outcome.category_scores}: expected direction × confidence in [-1, 1], NaN if unavailable"
        )
    if outcome.regime is not None and outcome.regime not in REGIMES:
        raise UnknownName(f"no regime {outcome.regime!r}; known: {', '.join(REGIMES)}")


def _counted(
    state: OnlineWeights, outcome: ResolvedEvent, params: LearningParams
) -> tuple[tuple[str, str, float, float], ...]:
    """Return the patterns' counts with this outcome; a pattern's earlier counts fade by the discount."""
    counts = {(kind, regime): (won, lost) for kind, regime, won, lost in state.patterns}
    key = (outcome.kind, outcome.regime or UNKNOWN)
    won, lost = counts.get(key, (0.0, 0.0))
    counts[key] = (params.discount * won + outcome.label, params.discount * lost + 1.0 - outcome.label)
    return tuple((*name, *values) for name, values in sorted(counts.items()))


def _floor(params: LearningParams) -> float:
    """Return the minimum weight of a category."""
    return params.floor / N


def _bounded(wanted: tuple[float, ...], state: OnlineWeights, params: LearningParams) -> tuple[float, ...]:
    """Return the nearest weights to `wanted` that keep the floor and the step of the day and sum to 1.

    Nearest by relative entropy: each is λ · wanted, cut at its bounds, with the one λ that makes the sum 1. The weights
    at the start of the day satisfy the bounds, so λ exists. A category without losses keeps its weight.
    """
    moves = np.array([bool(window) for window in state.losses]) | (np.array(state.weights) != np.array(state.stated))
    weights = np.array(state.weights)
    if moves.sum() < 2:
        return state.weights
    aim, opened = np.array(wanted)[moves], np.array(state.opened)[moves]
    low = np.minimum(np.maximum(_floor(params), opened * (1.0 - params.max_step_a_day)), opened)
    high = opened * (1.0 + params.max_step_a_day)
    turns = np.sort(np.concatenate([low / aim, high / aim]))  # where the sum, as a line of λ, changes its slope
    sums = np.clip(turns[:, None] * aim, low, high).sum(axis=1)
    scale = np.interp(1.0 - weights[~moves].sum(), sums, turns)
    weights[moves] = np.clip(scale * aim, low, high)
    return tuple(weights.tolist())
