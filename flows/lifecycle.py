"""One turn of the loop: history → model → gate → champion → live bars → decisions → outcomes → drift → retrain."""

import time
from collections import Counter
from datetime import datetime
from typing import Any

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.monitor import monitor
from flows.promote import propose
from flows.support import promotion
from flows.support.installation import Installation, now, open_installation
from flows.support.live_feed import already_ingested, live_tail, send_live_bars
from flows.support.progress import report_progress, step
from flows.train import train
from serving.client import Client

RETRAIN_WAIT_S = 300.0


@flow(name="lifecycle", log_prints=True)
def lifecycle(
    source: str = "simulator",
    symbol: str | None = None,
    path: str | None = None,
    families: list[str] | None = None,
    since: datetime | None = None,
    context: list[str] | None = None,
) -> dict[str, Any]:
    """Turn once. Returns what happened: data hash, versions, verdicts, decisions by action, alarms, retrain.

    Decisions are told, not returned: Prefect walks over whatever a flow returns, and they are all in the ledger.
    """
    installation = open_installation()
    began = now()
    name = symbol or installation.params.simulator.symbol
    cut, tail, told = live_tail(installation, source, name, path, since, context or [])
    if already_ingested(installation, name):
        data_hash = ingest(source="observed", symbol=name)
    else:
        data_hash = ingest(source=source, symbol=name, path=path, through=cut, since=since, context=context)
    versions = train(families)
    verdicts = {}
    for family, version in versions.items():
        verdicts[family] = evaluate(family, version)
        held = promotion.slots_of(installation.store, family).champion
        if verdicts[family] and (held is None or held.to_version != version):
            propose(family, version, reason="passed the gate")
    generation = promotion.publish(installation)
    with Client(installation.settings) as client:
        with step("serve: load, verify, warm up"):
            client.wait_for_generation(generation)
        answers = send_live_bars(client, installation, name, tail, told)
        if not answers:
            report_progress(f"no live bars of {name} that the service has not seen; asking once about the last one")
            answers = [client.decide(name)]
    watched = monitor(name)
    if watched["event_families"]:
        retrained = wait_for_retrain(installation, watched["event_families"], began)
    else:  # nobody asks for a retrain, but what was seen is versioned all the same
        retrained, data_hash = {}, ingest(source="observed", symbol=name)
    return {
        "symbol": name,
        "data_hash": data_hash,
        "versions": versions,
        "passed": verdicts,
        **told_of(answers),
        "monitor": watched,
        "retrained": retrained,
    }


def told_of(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by action and, of NO_TRADE, by its first refusal; the last four trades and the last two decisions."""
    traded = [answer for answer in answers if answer["action"] != "NO_TRADE"]
    refused = [answer["reasons"][0].split(":")[0] for answer in answers if answer["action"] == "NO_TRADE"]
    return {
        "actions": dict(Counter(answer["action"] for answer in answers)),
        "refusals": dict(Counter(refused)),
        "last_decisions": traded[-4:] + answers[-2:],
    }


def wait_for_retrain(installation: Installation, families: list[str], since: datetime) -> dict[str, str]:
    """The retrain runs in its own deployment, started by the event; waiting for it shows the circle closed."""
    told: dict[str, str] = {}
    deadline = time.monotonic() + RETRAIN_WAIT_S
    with step("retrain: by the drift event, in its own deployment"):
        while len(told) < len(families) and time.monotonic() < deadline:
            for family in families:
                newest = [r for r in installation.store.retrain_requests(family, last=1) if r.at >= since]
                if newest and newest[0].state in ("done", "failed"):
                    told[family] = f"{newest[0].state}: {newest[0].detail}"
            time.sleep(0.5)
    for family in families:
        told.setdefault(
            family, f"no retrain ended within {RETRAIN_WAIT_S:.0f} s; see the retrain deployment in the Prefect UI"
        )
        report_progress(f"retrain of {family}: {told[family]}")
    return told
