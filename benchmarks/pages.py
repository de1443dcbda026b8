"""Write a page of docs/results: parse the path, check that the recordings are there, write."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.fixture import recording
from pipelines.errors import UnreadableFile


def write(page: Path, about: str | None, recordings: Iterable[str], make: Callable[[], str]) -> None:
    """Run `python -m benchmarks.<name> [--to FILE]`: write the text of `make` into FILE or `page`.

    about  the module's docstring, for --help. Raises UnreadableFile naming every recording that is not there.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--to", type=Path, default=page, help=f"the page to write; docs/results/{page.name} by default")
    options = parser.parse_args()
    if absent := sorted({str(recording(name)) for name in recordings if not recording(name).is_file()}):
        raise UnreadableFile(f"no {', '.join(absent)}; BELLWETHER_RECORDED names the folder of the recorded candles")
    options.to.write_text(make())
    print(f"wrote {options.to}", file=sys.stderr)
