"""The only doorway to SQL: bars, corrections, decisions, promotions, retrain queue, leases, breaker trips, alarms."""

from pipelines.record_codec import DecisionRecord
from pipelines.store.alarms import Alarm, AlarmStore
from pipelines.store.bars_and_records import BarBatch, BarStore
from pipelines.store.breakers import BreakerStore, BreakerTrip
from pipelines.store.codec import decision_of, decision_payload, packed, unpacked
from pipelines.store.corrections import Change, Correction, CorrectionStore, HeldBar, Quarantined, Signed, read_with
from pipelines.store.decisions import DecisionStore, Fill
from pipelines.store.dump import nonempty_tables, open_dump, refuse_nonempty, refuse_unknown
from pipelines.store.engine import (
    FLOW_WAIT_MS,
    OUTAGES,
    SERVICE_WAIT_MS,
    PageCheck,
    StoreFault,
    Transaction,
    damage,
    exists,
)
from pipelines.store.leases import Lease, LeaseStore
from pipelines.store.promotions import Promotion, PromotionStore
from pipelines.store.retention import Retention
from pipelines.store.retrain_queue import ATTEMPTS, RetrainAnswer, RetrainQueue, RetrainRequest

__all__ = [
    "ATTEMPTS",
    "FLOW_WAIT_MS",
    "OUTAGES",
    "SERVICE_WAIT_MS",
    "Alarm",
    "BarBatch",
    "BreakerTrip",
    "Change",
    "Correction",
    "DecisionRecord",
    "Fill",
    "HeldBar",
    "Lease",
    "PageCheck",
    "Promotion",
    "Quarantined",
    "RetrainAnswer",
    "RetrainRequest",
    "Signed",
    "Store",
    "StoreFault",
    "Transaction",
    "damage",
    "decision_of",
    "decision_payload",
    "exists",
    "nonempty_tables",
    "open_dump",
    "packed",
    "read_with",
    "refuse_nonempty",
    "refuse_unknown",
    "unpacked",
]


class Store(
    BarStore,
    CorrectionStore,
    DecisionStore,
    PromotionStore,
    RetrainQueue,
    LeaseStore,
    BreakerStore,
    AlarmStore,
    Retention,
):
    """Join every aggregate of one database: `Store.open(url)`. Thread-safe; close it with `close()`."""
