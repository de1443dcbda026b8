"""Trace a decision back to everything it rests on (L4), with each link checked against what is stored."""

import json

from flows.support.installation import Installation
from pipelines.contracts import JsonObject, ModelAnswer
from pipelines.errors import BundleError, UnknownName
from pipelines.models.runtime import read_manifest
from pipelines.sealed_folder import sha256


def trace(installation: Installation, decision_id: str | None) -> JsonObject:
    """Return the links from a decision to its bytes, models, runs, code, data and promotion records.

    decision_id  None = the newest decision
    Returns      {"decision", "links", "broken"}; `broken` names every link that does not hold
    Raises       UnknownName if there is no such decision
    """
    if decision_id is None:
        newest = installation.store.decisions(last=1)
        if not newest:
            raise UnknownName("no decision in the ledger yet; run `bellwether run --once`")
        decision_id = newest[0].decision.id
    record = installation.store.decision(decision_id)
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
    }
    broken = [] if record.features else ["feature bytes: none stored"]
    for arms in decision.models.values():
        for arm, answer in arms.items():
            broken += _model_links(installation, arm, answer, links)
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
        "links": links,
        "broken": broken,
    }


def _model_links(installation: Installation, arm: str, answer: ModelAnswer, links: JsonObject) -> list[str]:
    """Add the links of one model to `links` and return those that do not hold."""
    name = f"{answer.family}.{arm}"
    links[f"{name}.version"], links[f"{name}.digest"] = answer.version, answer.digest
    promotions = [
        p
        for p in installation.store.promotions(answer.family)
        if p.to_version == answer.version and p.digest == answer.digest
    ]
    if not promotions:
        return [f"{name}: no ledger line for version {answer.version} with digest {answer.digest[:12]}"]
    line = promotions[-1]
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
