"""The only doorway to SQL: bars, corrections, decisions, outcomes, promotions and their chain, retrain queue, leases,
trips of breakers, alarms."""

from pipelines.record_codec import DecisionRecord
from pipelines.store.alarms import Alarm, AlarmStore
from pipelines.store.bars_and_records import BarBatch, BarStore, ContextValue
from pipelines.store.breakers import BreakerStore, BreakerTrip
from pipelines.store.chain import ChainStore
from pipelines.store.chain_lines import Anchor, Fault, Line, Verified
from pipelines.store.codec import decision_of, decision_payload, packed, unpacked
from pipelines.store.corrections import Change, Correction, CorrectionStore, HeldBar, Quarantined, Signed, read_with
from pipelines.store.day import DayStore, StoredDay, StoredDecision
from pipelines.store.decisions import DecisionStore, Fill, ReceivedOutcome
from pipelines.store.dump import nonempty_tables, open_dump, refuse_nonempty, refuse_unknown
from pipelines.store.engine import (
    COPIED_LOG_BYTES,
    FLOW_WAIT_MS,
    LOG_BYTES,
    OUTAGES,
    SERVICE_WAIT_MS,
    PageCheck,
    StoreFault,
    Transaction,
    damage,
    exists,
)
from pipelines.store.experiments import RUNNING, BlockScore, Experiment, ExperimentState, ExperimentStore, Transition
from pipelines.store.family_outcomes import FamilyOutcome, FamilyOutcomeStore
from pipelines.store.home_files import HomeFile, HomeFileStore
from pipelines.store.leases import Lease, LeaseStore
from pipelines.store.marks import Marks, MarkStore
from pipelines.store.parameters import ParameterStore
from pipelines.store.promotions import NO_ARM, LedgerSlots, Promotion, PromotionStore
from pipelines.store.retention import Retention
from pipelines.store.retrain_queue import ATTEMPTS, RetrainAnswer, RetrainQueue, RetrainRequest

__all__ = [
    "ATTEMPTS",
    "COPIED_LOG_BYTES",
    "FLOW_WAIT_MS",
    "LOG_BYTES",
    "NO_ARM",
    "OUTAGES",
    "RUNNING",
    "SERVICE_WAIT_MS",
    "Alarm",
    "Anchor",
    "BarBatch",
    "BlockScore",
    "BreakerTrip",
    "Change",
    "ContextValue",
    "Correction",
    "DecisionRecord",
    "Experiment",
    "ExperimentState",
    "FamilyOutcome",
    "Fault",
    "Fill",
    "HeldBar",
    "HomeFile",
    "Lease",
    "LedgerSlots",
    "Line",
    "Marks",
    "PageCheck",
    "Promotion",
    "Quarantined",
    "ReceivedOutcome",
    "RetrainAnswer",
    "RetrainRequest",
    "Signed",
    "Store",
    "StoreFault",
    "StoredDay",
    "StoredDecision",
    "Transaction",
    "Transition",
    "Verified",
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
    ExperimentStore,
    FamilyOutcomeStore,
    PromotionStore,
    RetrainQueue,
    LeaseStore,
    HomeFileStore,
    MarkStore,
    BreakerStore,
    AlarmStore,
    ParameterStore,
    Retention,
    ChainStore,
    DayStore,
):
    """Join every aggregate of one database: `Store.open(url)`. Thread-safe; close it with `close()`."""
