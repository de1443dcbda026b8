"""What the categories' weights become as outcomes resolve (U5): Hedge with fixed share, and how often patterns pay.

The state is a value: `update` gives the next one, and the same outcomes in the same order give the same bits. Only what
is remembered counts: of the last `history_decisions` outcomes, the newest `outcomes_a_source` that each category was
heard on. Over these Hedge is run anew from the stated weights (U1), which gives a target; the weights in force move
there no faster than the step of a day allows and never under the floor.

Sources: Freund and Schapire 1997 (Hedge); Freund, Schapire, Singer and Warmuth 1997 (specialists: who is silent is not
charged and keeps its share); Herbster and Warmuth 1998 (fixed share); Bousquet and Warmuth 2002 (what is shared goes to
the start vector, so that without evidence the weights stay as stated).
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite

import numpy as np

from pipelines.contracts import CATEGORIES, REGIMES, Floats
from pipelines.errors import BadShape, BadTimes, BadValues, StateError, UnknownName
from pipelines.params import LearningParams

DAY_S = 86_400.0
UNKNOWN = "UNKNOWN"  # stands for a regime nobody knew
N = len(CATEGORIES)
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ResolvedEvent:
    """An event whose outcome is known.

    at      epoch seconds at which it resolved
    category_scores (C,) what each of CATEGORIES said when it was decided on: direction × confidence in [-1, 1], 0 = silent,
            NaN = unavailable
    side    -1 or 1, of the event; label 1 = its target came first, 0 = stop or time
    kind    name of the signal that raised it; regime one of REGIMES, None = not known
    """

    at: float
    category_scores: tuple[float, ...]
    side: float
    label: float
    kind: str = ""
    regime: str | None = None


@dataclass(frozen=True, slots=True)
class OnlineWeights:
    """Everything that is remembered. Weights (C,) in the order of CATEGORIES; each sums to 1.

    stated    weights to start from and to come back to
    prior     chance that a target comes first before anything was seen
    weights   in force
    opened    in force when `day` (UTC days since 1970) began; None before the first outcome
    at        epoch seconds of the latest outcome; count how many there were
    labels    of the newest `history_decisions`, oldest first
    losses    a category: (number of the outcome, loss) of those it is remembered by, oldest first
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
        """Text that `from_json` reads back to the same bits; bound to these categories."""
        return json.dumps({"categories": CATEGORIES, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> "OnlineWeights":
        """Raises StateError if it was learnt for other categories."""
        told = json.loads(text)
        if (categories := told.pop("categories", None)) != list(CATEGORIES):
            raise StateError(
                f"weights learnt for {categories}, these are {list(CATEGORIES)}; learn again from the ledger"
            )
        told["losses"] = tuple(tuple((int(number), loss) for number, loss in heard) for heard in told["losses"])
        told["patterns"] = tuple(tuple(row) for row in told["patterns"])
        return OnlineWeights(**told | {name: tuple(told[name]) for name in ("stated", "weights", "opened", "labels")})


@dataclass(frozen=True, slots=True)
class BetaPosterior:
    """Beta posterior that a pattern's target comes first: mean with its 95 % interval.

    n  discounted number of outcomes it rests on; 0 = the prior alone speaks
    """

    alpha: float
    beta: float
    mean: float
    low: float
    high: float
    n: float


def initial_state(stated: tuple[float, ...], prior: float, params: LearningParams) -> OnlineWeights:
    """Nothing learnt yet. stated (C,) weights; prior in (0, 1), for instance stop / (target + stop).

    Raises BadShape, or BadValues where they do not sum to 1 or begin under the floor.
    """
    if len(stated) != N:
        raise BadShape(f"{len(stated)} stated weights, expected one for each of {', '.join(CATEGORIES)}")
    floor = _floor(params)
    if not (abs(sum(stated) - 1.0) < _ROUNDING and min(stated) >= floor - _ROUNDING):
        raise BadValues(
            f"stated weights {stated} must sum to 1 and each be at least {floor:g} (learning.floor of an equal share); "
            "mend fusion.weights or lower learning.floor in params.yaml"
        )
    if not 0.0 < prior < 1.0:
        raise BadValues(f"prior {prior} is no chance between 0 and 1; 1 / (1 + labels.odds) is the usual one")
    return OnlineWeights(stated, prior, stated, stated)


def update(state: OnlineWeights, outcome: ResolvedEvent, params: LearningParams) -> OnlineWeights:
    """The state after one more outcome; outcomes come in the order in which they resolved.

    A category's loss is that of a bet at the base rate's own odds: ½ - ½ · x · (label - π) / max(π, 1 - π), x what it
    said in the event's direction, π the base rate of the remembered outcomes before this one. It lies in [0, 1], and a
    category that knows nothing loses ½ on average however boldly it speaks: a percentile claims an order, not a
    chance, so a squared error would only pay it for being timid.
    Raises BadTimes for an outcome from before the last one, BadValues, BadShape, UnknownName for a regime.
    """
    _check(state, outcome)
    rate = base_rate(state, params)
    oldest = state.count + 1 - params.history_decisions  # of the outcomes still remembered
    losses = []
    for said, heard in zip(outcome.category_scores, state.losses, strict=True):
        if said == said and said != 0.0:
            gain = said * outcome.side * (outcome.label - rate) / max(rate, 1.0 - rate)
            heard = (*heard, (state.count, 0.5 - 0.5 * gain))[-params.outcomes_a_source :]
        losses.append(tuple(one for one in heard if one[0] >= oldest))
    day = int(outcome.at // DAY_S)
    opened = state.weights if day != state.day else state.opened
    told = replace(
        state,
        opened=opened,
        day=day,
        at=outcome.at,
        count=state.count + 1,
        labels=(*state.labels, outcome.label)[-params.history_decisions :],
        losses=tuple(losses),
        patterns=_counted(state, outcome, params),
    )
    return replace(told, weights=_bounded(target_weights(told, params), told, params))


def target_weights(state: OnlineWeights, params: LearningParams) -> tuple[float, ...]:
    """(C,) where Hedge with fixed share stands after what is remembered, before floor and step. Sums to 1.

    Who is silent keeps its share; who is heard alone is compared with nobody, and keeps it too.
    """
    told: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for c, heard in enumerate(state.losses):
        for number, loss in heard:
            told[number].append((c, loss))
    weights, stated, share = list(state.stated), state.stated, params.share
    for number in sorted(told):
        awake = told[number]
        if len(awake) < 2:
            continue
        mass = sum(weights[c] for c, _ in awake)
        raised = [weights[c] * exp(-params.rate * loss) for c, loss in awake]
        total, begun = sum(raised), sum(stated[c] for c, _ in awake)
        for (c, _), value in zip(awake, raised, strict=True):
            weights[c] = mass * ((1.0 - share) * value / total + share * stated[c] / begun)
    return tuple(weights)


def base_rate(state: OnlineWeights, params: LearningParams) -> float:
    """Share of the remembered outcomes whose target came first, with the prior as `prior_outcomes` more of them."""
    seen = params.prior_outcomes
    return (sum(state.labels) + seen * state.prior) / (len(state.labels) + seen)


def pattern_posterior(state: OnlineWeights, kind: str, regime: str | None, params: LearningParams) -> BetaPosterior:
    """How sure it is that events of this kind pay in this regime. The prior counts as `prior_outcomes` outcomes."""
    key = (kind, regime or UNKNOWN)
    won, lost = next(((row[2], row[3]) for row in state.patterns if row[:2] == key), (0.0, 0.0))
    alpha = params.prior_outcomes * state.prior + won
    beta = params.prior_outcomes * (1.0 - state.prior) + lost
    low, high = beta_quantiles(alpha, beta, (0.025, 0.975))
    return BetaPosterior(alpha, beta, alpha / (alpha + beta), low, high, won + lost)


def beta_quantiles(alpha: float, beta: float, levels: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of a Beta distribution, by summing its density over log-odds, where it is smooth for any alpha, beta
    above 0 and falls off as exp(-alpha·|t|) and exp(-beta·t). Five digits."""
    centre, spread = np.log(alpha / beta), np.sqrt((alpha + beta) / (alpha * beta))
    t = np.linspace(centre - 10.0 * spread - 30.0 / alpha, centre + 10.0 * spread + 30.0 / beta, 8001)
    logs = alpha * t - (alpha + beta) * np.logaddexp(0.0, t)
    density = np.exp(logs - logs.max())
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return tuple(float(1.0 / (1.0 + np.exp(-q))) for q in np.interp(np.array(levels) * mass[-1], mass, t))


def weights_in_force(
    state: OnlineWeights, said: Floats, side: Floats, label: Floats, at: Floats, decided: Floats, params: LearningParams
) -> Floats:
    """(n, C) weights in force when each of n events was decided on: learnt from what had resolved by then.

    said (n, C), side, label, at (n,) as in ResolvedEvent; decided (n,) epoch seconds, in any order
    """
    n = len(side)
    if said.shape != (n, N) or any(values.shape != (n,) for values in (label, at, decided)):
        raise BadShape(f"said {said.shape}, label {label.shape}, at {at.shape}, decided {decided.shape}: {n} events")
    weights, resolved, known = np.empty((n, N)), np.argsort(at, kind="stable"), 0
    for i in np.argsort(decided, kind="stable"):
        while known < n and at[resolved[known]] <= decided[i]:
            k = resolved[known]
            told = ResolvedEvent(float(at[k]), tuple(said[k].tolist()), float(side[k]), float(label[k]))
            state, known = update(state, told, params), known + 1
        weights[i] = state.weights
    return weights


def _check(state: OnlineWeights, outcome: ResolvedEvent) -> None:
    if len(outcome.category_scores) != N:
        raise BadShape(f"{len(outcome.category_scores)} categories spoke, expected {N}: {', '.join(CATEGORIES)}")
    if not isfinite(outcome.at) or (state.at is not None and outcome.at < state.at):
        raise BadTimes(f"outcome at {outcome.at} after one at {state.at}; learn in the order in which they resolved")
    if outcome.side not in (-1.0, 1.0) or outcome.label not in (0.0, 1.0):
        raise BadValues(f"side {outcome.side} (expected -1 or 1) with label {outcome.label} (expected 0 or 1)")
    if any(abs(value) > 1.0 for value in outcome.category_scores):
        raise BadValues(
            f"said {outcome.category_scores}: direction × confidence lies in [-1, 1], NaN where unavailable"
        )
    if outcome.regime is not None and outcome.regime not in REGIMES:
        raise UnknownName(f"no regime {outcome.regime!r}; known: {', '.join(REGIMES)}")


def _counted(
    state: OnlineWeights, outcome: ResolvedEvent, params: LearningParams
) -> tuple[tuple[str, str, float, float], ...]:
    """The patterns' counts with this outcome; what a pattern counted before fades by the discount of one outcome."""
    counts = {(kind, regime): (won, lost) for kind, regime, won, lost in state.patterns}
    key = (outcome.kind, outcome.regime or UNKNOWN)
    won, lost = counts.get(key, (0.0, 0.0))
    counts[key] = (params.discount * won + outcome.label, params.discount * lost + 1.0 - outcome.label)
    return tuple((*name, *values) for name, values in sorted(counts.items()))


def _floor(params: LearningParams) -> float:
    return params.floor / N


def _bounded(wanted: tuple[float, ...], state: OnlineWeights, params: LearningParams) -> tuple[float, ...]:
    """Of the weights that keep the floor and the step of the day and sum to 1, the nearest to `wanted`.

    Nearest by relative entropy: each is λ · wanted, cut at its bounds, with the one λ that makes the sum right. The
    bounds hold where the day began, so there always is one. Who was never heard stays where it is.
    """
    moves = np.array([bool(heard) for heard in state.losses]) | (np.array(state.weights) != np.array(state.stated))
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
