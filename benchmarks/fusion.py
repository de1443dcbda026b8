"""Compare weights of the categories; writes docs/results/fusion.md.

Run: python -m benchmarks.fusion [--to FILE]

Stated, equal, learnt as outcomes came in, convex and genetic weights of one pooled forecast (pipelines/evaluation), on
events that none of them had seen: a simulated year, a recorded one, and a market that does not trade at night.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import numpy as np

from benchmarks.fixture import SIMULATED, costs_of_file, recording
from benchmarks.pages import write
from pipelines.contracts import (
    CATEGORIES,
    CLOSE,
    OPEN_TIME,
    Books,
    Bools,
    ContextFeed,
    Estimate,
    Floats,
    utc,
)
from pipelines.costs import Costs, costs_of, target_cost_bps, trade_cost_bps
from pipelines.data import schemas
from pipelines.data.alignment import align
from pipelines.data.quality import assess
from pipelines.data.readers.context import merge_feeds, read_context
from pipelines.data.readers.files import read
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import resample
from pipelines.evaluation.deflation import deflated_sharpe, overfitting_probability, sharpe_of
from pipelines.evaluation.metrics import chosen, lift_estimate, mean_estimate, mean_of_chosen, ranks_within
from pipelines.evaluation.pooling import LEAST
from pipelines.evaluation.signals import format_estimate
from pipelines.evaluation.weights import (
    GENERATIONS,
    MUTATION,
    POPULATION,
    Events,
    WalkForwardForecasts,
    convex,
    equal,
    genetic_loss,
    genetic_return,
    judge,
    losses,
    stated,
)
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.models.losses import log_losses
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import events
from pipelines.signals.regimes import market_state
from serving.policy.fusion import NO_REGIME, weight_table
from serving.policy.online_weights import initial_state, weights_in_force

PAGE = ROOT / "docs" / "results" / "fusion.md"
SIM_DAYS = 365
CALIBRATION_SHARE = 0.1  # of a history, the bars on which category scores are calibrated; events come after them
CONTEXT_FILES = (
    "binance_spot_ethusdt_5m_to_2025h1.parquet",
    "../alternative/binance_usdm_btcusdt_funding_8h.parquet",
    "../alternative/fear_greed_index_1d.parquet",
)
BTC = "binance_spot_btcusdt_1m_2024.parquet"
GOLD = "../forex/oanda_xauusd_1h_to_2015h1.parquet"
WEIGHTINGS = {
    "stated": "U1, the same at every event",
    "stated by regime": "U1 times U2 of the rule's regime at the event",
    "equal": "a fifth each: the evidence of every category unweighted",
    "learnt": "`serving/policy/online_weights.py`: Hedge with fixed share on what had resolved by then",
    "convex": "least log loss over the simplex above the floor",
    "genetic for log loss": "genetic search for the same",
    "genetic for net return": "genetic search for the return of the most confident share",
}


@dataclass(frozen=True)
class EvaluationSet:
    """Hold a market's resolved events, the regime code of each (NaN unknown), and a description of its history.

    active_share  (C,) share of the events at which each category took a side; step_s seconds of a decision bar
    cost_bps      (n,) what each trade cost; costs: which row, and where the spread is from
    """

    title: str
    events: Events
    regime: Floats
    active_share: Floats
    days: str
    step_s: int
    cost_bps: Floats
    costs: str


# ---- markets ------------------------------------------------------------------------------------------------------


def evaluation_set(
    title: str,
    base: Floats,
    step_s: int,
    books: Books | None,
    feed: ContextFeed | None,
    params: Params,
    costs: Costs,
) -> EvaluationSet:
    """Return events whose target covers their cost, and the category scores at each.

    Scores are calibrated on the first CALIBRATION_SHARE of the bars, before the first event.
    """
    base_s = int(np.diff(base[:, OPEN_TIME]).min())
    decision = base if step_s == base_s else resample(base, base_s, step_s)
    levels, context = align(decision[:, OPEN_TIME] + step_s, step_s, books, feed)
    features, signals = FEATURES.run(decision, levels, context), SIGNALS.run(decision, levels, context)
    first = int(len(decision) * CALIBRATION_SHARE)
    direction, confidence = CategoryScores.fit(signals[:first]).score(signals)
    scores = np.where(direction == 0.0, 0.0, direction * confidence)[:, : len(CATEGORIES)]
    found, labels = events(features, signals), params.labels
    closes = decision[found.index, OPEN_TIME] + step_s
    outcome = triple_barrier(
        base, closes, decision[found.index, CLOSE], found.direction, found.atr, labels.target_atr, labels.stop_atr,
        float(labels.horizon_bars * step_s),
    )  # fmt: skip
    least = labels.min_target_to_cost * target_cost_bps(costs, decision[found.index])
    large_enough = labels.target_atr * found.atr * 1e4 >= least
    cost_bps = trade_cost_bps(costs, outcome.barrier, outcome.spread_known)
    keep = large_enough & (outcome.barrier != UNRESOLVED) & (found.index >= first)
    at = found.index[keep]
    return EvaluationSet(
        title,
        # an outcome is known when the base bar that brought it has closed
        Events(scores[at], found.direction[keep].astype(float), outcome.label[keep], outcome.gross_bps[keep],
               closes[keep], outcome.exit_time[keep] + base_s),
        market_state(features, signals)[0][at],
        np.asarray((np.nan_to_num(scores[at]) != 0.0).mean(axis=0)),
        f"{utc(closes[keep][0]):%F} to {utc(closes[keep][-1]):%F}",
        step_s,
        cost_bps[keep],
        costs.describe(outcome.spread_known[keep]),
    )  # fmt: skip


def simulated_year(params: Params) -> EvaluationSet:
    """Return the evaluation set of the simulated year."""
    spec = params.simulator.model_copy(update={"history_days": SIM_DAYS, "live_days": 0, "drift_after_live_days": None})
    market = simulate(spec)
    title = f"The simulator, {SIM_DAYS} days, edge {spec.edge:g}, seed {spec.seed}"
    costs = costs_of(params.costs, *SIMULATED)
    return evaluation_set(title, market.bars, 900, market.books, market.feed, params, costs)


def recorded(
    title: str, file: str, timeframe: str, step_s: int, context: Sequence[str], params: Params
) -> EvaluationSet:
    """Return the evaluation set of a recorded file of bars, with the context files known next to it."""
    now = datetime.now(UTC)
    base = schemas.to_matrix(assess(read(recording(file), now).frame, timeframe, now).clean)
    feed = merge_feeds([read_context(recording(name)) for name in context]) if context else None
    return evaluation_set(title, base, step_s, None, feed, params, costs_of_file(file, params))


# ---- figures ------------------------------------------------------------------------------------------------------


def walk_forward(market_events: EvaluationSet, params: Params) -> WalkForwardForecasts:
    """Return every weighting's forecasts of the same events, walked forward."""
    given, learning = market_events.events, params.learning
    base_weights = np.array([params.fusion.weights[name] for name in CATEGORIES])
    begin = initial_state(tuple(base_weights.tolist()), 1.0 / (1.0 + params.labels.odds), learning)
    table = weight_table(params.fusion)[:, : len(CATEGORIES)]
    row = np.where(np.isfinite(market_events.regime), np.nan_to_num(market_events.regime), NO_REGIME).astype(int)
    memory = max(params.labels.horizon_bars, int(FEATURES.warmup.max()), int(SIGNALS.warmup.max()))
    return judge(
        given,
        {
            "stated": stated(base_weights), "equal": equal, "convex": convex, "genetic for log loss": genetic_loss,
            "genetic for net return": genetic_return,
        },
        {
            "stated by regime": table[row],
            "learnt": weights_in_force(begin, given.category_scores, given.side, given.label, given.ended, given.known,
                                       learning),
        },
        params.splits.folds, params.splits.min_train_fraction, float(memory * market_events.step_s),
        learning.floor / len(CATEGORIES), params.gate.coverage, params.seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """Hold one weighting's figures on one market, out of sample.

    gain: log loss of the stated weights less its own, paired, in millinats.
    """

    way: str
    loss: float
    gain: Estimate
    net: Estimate
    lift: Estimate
    trials: int
    deflated: float
    weights: Floats  # (C,) of the last fold, or the mean where they change from event to event


def figures(market_events: EvaluationSet, judged: WalkForwardForecasts, params: Params) -> list[Figure]:
    """Return the figures of every weighting, out of sample."""
    label, gross = market_events.events.label, market_events.events.gross_bps[judged.rows]
    net, cost = gross - market_events.cost_bps[judged.rows], float(market_events.cost_bps[judged.rows].mean())
    loss, found = losses(judged, label), []
    for way in WEIGHTINGS:
        p, weights = judged.p[way], judged.weights[way]
        taken = confident(judged, p, params.gate.coverage)
        # looked at over all folds, and the choice among the ways itself
        trials = judged.trials[way] + len(WEIGHTINGS)
        found.append(
            Figure(
                way,
                float(loss[way].mean()),
                mean_estimate(1e3 * (loss["stated"] - loss[way])),
                mean_of_chosen(net, taken, cost),
                lift_estimate(taken, gross),
                trials,
                deflated_sharpe(sharpe_of(gross - gross.mean(), taken), trials),
                weights.mean(axis=0) if len(weights) == len(p) else weights[-1],
            )
        )
    return found


def confident(judged: WalkForwardForecasts, p: Floats, coverage: float) -> Bools:
    """Return (m,) the most confident share of each test fold: weights are fitted a fold, so p is compared in one."""
    fold = np.cumsum(np.diff(judged.base_rate, prepend=judged.base_rate[0]) != 0.0)  # each fold has its own base rate
    return chosen(ranks_within(p, fold), coverage)


def gains_over_base_rate(
    market_events: EvaluationSet, judged: WalkForwardForecasts, params: Params
) -> Mapping[str, Estimate]:
    """Return weighting → its gain in log loss over the training rows' base rate, in millinats."""
    label = market_events.events.label[judged.rows]
    plain = log_losses(judged.base_rate, label)
    return {
        way: mean_estimate(1e3 * (plain - loss)) for way, loss in losses(judged, market_events.events.label).items()
    }


# ---- the page -----------------------------------------------------------------------------------------------------


def table(results: Sequence[Figure], base: Mapping[str, Estimate]) -> list[str]:
    """Return the lines of two tables: figures and weights of every weighting."""
    lines = [
        "| weights | log loss | saves against the base rate | saves against stated | net bps of the top | lift bps | "
        "candidates | deflated |",
        f"|---|{7 * '--:|'}",
    ]
    for f in results:
        cells = (
            f.way,
            f"{f.loss:.4f}",
            format_estimate(base[f.way], 2),
            format_estimate(f.gain, 2),
            format_estimate(f.net),
            format_estimate(f.lift),
        )
        lines.append(f"| {' | '.join((*cells, f'{f.trials:,}', _plain(f.deflated)))} |")
    lines += ["", f"| weights | {' | '.join(CATEGORIES)} |", f"|---|{len(CATEGORIES) * '--:|'}"]
    lines += [f"| {f.way} | {' | '.join(f'{w:.3f}' if w else '–' for w in f.weights)} |" for f in results]
    return lines


def verdict(results: Sequence[Figure], base: Mapping[str, Estimate], pbo: float) -> str:
    """Describe what the intervals show."""
    better = [f.way for f in results if f.gain.low > 0.0]
    worse = [f.way for f in results if f.gain.high < 0.0]
    better_than_base = [way for way, saved in base.items() if saved.low > 0.0]
    worse_than_base = [way for way, saved in base.items() if saved.high < 0.0]
    pays = [f.way for f in results if f.net.low > 0.0]
    lucky = [f.way for f in results if f.deflated >= 0.95]
    return _prose(
        f"""Better than the stated weights by log loss, with the whole interval: {_list(better)}; worse: {_list(worse)}.
        Better than the base rate, which ignores the categories: {_list(better_than_base)}; worse:
        {_list(worse_than_base)}. Net of cost above zero with the whole interval: {_list(pays)}; with a deflated Sharpe
        of .95 or more: {_list(lucky)}. Probability that the best of the ways in one half of the events is under their
        median in the other (PBO): {pbo:.2f}."""
    )


@dataclass(frozen=True)
class MarketSection:
    """Hold a market's section of the page, and its figures."""

    title: str
    lines: list[str]
    figures: list[Figure]
    better_than_base: list[str]  # ways whose forecasts are better than the base rate's, with the whole interval


def evaluate_market(market_events: EvaluationSet, params: Params) -> MarketSection:
    """Walk all weightings forward on one market and return its section."""
    started = perf_counter()
    judged = walk_forward(market_events, params)
    results, base = figures(market_events, judged, params), gains_over_base_rate(market_events, judged, params)
    gross = market_events.events.gross_bps[judged.rows]
    each = [
        np.where(confident(judged, judged.p[way], params.gate.coverage), gross - gross.mean(), 0.0)
        for way in WEIGHTINGS
    ]
    pbo = overfitting_probability(np.column_stack(each))
    print(f"{market_events.title}: {len(judged.rows):,} events in {perf_counter() - started:.0f} s", file=sys.stderr)
    shares = zip(CATEGORIES, market_events.active_share, strict=True)
    active_share = ", ".join(f"{name} {share:.2f}" for name, share in shares)
    lines = [
        f"## {market_events.title}",
        "",
        _prose(f"""{len(market_events.events):,} resolved events whose target covers their cost, {market_events.days};
        out of sample {len(judged.rows):,}, whose target came first at
        {market_events.events.label[judged.rows].mean():.3f} and which, all taken, returned {gross.mean():.1f} bps
        gross, {(gross - market_events.cost_bps[judged.rows]).mean():.1f} net ({market_events.costs}). Share of the
        events at which each category takes a side: {active_share}."""),
        "",
        *table(results, base),
        "",
        verdict(results, base, pbo),
        "",
    ]
    return MarketSection(market_events.title, lines, results, [way for way in WEIGHTINGS if base[way].low > 0.0])


def page(found: Sequence[MarketSection], params: Params) -> str:
    """Return the whole page."""
    labels, learning, splits = params.labels, params.learning, params.splits
    ways = "\n".join(f"- **{way}**: {about}" for way, about in WEIGHTINGS.items())
    return "\n".join(
        [
            "# Weights of the categories, compared",
            "",
            _prose("Written by `python -m benchmarks.fusion`; nothing here was typed or chosen by hand."),
            "",
            _prose(f"""An event is an ICT signal with a side of its own; its label is whether {labels.target_atr:g} ATR
            came before {labels.stop_atr:g} ATR and {labels.horizon_bars} bars. The score of a category is its direction
            times the percentile of its own strength, calibrated on the first {CALIBRATION_SHARE:.0%} of the bars,
            before any event. One pool turns that into a probability (`pipelines/evaluation/pooling.py`): a Platt line a
            category, log-odds added up, shared evidence of correlated categories counted once. Weights sum to 1 over
            the categories in the pool: one that took a side at fewer than {LEAST} training events is out (–). **Only
            weights differ:**"""),
            "",
            ways,
            "",
            _prose(f"""Walked forward in {splits.folds} folds, training rows purged by their labels' lives and an
            embargo of the longest memory of any feature or signal. Within each training window evidence is held out
            again, in purged stretches, before weights are chosen on it. Genetic: DEAP, population {POPULATION},
            {GENERATIONS} generations, mutation {MUTATION:g}, {POPULATION * (GENERATIONS + 1):,} candidates a fold. No
            setting was tuned on these figures; one rule was added after the first results: a category outside the pool
            gets no weight, since searches had placed weight there to ignore all evidence. No category of the pool gets
            less than {learning.floor / len(CATEGORIES):g}."""),
            "",
            _prose(f"""*Saves*: mean log loss of the other forecast less this one's on the same events, in thousandths
            of a nat. *Top*: the {params.gate.coverage:.0%} with the highest probability of all the out-of-sample
            events, after the costs named with each market; *lift*: before cost, over all events. In
            brackets 95 % intervals, t on long averages over the events. *Candidates*: weights tried for the row
            over all folds, and the {len(WEIGHTINGS)} rows themselves. *Deflated*: chance that the lift's Sharpe ratio
            is above what the best of so many candidates without skill would show; candidates of one search are near
            each other, so this is stricter than it need be, and all were tried inside the training windows."""),
            "",
            "## In short",
            "",
            overall(found),
            "",
            *[line for market in found for line in market.lines],
        ]
    )


def overall(found: Sequence[MarketSection]) -> str:
    """Summarise all markets: intervals against the stated weights that exclude zero, and the two searches."""
    apart_from_stated = [
        f"{f.way} is {'better' if f.gain.low > 0.0 else 'worse'} on {market.title}"
        for market in found
        for f in market.figures
        if f.gain.low > 0.0 or f.gain.high < 0.0
    ]
    compared = "; ".join(apart_from_stated) or "no way is better or worse than they are, on any market"
    better = [f"{way} on {m.title}" for m in found for way in m.better_than_base]
    better_than_base = "; ".join(better) or "none on any market"
    by = [{f.way: f for f in market.figures} for market in found]
    apart = max(float(np.abs(f["convex"].weights - f["genetic for log loss"].weights).max()) for f in by)
    more = min(f["genetic for log loss"].trials / f["convex"].trials for f in by)
    return _prose(
        f"""Against the stated weights by log loss, whole intervals only: {compared}. Better than the base rate, which
        ignores the categories: {better_than_base}. The genetic search for the log loss ended at the convex solution (no
        weight of a last fold further away than {apart:.1g}) and tried {more:,.0f} times as many candidates or more.
        Weights act on evidence that is already calibrated and counted once, for which equal weights are what
        independence implies: what is left to gain is little."""
    )


def _list(names: Sequence[str]) -> str:
    """Return names separated by commas, or "none"."""
    return ", ".join(names) or "none"


def _plain(value: float) -> str:
    """Format a figure with two decimals; a dash for NaN."""
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _prose(text: str) -> str:
    """Return text as one paragraph wrapped at 118 columns."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page."""
    write(PAGE, __doc__, (BTC, GOLD, *CONTEXT_FILES), _whole)


def _whole() -> str:
    """Evaluate all markets and return the page."""
    params = load_params()
    markets = [
        simulated_year(params),
        recorded("BTC/USDT, 15-minute bars, barriers walked on 1-minute bars", BTC, "1m", 900, CONTEXT_FILES, params),
        recorded("XAU/USD, hourly bars", GOLD, "1h", 3600, (), params),
    ]
    return page([evaluate_market(market, params) for market in markets], params)


if __name__ == "__main__":
    main()
