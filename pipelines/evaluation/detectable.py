"""The minimum detectable effect: which edge a candidate's rows could show, and how many rows a smaller one takes.

A figure whose interval holds zero says nothing of edges too small for its rows. Every candidate states the smallest
true edge that its rows would have shown above zero by the whole interval in 95 % of all cases (`intervals.POWER`). The
error of a mean falls with the square root of the rows, so an edge half as large takes four times as many.
"""

import math
from dataclasses import dataclass

from pipelines.contracts import JsonObject
from pipelines.evaluation.intervals import POWER, Measurement

ONE_BP = 1.0


@dataclass(frozen=True, slots=True)
class Detectable:
    """Hold what n rows can show of one figure.

    least   smallest true value they show in POWER of all cases; NaN where the error of the figure is not known
    target  the value that is asked about, and `rows` how many rows show it; NaN where unknown
    unit    of both
    """

    least: float
    target: float
    rows: float
    n: int
    unit: str
    why: str = ""

    @property
    def line(self) -> str:
        """Return it in words; `rows` to two digits, as the error they rest on is no better known."""
        if self.unit == "bps":
            what, least, target = "events", f"edges under {self.least:.2g} bps", f"{self.target:.2g} bps"
            target = "1 bp" if self.target == ONE_BP else target
        else:
            what, least, target = "rows", f"gains under {self.least:.2g} in {self.unit}", f"{self.target:.2g}"
        if not math.isfinite(self.least):
            return f"which {least.split()[0]} could be seen, in {self.unit}, is not known: {self.why}"
        seen = f"{least} could not be seen in {self.n:,} {what}"
        if not math.isfinite(self.rows):
            return seen
        return (
            f"{seen}; {float(f'{self.rows:.2g}'):,.0f} {what} {'would show' if self.rows > self.n else 'show'} {target}"
        )

    def to_dict(self) -> JsonObject:
        """Return it JSON-ready, None for what is not known."""
        least, rows = (value if math.isfinite(value) else None for value in (self.least, self.rows))
        return {
            "least": least, "target": self.target, "rows": rows, "n": self.n, "unit": self.unit, "power": POWER,
            "line": self.line,
        }  # fmt: skip


def detectable(found: Measurement, target: float, n: int, unit: str) -> Detectable:
    """Return what the rows of a figure can show.

    found   the figure; target: the smallest value that somebody cares about, above 0, in `unit`
    n       rows or events it rests on: of a figure of chosen rows, all that were chosen from
    """
    rows = n * (found.detectable / target) ** 2 if target > 0.0 else float("nan")
    return Detectable(found.detectable, target, rows, n, unit, found.why)
