"""`python -m benchmarks.spread_evidence [NAME ...]`: parts of the evidence whose cases Dask workers compute.

The same cases, files and figures as `python -m benchmarks.evidence`, for the parts whose results depend on a case and
the code alone: one begun here goes on there, and back. Each case is a task of Prefect, on the workers of
BELLWETHER_DASK_URL or of a home of profile `cluster`. Parts that time something or start services stay on one machine.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once; and before Prefect
    from pipelines.bootstrap import bootstrap

    bootstrap()
    import os

    from bellwether.cli.connection import connect

    connect()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from rich.console import Console

from bellwether.cli.connection import require_services
from benchmarks.evidence import PARTS, Part, failure, run, show
from flows.stage import part as task_of_part
from flows.support import dask_workers
from pipelines.contracts import JsonObject
from pipelines.errors import BellwetherError
from pipelines.settings import settings
from pipelines.training.side_by_side import Job

SPREAD = tuple(name for name, part in PARTS.items() if part.is_spread)


def result_of(_: Path, case_of: Callable[[str], JsonObject], case: str) -> JsonObject:
    """Return the result of one case."""
    return case_of(case)


def on_workers(
    client: Any, part: Part, cases: Sequence[str], _: int, ended: Callable[[str, JsonObject | str], None]
) -> None:
    """Run cases on the workers of a client, as `evidence.Compute`. Raises SchedulerLost, ServiceDown without one."""
    failed: list[BaseException] = []

    def take(number: int, result: Any) -> None:
        """Pass on the result of a case, or why there is none."""
        if isinstance(result, BaseException):
            failed.append(result)
        ended(cases[number], failure(result) if isinstance(result, BaseException) else result)

    each = dask_workers.each_on(client, task_of_part, take)
    try:
        each(result_of, [Job(case, case) for case in cases], part.run)
    except BaseException as error:
        if error not in failed:  # a case that failed was named, and the next run repeats it
            raise


@flow(name="evidence", persist_result=False)
def evidence(names: list[str], again: bool, only: list[str]) -> None:
    """Run the missing cases of parts on the workers of the flow's task runner, and print the figures."""
    context = FlowRunContext.get()
    assert context is not None
    folder, progress = settings().home / "evidence", Console(stderr=True)
    compute = partial(on_workers, context.task_runner.client)
    show({name: run(name, PARTS[name], folder, again, 0, progress, only, compute) for name in names}, folder)


def main() -> None:
    """Parse the command line, run the missing cases and print figures. Exits with 1 and one sentence on an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spread_evidence", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(SPREAD)}; all by default")
    parser.add_argument("--again", action="store_true", help="forget what is stored and measure again")
    parser.add_argument("--case", action="append", default=[], metavar="CASE", help="only this case; may be repeated")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SPREAD):
        parser.error(f"no evidence {', '.join(sorted(unknown))} for workers; known: {', '.join(SPREAD)}")
    names = options.names or SPREAD
    known = {case for name in names for case in PARTS[name].cases}
    if unknown := set(options.case) - known:
        parser.error(f"no case {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    if settings().dask == "local":
        sys.exit(
            "no Dask workers: BELLWETHER_DASK_URL is `local`. Name a scheduler, or set BELLWETHER_PROFILE=cluster; "
            "`python -m benchmarks.evidence` computes on this machine"
        )
    try:
        require_services("prefect")
        runner = dask_workers.runner(settings())
        evidence.with_options(task_runner=runner)(list(names), options.again, options.case)
    except BellwetherError as error:
        sys.exit(f"{error}. What ended is stored; the same command goes on from there.")


if __name__ == "__main__":
    from benchmarks.spread_evidence import main as of_the_module  # a function of `__main__` is unknown on a worker

    of_the_module()
