"""`python -m benchmarks [NAME ...] [--json]`: every figure of the README again, on this machine, in one run.

Two sides of a ratio are measured in turn; nothing here passes or fails by how many seconds it took.
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
    "features", "signals_speed", "heatmap", "sampling", "inference", "decision", "decision_core", "risk", "simulator",
    "services",
)  # fmt: skip


def measure(name: str, tiny: bool = False) -> list[Row]:
    """Rows of one benchmark; its libraries are loaded only now."""
    rows: list[Row] = import_module(f"benchmarks.{name}").measure(tiny)
    return rows


def machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.1f}"
    )


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(figure: Spread | None) -> str:
    """median [quartiles] and, where single calls were timed, the 99th percentile."""
    if figure is None:
        return ""
    text = number(figure.median)
    if figure.n > 1:
        text += f" [{number(figure.low)}, {number(figure.high)}]"
    return text + (f" p99 {number(figure.p99)}" if figure.p99 is not None else "")


def table(rows: Sequence[Row], title: str) -> Table:
    drawn = Table(
        title=title, title_justify="left", caption="median \\[quartiles]; ratio: theirs over ours, pair by pair"
    )
    for heading, justify in (
        ("what", "left"), ("unit", "left"), ("ours", "right"), ("beside it", "left"), ("theirs", "right"),
        ("ratio", "right"), ("n", "right"), ("note", "left"),
    ):  # fmt: skip
        drawn.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for r in rows:
        cells = (
            r.what,
            r.unit,
            shown(r.ours),
            r.beside or "",
            shown(r.theirs),
            shown(r.ratio),
            f"{r.ours.n:,}",
            r.note,
        )
        drawn.add_row(*cells)
    return drawn


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    asked.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}; all by default")
    asked.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    options = asked.parse_args()
    if unknown := set(options.names) - set(NAMES):
        asked.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    told, news = machine(), Console(stderr=True)
    rows: dict[str, list[Row]] = {}
    for name in options.names or NAMES:
        began = time.perf_counter()
        rows[name] = measure(name)
        news.print(f"{name}: {time.perf_counter() - began:.0f} s")
    if options.json:
        print(
            json.dumps({"machine": told, "rows": {n: [asdict(r) for r in each] for n, each in rows.items()}}, indent=1)
        )
        return
    out = Console()
    wide = Console(width=max(out.width, 200))
    wide.print(table([row for each in rows.values() for row in each], f"benchmarks on {told}"))


if __name__ == "__main__":
    main()
