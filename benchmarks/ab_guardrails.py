"""How often guardrails stop a harmless challenger, and after how long a harmful one: runs behind docs/results/ab.md.

Everything is simulated with a known truth, at the limits of params.yaml. Seeds are counted from 0, none was left out.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from benchmarks.ab import MAX_BLOCKS, first_at, median_of, over_cases, share_of
from benchmarks.ab_streams import (
    CHUNK,
    EVENTS_A_DAY,
    MEMORY,
    PERIOD,
    SKILL,
    SYMBOLS,
    Stream,
    outcomes,
    remembered,
    together,
)
from pipelines.contracts import Floats, Ints, JsonObject
from pipelines.experiments.guardrails import (
    HARM_CLIP,
    LATENCY_ALONE,
    LATENCY_ANSWERS,
    Metric,
    block_harm,
    drawdown_harm,
    fault_harm,
    limit_of,
)
from pipelines.experiments.sample_ratio import StageCount, sample_ratio
from pipelines.params import GuardrailParams
from pipelines.settings import load_params

RUNS, HARM_RUNS, SEEDS = 1000, 250, 2  # a case; a level needs more of them than a median
ANSWERS = SYMBOLS * EVENTS_A_DAY  # of a block
EPISODE_MEMORY = 0.9 ** (EVENTS_A_DAY / PERIOD)  # a bar: 0.9 from event to event, so that blocks are like those before
BASE = {"abstention": 0.2, "novelty": 0.1}  # the champion's share
BASE_MS, SPREAD = 10.0, 0.5  # median and sd of the logarithm of an answer's time
SLOW_SHARE, SLOW_ANSWERS, SLOW_TIMES = 0.1, 200, 2.5  # of a machine that is slow at times: both arms are at the limit


@dataclass(frozen=True, slots=True)
class Scenario:
    """Describe a challenger.

    challenger  in words; harmless: the level is promised of it
    size        of what it does: share above the champion's, probability off, times slower, share of faults, or the
                policy's mean return a day, in standard deviations
    kind        of stream where there are several
    """

    metric: Metric
    challenger: str
    harmless: bool
    size: float
    kind: str = ""
    sd: float = 0.0  # of the account a day, share of equity


# the limits themselves are rows here: at "limit" the size is the limit
LIMIT = -1.0
SCENARIOS = {
    f"{one.metric}: {one.challenger}": one
    for one in (
        Scenario("abstention", "as often as the champion", True, 0.0),
        Scenario("abstention", "as often as the champion, in episodes", True, 0.0, "episodes"),
        Scenario("abstention", "at the limit", True, LIMIT),
        Scenario("abstention", "at the limit, in episodes", False, LIMIT, "episodes"),
        Scenario("abstention", "30 % more", False, 0.3),
        Scenario("abstention", "50 % more", False, 0.5),
        Scenario("abstention", "always", False, 1.0 - BASE["abstention"]),
        Scenario("novelty", "as often as the champion", True, 0.0),
        Scenario("novelty", "as often as the champion, in episodes", True, 0.0, "episodes"),
        Scenario("novelty", "at the limit", True, LIMIT),
        Scenario("novelty", "at the limit, in episodes", False, LIMIT, "episodes"),
        Scenario("novelty", "40 % more", False, 0.4),
        Scenario("calibration", "calibrated", True, 0.0),
        Scenario("calibration", "off by the limit", True, LIMIT),
        Scenario("calibration", "off by .10", False, 0.10),
        Scenario("calibration", "off by .15", False, 0.15),
        Scenario("calibration", "off by .25", False, 0.25),
        Scenario("latency", "as fast as the champion", True, 1.0),
        Scenario("latency", "as fast, the machine slow at times", True, 1.0, "slow machine"),
        Scenario("latency", "half as slow again, within the limit", True, 1.5),
        Scenario("latency", "3 times slower", False, 3.0),
        Scenario("fault", "no fault", True, 0.0),
        Scenario("fault", "1 % of the answers", False, 0.01),
        Scenario("fault", "5 % of the answers", False, 0.05),
        Scenario("drawdown", "no edge, 0.1 % a day", False, 0.0, sd=0.001),
        Scenario("drawdown", "no edge, 0.2 % a day", False, 0.0, sd=0.002),
        Scenario("drawdown", "no edge, 0.5 % a day", False, 0.0, sd=0.005),
        Scenario("drawdown", "loses half of 0.2 % a day", False, -0.5, sd=0.002),
        Scenario("drawdown", "loses half of 0.5 % a day", False, -0.5, sd=0.005),
    )
}


def limits() -> GuardrailParams:
    """Return the limits of params.yaml."""
    return load_params().experiment.guardrails


def guardrail_cases() -> tuple[str, ...]:
    """Return every case of `guardrails`: a scenario, or a split, and a seed, between bars."""
    names = (*SCENARIOS, *SPLITS)
    return tuple(f"{name}|{seed}" for name in names for seed in range(SEEDS))


def guardrails(case: str, runs: int | None = None) -> JsonObject:
    """Run a guardrail, or the sample-ratio test, on streams of known harm, looked at after every block or answer.

    after  of each run, blocks, answers or units until it tripped; 0 = it did not within MAX_BLOCKS blocks
    """
    name, seed = case.split("|")
    rng = np.random.default_rng([int(seed), zlib.crc32(name.encode())])
    if name in SPLITS:
        return split_counts(SPLITS[name], rng, runs or SPLIT_RUNS)
    one = SCENARIOS[name]
    runs = runs or (RUNS if one.harmless else HARM_RUNS)
    return {"runs": runs, **OF_METRIC[one.metric](one, rng, runs)}


# ---- on blocks -------------------------------------------------------------------------------------------------------


def on_blocks(one: Scenario, rng: np.random.Generator, runs: int) -> JsonObject:
    """Run a guardrail that rests on means of blocks."""
    params = limits()
    limit = limit_of(one.metric, params)
    size = limit if one.size == LIMIT else one.size
    means = np.concatenate(list(block_means_of(one, size, rng, runs)))
    found = [block_harm(one.metric, row, limit, params.level) for row in means]
    harmless = np.abs(means) if one.metric == "calibration" else -means  # the clip is of the harmless direction
    return {"after": [harm.after or 0 for harm in found], "mean": float(means.mean()),
            "clipped": float((harmless > HARM_CLIP).mean())}  # fmt: skip


def block_means_of(one: Scenario, size: float, rng: np.random.Generator, runs: int) -> Iterator[Floats]:
    """Yield (r, MAX_BLOCKS) block means until `runs` runs were made, a few at a time."""
    bars = MAX_BLOCKS * PERIOD
    at_once = max(1, CHUNK // (bars * SYMBOLS))
    for first in range(0, runs, at_once):
        shape = (min(at_once, runs - first), bars, SYMBOLS)
        events = rng.random(shape) < EVENTS_A_DAY / PERIOD
        if one.metric == "calibration":
            log_odds, happens = outcomes(SKILL, rng, events)
            values = np.zeros(shape)
            values[events] = np.clip(expit(log_odds) + size, 0.0, 1.0) - happens
        else:
            base, memory = BASE[one.metric], EPISODE_MEMORY if one.kind == "episodes" else MEMORY
            champion, challenger = (remembered(together(rng, shape), memory) < ndtri(share)
                                    for share in (base, base + size))  # fmt: skip
            values = challenger.astype(np.float64) - champion
        yield Stream(values, events).means()


# ---- on answers, and on the account ----------------------------------------------------------------------------------


def on_latency(one: Scenario, rng: np.random.Generator, runs: int) -> JsonObject:
    """Run the guardrail of latency on lognormal times; `medians`: runs of a machine that is slow at times in which
    the two medians alone would trip.
    """
    limit, after, medians = limits().latency_ms, [], 0
    for _ in range(runs):
        times = rng.lognormal(np.log(BASE_MS), SPREAD, (2, MAX_BLOCKS * ANSWERS)) * [[1.0], [one.size]]
        if one.kind == "slow machine":
            times *= np.where(slow_at_times(rng, times.shape[1]), SLOW_TIMES, 1.0)
        after.append(latency_trips(times, limit))
        medians += int(one.kind == "slow machine" and medians_trip(times, limit))
    return {"after": after, "medians": medians}


def slow_at_times(rng: np.random.Generator, answers: int) -> Floats:
    """Return (answers,) whether the machine is slow: SLOW_SHARE of them, SLOW_ANSWERS at a time on average."""
    spells = rng.geometric(1.0 / SLOW_ANSWERS, answers // SLOW_ANSWERS + 100)
    between = rng.geometric(SLOW_SHARE / (1.0 - SLOW_SHARE) / SLOW_ANSWERS, len(spells))
    states = np.repeat(np.tile([False, True], len(spells)), np.column_stack([between, spells]).ravel())
    return np.asarray(states[:answers])


def latency_trips(times: Floats, limit: float) -> int:
    """Return after how many answers `latency_harm` trips that looks after each; 0 = never. times (2, n), ms."""
    alone = np.cumsum(np.append(0, (times[1] > limit) & (times[0] <= limit)))
    over = np.flatnonzero(alone[LATENCY_ANSWERS:] - alone[:-LATENCY_ANSWERS] >= LATENCY_ALONE)
    return int(over[0]) + LATENCY_ANSWERS if len(over) else 0


def medians_trip(times: Floats, limit: float) -> bool:
    """Return whether the challenger's median of so many answers was ever above the limit and the champion's was not."""
    champion, challenger = np.median(np.lib.stride_tricks.sliding_window_view(times, LATENCY_ANSWERS, axis=1), axis=2)
    return bool(((challenger > limit) & (champion <= limit)).any())


def on_faults(one: Scenario, rng: np.random.Generator, runs: int) -> JsonObject:
    """Run the guardrail of faults."""
    after = []
    for _ in range(runs):
        failed = rng.random(MAX_BLOCKS * ANSWERS) < one.size
        after.append(fault_harm(["raised" if each else None for each in failed.tolist()]).after or 0)
    return {"after": after}


def on_account(one: Scenario, rng: np.random.Generator, runs: int) -> JsonObject:
    """Run the guardrail of the drawdown on an account that is looked at after every bar of every block."""
    limit, after = limits().drawdown, []
    for _ in range(runs):
        returns = one.sd * (one.size / PERIOD + rng.standard_normal(MAX_BLOCKS * PERIOD) / np.sqrt(PERIOD))
        bars = drawdown_harm(np.append(1.0, np.cumprod(1.0 + returns)), limit).after or 0
        after.append(-(-(bars - 1) // PERIOD) if bars else 0)
    return {"after": after}


OF_METRIC: Mapping[str, Callable[[Scenario, np.random.Generator, int], JsonObject]] = {
    "abstention": on_blocks, "novelty": on_blocks, "calibration": on_blocks, "latency": on_latency,
    "fault": on_faults, "drawdown": on_account,
}  # fmt: skip
ON_ANSWERS = ("latency", "fault")  # those that count answers, not blocks


def guardrail_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by scenario and split the share that tripped, and the median until then; and what two medians would do."""
    figures: dict[str, JsonObject] = {}
    ramp = ramp_blocks()
    for name in (*SCENARIOS, *SPLITS):
        cases = [case for case in found if case["case"].split("|")[0] == name]
        if not cases:
            continue
        runs, after = sum(case["runs"] for case in cases), [at for case in cases for at in case["after"]]
        figures[f"{name}|tripped"] = share_of(sum(at > 0 for at in after), runs)
        figures[f"{name}|median"] = median_of(after)
        if name in SCENARIOS:
            within = ramp * (ANSWERS if SCENARIOS[name].metric in ON_ANSWERS else 1)
            figures[f"{name}|ramp"] = share_of(sum(0 < at <= within for at in after), runs)
        if "clipped" in cases[0]:
            figures[f"{name}|clipped"] = over_cases([case["clipped"] for case in cases])
        if any(case.get("medians") for case in cases):
            figures[f"{name}|medians"] = share_of(sum(case["medians"] for case in cases), runs)
    return figures


def ramp_blocks() -> int:
    """Return blocks in which a challenger acts before it is promoted."""
    ramp = load_params().experiment.ramp
    return ramp.canary_blocks + ramp.split_blocks


# ---- the split -------------------------------------------------------------------------------------------------------

SPLIT_RUNS = 20_000
LONG = 60  # blocks of either stage


@dataclass(frozen=True, slots=True)
class Split:
    """Describe how units fall: `times` the stated weight, of so many symbols, in stages of `long` or the ramp's."""

    times: float
    symbols: int
    long: bool


SPLITS = {
    f"{words}, {symbols} symbols{', long' if long else ''}": Split(times, symbols, long)
    for words, times in (("as stated", 1.0), ("none", 0.0), ("twice as many", 2.0))
    for symbols in (4, 20)
    for long in ((False, True) if times == 1.0 else (False,))
}


def split_stages(split: Split) -> list[tuple[float, int]]:
    """Return (weight, blocks) of each stage."""
    ramp = load_params().experiment.ramp
    canary, half = (LONG, LONG) if split.long else (ramp.canary_blocks, ramp.split_blocks)
    return [(ramp.canary_weight, canary), (ramp.split_weight, half)]


def split_counts(split: Split, rng: np.random.Generator, runs: int) -> JsonObject:
    """Run the sample-ratio test, looked at after every block; `after` counts blocks."""
    evidence, before = [], np.ones(runs)
    for weight, blocks in split_stages(split):
        hits = np.cumsum(rng.binomial(split.symbols, min(split.times * weight, 1.0), (runs, blocks)), axis=1)
        now = np.column_stack([ratios(weight, split.symbols * (b + 1), hits[:, b]) for b in range(blocks)])
        evidence.append(before[:, np.newaxis] * now)
        before = evidence[-1][:, -1]
    return {
        "runs": runs,
        "after": first_at(np.concatenate(evidence, axis=1), load_params().experiment.sample_ratio_alpha),
    }


def ratios(weight: float, units: int, hits: Ints) -> Floats:
    """Return (r,) e-values of one stage with so many units, of which `hits` (r,) are the challenger's."""
    values = np.array([sample_ratio([StageCount(weight, units, k)]) for k in range(units + 1)])
    return np.asarray(values[hits])
