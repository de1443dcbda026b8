"""M3, the regime detector: seven detectors with their own labels, one vote over contracts.REGIMES.

Everything served here is a pure function of the last `STEPS` decision bars: the filter starts from its stationary
distribution at the first of them, hysteresis and dwell run inside them. So live equals batch bit for bit on one
machine, a restart or a swap needs no state, and a gap leaves no trace once it is outside the window.
"""
