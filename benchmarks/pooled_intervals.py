"""Coverage of intervals of pooled rows: `python -m benchmarks.pooled_intervals [--write]`, about a minute.

Markets that share a part of their variance, each a bar behind the one before it, with a row on a share of the bars;
values overlap. The mean is zero by construction, so an interval is right where it holds zero. With `--write` the page
docs/results/pooled.md is written.
"""

import sys
from collections.abc import Callable

import numpy as np

from benchmarks.results import table
from pipelines.contracts import Estimate, Floats, Ints, JsonObject
from pipelines.evaluation.intervals import mean_of
from pipelines.settings import ROOT

PAGE = ROOT / "docs" / "results" / "pooled.md"
REPETITIONS, SPAN, BAR_S = 1000, 8, 900.0
CASES = [  # markets, bars, share of the variance that all have in common, share of the bars with a row
    (2, 1500, 0.5, 0.5), (4, 1500, 0.0, 0.5), (4, 1500, 0.5, 0.5), (4, 1500, 0.9, 0.5), (4, 1500, 0.9, 1.0),
    (4, 500, 0.9, 0.5), (16, 1500, 0.9, 0.3),
]  # fmt: skip
ABOUT = """\
# Intervals of pooled rows

Made by `python -m benchmarks.pooled_intervals --write` (about a minute on one core). Markets share a part of their
variance, each a bar behind the one before it, and have a row on a share of the bars; values overlap over {span} bars.
The true mean is zero: coverage is the share of {repetitions:,} draws whose 95 % interval holds it. *Width* is against
the interval of moments.

- **moments**: influences of one moment are added up first; cosines run over moments. This is what the gate reads.
- **markets apart**: each market's error by itself, combined as if no market knew of another.
- **rows independent**: the textbook error of a mean, every row by itself.
"""


def drawn(seed: int, markets: int, bars: int, common: float, rows: float) -> tuple[Floats, Floats, Ints]:
    """Return (values (n,), known (n,), market (n,)) of one draw; arguments as in CASES."""
    rng = np.random.default_rng([seed, markets, bars, int(100 * common), int(100 * rows)])

    def smooth(n: int) -> Floats:
        """Return n values that overlap over SPAN of them, of variance one."""
        return np.convolve(rng.standard_normal(n + SPAN - 1), np.full(SPAN, SPAN**-0.5), "valid")

    whole = smooth(bars + markets)
    values = np.column_stack(
        [np.sqrt(common) * whole[k : k + bars] + np.sqrt(1.0 - common) * smooth(bars) for k in range(markets)]
    )
    chosen = rng.random(values.shape) < rows
    at, market = np.nonzero(chosen)
    return values[chosen], BAR_S * at.astype(np.float64), market.astype(np.int64)


def by_moments(values: Floats, known: Floats, market: Ints) -> Estimate:
    """Return the mean with the interval of the gate."""
    return mean_of(values, known).estimate()


def markets_apart(values: Floats, known: Floats, market: Ints) -> Estimate:
    """Return the mean with the interval of markets that know nothing of each other."""
    found = [mean_of(values[market == k]) for k in np.unique(market)]
    shares = np.array([each.n for each in found]) / len(values)
    half = 1.96 * float(np.sqrt(np.sum((shares * [each.error for each in found]) ** 2)))
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, len(values))


def independent(values: Floats, known: Floats, market: Ints) -> Estimate:
    """Return the mean with the interval of independent rows."""
    half, mean = 1.96 * float(values.std() / np.sqrt(len(values))), float(values.mean())
    return Estimate(mean, mean - half, mean + half, len(values))


METHODS: dict[str, Callable[[Floats, Floats, Ints], Estimate]] = {
    "moments": by_moments, "markets apart": markets_apart, "rows independent": independent,
}  # fmt: skip


def measured(case: tuple[int, int, float, float], repetitions: int = REPETITIONS) -> JsonObject:
    """Return of one case: rows, and method → coverage, mean width and the share of draws with an interval."""
    draws = [drawn(seed, *case) for seed in range(repetitions)]
    found: JsonObject = {"rows": round(float(np.mean([len(values) for values, *_ in draws])))}
    for name, method in METHODS.items():
        made = [method(*draw) for draw in draws]
        known = [each for each in made if np.isfinite(each.low)]
        found[name] = {
            "coverage": float(np.mean([each.low <= 0.0 <= each.high for each in known])) if known else float("nan"),
            "width": float(np.mean([each.high - each.low for each in known])) if known else float("nan"),
            "known": len(known) / repetitions,
        }
    return found


def page(results: list[JsonObject]) -> str:
    """Return the page of the results, one for each of CASES."""
    lines = []
    for (markets, bars, common, share), found in zip(CASES, results, strict=True):
        cells = [
            f"{found[name]['coverage']:.1%}, {found[name]['width'] / found['moments']['width']:.2f}" for name in METHODS
        ]
        lines.append([str(markets), f"{bars:,}", f"{common:.0%}", f"{share:.0%}", f"{found['rows']:,}", *cells])
    head = [
        "markets",
        "bars",
        "in common",
        "bars with a row",
        "rows",
        *(f"{name}: coverage, width" for name in METHODS),
    ]
    return ABOUT.format(span=SPAN, repetitions=REPETITIONS) + "\n" + table(head, lines) + "\n"


def main(words: list[str]) -> None:
    """Measure every case and print the page; write it with `--write`."""
    text = page([measured(case) for case in CASES])
    print(text)
    if "--write" in words:
        PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
