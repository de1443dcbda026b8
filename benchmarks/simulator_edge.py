"""Measure how well the simulator's planted edge can be ranked at best, as a function of `simulator.edge`.

Run: python -m benchmarks.simulator_edge [--edges 0.5,1.3] [--years 8] [--to FILE]

Each year is an independent seed, so every figure is a mean over years with a t interval over years. Three rankings of
the same events, from what nobody can know to what a model of this product reads:

truth    side x gain of the true regime x true pressure: the drift that the market itself uses. What follows a close
         depends on the past only through this hidden state, so no function of the past ranks better but for the width
         of the barriers (`truth, fitted` adds it, by trees on other years)
filter   the same with the pressure filtered from every minute's taker share (Kalman 1960) by the true law, and with the
         true regime: the limit of everything that can be observed
columns  trees fitted on half of the years, scoring the other half, on the family's own columns: the limit of a longer
         history
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, OPEN_TIME, TAKER_BUY, VOLUME, Estimate, Floats, Ints
from pipelines.data.alignment import align
from pipelines.data.simulator.latent import DESIGN, decay_factor, regime_table
from pipelines.data.simulator.market import Market, simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.evaluation.metrics import auc
from pipelines.family_labels import Sources, event_labels, predictor_labels
from pipelines.features.catalog import FEATURES
from pipelines.market_params import SimulatorParams
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PAGE = ROOT / "docs" / "results" / "simulator-edge.md"
EDGES = (0.7, 0.8, 0.9)
YEARS = 8
FIRST_SEED = 100  # not those of tests and of the committed year
MINUTES, QUARTERS = Grid("1m"), Grid("15m")
MEAN_BARS = 12  # half-life of the pressure in decision bars: what a window adds to the newest bar
MOST_AUC = 0.57  # a true AUC up to here is never taken for a leak: specification, section 4
RANKINGS = ("truth", "truth, fitted", "filter", "columns")


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold the n labelled rows of one family in one simulated year.

    y        (n,) outcomes 0 or 1
    truth    (n,) side x gain x pressure; filtered (n,) the same from the filtered pressure
    state    (n, k) hidden state behind the outcome; columns (n, j) what the family reads
    """

    y: Floats
    truth: Floats
    filtered: Floats
    state: Floats
    columns: Floats


@kernel
def filtered_pressure(flow: Floats, keep: float, lean: float, noise: float, out: Floats) -> None:
    """Fill out (n,) float64 with the pressure expected in the minute after each, given the flow up to it.

    flow  (n,) float64: taker share less a half and less the echo of the minute's own move; NaN = no trade
    Source  Kalman 1960, J. Basic Eng. 82(1), for an autoregression of order one seen through white noise
    """
    mean, variance = 0.0, 1.0
    for i in range(flow.shape[0]):
        if flow[i] == flow[i]:
            weight = variance * lean / (lean * lean * variance + noise * noise)
            mean += weight * (flow[i] - lean * mean)
            variance *= 1.0 - weight * lean
        mean *= keep
        variance = keep * keep * variance + 1.0 - keep * keep
        out[i] = mean


def year(seed: int, edge: float, params: Params) -> dict[str, Rows]:
    """Return the rows of the validator and of the predictor in one stationary simulated year."""
    change = {"seed": seed, "edge": edge, "history_days": 365, "live_days": 0, "drift_after_live_days": None}
    spec = params.simulator.model_copy(update=change)
    market = simulate(spec)
    decision = resample(market.bars, MINUTES, QUARTERS)
    levels, context = align(decision[:, OPEN_TIME], QUARTERS, market.books, market.feed)
    features, signals = FEATURES.run(decision, levels, context), SIGNALS.run(decision, levels, context)
    sources = Sources(market.bars, decision, features, signals, context, QUARTERS, MINUTES)
    hidden = _Hidden(market, spec)
    events = event_labels(sources, params)
    moves = predictor_labels(sources, params)
    from pipelines.models.predictor import NEWEST_COLUMNS

    core = features[:, [FEATURES.index[name] for name in NEWEST_COLUMNS]]
    window = np.lib.stride_tricks.sliding_window_view(core, MEAN_BARS, axis=0).mean(axis=2)
    core = np.hstack([core, np.vstack([np.full((MEAN_BARS - 1, core.shape[1]), np.nan), window])])
    up = np.ones(len(moves["y"]), np.int64)
    return {
        "validator": hidden.rows(events["y"], events["known"], events["direction"], events["atr"], events["rows"]),
        "predictor": hidden.rows(moves["y"], moves["known"], up, np.ones(len(up)), core[moves["index"]]),
    }


class _Hidden:
    """Read the hidden state of a market at the closes of its bars."""

    def __init__(self, market: Market, spec: SimulatorParams) -> None:
        """Filter the pressure of the whole market."""
        bars, truth = market.bars, market.truth
        self.bars, self.truth = bars, truth
        self.sd = regime_table(spec, DESIGN)[0, truth.regime]  # of a minute's log value
        self.gain = np.array(DESIGN.gain)[truth.regime]
        starts = np.concatenate([[True], truth.regime[1:] != truth.regime[:-1]])
        minute = np.arange(len(bars))
        self.stay = minute - np.maximum.accumulate(np.where(starts, minute, 0)) + 1.0
        move = np.diff(np.log(truth.value), prepend=np.log(truth.value[0])) / self.sd
        with np.errstate(invalid="ignore", divide="ignore"):
            flow = bars[:, TAKER_BUY] / bars[:, VOLUME] - 0.5 - DESIGN.share_echo * move
        self.filtered = np.empty(len(bars))
        keep = decay_factor(DESIGN.pressure_half_life_min)
        filtered_pressure(flow, keep, DESIGN.share_lean, DESIGN.share_noise, self.filtered)

    def rows(self, y: Floats, known: Floats, side: Ints, reach: Floats, columns: Floats) -> Rows:
        """Return the rows whose bars closed at `known` (n,) epoch seconds, with barriers `reach` (n,) away."""
        last = ((known - self.bars[0, OPEN_TIME]) / 60.0).astype(np.int64) - 1  # the last minute of each bar
        after = np.minimum(last + 1, len(self.bars) - 1)
        push = side * self.truth.pressure[after]
        drift = push * self.gain[last]
        apart = side * np.log(self.truth.value[last] / self.bars[last, CLOSE]) / self.sd[last]
        state = np.column_stack(
            [drift, push, self.truth.regime[last], self.stay[last], np.log(reach / self.sd[last]), apart]
        )
        return Rows(y, drift, side * self.gain[last] * self.filtered[last], state, columns)


def ranked(score: Floats, y: Floats) -> float:
    """Return the AUC of any score (n,), not only of a probability."""
    return auc(rankdata(score) / len(score), y)


def over_years(values: Sequence[float]) -> Estimate:
    """Return the mean of independent years with its 95 % t interval."""
    found = np.array(values)
    n = len(found)
    half = float(student.ppf(0.975, n - 1) * found.std(ddof=1) / math.sqrt(n))
    return Estimate(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half, n)


def fitted(years: Sequence[Rows], inputs: Callable[[Rows], Floats]) -> list[float]:
    """Return the AUC of each year by boosted trees fitted on every second of the others."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes seconds to import

    found = [0.0] * len(years)
    for half in (0, 1):
        train = [rows for k, rows in enumerate(years) if k % 2 != half]
        trees = HistGradientBoostingClassifier(
            max_iter=150,
            learning_rate=0.05,
            max_leaf_nodes=15,
            min_samples_leaf=200,
            l2_regularization=5.0,
            random_state=0,
        ).fit(np.vstack([inputs(rows) for rows in train]), np.concatenate([rows.y for rows in train]))
        for k in range(half, len(years), 2):
            found[k] = auc(trees.predict_proba(inputs(years[k]))[:, 1], years[k].y)
    return found


def rankings(years: Sequence[Rows]) -> dict[str, Estimate]:
    """Return the AUC of each of RANKINGS over some years of one family."""
    return {
        "truth": over_years([ranked(rows.truth, rows.y) for rows in years]),
        "truth, fitted": over_years(fitted(years, lambda rows: rows.state)),
        "filter": over_years([ranked(rows.filtered, rows.y) for rows in years]),
        "columns": over_years(fitted(years, lambda rows: rows.columns)),
    }


def table(edges: Sequence[float], years: int, params: Params) -> str:
    """Return the table in Markdown: one line an edge and family."""
    lines = [
        "| `simulator.edge` | family | rows a year | " + " | ".join(RANKINGS) + " |",
        "|---|---|---|" + "---|" * len(RANKINGS),
    ]
    for edge in edges:
        with ProcessPoolExecutor() as pool:
            made = list(pool.map(partial(year, edge=edge, params=params), range(FIRST_SEED, FIRST_SEED + years)))
        for family in ("validator", "predictor"):
            rows = [each[family] for each in made]
            found = rankings(rows)
            cells = " | ".join(f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in found.values())
            lines.append(f"| {edge:g} | {family} | {np.mean([len(r.y) for r in rows]):,.0f} | {cells} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def page(lines: str, years: int) -> str:
    """Return the page in Markdown around the lines of `table`."""
    return f"""# How much of the simulator's edge can be ranked

AUC of the labelled rows of a family by `simulator.edge`: the validator's events (target touched before the stop) and
the predictor's moves (up or down). Mean over {years} independent stationary years, with a 95 % t interval over years.
Written by `python -m benchmarks.simulator_edge`.

- **truth**: side × gain of the true regime × true pressure, the drift that the market itself uses. What follows a
  close depends on the past only through this hidden state. “fitted” adds the rest of the state (time in the regime,
  width of the barriers, distance of the close from the true value) by trees on other years: no function of the past
  ranks better.
- **filter**: the pressure filtered from every minute's taker share by the true law (Kalman 1960), with the true regime.
- **columns**: trees on the family's own columns, fitted on half of the years and scored on the others: what a model of
  this product reaches with a much longer history. The predictor's are its newest bar and the mean of {MEAN_BARS} bars.

{lines}

The default edge is the largest tenth whose **columns** stay at or below {MOST_AUC:.2f} for both families, so that no
honest model of the default market is taken for a leak ([decision](../decisions/0064-edge-a-model-can-reach.md)). The
hidden state would rank more: nobody observes it. An edge whose truth stays below {MOST_AUC:.2f} is not one that a year
can show: at 0.5 the validator of seed 7 had an AUC of .523, a gain of .0008 over the base rate (refused), and .4
emissions a week; at 0.7 .532, .0021 and 5.9; at 0.8 .555, .0047 and 11.1 (rules of 0.7.0).
"""


def read_page(text: str) -> dict[str, dict[float, float]]:
    """Return family → edge → AUC of the ranking by columns, from the lines of a page that `table` made."""
    found: dict[str, dict[float, float]] = {"validator": {}, "predictor": {}}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 + len(RANKINGS) and cells[1] in found:
            found[cells[1]][float(cells[0])] = float(cells[-1].split()[0])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=lambda text: [float(part) for part in text.split(",")], default=EDGES)
    parser.add_argument("--years", type=int, default=YEARS, help="independent years an edge; at least 4")
    parser.add_argument("--to", type=Path, default=PAGE, help=f"the page to write; docs/results/{PAGE.name} by default")
    options = parser.parse_args()
    options.to.write_text(page(table(options.edges, options.years, load_params()), options.years))
    print(f"wrote {options.to}", file=sys.stderr)
