"""The fits of all families on Dask workers, timed for benchmarks.workers: `python -m benchmarks.workers_timed FOLDER`.

Prints the seconds of one for each line of input: "1" = on one worker, else on all. A module of its own, as Dask sends
what a flow of `__main__` reads with every part.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import contextvars
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext

from benchmarks.workers import OneWorker, walks_of
from flows.stage import part
from flows.support import dask_workers
from pipelines.settings import settings
from pipelines.training.walk import Walk, fit_part, jobs_of


def all_on(client: Any, walks: Sequence[Walk]) -> None:
    """Compute the families side by side, as a retrain of all of them does."""
    each = dask_workers.each_on(client, part)
    with ThreadPoolExecutor(len(walks)) as pool:
        ended = [pool.submit(contextvars.copy_context().run, each, fit_part, jobs_of(walk), walk) for walk in walks]
        for one in ended:
            one.result()


@flow
def timed(folder: str) -> None:
    """Compute the parts once to warm up, and once for each line of input."""
    context, walks = FlowRunContext.get(), walks_of(Path(folder))
    assert context is not None
    client = context.task_runner.client
    one = OneWorker(client, sorted(client.scheduler_info()["workers"])[0])
    all_on(client, walks)
    for line in sys.stdin:
        began = time.perf_counter()
        all_on(one if line == "1\n" else client, walks)
        print("seconds", time.perf_counter() - began, flush=True)


def main() -> None:
    """Run the flow on the scheduler of the environment."""
    timed.with_options(task_runner=dask_workers.runner(settings()))(sys.argv[1])


if __name__ == "__main__":
    from benchmarks.workers_timed import main as of_the_module

    of_the_module()
