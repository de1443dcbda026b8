"""Time requests of concurrent callers of `/predict`, gathered into one call of a model, against a call for each.

In process, without HTTP: what the gathering saves of a model's own time. Run: python -m benchmarks callers
"""

import asyncio
from functools import partial
from typing import Any

import numpy as np

from benchmarks.four_families import four_families
from benchmarks.measured import Row, in_turn, pairs
from pipelines.contracts import Floats
from pipelines.models.runtime import load_bundle
from serving.inference.caller_batches import CallerBatches

CALLERS = (1, 8, 64)


def send(batches: CallerBatches, model: Any, rows: Floats) -> None:
    """Send each of these rows as a request of its own, all at once."""

    async def send_all() -> None:
        """Wait for every answer."""
        await asyncio.gather(*(batches.predict(model, row) for row in rows[:, np.newaxis]))

    asyncio.run(send_all())


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at, rows_measured = four_families(tiny), []
    for family, arms in at.families.items():
        digest = arms["champion"]["digest"]
        model: Any = load_bundle(at.home / "bundles" / digest, digest)
        golden = model.golden["rows"]
        for callers in CALLERS:
            rows = golden[np.arange(callers) % len(golden)]
            ours, theirs = in_turn(
                partial(send, CallerBatches(), model, rows),
                partial(send, CallerBatches(most_rows=1), model, rows),
                3 if tiny else 15,
            )
            scale = 1e6 / callers
            what = f"{family}, {callers} caller(s) of one row, CPU time a row"
            rows_measured.append(pairs(what, "us", ours * scale, "a call for each", theirs * scale))
    return rows_measured
