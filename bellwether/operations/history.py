"""Decisions with their outcomes, and context values, JSON-ready, as they were known at a moment."""

from datetime import datetime

from pipelines.contracts import JsonObject, utc
from pipelines.errors import UnknownName
from pipelines.store import ReceivedOutcome, Store


def decisions_known(
    store: Store, symbol: str | None, since: datetime | None, until: datetime | None, last: int,
    known_by: datetime | None,
) -> list[JsonObject]:  # fmt: skip
    """Return the newest decisions with since <= as_of < until and their outcomes, oldest first.

    known_by  moment (aware): what was stored later is left out; None = as of now
    """
    found = [record.decision for record in store.decisions(symbol, since, until, last, known_by=known_by)]
    received = store.received_outcomes([decision.id for decision in found], known_by)
    outcomes = {one.outcome.decision_id: one for one in received}
    return [
        {
            "id": d.id, "symbol": d.symbol, "as_of": d.as_of.isoformat(), "known_at": d.known_at.isoformat(),
            "ingested_at": d.ingested_at.isoformat(), "action": d.action, "event": d.event, "p": d.p, "size": d.size,
            "tier": d.tier, "arm": d.arm, "outcome": outcome_json(outcomes.get(d.id)),
        }
        for d in found
    ]  # fmt: skip


def outcome_json(received: ReceivedOutcome | None) -> JsonObject | None:
    """Return an outcome JSON-ready, times in ISO 8601; None for None."""
    if received is None:
        return None
    outcome, ingested_at = received
    return {
        "barrier": outcome.barrier, "label": outcome.label, "gross_bps": outcome.gross_bps,
        "net_bps": outcome.net_bps, "cost_bps": outcome.cost_bps, "resolved_at": outcome.resolved_at.isoformat(),
        "ingested_at": ingested_at.isoformat(),
    }  # fmt: skip


def context_known(store: Store, symbol: str, last: int, known_by: datetime | None) -> list[JsonObject]:
    """Return the newest context values of a symbol, by the time they could be known; a value not recorded is None.

    known_by  moment (aware): what was received later is left out; None = as of now
    Raises    UnknownName for a symbol of which nothing was ever observed
    """
    found = store.context(symbol, last, known_by)
    if not found and symbol not in (observed := store.symbols()) and not store.context(symbol, 1):
        held = f"the store holds {', '.join(observed)}" if observed else "run `bellwether run --once` first"
        raise UnknownName(f"nothing was observed of {symbol}; {held}")
    return [
        {
            "kind": one.kind, "value": None if one.value != one.value else one.value,
            "known_at": utc(one.known_at).isoformat(), "ingested_at": one.ingested_at.isoformat(),
        }
        for one in found
    ]  # fmt: skip
