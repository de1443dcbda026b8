"""Run a stage of the build graph with its parts on Dask workers: `python -P -m flows.stage train validator`.

The process is the coordinator: it runs in the workspace, and it alone writes there. The command in dvc.yaml stays that
of one machine, since the bytes are the same; flows/support/stage_command.py decides which one runs.
"""

import os

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once; and before Prefect
    from pipelines.bootstrap import bootstrap

    bootstrap()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

import sys
from collections.abc import Mapping, Sequence

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.support import dask_workers
from pipelines.errors import NOT_ENOUGH_DATA, BellwetherError, NotEnoughData
from pipelines.settings import settings
from pipelines.training import stages
from pipelines.training.elsewhere import Done, apart
from pipelines.training.side_by_side import Job


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def part(name: str, work: tuple[str, bytes], job: Job, files: Mapping[str, bytes]) -> Done:
    """Compute one part of a stage, on a worker: see `elsewhere.apart`."""
    return apart(work, job, files)


@flow(name="stage", persist_result=False)
def stage(words: list[str]) -> None:
    """Run one stage in the current folder, its parts on the workers of the flow's task runner."""
    context = FlowRunContext.get()
    assert context is not None
    stages.main(words, dask_workers.each_on(context.task_runner.client, part))


def run(words: Sequence[str]) -> None:
    """Run a stage; one whose scheduler ended is run once more, when there is one again. Raises as the stage."""
    named = stage.with_options(flow_run_name=f"stage {' '.join(words)}")
    try:
        named.with_options(task_runner=dask_workers.runner(settings()))(list(words))
    except dask_workers.SchedulerLost as lost:
        stages.log_line(f"{lost}; this stage runs once more")
        named.with_options(task_runner=dask_workers.runner(settings()))(list(words))


def main() -> None:
    """Run the stage of the command line; errors as `pipelines.training.stages` shows them."""
    try:
        run(sys.argv[1:])
    except BellwetherError as error:
        stages.log_line(str(error))
        sys.exit(NOT_ENOUGH_DATA if isinstance(error, NotEnoughData) else 1)


if __name__ == "__main__":
    from flows.stage import main as of_the_module  # a task of `__main__` would be another one on a worker

    of_the_module()
