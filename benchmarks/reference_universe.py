"""Make the repository's `data.dvc`: the simulated universe of `params.yaml`, as a first ingest makes it.

    python -m benchmarks.reference_universe

Writes data.dvc with the CPU type it was made on and the digest of each market, and prints its hash. Nothing else is
changed: the data lie in a workspace of their own, which is removed.
"""

# before numpy is imported: BLAS reads its number of threads once
if __name__ == "__main__":
    from pipelines.bootstrap import bootstrap

    bootstrap()

import tempfile
from pathlib import Path

from bellwether.operations.restore_data import write_universe
from pipelines import versioning
from pipelines.data.reference_year import POINTER, write_pointer
from pipelines.params import Params
from pipelines.settings import ROOT, load_params


def main(pointer: Path = POINTER, params: Params | None = None) -> str:
    """Write the pointer and return its data hash; `params` None = those of params.yaml."""
    with tempfile.TemporaryDirectory() as home:
        workspace = Path(home) / "workspace"
        versioning.prepare(workspace, ROOT, ROOT / "params.yaml", str(Path(home) / "remote"))
        write_universe(workspace / "data", params or load_params())
        data_hash = versioning.snapshot(workspace)
        write_pointer(workspace, pointer)
    return data_hash


if __name__ == "__main__":
    print("data", main())
