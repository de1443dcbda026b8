"""One turn on the leader of the simulated universe, then one on all of it: `bellwether run --once` in homes of its own.

Seconds of both and their ratio, pooled figures with n, and a line a symbol.
Run: python -m benchmarks.evidence universe_turns
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import machines, table
from benchmarks.scratch_home import environment
from pipelines.contracts import JsonObject
from pipelines.settings import ROOT, load_params

ONE, ALL = CASES = ("one symbol", "the universe")
LIVE_DAYS = 3
PROMISED_RATIO = 2.3
PATIENCE_S = 3600.0
KEPT = 4000  # characters of what a turn that failed wrote last


def symbols_of(case: str) -> list[str]:
    """Return the symbols of a case: the first of the universe, or all of it."""
    every = list(load_params().universe.symbols)
    return every if case == ALL else every[:1]


def turn(case: str) -> JsonObject:
    """Run one turn; return exit code, seconds, pooled figures by family, and what each symbol decided."""
    symbols = symbols_of(case)
    with tempfile.TemporaryDirectory(prefix="bellwether-universe-") as folder:
        changes = {"universe": {"symbols": symbols, "groups": {}}, "simulator": {"live_days": LIVE_DAYS}}
        env = environment(Path(folder), changes)
        command = [str(Path(sys.executable).with_name("bellwether")), "run", "--once", "--json"]
        began = time.monotonic()
        ran = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        seconds = round(time.monotonic() - began, 1)
    found: JsonObject = {"symbols": symbols, "exit_code": ran.returncode, "seconds": seconds}
    if ran.returncode != 0:
        return found | {"output": ran.stderr[-KEPT:]}
    result = json.loads(ran.stdout)
    return found | {
        "turn_seconds": result["seconds"],
        "figures": {family: score["rows"] for family, score in result["figures"].items()},
        "gates": {family: score["gate"] for family, score in result["figures"].items()},
        "untrained": result.get("untrained", {}),
        "decisions": _decisions(result, symbols),
        "left_out": result.get("left_out", {}),
    }


def _decisions(result: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return symbol → action → count."""
    markets = result.get("markets") or {symbols[0]: {"actions": result["actions"]}}
    return {symbol: dict(found["actions"]) for symbol, found in markets.items()}


def turn_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return seconds of each turn, their ratio, and how many decisions each symbol has; without an interval."""
    ended = {case["case"]: case for case in found if case["exit_code"] == 0}
    figures = {f"{name}: seconds": _exact(case["seconds"]) for name, case in ended.items()}
    if len(ended) == len(CASES):
        figures[f"ratio, at most {PROMISED_RATIO}"] = _exact(ended[ALL]["seconds"] / ended[ONE]["seconds"])
    for case in found:
        figures[f"{case['case']}: exit code"] = _exact(case["exit_code"])
    for symbol, actions in ended.get(ALL, {}).get("decisions", {}).items():
        figures[f"{symbol}: decisions"] = _exact(sum(actions.values()))
    return figures


def _exact(value: float) -> JsonObject:
    """Return a figure that was counted or measured once."""
    return {"value": float(value), "low": None, "high": None, "n": 1}


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what is stored, as `results.write_page` asks for it."""
    blocks = [
        "# One turn of one symbol, and one of a universe",
        "Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it "
        "with `python -m benchmarks.evidence universe_turns`, then write the page. Both turns ran one after the other "
        f"in new homes: four families, {LIVE_DAYS} live days, every server started and stopped.",
        *machines(found),
    ]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    part = found["universe_turns"]
    rows = [[name, f"{e['value']:,.4g}"] for name, e in part["figures"].items() if "decisions" not in name]
    blocks.append(table(["figure", "value"], rows))
    for name in CASES:
        if (case := part["cases"].get(name)) is not None and case["exit_code"] == 0:
            blocks += _case_blocks(name, case)
    return "\n\n".join(blocks) + "\n"


def _case_blocks(name: str, case: JsonObject) -> Iterator[str]:
    """Yield the blocks of a turn: figures of each family with n, decisions of each symbol."""
    yield f"## {name[0].upper()}{name[1:]}: {', '.join(case['symbols'])}"
    for family, rows in case["figures"].items():
        yield f"{family}: {case['gates'][family]} by the gate"
        yield table(["figure", "value", "95 % interval", "n"], [[str(cell) for cell in row] for row in rows])
    for family, why in case["untrained"].items():
        yield f"{family} was not trained: {why}"
    yield table(
        ["symbol", "decisions", "of them trades"],
        [
            [symbol, f"{sum(actions.values()):,}", f"{sum(actions.values()) - actions.get('NO_TRADE', 0):,}"]
            for symbol, actions in case["decisions"].items()
        ],
    )
    for symbol, why in case["left_out"].items():
        yield f"{symbol} was left out: {why}"
