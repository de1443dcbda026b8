"""Bring the market data that the repository's `data.dvc` describes, so that DVC's own commands work in its root.

From the repository's remote or this home's, which has it once a turn ingested the universe of `params.yaml`; where
neither has, the universe is simulated again, and compared with what `data.dvc` says of each market.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.support.data_writer import CheckedMarket, write_market
from flows.support.installation import now
from flows.support.market_access import grid_of_file, market_records
from flows.support.processes import Progress, silent
from pipelines import versioning
from pipelines.data import data_version
from pipelines.data.data_version import MANIFEST, DataVersion
from pipelines.data.quality import assess
from pipelines.data.reference_year import EQUAL, SAME_MARKET, compare_markets
from pipelines.data.sources import SimulatorSource
from pipelines.errors import StateError
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params

THERE, SIMULATED = "it was there", "simulated"


@dataclass(frozen=True, slots=True)
class RestoredData:
    """Hold what `restore` did: the data hash of `data.dvc`, where the data came from, and how they compare with it.

    came_from  THERE, SIMULATED or the URL of a remote; match: EQUAL or SAME_MARKET
    """

    data_hash: str
    came_from: str
    match: str


def restore(settings: Settings, root: Path = ROOT, progress: Progress = silent) -> RestoredData:
    """Bring `data/` of the repository. Changes no file that git tracks.

    Raises  StateError outside a clone, and if `params.yaml` simulates another universe than `data.dvc` describes
    """
    if not _is_clone(root):
        raise StateError(f"{root} has no data.dvc and .dvc/config: run this in a clone of the repository")
    data_hash = versioning.data_hash(root)
    if (root / "data").is_dir():
        if versioning.data_is_there(root):
            versioning.cache_data(root)
            return RestoredData(data_hash, THERE, EQUAL)
        if (root / "data" / MANIFEST).is_file() and compare_markets(root / "data", root / "data.dvc") == SAME_MARKET:
            return RestoredData(data_hash, THERE, SAME_MARKET)
    remote = versioning.pull_data(root, [None, settings.remote])
    if remote is not None:
        return RestoredData(data_hash, remote, EQUAL)
    progress("no remote has it: the universe of params.yaml is simulated again, about a minute")
    return RestoredData(data_hash, SIMULATED, _simulate(root, data_hash, progress))


def is_missing(settings: Settings, root: Path = ROOT) -> bool:
    """Return whether a run on the universe of `params.yaml` has `data/` of the repository to bring first.

    Not where it is there, this is no clone that we may write to, or the parameters are another file.
    """
    own = settings.params_file.resolve() == (root / "params.yaml").resolve()
    return own and _is_clone(root) and not (root / "data").exists() and os.access(root, os.W_OK)


def _is_clone(root: Path) -> bool:
    """Return whether a folder is a clone of the repository, not only its installed code."""
    return (root / "data.dvc").is_file() and (root / ".dvc" / "config").is_file()


def _simulate(root: Path, data_hash: str, progress: Progress) -> str:
    """Simulate the universe and put it in place of `data/`; return how it compares with `data.dvc`."""
    scratch = root / ".dvc" / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        made = Path(folder) / "data"
        for line in write_universe(made, load_params(root / "params.yaml")):
            progress(line)
        match = compare_markets(made, root / "data.dvc")
        if match is None:
            raise StateError(
                f"params.yaml simulates another universe than data.dvc describes ({data_hash[:12]}). Restore it with "
                "`git checkout params.yaml data.dvc`, or describe this one: python -m benchmarks.reference_universe"
            )
        shutil.rmtree(root / "data", ignore_errors=True)
        made.rename(root / "data")
    if match == EQUAL:
        if not versioning.data_is_there(root):
            raise StateError(
                f"the bars are those of data.dvc ({data_hash[:12]}), but this release describes them otherwise in "
                f"{MANIFEST}. Describe them again: python -m benchmarks.reference_universe"
            )
        versioning.cache_data(root)
    return match


def write_universe(folder: Path, params: Params) -> list[str]:
    """Write the history of the simulated universe as a first ingest does; return a line on each market.

    The markets are made in this process, which keeps them: a turn after it need not make them again.
    """
    source = SimulatorSource(params.simulator)
    source.prepare(params.universe.symbols)
    facts = {symbol: _write_history(folder, symbol, source, params) for symbol in params.universe.symbols}
    data_version.write_manifest(folder, DataVersion(facts))
    return [f"{symbol}: {each['rows']:,} bars to {each['last'][:16]}" for symbol, each in facts.items()]


def _write_history(folder: Path, symbol: str, source: SimulatorSource, params: Params) -> dict[str, Any]:
    """Write the simulated history of one symbol into a folder, checked as `ingest` does; return its facts."""
    through = params.simulator.start + timedelta(params.simulator.history_days)
    frame = source.fetch(symbol, as_of=through, ingested_at=now())
    report = assess(frame, grid_of_file(source, frame, None), now(), rules=params.data.quality)
    return write_market(
        folder, CheckedMarket(symbol, report, market_records(source, symbol, (), through), source.describe())
    )
