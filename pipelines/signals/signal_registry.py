"""The specification row of each signal, and the bars on which a signal begins."""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.signals.catalog import SIGNALS


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one row of the specification: a description, and the signals that make it (none: a rule, not a signal)."""

    description: str
    signals: tuple[str, ...]


SIGNAL_REGISTRY: dict[str, Row] = {
    "S1": Row("order block", ("order_block",)),
    "S2": Row("fair-value gap", ("fvg",)),
    "S3": Row("liquidity sweep", ("sweep",)),
    "S4": Row("change in state of delivery", ("cisd",)),
    "S5": Row("divergence from the reference market", ("smt",)),
    "S6": Row("absorption, order-flow imbalance, cumulative delta", ("absorption", "ofi", "cvd", "cvd_divergence")),
    "S7": Row("footprint and depth", ("footprint",)),
    "S8": Row("Hawkes intensity", ("hawkes",)),
    "S9": Row("order-book heatmap", ("heatmap",)),
    "S10": Row("smart money", ("smart_money",)),
    "S11": Row("institutional flow", ("institutional",)),
    "S12": Row("auction market phase", ("amt_accumulation", "amt_distribution")),
    "S13": Row("candle range theory", ("crt",)),
    "S14": Row("unicorn rating", ("unicorn",)),
    "S15": Row("multi-timeframe confluence", ("confluence",)),
    "S16": Row(
        "technical strategies", ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus")
    ),
    "S17": Row("adaptive thresholds: a rule over the others", ()),
    "D7": Row("funding, fear and greed", ("funding", "fear_greed")),
}  # fmt: skip


def signal_names() -> tuple[str, ...]:
    """Return the name of every signal of SIGNALS, in its order."""
    return tuple(c.removesuffix(".direction") for c in SIGNALS.columns if c.endswith(".direction"))


def direction(signals: Floats, name: str) -> Ints:
    """Return (n,) the side of a signal at each bar of signals (n, ks): -1, 0 (none, or missing), 1."""
    side, strength = (signals[:, SIGNALS.index[f"{name}.{part}"]] for part in ("direction", "strength"))
    return np.nan_to_num(np.where(strength > 0, side, 0.0)).astype(np.int64)


def onsets(side: Ints) -> Ints:
    """Return the rows on which a side (n,) other than 0 begins: it was another at the bar before."""
    return np.flatnonzero((side != 0) & (side != np.concatenate([[0], side[:-1]])))
