"""One turn of the loop: history → model → gate → champion → live bars → decisions → outcomes → drift → retrain."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.monitor import monitor
from flows.promote import propose
from flows.support import promotion
from flows.support.frozen import frozen
from flows.support.installation import Installation, open_installation
from flows.support.live_feed import already_ingested, live_tail, send_live_bars
from flows.support.progress import report_progress, step
from flows.train import train
from pipelines.data.readers.reading import FileOptions
from pipelines.data.series import SeriesFile, require_same
from serving.client import Client

RETRAIN_WAIT_S = 300.0

Answer = Mapping[str, Any]  # a decision, as the service sends it


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


def decide_once(client: Client, symbol: str) -> list[Answer]:
    """Request one decision on the newest bar, for a market without bars that the service has not seen."""
    report_progress(f"no live bars of {symbol} that the service has not seen; requesting one decision on the last one")
    return [client.decide(symbol)]


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


@flow(name="lifecycle", log_prints=True)
def lifecycle(
    source: str = "simulator",
    symbol: str | None = None,
    path: str | list[str] | None = None,
    families: list[str] | None = None,
    since: datetime | None = None,
    context: list[str] | None = None,
    venue: str | None = None,
    market: str | None = None,
    series: list[SeriesFile] | None = None,
    events: str | None = None,
    sessions: str | None = None,
    options: FileOptions | None = None,
) -> dict[str, object]:
    """Run one turn. Return what happened: data hash, versions, verdicts, decisions by action, alarms, retrain.

    Decisions are counted, not returned: Prefect walks over whatever a flow returns, and all of them are in the ledger.
    """
    installation = open_installation()
    before = newest_requests(installation)
    name = symbol or installation.params.simulator.symbol
    cut, tail, market_records = live_tail(
        installation, source, name, path, since, context or [], series or [], sessions, options
    )
    if already_ingested(installation, name):
        require_same(installation.manifest(), series or [])
        data_hash = ingest(source="observed", symbol=name, events=events)
    else:
        data_hash = ingest(
            source=source, symbol=name, path=path, through=cut, since=since, context=context, venue=venue,
            market=market, series=series, events=events, sessions=sessions, options=options,
        )  # fmt: skip
    versions = train(families)
    passed = judge_and_propose(installation, versions)
    generation = promotion.publish(installation)
    with Client(installation.settings) as client:
        with step("serve: load, verify, warm up"):
            client.wait_for_generation(generation)
        answers = send_live_bars(client, installation, name, tail, market_records) or decide_once(client, name)
    watched = monitor(name)
    if watched["retrain_families"]:
        retrained = wait_for_retrain(installation, watched["retrain_families"], before)
    else:  # no retrain was requested, but what the service saw is versioned all the same
        retrained, data_hash = {}, ingest(source="observed", symbol=name)
    return {
        "symbol": name,
        "data_hash": data_hash,
        "versions": versions,
        "passed": passed,
        **summarise(answers),
        "monitor": watched,
        "retrained": retrained,
    }
