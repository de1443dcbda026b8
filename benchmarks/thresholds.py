"""Count how many events reach each adaptive threshold (S17); writes docs/results/thresholds.md.

Run: python -m benchmarks.thresholds [--to FILE]
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import textwrap
from dataclasses import dataclass

import numpy as np

from benchmarks.fixture import recorded, recording
from benchmarks.pages import write
from pipelines.contracts import OPEN_TIME, REGIMES, Books, Bools, ContextFeed, Floats
from pipelines.data.alignment import align
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import events
from pipelines.signals.regimes import market_state
from serving.policy import kernel as decision_kernel
from serving.policy.decide import CONFLUENCE, PHASE, UNICORN
from serving.policy.decision_row import flatten, to_rows
from serving.policy.thresholds import THRESHOLDS, thresholds
from serving.risk.codes import (
    CONFIDENCE_BELOW,
    CONFLUENCE_BELOW,
    NO_SIGNAL,
    PHASE_DIFFERS,
    STRENGTH_BELOW,
    UNICORN_BELOW,
)

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PAGE = ROOT / "docs" / "results" / "thresholds.md"
BTC = "binance_spot_btcusdt_1m_2024.parquet"
MINUTES, QUARTERS = Grid("1m"), Grid("15m")
# refusals that say an event did not reach a threshold; without any signal there is no confidence to compare
MISSED = {
    "strength": STRENGTH_BELOW, "confidence": CONFIDENCE_BELOW | NO_SIGNAL, "confluence": CONFLUENCE_BELOW,
    "unicorn": UNICORN_BELOW, "phase": PHASE_DIFFERS,
}  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """Hold which of m events reach which threshold: name → (m,), and the regime of each event by the rule."""

    by: dict[str, Bools]
    regime: Floats

    def share(self, *names: str, regime: float | None = None) -> str:
        """Return how many events reach all of these thresholds, of all events or those of a regime, in words."""
        of = np.ones(len(self.regime), dtype=bool) if regime is None else self.regime == regime
        if not of.any():
            return "no event"
        reached = int(np.all([self.by[name][of] for name in names], axis=0).sum())
        return f"{reached:,} ({100.0 * reached / of.sum():.1f} %)"


def reached(bars: Floats, books: Books | None, feed: ContextFeed | None, params: Params) -> Reached:
    """Return which ICT events of 1-minute bars (n, 8) reach which threshold, by the kernel that decides.

    The categories are calibrated on the history before the first walk-forward test, and only later events count.
    """
    decision = resample(bars, MINUTES, QUARTERS)
    levels, context = align(decision[:, OPEN_TIME], QUARTERS, books, feed)
    features, signals = FEATURES.run(decision, levels, context), SIGNALS.run(decision, levels, context)
    first = int(len(decision) * params.splits.min_train_fraction)
    scores = CategoryScores.fit(signals[:first])
    raised = events(features, signals)
    at, side = (values[raised.index >= first] for values in (raised.index, raised.direction))
    direction, confidence = scores.score(signals[at])
    regime, trend = market_state(features[at], signals[at])
    rows = to_rows(
        direction, confidence, independence=scores.independence, regime=regime, trend=trend, event=side, tier=1.0,
        unicorn=signals[at, UNICORN], confluence=signals[at, CONFLUENCE], phase=signals[at, PHASE],
    )  # fmt: skip
    all_required = params.thresholds.model_copy(update={"require": THRESHOLDS})
    flat = flatten(params.model_copy(update={"thresholds": all_required}))
    outs, codes = np.empty((len(rows), decision_kernel.OUT_WIDTH)), np.empty(len(rows), dtype=np.int64)
    decision_kernel.decide_rows(rows, flat, outs, codes)
    return Reached({name: codes & bits == 0 for name, bits in MISSED.items()}, regime)


def table(markets: dict[str, Reached], params: Params) -> list[str]:
    """Return the Markdown table of the shares."""
    base = thresholds(params.thresholds, None)
    minimum = {
        "strength": f"{base.min_strength:g} of 100", "confidence": f"{base.min_confidence:g}",
        "confluence": f"{base.min_confluence:g}", "unicorn": f"{base.min_unicorn:g} of 21", "phase": base.phase,
    }  # fmt: skip
    lines = [
        f"| threshold | minimum without a regime | {' | '.join(markets)} |",
        f"|---|---|{'---|' * len(markets)}",
        f"| events | | {' | '.join(f'{len(found.regime):,}' for found in markets.values())} |",
    ]
    for name in THRESHOLDS:
        shares = " | ".join(found.share(name) for found in markets.values())
        lines.append(f"| {name} | {minimum[name]} | {shares} |")
    for code, regime in enumerate(REGIMES):
        shares = " | ".join(found.share("strength", regime=float(code)) for found in markets.values())
        least = thresholds(params.thresholds, regime)
        lines.append(f"| strength, {regime} | {least.min_strength:g} of 100 | {shares} |")
    lines.append(f"| all five | | {' | '.join(found.share(*THRESHOLDS) for found in markets.values())} |")
    return lines


def page(params: Params) -> str:
    """Return the whole page."""
    spec = params.simulator.model_copy(update={"live_days": 0, "drift_after_live_days": None})
    market = simulate(spec)
    markets = {
        f"simulator, {spec.history_days} days": reached(market.bars, market.books, market.feed, params),
        "BTC/USDT 2024, candles only": reached(recorded(recording(BTC)), None, None, params),
    }
    prose = (
        """Written by `python -m benchmarks.thresholds`; nothing here was typed by hand. How many ICT events reach each
        adaptive threshold (S17), as the decision kernel counts them on 15-minute bars: categories are calibrated on the
        first two fifths of the year, events are those of the rest. Every event is counted, so no interval is given.""",
        f"""Those of `thresholds.require` refuse ({", ".join(params.thresholds.require) or "none"} by default); the
        others are recorded with each event, with value and minimum. A value is that of the event's own side: strength
        is the percentile of the category that raised the event, in points of 100; confluence the weighted agreement of
        the timeframes' trends with it; unicorn the stars of its side; phase that of the auction. A value that is not
        known reaches nothing. Requiring a threshold that hardly any event reaches stops almost all trading.""",
    )
    lines = ["# Adaptive thresholds: how many events reach them", ""]
    for text in prose:
        lines += [textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False), ""]
    return "\n".join([*lines, *table(markets, params)]) + "\n"


def main() -> None:
    """Write the page."""
    write(PAGE, __doc__, [BTC], lambda: page(load_params()))


if __name__ == "__main__":
    main()
