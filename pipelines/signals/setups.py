"""The nine chart patterns of the recogniser (M2) as setups: which does this bar's close complete, and which way?

Each is a signal of the catalogue that comes once, on the bar that makes it known; its outcome is a matter of labels.
"""

from pipelines.contracts import Floats
from pipelines.errors import BadShape
from pipelines.signals.catalog import SIGNALS

# pattern → the signal that detects it
SETUPS = {
    "order_block": "order_block",
    "liquidity_sweep": "sweep",
    "fvg": "fvg",
    "cisd": "cisd",
    "cmt_confluence": "confluence",
    "amt_accumulation": "amt_accumulation",
    "amt_distribution": "amt_distribution",
    "flowstate_crt_setup": "crt",
    "unicorn_rating_trigger": "unicorn",
}
PATTERNS = tuple(SETUPS)
_PLACES = [SIGNALS.index[f"{signal}.direction"] for signal in SETUPS.values()]


def setups(signals: Floats) -> Floats:
    """Return (n, 9) in the order of PATTERNS from signals (n, ks): 1, -1, 0 = absent, NaN = not known.

    Raises BadShape.
    """
    if signals.ndim != 2 or signals.shape[1] != len(SIGNALS.columns):
        raise BadShape(f"signals have shape {signals.shape}, wanted (n, {len(SIGNALS.columns)}) of SIGNALS.columns")
    return signals[:, _PLACES]
