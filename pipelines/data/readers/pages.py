"""Pages of bars as an exchange sent them, one Parquet file each: an interrupted backfill continues from them.

    <folder>/<venue>/<BASE-QUOTE>/<timeframe>/<first open time>.parquet

A page answers for every slot of [start, end): a slot without a bar had none when the venue was queried. Values are not
checked here (quality.assess does that), so these are not the bars of schemas.BARS.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from pipelines.contracts import BAR_FIELDS, OPEN_TIME, Floats, utc
from pipelines.data.symbols import slug_of
from pipelines.errors import UnreadableFile

PAGES_VERSION = "page/2"
PAGES_BEFORE = "page/1"  # up to release 0.7: without half_spread, which no candle has, so they stay in use


@dataclass(frozen=True)
class Page:
    """Hold one page of bars.

    market      the venue's name of it
    start, end  epoch seconds; bars (n, 9) ascending; seam_bps: see `exchange.backfill`
    """

    venue: str
    market: str
    start: int
    end: int
    bars: Floats
    seam_bps: float | None = None

    def cut(self, start: int, end: int) -> "Page":
        """Return the part of the page in [start, end), epoch seconds."""
        first, last = np.searchsorted(self.bars[:, OPEN_TIME], (start, end))
        return replace(self, start=max(start, self.start), end=min(end, self.end), bars=self.bars[first:last])


def folder_of(root: Path, venue: str, symbol: str, timeframe: str) -> Path:
    """Return the folder of a venue's pages of one symbol and timeframe."""
    return root / venue / slug_of(symbol) / timeframe


def write_page(page: Page, folder: Path) -> None:
    """Write a page under its first open time; one of the same start is replaced. It appears whole or not at all."""
    meta = {"venue": page.venue, "market": page.market, "start": page.start, "end": page.end, "seam_bps": page.seam_bps}
    table = pyarrow.table(
        dict(zip(BAR_FIELDS, page.bars.T.copy(), strict=True)),
        metadata={"bellwether.schema": PAGES_VERSION, "bellwether.page": json.dumps(meta)},
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{utc(page.start):%Y%m%dT%H%M%SZ}.parquet"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        parquet.write_table(table, draft, compression="zstd", use_dictionary=False)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_page(path: Path) -> Page:
    """Read a page. Raises UnreadableFile if it is not whole Parquet, or no page of this version."""
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # in this thread, as `sheets.arrow_table`
            table = file.read(use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path}: not a whole page ({error}). Remove it: it is fetched again.") from error
    metadata = table.schema.metadata or {}
    version = metadata.get(b"bellwether.schema", b"none").decode()
    if version == PAGES_BEFORE and table.column_names == list(BAR_FIELDS[:-1]):
        table = table.append_column(BAR_FIELDS[-1], pyarrow.nulls(table.num_rows, pyarrow.float64()))
    elif version != PAGES_VERSION or table.column_names != list(BAR_FIELDS):
        raise UnreadableFile(f"{path}: no page but {version!r}. Remove it: it is fetched again.")
    bars = np.column_stack([table[name].to_numpy().astype(np.float64) for name in BAR_FIELDS])
    return Page(**json.loads(metadata[b"bellwether.page"]), bars=bars)
