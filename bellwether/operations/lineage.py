"""Trace a decision back to everything it rests on (L4), with each link checked against what is stored."""

import json
from collections.abc import Sequence
from datetime import datetime

from flows.support.installation import Installation
from pipelines.contracts import Decision, JsonObject, ModelAnswer
from pipelines.errors import BundleError, UnknownName
from pipelines.models.runtime import read_manifest
from pipelines.sealed_folder import sha256
from pipelines.store import Promotion


def trace(installation: Installation, decision_id: str | None, known_by: datetime | None = None) -> JsonObject:
    """Return the links from a decision to its bytes, models, runs, code, data and promotion records.

    decision_id  None = the newest decision
    known_by     moment (aware): decision, outcome, corrections and ledger lines that came later are left out; whether
                 the files they name hold is checked on those of now
    Returns      {"decision", "known_by", "links", "broken"}; `broken` names every link that does not hold
    Raises       UnknownName if there is no such decision, or was none by then
    """
    if decision_id is None:
        newest = installation.store.decisions(last=1, known_by=known_by)
        if not newest and known_by is not None:
            raise UnknownName(
                f"no decision was known at {known_by.isoformat()}; `bellwether decisions` shows when each was made"
            )
        if not newest:
            raise UnknownName("no decision in the ledger yet; run `bellwether run --once`")
        decision_id = newest[0].decision.id
    record = installation.store.decision(decision_id, known_by)
    decision = record.decision
    links: JsonObject = {
        "as_of": decision.as_of.isoformat(),
        "known_at": decision.known_at.isoformat(),
        "ingested_at": decision.ingested_at.isoformat(),
        "feature_bytes_sha256": sha256(record.features),
        "signal_bytes_sha256": sha256(record.signals),
        "catalogue_hash": decision.lineage.get("catalogue_hash"),
        "tier": decision.tier,
        "generation": decision.generation,
        "warm_start": decision.lineage.get("warm_start"),
        "live_data_hash": decision.lineage.get("data_hash"),
        "cpu": decision.lineage.get("cpu"),
        "release": decision.lineage.get("release"),
        "parameters": decision.lineage.get("params"),
        **_readings(installation, decision, known_by),
        **_outcome(installation, decision, known_by),
    }
    broken = [] if record.features else ["feature bytes: none stored"]
    promotions = installation.store.promotions(known_by=known_by)  # once for all models: each query is a round trip
    for arms in decision.models.values():
        for arm, answer in arms.items():
            broken += _model_links(installation, arm, answer, links, promotions)
    if not decision.models:
        links["model"] = "none: the traditional tier decided"
    digest = decision.lineage.get("params")
    if digest is not None and installation.store.parameters(digest) is None:
        broken.append(f"parameters {digest[:12]} are not stored")
    live = decision.lineage.get("data_hash")
    if live and not (installation.versions / live / "data.dvc").is_file():
        broken.append(f"data version {live} is not in {installation.versions}")
    return {
        "decision": {"id": decision.id, "symbol": decision.symbol, "action": decision.action},
        "known_by": known_by.isoformat() if known_by else None,
        "links": links,
        "broken": broken,
    }


def _readings(installation: Installation, decision: Decision, known_by: datetime | None) -> JsonObject:
    """Return up to which correction the decision's bars were read, and how many of its bars' were made since."""
    reading = decision.lineage.get("reading")
    read_at = datetime.fromisoformat(reading) if reading else None  # None: before any correction
    until = decision.as_of.timestamp()
    made = [
        one
        for one in installation.store.corrections(decision.symbol, known_by)
        if (read_at is None or one.at > read_at) and one.open_time < until
    ]
    return {"bars_corrected_until": reading, "corrections_since": len(made)}


def _outcome(installation: Installation, decision: Decision, known_by: datetime | None) -> JsonObject:
    """Return what became of the decision, as far as it is known."""
    found = installation.store.received_outcomes([decision.id], known_by)
    if not found:
        return {"outcome": None}
    outcome, received = found[0]
    return {
        "outcome": outcome.barrier,
        "outcome.net_bps": outcome.net_bps,
        "outcome.resolved_at": outcome.resolved_at.isoformat(),
        "outcome.ingested_at": received.isoformat(),
    }


def _model_links(
    installation: Installation, arm: str, answer: ModelAnswer, links: JsonObject, promotions: Sequence[Promotion]
) -> list[str]:
    """Add the links of one model to `links` and return those that do not hold; `promotions`: the ledger's lines."""
    name = f"{answer.family}.{arm}"
    links[f"{name}.version"], links[f"{name}.digest"] = answer.version, answer.digest
    of_model = (answer.family, answer.version, answer.digest)
    lines = [p for p in promotions if (p.family, p.to_version, p.digest) == of_model]
    if not lines:
        return [f"{name}: no ledger line for version {answer.version} with digest {answer.digest[:12]}"]
    line = lines[-1]
    links[f"{name}.run_id"], links[f"{name}.git_commit"] = line.run_id, line.git_commit
    links[f"{name}.data_hash"] = line.data_hash
    links[f"{name}.ledger_line"] = f"{line.id}: {line.action} by {line.actor}, {line.reason[:120]}"
    broken = []
    try:
        bundle = installation.settings.bundles / answer.digest
        read_manifest(bundle, answer.digest)
        made_under = json.loads((bundle / "schema.json").read_text()).get("runtime")  # None before release 0.10.0
        links[f"{name}.runtime"] = made_under and ", ".join(f"{library} {v}" for library, v in made_under.items())
    except BundleError as error:
        broken.append(f"{name}: {error}")
    if not (installation.versions / str(line.data_hash) / "data.dvc").is_file():
        broken.append(f"{name}: data version {line.data_hash} is not in {installation.versions}")
    return broken
