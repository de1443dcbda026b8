"""Who runs a stage of the build graph: a process of this machine, or one whose parts Dask workers compute."""

from collections.abc import Callable, Sequence

from flows.support.installation import Installation
from pipelines import versioning

HERE, ON_WORKERS = "pipelines.training.stages", "flows.stage"  # modules; the bytes are the same
SPREAD = ("features", "labels", "train")  # stages of several parts


def run_stage(installation: Installation, name: str, timeout_s: float, progress: Callable[[str], None]) -> None:
    """Run one stage, as `versioning.run_stage`."""
    spread = installation.settings.dask != "local" and name.partition("@")[0] in SPREAD
    versioning.run_stage(installation.workspace, name, timeout_s, progress, {HERE: ON_WORKERS} if spread else {})


def reproduce(
    installation: Installation, names: Sequence[str], timeout_s: float, progress: Callable[[str], None]
) -> list[str]:
    """Run those of these stages that are stale, in order, and record them. Return those that ran.

    DVC runs the command of dvc.yaml, which is that of one machine; so with workers it says only what is stale.
    """
    if installation.settings.dask == "local":
        return versioning.reproduce(installation.workspace, list(names))
    ran = []
    for name in names:
        if versioning.stale(installation.workspace, [name]):
            run_stage(installation, name, timeout_s, progress)
            versioning.record(installation.workspace, [name])
            ran.append(name)
    return ran
