"""Trailing windows computed over whole arrays, for the oracles; and small markets drawn by hand."""

import numpy as np
import talib
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH

HOLES = slice(1000, 1011)  # bars of which nothing but prices was recorded


def windows(values, n=60):
    """Return (m, n): the n values up to each; rows of NaN before there are as many."""
    padded = np.concatenate([np.full(n - 1, np.nan), values])
    return sliding_window_view(padded, n)


def rank(values, n=60):
    """Return the share of the last n below each value, ties counted half; NaN unless all are there."""
    inside = windows(values, n)
    share = ((inside < values[:, None]).mean(axis=1) + (inside <= values[:, None]).mean(axis=1)) / 2
    return np.where(np.isnan(inside).any(axis=1), np.nan, share)


def rms(values, n=60):
    return np.sqrt((windows(values, n) ** 2).mean(axis=1))


def atr(bars):
    return talib.ATR(*(np.ascontiguousarray(bars[:, i]) for i in (2, 3, 4)), 14)


def quiet(n=70, volume=10.0):
    """Return bars (n, 9) from midnight, each from 99.5 to 100.5 (ATR 1) and back to 100; takers lean .1 in turn."""
    bars = np.tile([0.0, 100.0, 100.5, 99.5, 100.0, volume, 50.0, 0.55 * volume, np.nan], (n, 1))
    bars[:, 0] = 900.0 * np.arange(n)
    bars[1::2, 7] = 0.45 * volume
    return bars


def known(n, **fields):
    """Return (n, CONTEXT_WIDTH): fields as given, each a number or n of them; the rest missing."""
    rows = np.full((n, CONTEXT_WIDTH), np.nan)
    for name, values in fields.items():
        rows[:, CONTEXT_INDEX[name]] = values
    return rows


def then(usual, *last, n=70):
    """Return n values: those of `usual` in turn, and `last` at the end."""
    return np.concatenate([np.resize(usual, n - len(last)), last])


def holed(bars, contexts):
    """Return both with only prices recorded in HOLES."""
    bars, contexts = bars.copy(), contexts.copy()
    bars[HOLES, 5:], contexts[HOLES] = np.nan, np.nan
    return bars, contexts
