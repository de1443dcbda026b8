"""What experiments find and how often they are wrong, on streams of known gain: the runs behind docs/results/ab.md.

`benchmarks/evidence.py` names, stores and resumes them; `benchmarks/ab_page.py` writes the page. Every case names its
seed; seeds are counted from 0 and none was left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from scipy.stats import chi2, t

from benchmarks.ab_streams import NULLS, PERIOD, SKILL, Stream, streams
from pipelines.contracts import Floats, JsonObject
from pipelines.experiments.budget import next_alpha
from pipelines.experiments.eprocess import e_process
from pipelines.experiments.verdict import Rules, clip_bound, futility_evidence, progress_of, win_evidence
from pipelines.warm_start import hit_rate

GATE_BLOCKS = 60  # before an experiment begins: they set its bound, as the gate's purged rows do
DEVIATIONS = 5.0
MAX_BLOCKS = 120
LEAST_SHARE = 0.1  # of the champion's skill: under this gain a challenger is not worth promoting
FIRST_TEST = 5  # blocks before the repeated t-test looks for the first time
YEAR_BUDGET, BUDGET_SHARE, ALPHA = 1.0, 0.02, 0.02
LEVELS = (0.05, 0.02)
NULL_RUNS, NULL_SEEDS = 500, 4
YEAR_BLOCKS, YEARS_A_CASE, YEAR_SEEDS = 365, 10, 20
FAMILY_STREAMS = ("labels", "AR .3", "GARCH", "AR .6")
YEAR_FUTILITY = 0.2
GAINS = {0.002: 800, 0.005: 500, 0.010: 400, 0.030: 400}  # nats → blocks that are simulated
POWER_LEVELS = (0.05, 0.02, 0.005)
POWER_RUNS, POWER_SEEDS = 200, 3
TARGET = 0.8  # power of the fixed-n test
SKILLS = (SKILL, 0.018, 0.030)
FUTILITY_LEVELS = (0.05, 0.1, 0.2)
FUTILITY_RUNS, FUTILITY_SEEDS = 500, 2


@dataclass(frozen=True, slots=True)
class Blocks:
    """Hold runs of block means (r, b) after those that set the bounds (r, 1), and the clipped ones over their bound."""

    means: Floats
    bounds: Floats

    @property
    def scaled(self) -> Floats:
        """Return the clipped means over their bound, so that one bound of 1 holds for all runs."""
        return np.asarray(np.clip(self.means / self.bounds, -1.0, 1.0))


def blocks_of(means: Floats) -> Blocks:
    """Return the blocks after the first GATE_BLOCKS, with the bound that those set."""
    bounds = [[clip_bound(row, DEVIATIONS)] for row in means[:, :GATE_BLOCKS]]
    return Blocks(means[:, GATE_BLOCKS:], np.array(bounds))


def made(kind: str, seed: int, runs: int, blocks: int, gain: float = 0.0) -> Iterator[tuple[Stream, Blocks]]:
    """Yield streams with so many blocks after those that set the bound, and these blocks."""
    for stream in streams(kind, seed, runs, GATE_BLOCKS + blocks, gain):
        yield stream, blocks_of(stream.means())


def first_at(evidence: Floats, level: float) -> list[int]:
    """Return of each run the number of blocks after which evidence (r, b) reaches 1 / level; 0 = never."""
    over = evidence >= 1.0 / level
    return [int(at) for at in np.where(over.any(axis=1), over.argmax(axis=1) + 1, 0)]


def t_values(means: Floats) -> Floats:
    """Return (r, b) one-sided t statistics of the first so many block means; -inf before the second."""
    n = np.arange(1, means.shape[1] + 1)
    total, squares = np.cumsum(means, axis=1), np.cumsum(means**2, axis=1)
    spread = np.sqrt(np.maximum(squares - total**2 / n, 0.0) / np.maximum(n - 1, 1))
    return np.where(n > 1, total / n / np.maximum(spread, 1e-300) * np.sqrt(n), -np.inf)


# ---- false promotions ------------------------------------------------------------------------------------------------


def null_cases() -> tuple[str, ...]:
    """Return every case of `false_promotions`: a stream and a seed, between bars."""
    return tuple(f"{kind}|{seed}" for kind in NULLS for seed in range(NULL_SEEDS))


def false_promotions(case: str, runs: int = NULL_RUNS, blocks: int = MAX_BLOCKS) -> JsonObject:
    """Count promotions of challengers that gain nothing, looked at after every block, and by two wrong ways to look.

    ours   bets on block means; t_test: a t-test after every block from FIRST_TEST on; each: a bet on every decision
    """
    kind, seed = case.split("|")
    counts = {f"{way}|{level:g}": 0 for way in ("ours", "t_test", "each") for level in LEVELS}
    clipped = total = 0
    for stream, found in made(kind, int(seed), runs, blocks):
        evidence = win_evidence(found.scaled, 1.0).max(axis=1)
        clipped += int((np.abs(found.means) > found.bounds).sum())
        total += found.means.size
        statistic = t_values(found.means)[:, FIRST_TEST - 1 :]
        freedom = np.arange(FIRST_TEST - 1, blocks)
        each = bets_on_decisions(stream).max(axis=1)
        for level in LEVELS:
            counts[f"ours|{level:g}"] += int((evidence >= 1.0 / level).sum())
            counts[f"t_test|{level:g}"] += int((statistic > t.ppf(1.0 - level, freedom)).any(axis=1).sum())
            counts[f"each|{level:g}"] += int((each >= 1.0 / level).sum())
    return {"runs": runs, "clipped": clipped, "blocks": total, **counts}


def bets_on_decisions(stream: Stream) -> Floats:
    """Return (r, decisions) wealth of the same bets on every single decision, clipped likewise: what not to do."""
    start = GATE_BLOCKS * PERIOD
    gains = np.where(stream.events, stream.gains, 0.0)
    before = stream.events[:, :start]
    spread = np.sqrt((gains[:, :start] ** 2).sum(axis=(1, 2)) / np.maximum(before.sum(axis=(1, 2)), 1))
    later = gains[:, start:].reshape(len(gains), -1) / (DEVIATIONS * spread[:, np.newaxis])
    return win_evidence(np.clip(later, -1.0, 1.0), 1.0)


def null_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the shares of false promotions by stream, way and level, with Wilson intervals, and the share clipped."""
    figures: dict[str, JsonObject] = {}
    for kind in NULLS:
        cases = [case for case in found if case["case"].split("|")[0] == kind]
        runs = sum(case["runs"] for case in cases)
        for name in [name for name in (cases[0] if cases else {}) if "|" in name]:
            figures[f"{kind}|{name}"] = share_of(sum(case[name] for case in cases), runs)
        if cases:
            figures[f"{kind}|clipped"] = share_of(
                *(sum(case[name] for case in cases) for name in ("clipped", "blocks"))
            )
    return figures


def share_of(hits: int, n: int) -> JsonObject:
    """Return a share with its 95 % Wilson interval."""
    found = hit_rate(hits, n)
    return {"value": found.value, "low": found.low, "high": found.high, "n": n}


# ---- years -----------------------------------------------------------------------------------------------------------


def a_year(means: Floats) -> JsonObject:
    """Return what a market year of experiments comes to in which no challenger gains anything.

    means  (families, GATE_BLOCKS + YEAR_BLOCKS + MAX_BLOCKS) block means; the newest GATE_BLOCKS before an experiment
           set its bound. A family's next experiment begins where its last one ends; those begun in the year count.
    """
    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    starts, spent = dict.fromkeys(range(len(means)), 0), []
    ends = {"won": 0, "stopped": 0, "expired": 0}
    while (start := min(starts.values())) < YEAR_BLOCKS:
        family = min(each for each in starts if starts[each] == start)
        at = new_year + timedelta(days=start)
        alpha = next_alpha(spent, at, YEAR_BUDGET, BUDGET_SHARE)
        spent.append((at, alpha))
        before = means[family, start : start + GATE_BLOCKS]
        rules = Rules(alpha, clip_bound(before, DEVIATIONS), LEAST_SHARE * SKILL, YEAR_FUTILITY, MAX_BLOCKS)
        result = progress_of(means[family, start + GATE_BLOCKS : start + GATE_BLOCKS + MAX_BLOCKS], rules)
        ends[result.state] += 1
        starts[family] = start + int(result.decided_at or 0) + 1
    return {**ends, "alpha": sum(alpha for _, alpha in spent), "experiments": len(spent)}


def years(case: str, count: int = YEARS_A_CASE) -> JsonObject:
    """Simulate years of four families whose challengers gain nothing; case = seed. Return lists of one entry a year."""
    blocks = GATE_BLOCKS + YEAR_BLOCKS + MAX_BLOCKS
    made_of = [
        np.concatenate([stream.means() for stream in streams(kind, 1000 + int(case), count, blocks)])
        for kind in FAMILY_STREAMS
    ]
    found = [a_year(np.stack([family[year] for family in made_of])) for year in range(count)]
    return {name: [year[name] for year in found] for name in found[0]}


def year_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return means a year: false promotions with an exact Poisson interval, the others with least and most."""
    years = (
        {name: [value for case in found for value in case[name]] for name in found[0] if name != "case"}
        if found
        else {}
    )
    figures = {}
    for name, values in years.items():
        low, high = float(min(values)), float(max(values))
        if name == "won":
            total = sum(values)
            low = float(chi2.ppf(0.025, 2 * total)) / 2 / len(values) if total else 0.0
            high = float(chi2.ppf(0.975, 2 * total + 2)) / 2 / len(values)
        figures[name] = {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}
    return figures


# ---- power and price -------------------------------------------------------------------------------------------------


def power_cases() -> tuple[str, ...]:
    """Return every case of `power`: a gain and a seed, between bars."""
    return tuple(f"{gain:g}|{seed}" for gain in GAINS for seed in range(POWER_SEEDS))


def power(case: str, runs: int = POWER_RUNS, blocks: int | None = None) -> JsonObject:
    """Measure after how many blocks a challenger with a known gain is promoted, and what other tests need.

    promoted  level → blocks of each run until the promotion, 0 = not within those simulated; fixed: level → runs in
              which a t-test on so many first blocks rejects; four_bets: as promoted, with the four bets of `e_process`
    """
    gain, seed = float(case.split("|")[0]), int(case.split("|")[1])
    blocks = blocks or GAINS[gain]
    promoted: dict[str, list[int]] = {f"{level:g}": [] for level in POWER_LEVELS}
    four: dict[str, list[int]] = {f"{level:g}": [] for level in POWER_LEVELS}
    fixed = {f"{level:g}": np.zeros(blocks, dtype=np.int64) for level in POWER_LEVELS}
    freedom = np.maximum(np.arange(blocks), 1)
    sums: list[list[float]] = []
    for stream, found in made("better", seed, runs, blocks, gain):
        evidence, mixture, statistic = (
            win_evidence(found.scaled, 1.0),
            e_process(found.scaled, 1.0),
            t_values(found.means),
        )
        for level in POWER_LEVELS:
            name = f"{level:g}"
            promoted[name] += first_at(evidence, level)
            four[name] += first_at(mixture, level)
            fixed[name] += (statistic > t.ppf(1.0 - level, freedom)).sum(axis=0)
        arms = [stream.means(losses).var(axis=1, ddof=1) for losses in (stream.champion, stream.challenger)]
        sums += np.column_stack([found.means.mean(axis=1), found.means.var(axis=1, ddof=1), *arms]).tolist()
    means = np.mean(sums, axis=0)
    return {
        "runs": runs, "blocks": blocks, "gain": float(means[0]), "variance": float(means[1]),
        "arm_variances": [float(means[2]), float(means[3])], "promoted": promoted, "four_bets": four,
        "fixed": {name: counts.tolist() for name, counts in fixed.items()},
    }  # fmt: skip


def power_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by gain and level: median blocks, shares promoted, blocks of a fixed-n test, prices; paired over split."""
    figures: dict[str, JsonObject] = {}
    for gain in GAINS:
        cases = [case for case in found if float(case["case"].split("|")[0]) == gain]
        if not cases:
            continue
        runs = sum(case["runs"] for case in cases)
        figures[f"{gain:g}|gain"] = over_cases([case["gain"] for case in cases])
        figures[f"{gain:g}|signal"] = over_cases([case["gain"] / case["variance"] ** 0.5 for case in cases])
        figures[f"{gain:g}|split"] = over_cases(
            [case["variance"] / (2.0 * sum(case["arm_variances"])) for case in cases]
        )
        for level in POWER_LEVELS:
            name = f"{level:g}"
            firsts = np.array([at for case in cases for at in case["promoted"][name]])
            rejected = np.sum([case["fixed"][name] for case in cases], axis=0) / runs
            fixed = int(np.argmax(rejected >= TARGET)) + 1 if (rejected >= TARGET).any() else None
            key, median = f"{gain:g}|{name}", median_of(firsts)
            figures[f"{key}|median"] = median
            for within in (MAX_BLOCKS, 400):
                figures[f"{key}|{within}"] = share_of(int(((firsts > 0) & (firsts <= within)).sum()), runs)
            figures[f"{key}|four_bets"] = median_of([at for case in cases for at in case["four_bets"][name]])
            figures[f"{key}|fixed"] = {"value": fixed, "low": None, "high": None, "n": runs}
            if fixed:
                price = {each: median[each] and median[each] / fixed for each in ("value", "low", "high")}
                figures[f"{key}|price"] = price | {"n": runs}
                same = float(np.quantile(np.where(firsts > 0, firsts, np.inf), TARGET, method="higher"))
                power_price = same / fixed if np.isfinite(same) else None
                figures[f"{key}|same_power"] = {"value": power_price, "low": None, "high": None, "n": runs}
    return figures


def over_cases(values: Sequence[float]) -> JsonObject:
    """Return the mean of values of equal cases, with the least and the most."""
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values), "n": len(values)}


def median_of(firsts: Sequence[int]) -> JsonObject:
    """Return the median of blocks until something happened with its 95 % interval of order statistics.

    firsts  0 = it did not; a figure is None where so many did not that it lies after the blocks that were simulated
    """
    ordered = np.sort([at or np.inf for at in firsts])
    n, half = len(ordered), 0.98 * len(ordered) ** 0.5
    places = {"low": max(0, int(n / 2 - half)), "high": min(n - 1, int(np.ceil(n / 2 + half)))}
    found = {"value": float(np.median(ordered))} | {name: float(ordered[place]) for name, place in places.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()} | {"n": n}


# ---- futility --------------------------------------------------------------------------------------------------------

# the challenger → its stream, its gain in skills of the champion, and the skills, nats
CHALLENGERS: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "worse by the skill": ("worse", 1.0, SKILLS),
    "equal": ("labels", 0.0, (SKILL,)),
    "least gain": ("better", LEAST_SHARE, (SKILL, 0.030)),
    "least gain, skewed": ("GARCH, skewed", LEAST_SHARE, (SKILL,)),
    "better by the skill": ("better", 1.0, (SKILL, 0.030)),
}


def futility_cases() -> tuple[str, ...]:
    """Return every case of `futility`: a challenger, the champion's skill and a seed, between bars."""
    return tuple(
        f"{who}|{skill:g}|{seed}"
        for who, (_, _, skills) in CHALLENGERS.items()
        for skill in skills
        for seed in range(FUTILITY_SEEDS)
    )


def futility(case: str, runs: int = FUTILITY_RUNS) -> JsonObject:
    """Run experiments at ALPHA with each futility level.

    stopped  level → blocks of each run until it is stopped, 0 = it wins or expires; signal: by how much the mean gain
             is below the least gain, in standard deviations of a block
    """
    who, skill, seed = case.split("|")
    kind, share, _ = CHALLENGERS[who]
    least = LEAST_SHARE * float(skill)
    stops: dict[str, list[int]] = {f"{level:g}": [] for level in FUTILITY_LEVELS}
    moments: list[tuple[float, float]] = []
    for stream in streams(kind, 2000 + int(seed), runs, GATE_BLOCKS + MAX_BLOCKS, share * float(skill)):
        means = stream.means()
        if "skewed" in who:  # the rare large gains are the challenger's here
            means = least - means
        found = blocks_of(means)
        moments += zip(means.mean(axis=1).tolist(), means.var(axis=1, ddof=1).tolist(), strict=True)
        won = np.array(first_at(win_evidence(found.scaled, 1.0), ALPHA))
        for level in FUTILITY_LEVELS:
            bounds = found.bounds[:, 0]
            evidence = np.array([
                futility_evidence(row * bound, bound, least) for row, bound in zip(found.scaled, bounds, strict=True)
            ])  # fmt: skip
            stopped = np.array(first_at(evidence, level))
            stops[f"{level:g}"] += [int(at) for at in np.where((won > 0) & (won <= stopped), 0, stopped)]
    mean, variance = np.mean(moments, axis=0)
    return {"runs": runs, "stopped": stops, "signal": float((least - mean) / np.sqrt(variance))}


def futility_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by challenger and skill the signal, and by level the share stopped and the median blocks until then."""
    figures: dict[str, JsonObject] = {}
    for who, (_, _, skills) in CHALLENGERS.items():
        for skill in skills:
            cases = [case for case in found if case["case"].startswith(f"{who}|{skill:g}|")]
            if cases:
                figures[f"{who}|{skill:g}|signal"] = over_cases([case["signal"] for case in cases])
            for level in FUTILITY_LEVELS if cases else ():
                stops = np.array([at for case in cases for at in case["stopped"][f"{level:g}"]])
                key = f"{who}|{skill:g}|{level:g}"
                figures[f"{key}|stopped"] = share_of(int((stops > 0).sum()), len(stops))
                figures[f"{key}|median"] = median_of(stops)
    return figures
