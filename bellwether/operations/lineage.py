"""L4: from a decision back to everything it rests on, each link checked against what is stored."""

from typing import Any

from flows.support.installation import Installation
from pipelines.errors import BundleError, UnknownName
from pipelines.models.runtime import read_manifest, sha256


def trace(installation: Installation, decision_id: str | None) -> dict[str, Any]:
    """decision → feature bytes → model and digest → run → commit → data hash → promotion record.

    Returns {"decision", "links", "broken"}; `broken` names every link that does not hold. None = the newest decision.
    Raises UnknownName if there is no such decision.
    """
    if decision_id is None:
        newest = installation.store.decisions(last=1)
        if not newest:
            raise UnknownName("no decision in the ledger yet; run `bellwether run --once`")
        decision_id = newest[0].decision.id
    record = installation.store.decision(decision_id)
    decision = record.decision
    links: dict[str, Any] = {
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
    }
    broken = [] if record.features else ["feature bytes: none stored"]
    for arms in decision.models.values():
        for arm, said in arms.items():
            broken += _model_links(installation, arm, said, links)
    if not decision.models:
        links["model"] = "none: the traditional tier decided"
    live = decision.lineage.get("data_hash")
    if live and not (installation.versions / live / "data.dvc").is_file():
        broken.append(f"data version {live} is not kept under {installation.versions}")
    return {
        "decision": {"id": decision.id, "symbol": decision.symbol, "action": decision.action},
        "links": links,
        "broken": broken,
    }


def _model_links(installation: Installation, arm: str, said: dict[str, Any], links: dict[str, Any]) -> list[str]:
    broken, name = [], f"{said['family']}.{arm}"
    lines = [
        p
        for p in installation.store.promotions(said["family"])
        if p.to_version == said["version"] and p.digest == said["digest"]
    ]
    links[f"{name}.version"], links[f"{name}.digest"] = said["version"], said["digest"]
    if not lines:
        return [f"{name}: no ledger line for version {said['version']} with digest {said['digest'][:12]}"]
    line = lines[-1]
    links[f"{name}.run_id"], links[f"{name}.git_commit"] = line.run_id, line.git_commit
    links[f"{name}.data_hash"], links[f"{name}.ledger_line"] = (
        line.data_hash,
        f"{line.id}: {line.action} by {line.actor}, {line.reason[:120]}",
    )
    try:
        read_manifest(installation.settings.bundles / said["digest"], said["digest"])
    except BundleError as error:
        broken.append(f"{name}: {error}")
    if not (installation.versions / str(line.data_hash) / "data.dvc").is_file():
        broken.append(f"{name}: data version {line.data_hash} is not kept under {installation.versions}")
    return broken
