"""A decision for tests that store one in the ledger."""

from datetime import UTC, datetime

from pipelines.contracts import Decision

T0 = datetime(2024, 1, 1, tzinfo=UTC)
DECISION = Decision(
    id="", symbol="SIM/USDT", as_of=T0, known_at=T0, ingested_at=T0, action="NO_TRADE", direction=0, confidence=None,
    entry=None, stop=None, take_profits=(), size=0.0, expiry=None, edge_bps=None, p=None, regime=None, tier=3,
    arm="none", event=None,
)  # fmt: skip
