"""The standing arms on the market of the default settings: real services, default speed, until so many blocks count.

An interrupted run goes on with the same home; its market goes on where it stopped.
Run: python -m benchmarks.evidence standing_arms
"""

import time
from collections.abc import Sequence
from contextlib import closing
from textwrap import fill

from benchmarks.live_experiments import live_market
from benchmarks.results import machines, table
from flows.support import experiments
from flows.support.experiment_blocks import ARMS
from flows.support.installation import open_installation
from pipelines.contracts import JsonObject
from pipelines.errors import ServiceDown
from pipelines.settings import Settings
from pipelines.store import DecisionRecord

CASES = ("default market",)
BLOCKS = 15  # of each arm; a block is a market day, a minute and a half at the default speed and more while it trains
LIMIT_S = 4200.0
TEXT = """\
One installation with every service running, all settings as `params.yaml` has them: {symbols} simulated symbols at
{speed:,.0f} times the speed of time. Both arms are paired with the live policy at every event, by blocks of five
horizons. A gain below zero: the arm earns less than the live policy. They never end, spend nothing and win nothing; the
confidence sequence holds at every look, and while it holds 0 no difference between arm and policy is shown."""


def standing_arms(case: str) -> JsonObject:
    """Run the default market until BLOCKS blocks of each standing arm count; return what they show.

    Raises  ServiceDown where they do not count within LIMIT_S
    """
    folder = Settings().home.resolve() / "evidence" / "standing_arms"
    with live_market(folder, {}):
        installation = open_installation()
        with closing(installation.store) as store:
            until = time.monotonic() + LIMIT_S
            while True:
                arms = [found for found in store.experiments() if found.challenger in ARMS]
                views = {found.challenger: experiments.view_of(installation, found, True) for found in arms}
                if len(views) == len(ARMS) and min(view.figures["blocks"] for view in views.values()) >= BLOCKS:
                    break
                if time.monotonic() > until:
                    reached = {name: view.figures["blocks"] for name, view in views.items()}
                    raise ServiceDown(f"{reached} blocks after {LIMIT_S:.0f} s, {BLOCKS} are wanted; run it again")
                time.sleep(5.0)
            keep = ("blocks", "void", "outcomes", "gain", "low", "high", "clipped_share")
            return {
                "symbols": list(installation.symbols), "speed": installation.params.feed.speed,
                "decisions": store.count_decisions()[0], "repeated_rows": repeated_rows(store.decisions()),
                "arms": {
                    name: {key: view.figures[key] for key in keep}
                    | {"unit": view.experiment.unit, "begun": view.experiment.begun.isoformat(), "trades": view.trades}
                    for name, view in views.items()
                },
            }  # fmt: skip


def repeated_rows(records: Sequence[DecisionRecord]) -> int:
    """Return how many decisions rest on features that an earlier one of any symbol had, to the byte.

    So often a cache of predictions, keyed by model and features, would be hit.
    """
    return len(records) - len({record.features for record in records})


def arm_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the gain of each arm with its confidence sequence."""
    return {
        f"{name}, gain in {arm['unit']}": {key: arm[of] for key, of in
                                           (("value", "gain"), ("low", "low"), ("high", "high"), ("n", "blocks"))}
        for case in found for name, arm in case["arms"].items()
    }  # fmt: skip


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what was stored; `incomplete` names the part if it was not run to its end."""
    blocks = [
        "# The standing arms on the default market",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence standing_arms` "
        "stored; nothing here was typed in.",
        *machines(found),
    ]
    if incomplete:
        blocks.append("**Not run to its end.**")
    for case in found["standing_arms"]["cases"].values():
        rows = [
            [name, f"{arm['gain']:+.1f} [{arm['low']:+.1f}, {arm['high']:+.1f}]",
             f"{arm['blocks']} ({arm['void']} void)", f"{arm['outcomes']:,}", f"{arm['clipped_share']:.1%}"]
            for name, arm in case["arms"].items()
        ]  # fmt: skip
        unit = next(iter(case["arms"].values()))["unit"]
        traded = next(iter(case["arms"].values()))["trades"]
        blocks += [
            TEXT.format(symbols=len(case["symbols"]), speed=case["speed"]).replace("\n", " "),
            table(["arm", f"gain over the live policy, {unit}", "blocks", "outcomes", "blocks clipped"], rows),
            f"{case['decisions']:,} decisions; traded since the arms began, described and not tested: "
            + ("; ".join(f"{row['arm']} {row['trades']} trades, mean {row['net_bps']:+.1f} bps net" for row in traded)
               or "nothing") + ".",
            f"A cache of predictions, keyed by model and features, would have been hit {case['repeated_rows']:,} times "
            f"in {case['decisions']:,} decisions ({case['repeated_rows'] / max(case['decisions'], 1):.1%}): the same "
            "request again is answered from the decisions made, before any model is asked.",
        ]  # fmt: skip
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"
