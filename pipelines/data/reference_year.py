"""The simulated universe that the repository's `data.dvc` describes, and how a regenerated one compares with it.

Maths libraries round differently on different CPUs, so equal bytes are demanded only on the CPU type the year was made
on (`meta.cpu` of data.dvc). Elsewhere 1,000 committed bars of its first symbol are compared within TOLERANCE.
`python -m benchmarks.reference_universe` makes the pointer.
"""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.contracts import OPEN_TIME, Floats
from pipelines.data.data_version import read_bars as read_months
from pipelines.data.data_version import read_manifest
from pipelines.data.schemas import read_bars, to_matrix
from pipelines.errors import UnreadableFile
from pipelines.settings import ROOT, read_yaml

POINTER = ROOT / "data.dvc"
SAMPLE = ROOT / "docs" / "results" / "simulated_year.parquet"  # 1,000 bars of the year, as `write_bars` writes them
SAMPLED = "SIM/USDT"  # the only symbol of pointers that name none
TOLERANCE = 1e-9  # relative, of each number of a sampled bar
EQUAL, SAME_MARKET = "as data.dvc says", "same market, other CPU"
DESCRIPTION = "the simulated universe of params.yaml; `bellwether data restore` brings it"
_VECTORS = {"X86_V4": "AVX-512", "AVX512_SKX": "AVX-512", "X86_V3": "AVX2", "AVX2": "AVX2"}  # best first


def cpu_type() -> str:
    """Return the machine type and the widest vector instructions that NumPy uses, such as "x86_64 AVX-512"."""
    active = set(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    vectors = [name for feature, name in _VECTORS.items() if feature in active]
    return " ".join([platform.machine(), *vectors[:1]])


def compare(data_hash: str, bars: Mapping[str, Floats], pointer: Path = POINTER, sample: Path = SAMPLE) -> str | None:
    """Return EQUAL or SAME_MARKET if a data version is the committed universe, None if it is another one.

    data_hash  of the version; bars: symbol → its 1-minute bars (n, 9)
    The sample is compared only on another CPU type than the year was made on. Raises UnreadableFile for a broken
    pointer or sample.
    """
    if not pointer.is_file():
        return None
    described = read_yaml(pointer)
    try:
        committed, about = described["outs"][0]["md5"], described.get("meta", {})
        made_on, symbols = about.get("cpu"), list(about.get("symbols", [SAMPLED]))
    except (KeyError, IndexError, TypeError) as error:
        raise UnreadableFile(f"{pointer} is cut off. Restore it with `git checkout data.dvc`.") from error
    if data_hash == committed:
        return EQUAL
    if made_on in (None, cpu_type()) or set(symbols) != set(bars):
        return None
    return SAME_MARKET if holds_sample(bars[symbols[0]], sample) else None


def compare_markets(data: Path, pointer: Path = POINTER, sample: Path = SAMPLE) -> str | None:
    """Return EQUAL, SAME_MARKET or None: how a folder of market data, not versioned, compares with a pointer.

    By the digest of each market, elsewhere as `compare`. Raises UnreadableFile for a damaged pointer, manifest, sample
    """
    about, markets = read_yaml(pointer).get("meta", {}), read_manifest(data).markets
    wanted = about.get("symbols", {})
    if set(wanted) != set(markets):
        return None
    try:
        if all(market_digest(data, facts) == wanted[symbol] for symbol, facts in markets.items()):
            return EQUAL
    except FileNotFoundError:  # a month is gone
        return None
    if about.get("cpu") in (None, cpu_type()):
        return None
    first = next(iter(markets.values()))
    return SAME_MARKET if holds_sample(to_matrix(read_months(data, first)), sample) else None


def holds_sample(bars: Floats, sample: Path = SAMPLE) -> bool:
    """Return whether bars (n, 9) contain every bar of the sample, each number within TOLERANCE."""
    wanted = to_matrix(read_bars(sample))
    at = np.searchsorted(bars[:, OPEN_TIME], wanted[:, OPEN_TIME])
    if len(bars) == 0 or at.max() >= len(bars):
        return False
    return bool(np.allclose(bars[at], wanted, rtol=TOLERANCE, atol=0.0, equal_nan=True))


def write_pointer(workspace: Path, pointer: Path = POINTER) -> None:
    """Write the repository's pointer from the newest data version of a workspace.

    It also names the CPU type, and symbol → `market_digest`.

    Raises  StateError before the first ingest, UnreadableFile for a damaged manifest or pointer
    """
    described = read_yaml(workspace / "data.dvc")
    data = workspace / "data"
    markets = {symbol: market_digest(data, facts) for symbol, facts in read_manifest(data).markets.items()}
    described["desc"] = DESCRIPTION
    described["meta"] = {"cpu": cpu_type(), "symbols": markets}
    pointer.write_text(yaml.safe_dump(described, sort_keys=False))


def market_digest(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the sha256 of all months of one market of a data version, oldest first: one market can be compared."""
    digest = hashlib.sha256()
    for name in facts["files"]:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
