"""Make the repository's `data.dvc`: the simulated universe of `params.yaml`, as a first ingest makes it.

    python -m benchmarks.reference_universe

Writes data.dvc with the CPU type it was made on and the digest of each market, and prints its hash. Nothing else is
changed: the data lie in a home of their own, which is removed.
"""

# before numpy is imported: BLAS reads its number of threads once
if __name__ == "__main__":
    from pipelines.bootstrap import bootstrap

    bootstrap()

import os
import tempfile
from datetime import timedelta
from pathlib import Path

from flows.ingest import check, fetch
from flows.support.data_writer import CheckedMarket, write_version
from flows.support.installation import Installation, now, open_installation, workspace_lease
from flows.support.market_access import MarketOffer
from pipelines import versioning
from pipelines.data.reference_year import POINTER, write_pointer
from pipelines.settings import settings


def history_of(installation: Installation, symbol: str) -> CheckedMarket:
    """Return the simulated history of one symbol, fetched and checked as `ingest` does."""
    spec = installation.params.simulator
    frame, known, provenance, grid = fetch.fn(MarketOffer(symbol=symbol), spec.start + timedelta(spec.history_days))
    return CheckedMarket(symbol, check.fn(frame, grid, now()), known, provenance)


def main(pointer: Path = POINTER) -> str:
    """Write the pointer and return its data hash."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["BELLWETHER_HOME"] = home
        settings.cache_clear()
        installation = open_installation()
        with workspace_lease(installation):
            markets = [history_of(installation, symbol) for symbol in installation.params.universe.symbols]
            write_version(installation.data, markets)
            data_hash = versioning.snapshot(installation.workspace)
        write_pointer(installation.workspace, pointer)
        installation.store.close()
    return data_hash


if __name__ == "__main__":
    print("data", main())
