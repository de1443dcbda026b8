"""`python -m benchmarks [NAME ...] [--json]`: measure every figure of the README again, on this machine, in one run.

Two sides of a ratio are measured in turn; nothing here passes or fails by its seconds.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from rich.console import Console
from rich.table import Table

from benchmarks.measured import Row, Spread

NAMES = (
    "check", "features", "signals_speed", "heatmap", "sampling", "inference", "decision", "decision_core", "risk",
    "simulator", "store", "services", "many_symbols", "throughput", "callers",
)  # fmt: skip


def measure(name: str, tiny: bool = False) -> list[Row]:
    """Return the rows of one benchmark; its libraries are imported only now."""
    rows: list[Row] = import_module(f"benchmarks.{name}").measure(tiny)
    return rows


def machine() -> str:
    """Return this machine in words: cores, architecture, system, Python and the load before."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.1f}"
    )


def number(value: float) -> str:
    """Format a figure with three significant digits, whole from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(figure: Spread | None) -> str:
    """Return "median [quartiles]" and, where single calls were timed, the 99th percentile."""
    if figure is None:
        return ""
    text = number(figure.median)
    if figure.n > 1:
        text += f" [{number(figure.low)}, {number(figure.high)}]"
    return text + (f" p99 {number(figure.p99)}" if figure.p99 is not None else "")


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the table of all rows under a title."""
    result = Table(
        title=title, title_justify="left", caption="median \\[quartiles]; ratio: theirs over ours, pair by pair"
    )
    for heading in ("what", "unit", "ours", "compared with", "theirs", "ratio", "n", "note"):
        result.add_column(heading, justify="right" if heading in ("ours", "theirs", "ratio", "n") else "left")
    for r in rows:
        cells = (
            r.what,
            r.unit,
            shown(r.ours),
            r.compared_with or "",
            shown(r.theirs),
            shown(r.ratio),
            f"{r.ours.n:,}",
            r.note,
        )
        result.add_row(*cells)
    return result


def main() -> None:
    """Parse the command line, run the benchmarks and print their table, or JSON with `--json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    description, progress = machine(), Console(stderr=True)
    rows: dict[str, list[Row]] = {}
    for name in options.names or NAMES:
        started = time.perf_counter()
        rows[name] = measure(name)
        progress.print(f"{name}: {time.perf_counter() - started:.0f} s")
    if options.json:
        print(
            json.dumps(
                {"machine": description, "rows": {n: [asdict(r) for r in each] for n, each in rows.items()}}, indent=1
            )
        )
        return
    out = Console()
    wide = Console(width=max(out.width, 200))
    wide.print(table([row for each in rows.values() for row in each], f"benchmarks on {description}"))


if __name__ == "__main__":
    main()
