"""Write docs/results/ab-live.md: experiments on a live market, as `live_experiments` stored them."""

from collections.abc import Sequence
from textwrap import fill

from benchmarks import live_experiments
from benchmarks.results import machines, table
from pipelines.contracts import JsonObject

PARTS = ("ab_live",)
LIVE_TEXT = """\
Four cases on one installation with every service running: four simulated symbols at {speed:,.0f} times the speed of
time, a turn that trains the validator, a horizon of one hour, so that a block takes six. The arms are variants of the
trained bundle, with its calibrated log odds shifted as the columns say; a shift of {shift:g} costs some .1 nat. Only
their verdicts are put on the ledger by hand, the monitor does the rest. A case takes {limit:.0f} s at most."""
SAFE_S = 5.0  # from a fault to the end of its experiment


def live_page(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page; `incomplete` names the part if it was not run to its end."""
    blocks = [
        "# Experiments on a live market",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence ab_live` stored; "
        "nothing here was typed in. Rates of error and power are on [the page of simulations](ab.md).",
        *machines(found),
    ]
    cases: JsonObject = found["ab_live"]["cases"] if "ab_live" in found else {}
    if incomplete:
        missing = ", ".join(name for name in live_experiments.CASES if name not in cases)
        blocks.append(f"**Not run: {missing}.**")
    if cases:
        blocks += live_section(cases)
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"


def _held(true: bool) -> str:
    """Return whether a promise holds, in a word."""
    return "kept" if true else "**not kept**"


def live_section(cases: JsonObject) -> list[str]:
    """Return the section on live markets, of the cases as they were stored."""
    rows, kept = [], []
    for name, (of_champion, of_challenger) in live_experiments.CASES.items():
        if (case := cases.get(name)) is None:
            continue
        low, high = case["low"], case["high"]
        gain = "–" if case["gain"] is None else f"{case['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([
            name, f"{of_champion:+g}", "no number" if of_challenger is None else f"{of_challenger:+g}",
            case["states"].replace(" ", ", "), f"{case['blocks']} ({case['void']} void)", gain,
            f"{case['seconds']:.0f} s", f"{case['by_challenger']:,} of {case['decisions']:,}",
        ])  # fmt: skip
        right = {
            "better": case["state"] == "won" and case["is_champion"], "equal": case["state"] != "won",
            "worse": case["state"] == "stopped",
            "faulty": case["state"] == "stopped" and case["to_end_s"] is not None and case["to_end_s"] <= SAFE_S,
        }[name]  # fmt: skip
        kept.append(f"{name} {_held(right and case['seconds'] <= live_experiments.LIMIT_S + 5.0)}")
    whole = list(cases.values())
    replayed, equal = (sum(case[name] for case in whole) for name in ("replayed", "replayed_equal"))
    wrong = sum(case["misassigned"] + case["chain"] + (not case["same"]) for case in whole)
    took = ", ".join(f"{case['to_end_s']:.1f} s" for case in whole if case["to_end_s"] is not None) or "not run"
    ends = "; ".join(f"*{name}*: {case['reason']}" for name, case in cases.items() if case["state"] == "stopped")
    return [
        LIVE_TEXT.format(speed=live_experiments.SPEED, limit=live_experiments.LIMIT_S, shift=live_experiments.SHIFT),
        table(["case", "champion", "challenger", "states", "blocks", "gain, nats", "took",
               "decided by the challenger"], rows),
        f"Promised: within {live_experiments.LIMIT_S / 60:.0f} minutes the better one is promoted, the equal one is "
        f"not, the worse one is stopped; a fault ends the experiment within {SAFE_S:.0f} s of the close at which it "
        f"happened, and the arm decides nothing from that close on: {took}. "
        f"{', '.join(kept)}. {ends}.",
        f"Of the newest {replayed:,} decisions of the cases {equal:,} come out the same when they are made again, "
        f"{_held(replayed == equal)}; verdicts, units and chains computed again: {wrong} differ, {_held(wrong == 0)}.",
    ]  # fmt: skip
