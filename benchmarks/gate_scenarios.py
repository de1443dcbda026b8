"""Simulated evidence for the gate, with a known truth: models that are perfect, and models that are bad in one way.

Outcomes share bars: a latent value is averaged over the rows that a label's horizon spans, and an outcome happens where
it is below the true chance, so outcomes follow the chances exactly and depend on their neighbours. What a perfect model
knows moves slowly as well. Both are set as measured on a simulated year; the noise of returns has four degrees of
freedom. No market's result is in here.
"""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import expit, logit, ndtr
from scipy.stats import rankdata

from pipelines.contracts import Floats, JsonObject
from pipelines.evaluation.gates import Evidence, judge
from pipelines.evaluation.verdicts import verdict_state
from pipelines.models.losses import log_losses
from pipelines.params import Params

TARGET_BPS, STOP_BPS, NOISE_BPS = 60.0, 40.0, 12.0
TRIED = 20  # noise models of which the best is taken


@dataclass(frozen=True, slots=True)
class Rows:
    """Describe how a family's rows depend on each other.

    overlap  rows that share a label's horizon; memory: autocorrelation of what is known, from row to row
    share    mean chance of an outcome; n: rows that a year brings the gate
    """

    overlap: int
    memory: float
    share: float
    n: int


# set so that a gain over the base rate depends on its neighbours as on a simulated year: autocorrelations there are
# .16 .05 (validator), .17 .06 (pattern), .58 .36 .20 .10 (predictor) and .56 .30 .14 (regime) from one row on
ROWS = {
    "validator": Rows(3, 0.4, 0.45, 4000),
    "pattern": Rows(4, 0.5, 0.45, 6500),
    "predictor": Rows(5, 0.95, 0.5, 19000),
    "regime": Rows(4, 0.5, 0.5, 20000),
}
CLASSES = ("fvg", "cisd", "cmt", "sweep", "unicorn", "block", "crt", "accumulation", "rare")
PRESENT = (0.45, 0.175, 0.15, 0.14, 0.12, 0.095, 0.07, 0.06, 0.002)  # of rows, as in a simulated year


def averaged(rng: np.random.Generator, n: int, span: int) -> Floats:
    """Return (n,) standard normals, each a mean over `span` rows."""
    return np.convolve(rng.standard_normal(n + span - 1), np.full(span, span**-0.5), "valid")


def remembered(rng: np.random.Generator, n: int, memory: float) -> Floats:
    """Return (n,) standard normals whose neighbours have the correlation `memory`."""
    start = int(10 / (1 - memory))
    noise = rng.standard_normal(n + start)
    return np.asarray(lfilter([np.sqrt(1 - memory**2)], [1.0, -memory], noise)[start:])


def outcomes(rng: np.random.Generator, chance: Floats, span: int) -> Floats:
    """Return (n,) outcomes that happen with their chance, and depend on their neighbours."""
    return (ndtr(averaged(rng, len(chance), span)) < chance).astype(float)


@cache
def spread_of(auc: float, share: float) -> float:
    """Return the standard deviation of true log-odds around `share` with which a model that knows them has this AUC.

    Over all pairs; pairs of one fold rank a little worse where knowledge moves slowly, as their scores are closer.
    """
    score = np.linspace(-8.0, 8.0, 4001)
    density = np.exp(-0.5 * score**2)

    def excess(spread: float) -> float:
        """Return by how much the AUC of this spread is above the wanted one."""
        chance = expit(logit(share) + spread * score)
        won, lost = (each / each.sum() for each in (density * chance, density * (1.0 - chance)))
        return float(won @ (np.cumsum(lost) - 0.5 * lost)) - auc

    return float(brentq(excess, 1e-6, 10.0))


def binary(family: str, n: int, auc: float, rng: np.random.Generator) -> Evidence:
    """Return evidence of a perfect model of one outcome: p is the true chance, whose AUC is about `auc`.

    The logistic knows half of what it knows.
    """
    rows = ROWS[family]
    score, spread = remembered(rng, n, rows.memory), spread_of(auc, rows.share)
    chance = expit(logit(rows.share) + spread * score)
    y = outcomes(rng, chance, rows.overlap)
    base = np.full(n, rows.share)
    half = expit(logit(rows.share) + 0.5 * spread * score)
    noise = rng.standard_t(4, n) * NOISE_BPS
    rivals = {"base_rate": base, "volatility_only" if family == "validator" else "last_sign": base, "logistic": half}
    evidence = Evidence(
        family=family, loss_name="log loss", classes=("target_first",), loss=np.empty(0), baseline_losses={},
        p=chance, y=y, champion_loss=None, trials=1, parity_gap=1e-7, latency_ms=0.1, schema_coverage=1.0,
        novel_share=0.001, baselines=rivals, gross_bps=np.where(y == 1, TARGET_BPS, -STOP_BPS) + noise,
        fold=np.repeat(np.arange(5), -(-n // 5))[:n], rank=rankdata(chance) / n,
    )  # fmt: skip
    return with_losses(evidence)


def with_losses(e: Evidence) -> Evidence:
    """Return the evidence with the losses that follow from its probabilities, and their ranks."""
    losses = log_losses if e.y.ndim == 1 else lambda p, y: ((p - y) ** 2).mean(axis=1)
    rank = rankdata(e.p) / len(e.p) if e.y.ndim == 1 else None
    return replace(
        e, loss=losses(e.p, e.y), baseline_losses={k: losses(p, e.y) for k, p in e.baselines.items()}, rank=rank
    )


def pattern(n: int, spread: float, rng: np.random.Generator) -> Evidence:
    """Return evidence of a perfect recogniser of nine classes, most of them absent from a row.

    spread  standard deviation of the true log-odds of a class that is present
    """
    rows = ROWS["pattern"]
    present = rng.random((n, len(CLASSES))) < PRESENT
    score = np.column_stack([remembered(rng, n, rows.memory) for _ in CLASSES])
    latent = np.column_stack([averaged(rng, n, rows.overlap) for _ in CLASSES])
    common = averaged(rng, n, rows.overlap)[:, np.newaxis]  # one market moves all classes
    chance = expit(logit(rows.share) + spread * score)
    y = np.where(present, ndtr((latent + common) / np.sqrt(2.0)) < chance, 0.0).astype(float)
    p, base = np.where(present, chance, 0.0), np.where(present, rows.share, 0.0)
    half = np.where(present, expit(logit(rows.share) + 0.5 * spread * score), 0.0)
    return with_losses(
        Evidence(
            family="pattern", loss_name="Brier", classes=CLASSES, loss=np.empty(0), baseline_losses={}, p=p, y=y,
            champion_loss=None, trials=1, parity_gap=1e-7, latency_ms=0.1, schema_coverage=1.0, novel_share=0.001,
            baselines={"prevalence": base, "volatility_only": base, "logistic": half}, present=present,
        )
    )  # fmt: skip


def regime(n: int, gain: float, rng: np.random.Generator) -> Evidence:
    """Return evidence of a model whose density is better by `gain` nats a row than those of its baselines.

    The differences have deviation .45 (constant) and .3 to .5 (EWMA), as in a simulated year; four degrees of freedom.
    """
    span = ROWS["regime"].overlap
    loss = 5.7 + averaged(rng, n, span)

    def worse(deviation: float) -> Floats:
        """Return the losses of a baseline."""
        noise = np.convolve(rng.standard_t(4, n + span - 1), np.full(span, span**-0.5), "valid") / np.sqrt(2.0)
        return loss + gain + deviation * noise

    return Evidence(
        family="regime", loss_name="log score", classes=("a", "b", "c", "d"), loss=loss,
        baseline_losses={"ewma": worse(0.5), "ewma_student": worse(0.3), "constant": worse(0.45)},
        p=np.full((n, 4), 0.25), y=averaged(rng, n, span), champion_loss=None, trials=1, parity_gap=1e-7,
        latency_ms=0.1, schema_coverage=1.0, novel_share=0.001,
    )  # fmt: skip


def noise_p(e: Evidence, rng: np.random.Generator, deviation: float = 0.3) -> Floats:
    """Return probabilities around the outcome's share that know nothing of it: the fit of noise."""
    rows = ROWS[e.family]
    p = expit(logit(rows.share) + deviation * rng.standard_normal(e.p.shape))
    return p if e.present is None else np.where(e.present, p, 0.0)


def shifted(e: Evidence, rng: np.random.Generator) -> Evidence:
    """Raise every probability that can be one by .3."""
    cells = np.ones(e.p.shape, dtype=bool) if e.present is None else e.present
    return with_losses(replace(e, p=np.where(cells, np.clip(e.p + 0.3, 0.0, 0.999), e.p)))


def shifted_class(e: Evidence, rng: np.random.Generator, name: str = "cisd") -> Evidence:
    """Raise the probabilities of one class, where it is present, by .3."""
    assert e.present is not None
    p, c = e.p.copy(), e.classes.index(name)
    p[:, c] = np.where(e.present[:, c], np.clip(p[:, c] + 0.3, 0.0, 0.999), 0.0)
    return with_losses(replace(e, p=p))


def overconfident(e: Evidence, rng: np.random.Generator) -> Evidence:
    """Multiply every log-odds by three."""
    cells = np.ones(e.p.shape, dtype=bool) if e.present is None else e.present
    share = ROWS[e.family].share
    steep = expit(logit(share) + 3.0 * (logit(np.where(cells, e.p, 0.5)) - logit(share)))
    return with_losses(replace(e, p=np.where(cells, steep, e.p)))


def equal_to_baseline(e: Evidence, rng: np.random.Generator) -> Evidence:
    """Answer the share of the outcome, whatever is known."""
    base = next(iter(e.baselines.values()))
    tiny = 1e-4 * rng.standard_normal(e.p.shape)
    return with_losses(replace(e, p=np.where(base > 0, base + tiny, 0.0)))


def overfitted(e: Evidence, rng: np.random.Generator) -> Evidence:
    """Take the best of TRIED noise models by these very rows, with the Sharpe ratio of every one on record."""
    assert e.gross_bps is not None
    excess, candidates = e.gross_bps - e.gross_bps.mean(), [noise_p(e, rng) for _ in range(TRIED)]
    taken = [rankdata(p) / len(p) >= 0.8 for p in candidates]
    earned = [np.where(t, excess, 0.0) for t in taken]
    best = int(np.argmax([each.sum() for each in earned]))
    sharpes = [float(excess[t].mean() / excess[t].std()) for t in taken]
    return with_losses(replace(e, p=candidates[best], trials=TRIED, trial_sharpes=sharpes))


Change = Callable[[Evidence, np.random.Generator], Evidence]
BAD: dict[str, tuple[Change, str]] = {  # name → (what is done to a perfect model, the check that is made for it)
    "p + .3": (shifted, "calibration_error"),
    "p + .3, one class": (shifted_class, "calibration_error"),
    "log-odds x 3": (overconfident, "calibration_error"),
    "equal to the baseline": (equal_to_baseline, "gain_over"),
    "best of 20 noise models": (overfitted, "deflated_sharpe"),
}
OF_FAMILY = {
    "validator": ("p + .3", "log-odds x 3", "equal to the baseline", "best of 20 noise models"),
    "pattern": ("p + .3", "p + .3, one class", "log-odds x 3", "equal to the baseline"),
    "predictor": ("p + .3", "log-odds x 3", "equal to the baseline"),
    "regime": (),
}
# of a perfect model: AUC of what can be known, deviation of log-odds, nats a row
EFFECTS = {
    "validator": (0.55, 0.57, 0.58, 0.60, 0.63, 0.65, 0.70),
    "predictor": (0.55, 0.57, 0.58, 0.60, 0.63, 0.65, 0.70),
    "pattern": (0.1, 0.2, 0.3, 0.4, 0.6),
    "regime": (0.0, 0.02, 0.03, 0.05, 0.08, 0.12),
}
# what the bad models are made of
USUAL = {"validator": 0.57, "predictor": 0.57, "pattern": 0.3, "regime": 0.05}


def perfect(family: str, n: int, effect: float, rng: np.random.Generator) -> Evidence:
    """Return evidence of a perfect model of a family; `effect` in the unit of EFFECTS."""
    if family == "pattern":
        return pattern(n, effect, rng)
    return regime(n, effect, rng) if family == "regime" else binary(family, n, effect, rng)


def evidence(family: str, n: int, what: str, rng: np.random.Generator) -> Evidence:
    """Return evidence of `what`: an effect as text for a perfect model, or a key of BAD."""
    if what in BAD:
        return BAD[what][0](perfect(family, n, USUAL[family], rng), rng)
    return perfect(family, n, float(what), rng)


def refusals(family: str, n: int, what: str, repetitions: int, params: Params) -> JsonObject:
    """Judge `repetitions` evidences and return how often the gate and each check refused, or had too few rows.

    refused  not passed, of which `only_few`: no check refused and some had too few rows
    checks   name → refused because of its value; few: name → too few rows
    values   name → median value and median of what is detectable; leak → mean AUC
    """
    refused, few, states = Counter[str](), Counter[str](), Counter[str]()
    values: dict[str, list[float]] = {}
    detectable: dict[str, list[float]] = {}
    seed = zlib.crc32(f"{family} {what} {n}".encode())
    for i in range(repetitions):
        verdict = judge(evidence(family, n, what, np.random.default_rng([seed, i])), params)
        states[verdict_state(verdict)] += 1
        named = {check.name.partition(":")[0] for check in verdict.checks if check.passed is False}
        refused.update(named)
        few.update({check.name.partition(":")[0] for check in verdict.checks if check.passed is None} - named)
        for check in verdict.checks:
            if check.value is not None:
                values.setdefault(check.name, []).append(check.value)
            if check.detectable is not None:
                detectable.setdefault(check.name, []).append(check.detectable)
    return {
        "n": repetitions, "refused": repetitions - states["passed"], "only_few": states["too few"],
        "checks": dict(refused), "few": dict(few),
        "values": {name: float(np.mean(each)) for name, each in values.items()},
        "detectable": {name: float(np.median(each)) for name, each in detectable.items()},
    }  # fmt: skip
