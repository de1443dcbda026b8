"""A challenger wins while it serves: real services on a simulated market whose edge is known.

The champion was trained without what the order book shows, the challenger with it. The feed is fast, market time waits
for nothing but a retrain, and the monitor looks again and again. Run: python -m benchmarks.evidence ab_live
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from benchmarks.results import machines, table
from benchmarks.scratch_home import environment
from flows.support import processes
from pipelines.contracts import JsonObject
from pipelines.errors import ServiceDown
from pipelines.settings import ROOT, Settings, settings

FAMILY, SPEED = "validator", 14_400.0
# what the order book shows; without it the trees still beat the logistic on the same columns, as the gate requires
WITHOUT = ("order_flow_imbalance", "hft_oci_signal", "book_skew_strength", "liquidity_density", "market_sentiment")
CASES = ("better",)
TURN = f"from flows.lifecycle import lifecycle; lifecycle(families=['{FAMILY}'])"
TURN_S, RETRAIN_S, LIVE_S, EVERY_S = 900.0, 900.0, 1200.0, 10.0
FIRST_DAYS = 12  # market days before the challenger is trained, which the gate compares it with the champion on


def changes() -> dict[str, dict[str, Any]]:
    """Return what is changed of params.yaml: a stronger edge, which the gate would take for a leak of a real market."""
    return {
        "simulator": {"edge": 2.0, "live_days": 1, "drift_after_live_days": None},
        "gate": {"leak_auc": 0.95, "leak_auc_sure": 0.94, "leak_auc_low": 0.93},
        "retrain": {"enabled": False},  # by hand alone
        "feed": {"speed": SPEED},
        "importance": {"repeats": 1},
    }


def run(case: str) -> JsonObject:
    """Run the case; return what became of the experiment, and whether everything that it did can be verified."""
    folder = Settings().home.resolve() / "evidence" / "ab_live" / case
    env = environment(folder, changes())
    os.environ.update({name: value for name, value in env.items() if name.startswith("BELLWETHER_")})
    settings.cache_clear()
    began = time.monotonic()
    with services(env, folder):
        leave_out(folder, list(WITHOUT))
        call([sys.executable, "-c", TURN], env | processes.environment(settings()), TURN_S)
        command(env, "feed", "start")
        first = market_day(env)
        wait(lambda: market_day(env) >= first + FIRST_DAYS, LIVE_S, "market days before the challenger")
        leave_out(folder, [])
        command(env, "retrain", FAMILY, "--force", "--reason", case, timeout_s=RETRAIN_S)
        begun = [e for e in command(env, "ab", "list")["experiments"] if e["family"] == FAMILY]
        if not begun:
            return {"case": case, "began": False, "why": why_not(env), "minutes": (time.monotonic() - began) / 60}
        number = begun[0]["id"]
        live = time.monotonic()
        ended = wait(lambda: decided(env, number, live), LIVE_S + 60.0, "the experiment")
        command(env, "feed", "stop")
        shown, champion = command(env, "ab", "show", str(number)), champion_of(env)
        standing = [e for e in command(env, "ab", "list")["experiments"] if e["family"] == "policy"]
        return {
            "case": case, "began": True, "state": ended["state"], "blocks": ended["blocks"], "void": ended["void"],
            "gain": ended["gain"], "low": ended["low"], "high": ended["high"], "e_value": ended["e_value"],
            "alpha": ended["alpha"], "outcomes": ended["outcomes"], "minutes": (time.monotonic() - live) / 60,
            "promoted": champion == shown["challenger"], "verified": command(env, "ab", "verify", str(number))["same"],
            "ledger": command(env, "verify")["faults"] == [],
            "standing": {e["challenger"]: {k: e[k] for k in ("blocks", "gain", "low", "high")} for e in standing},
        }  # fmt: skip


@contextmanager
def services(env: dict[str, str], folder: Path) -> Iterator[None]:
    """Run the services of a home for as long as the block."""
    call([COMMAND, "up"], env, TURN_S)
    try:
        yield
    finally:
        subprocess.run([COMMAND, "down"], cwd=ROOT, env=env, check=False, capture_output=True)
        for left in processes.home_processes(settings()):
            left.kill()


COMMAND = str(Path(sys.executable).with_name("bellwether"))


def call(words: list[str], env: dict[str, str], timeout_s: float) -> str:
    """Run a command to its end and return its output. Raises ServiceDown with what it wrote if it fails."""
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise ServiceDown(f"{' '.join(words[-4:])} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def command(env: dict[str, str], *words: str, timeout_s: float = 120.0) -> Any:
    """Run a command of ours and return its JSON."""
    return json.loads(call([COMMAND, *words, "--json"], env, timeout_s))


def leave_out(folder: Path, columns: list[str]) -> None:
    """Make these the columns that a fit leaves out from now on."""
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params[FAMILY]["left_out"] = columns
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def market_day(env: dict[str, str]) -> float:
    """Return the present day of the market, days since 1970."""
    from datetime import datetime

    return datetime.fromisoformat(command(env, "status")["market_time"]).timestamp() / 86_400.0


def champion_of(env: dict[str, str]) -> str:
    """Return the version of the champion."""
    return str(command(env, "status")["families"][FAMILY]["champion"]["version"])


def why_not(env: dict[str, str]) -> list[str]:
    """Return why the newest candidate began no experiment."""
    from serving.service.home_store import open_store

    store = open_store(settings())
    try:
        judged = [line for line in store.promotions(FAMILY) if line.action == "challenge"]
        return [judged[-1].reason]
    finally:
        store.close()


def decided(env: dict[str, str], number: int, since: float) -> JsonObject | None:
    """Return the experiment once it has ended, or after LIVE_S; None before."""
    shown: JsonObject = command(env, "ab", "show", str(number))
    return shown if shown["state"] != "shadow" or time.monotonic() - since > LIVE_S else None


def wait(holds: Any, seconds: float, what: str) -> Any:
    """Return the first true answer of `holds`. Raises ServiceDown after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise ServiceDown(f"waited {seconds:.0f} s for {what}")
        time.sleep(EVERY_S)
    return found


# ---- what it shows --------------------------------------------------------------------------------------------------


def live_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the figures of the experiment, its gain with the confidence sequence."""
    ended = [case for case in found if case["began"]]
    figures: dict[str, JsonObject] = {"experiments begun": _exact(len(ended))}
    for case in ended:
        figures |= {
            "promoted": _exact(case["promoted"]),
            "blocks": _exact(case["blocks"]),
            "e-value": _exact(case["e_value"]),
            "gain, log loss": {"value": case["gain"], "low": case["low"], "high": case["high"], "n": case["blocks"]},
            "minutes": _exact(case["minutes"]),
        }
    return figures


def _exact(value: float) -> JsonObject:
    """Return a figure that was counted or measured once."""
    return {"value": float(value), "low": None, "high": None, "n": 1}


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what is stored, as `results.write_page` asks for it."""
    blocks = [
        "# A challenger wins while it serves",
        "Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it "
        "with `python -m benchmarks.evidence ab_live`, then write the page. Real services on the simulated universe, "
        f"at an edge of {changes()['simulator']['edge']:g}, {SPEED:,.0f} market seconds a second. The champion was "
        f"trained without {', '.join(WITHOUT)}; the challenger with them, {FIRST_DAYS} market days later. One "
        "seed, chosen before the first run.",
        *machines(found),
    ]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    for case in found["ab_live"]["cases"].values():
        blocks += _case_blocks(case)
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"


def _case_blocks(case: JsonObject) -> list[str]:
    """Return what became of the experiment, as text and tables."""
    if not case["began"]:
        return [f"No experiment began: {'; '.join(case['why'])}"]
    rows = [
        ["state", case["state"]],
        ["champion afterwards", "the challenger" if case["promoted"] else "as before"],
        ["blocks that count, void", f"{case['blocks']}, {case['void']}"],
        ["outcomes that both arms scored", f"{case['outcomes']:,}"],
        ["gain, log loss [95 % confidence sequence]", f"{case['gain']:+.4f} [{case['low']:+.4f}, {case['high']:+.4f}]"],
        ["e-value", f"{case['e_value']:.3g} of {1 / case['alpha']:.3g}"],
        ["minutes from its start", f"{case['minutes']:.1f}"],
        ["verdict computed again is the same; ledger intact", f"{case['verified']}; {case['ledger']}"],
    ]
    arms = [
        [name, str(e["blocks"]), "–" if e["gain"] is None else f"{e['gain']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]"]
        for name, e in case["standing"].items()
    ]
    return [
        table(["of the experiment", ""], rows),
        "## Standing arms",
        "What each would have returned more than the live policy, net bps an event, for as long as they were compared.",
        table(["arm", "blocks", "net bps an event over the live policy [95 % confidence sequence]"], arms),
    ]
