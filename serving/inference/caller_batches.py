"""Requests that are ready together go through a model in one call, counted in rows, and each gets its own answer.

Nothing waits for a batch to fill: what the event loop has read by its next turn goes together, which is one request
while the service is idle, and those that came during a call while it is busy.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from pipelines.contracts import Floats, Model, Predictions
from pipelines.models.calibration_and_novelty import LIVE_ROWS

log = logging.getLogger("bellwether.models")
Answer = asyncio.Future[Predictions]
Waiting = list[tuple[Floats, Answer]]


@dataclass
class CallerBatches:
    """Gather the requests of concurrent callers, a batch for each loaded model. One event loop owns it.

    most_rows  of one batch: up to LIVE_ROWS a row's answer on the CPU is that of the row alone, bit for bit, and a
               card divides what its memory does not take. A request with more is a batch of its own; 1 joins none
    """

    most_rows: int = LIVE_ROWS
    _waiting: dict[tuple[str, str], tuple[Model, Waiting]] = field(default_factory=dict)  # by family and digest

    async def predict(self, model: Model, rows: Floats) -> Predictions:
        """Return the predictions of these rows, which were checked to fit the model. Raises what the model raises."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.setdefault((model.family, model.digest), (model, []))[1].append((rows, answer))
        return await answer

    def _run(self) -> None:
        """Answer everything that waits, in the order it came; a caller that went away is left out."""
        waiting, self._waiting = self._waiting, {}
        for model, requests in waiting.values():
            for batch in self._batches([one for one in requests if not one[1].done()]):
                _answer(model, batch)

    def _batches(self, requests: Waiting) -> Iterator[Waiting]:
        """Yield the requests in order, as many together as have at most `most_rows` rows."""
        batch: Waiting = []
        for one in requests:
            if batch and sum(len(rows) for rows, _ in batch) + len(one[0]) > self.most_rows:
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch


def _answer(model: Model, batch: Waiting) -> None:
    """Predict a batch in one call and answer its requests; each in a call of its own where that one raises."""
    try:
        whole = model.predict(np.concatenate([rows for rows, _ in batch]) if len(batch) > 1 else batch[0][0])
        ends = np.cumsum([len(rows) for rows, _ in batch]).tolist()
        parts = [part_of(whole, start, stop) for start, stop in pairwise([0, *ends])] if len(batch) > 1 else [whole]
    except Exception as error:  # whose it was shows when each goes alone; then it is its caller's
        if len(batch) == 1:
            batch[0][1].set_exception(error)
            return
        log.warning("%s: %d requests are answered one by one", model.family, len(batch), exc_info=True)
        for one in batch:
            _answer(model, [one])
        return
    for (_, answer), part in zip(batch, parts, strict=True):
        answer.set_result(part)


def part_of(whole: Predictions, start: int, stop: int) -> Predictions:
    """Return the predictions of the rows from `start` up to `stop`."""
    part = slice(start, stop)
    return replace(
        whole,
        p=whole.p[part],
        p_low=whole.p_low[part],
        status=whole.status[part],
        reason=whole.reason[part],
        novelty=whole.novelty[part],
        label=None if whole.label is None else whole.label[part],
        members=None if whole.members is None else {name: p[part] for name, p in whole.members.items()},
    )
