"""One turn of the loop: history → model → gate → champion → live bars → decisions → outcomes → drift → retrain."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from prefect import flow

from flows import universe
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.monitor import monitor
from flows.promote import propose
from flows.support import promotion
from flows.support.frozen import frozen
from flows.support.home_copy import bring
from flows.support.installation import Installation, open_installation
from flows.support.live_feed import Answer, Tail, live_tails, send_live_bars
from flows.support.market_access import MarketOffer
from flows.support.progress import part_done, report_progress, run_progress, step
from flows.support.run_names import rename_run, run_name
from flows.train import train
from pipelines.contracts import utc
from pipelines.families import Family
from serving.client import Client

RETRAIN_WAIT_S = 300.0


class DecisionSummary(TypedDict):
    """Hold the decisions of a turn by count, and the few that are shown."""

    actions: dict[str, int]
    refusals: dict[str, int]
    last_decisions: list[Answer]


def judge_and_propose(installation: Installation, versions: Mapping[str, str]) -> dict[str, bool]:
    """Gate each new version and propose those that passed and do not serve yet. Return family → whether it passed."""
    passed = {}
    for family, version in versions.items():
        passed[family] = evaluate(family, version)
        champion = installation.store.slots(family).champion
        if passed[family] and (champion is None or champion.to_version != version):
            propose(family, version, reason="passed the gate")
    return passed


def decide_once(client: Client, symbols: Sequence[str]) -> dict[str, list[Answer]]:
    """Request one decision on the newest bar of markets without bars that the service has not seen."""
    report_progress(f"no new live bars of {', '.join(symbols)}; requesting one decision on the last one")
    decided = client.decide_all(symbols)["decisions"]
    for refused in (answer for answer in decided if "error" in answer):
        report_progress(f"{refused['symbol']}: {refused['error']}")
    return {symbol: [d for d in decided if "error" not in d and d["symbol"] == symbol] for symbol in symbols}


def decide_live(client: Client, installation: Installation, tails: Sequence[Tail]) -> dict[str, list[Answer]]:
    """Send the live tails of all markets; request one decision on each that has none. Return symbol → decisions."""
    answers = send_live_bars(client, installation, tails)
    still = [symbol for symbol in installation.symbols if symbol not in answers]
    return answers | (decide_once(client, still) if still else {})


def in_time(answers: Mapping[str, Sequence[Answer]]) -> list[Answer]:
    """Return the decisions of all markets in the order of their time."""
    return sorted((answer for each in answers.values() for answer in each), key=lambda answer: str(answer["as_of"]))


def summarise(answers: Sequence[Answer]) -> DecisionSummary:
    """Count decisions by action and, of NO_TRADE, by first refusal; pick the last four trades and two decisions."""
    traded = [answer for answer in answers if answer["action"] != "NO_TRADE"]
    refused = [answer["reasons"][0].split(":")[0] for answer in answers if answer["action"] == "NO_TRADE"]
    return {
        "actions": dict(Counter(answer["action"] for answer in answers)),
        "refusals": dict(Counter(refused)),
        "last_decisions": [*traded[-4:], *answers[-2:]],
    }


def newest_requests(installation: Installation) -> dict[str, int]:
    """Return family → id of its newest retrain request, of the families that have one."""
    newest: dict[str, int] = {}
    for request in installation.store.retrain_requests():
        newest.setdefault(request.family, request.id)
    return newest


def wait_for_retrain(installation: Installation, families: Sequence[str], before: Mapping[str, int]) -> dict[str, str]:
    """Wait up to RETRAIN_WAIT_S for the retrain that the event started in its own deployment.

    before  as of `newest_requests`, when the turn began
    Return family → how it ended, or where to find out.
    """
    if (why := frozen(installation.settings, "retrain")) is not None:
        return dict.fromkeys(families, f"not started: {why.describe()}")
    ended: dict[str, str] = {}
    deadline = time.monotonic() + RETRAIN_WAIT_S
    with step("retrain: by the drift event, in its own deployment"):
        while len(ended) < len(families) and time.monotonic() < deadline:
            for family in families:
                requests = installation.store.retrain_requests(family, last=1)
                newest = [r for r in requests if r.id > before.get(family, 0)]
                if newest and newest[0].state in ("done", "failed"):
                    ended[family] = f"{newest[0].state}: {newest[0].detail}"
            time.sleep(0.5)
    for family in families:
        ended.setdefault(
            family, f"no retrain ended within {RETRAIN_WAIT_S:.0f} s; see the retrain deployment in the Prefect UI"
        )
        report_progress(f"retrain of {family}: {ended[family]}")
    return ended


def ingest_history(offers: list[MarketOffer] | None, tails: Mapping[str, Tail], left_out: dict[str, str]) -> str:
    """Version what is known of every market up to its live tail. Return the data hash."""
    through = {symbol: utc(tail.cut) for symbol, tail in tails.items() if not tail.begun}
    data_hash: str = ingest(offers, through=through, observed=True, left_out=left_out)
    return data_hash


@flow(name="lifecycle", flow_run_name=run_name("turn {families}"), log_prints=True)
def lifecycle(offers: list[MarketOffer] | None = None, families: list[Family] | None = None) -> dict[str, object]:
    """Run one turn of the universe. Return what happened: data hash, versions, verdicts, decisions, alarms, retrain.

    Decisions are counted, by market and of all, not returned: Prefect walks over whatever a flow returns, and all of
    them are in the ledger.

    Args:
        offers: Markets added to the universe of this home, or in place of what it holds of them; empty = as it is.
        families: Which to train; every one if none is given.
    """
    installation = open_installation()
    bring(installation)
    before = newest_requests(installation)
    wanted = universe.merged(installation, offers or [])
    with run_progress("lifecycle", ["ingest", "train", "gate", "decide", "monitor"]):
        tails, left_out = live_tails(installation, wanted)
        data_hash = ingest_history(offers, tails, left_out)
        versions = train(families)
        passed = judge_and_propose(installation, versions)
        part_done("gate")
        generation = promotion.publish(installation)
        with Client(installation.settings) as client:
            with step("serve: load, verify, warm up"):
                client.wait_for_generation(generation)
            answers = decide_live(client, installation, [tails[symbol] for symbol in installation.symbols])
        part_done("decide")
        watched = monitor()
        if watched["retrain_families"]:
            retrained = wait_for_retrain(installation, watched["retrain_families"], before)
        else:  # no retrain was requested, but what the service saw is versioned all the same
            retrained, data_hash = {}, ingest(observed=True, left_out=left_out)
    rename_run(f"turn of {', '.join(answers)}", installation)
    return {
        "symbol": next(iter(answers)),
        "symbols": list(answers),
        "left_out": dict(installation.data_version().left_out),
        "data_hash": data_hash,
        "versions": versions,
        "passed": passed,
        **summarise(in_time(answers)),
        "markets": {symbol: summarise(each) for symbol, each in answers.items()},
        "monitor": watched,
        "retrained": retrained,
    }
