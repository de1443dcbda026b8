"""The standing arm `traditional`: what the policy of tier 3, without any model, would have made of each close.

Its decisions are made again from the rows that the service stored, by the service's own code, with an account of its
own in which nothing is open: what it would have taken does not depend on what the live policy holds.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from flows.support.installation import Installation
from flows.support.live_outcomes import market_known
from pipelines.contracts import Decision, Floats
from pipelines.features.catalog import FEATURES
from pipelines.monitoring.outcomes import resolve
from pipelines.signals.catalog import SIGNALS
from pipelines.store import DecisionRecord, Experiment
from pipelines.warm_start import WarmStart, read_warm_start
from serving.inference.model_slots import Snapshot
from serving.policy import decision_row
from serving.policy.decide import decide
from serving.state.symbols import ClosedBar, Symbol
from serving.state.tiers import TRADITIONAL, Tier

# the least expected shortfall that counts as known: no budget of the tail binds, as none of the others does
OWN_ACCOUNT = decision_row.ExposureSnapshot.from_dict({**decision_row.NOTHING_OPEN, "es_unit": 1e-9})
TIER = Tier(TRADITIONAL, f"TIER_{TRADITIONAL}: a standing arm")


def of_traditional(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime
) -> Iterator[tuple[float, float]]:
    """Yield (close, net bps of the traditional policy less those of the live one) where either has an event.

    A trade counts whole, none as zero: sizes are left out. Closes whose rows are of another catalogue are left out.
    """
    live = {
        (record.decision.symbol, record.decision.as_of): outcome.net_bps
        for record, outcome in installation.store.resolved(since, until)
        if record.decision.action != "NO_TRADE"
    }
    records: dict[str, list[DecisionRecord]] = defaultdict(list)
    for record in installation.store.decisions(since=since, until=until):
        records[record.decision.symbol].append(record)
    for symbol, own in sorted(records.items()):
        taken = taken_by_tradition(installation, symbol, own)
        for record in _first_of_each_close(own):
            at, key = record.decision.as_of, (symbol, record.decision.as_of)
            if record.decision.event is not None or at in taken:
                yield at.timestamp(), taken.get(at, 0.0) - live.get(key, 0.0)


def taken_by_tradition(
    installation: Installation, symbol: str, records: Sequence[DecisionRecord]
) -> dict[datetime, float]:
    """Return close → net bps of each trade that the policy of tier 3 takes at the closes of these records."""
    market = market_known(installation, symbol)
    bars = dict(zip(market.closes.tolist(), market.decision, strict=True))
    made = [
        decision
        for record in _first_of_each_close(records)
        if (decision := _decide(installation, record, bars)) is not None and decision.action != "NO_TRADE"
    ]
    costs = market.costs(installation.params)
    found = resolve(made, market.base, market.base_grid, costs, market.funding)
    closes = {decision.id: decision.as_of for decision in made}
    return {closes[outcome.decision_id]: outcome.net_bps for outcome in found}


def _decide(installation: Installation, record: DecisionRecord, bars: dict[float, Floats]) -> Decision | None:
    """Return the decision of tier 3 at the close of a record; None where its rows are of another catalogue.

    Raises  StateError for a warm start that is not kept
    """
    old = record.decision
    bar = bars.get(old.as_of.timestamp())
    features, signals = (np.frombuffer(row, dtype=np.float64) for row in (record.features, record.signals))
    whole = len(features) == len(FEATURES.columns) and len(signals) == len(SIGNALS.columns)
    if bar is None or not whole:
        return None
    symbol = Symbol(_warm_start(installation.settings.serving_dir / "warm", old.lineage["warm_start"]))
    symbol.waiting = {}  # a close that had to wait has no event, and no row of numbers
    symbol.closed = ClosedBar(
        bar, features, signals, symbol.closed.levels, symbol.closed.context, old.as_of.timestamp()
    )
    policy = _policy(installation.params.model_dump_json())
    return decide(
        symbol, Snapshot(), policy, lambda *_: OWN_ACCOUNT, (), tier=TIER, predictions={}, id=old.id,
        known_at=old.known_at, now=old.ingested_at,
    )  # fmt: skip


def _first_of_each_close(records: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    """Return the first decision on each close, oldest first."""
    first: dict[datetime, DecisionRecord] = {}
    for record in sorted(records, key=lambda r: (r.decision.as_of, r.decision.ingested_at)):
        first.setdefault(record.decision.as_of, record)
    return list(first.values())


@lru_cache(maxsize=2)
def _policy(content: str) -> decision_row.Policy:
    """Return the policy of parameters by their content."""
    return decision_row.policy_of_content(content)


@lru_cache(maxsize=16)  # of each market, the one before and after a publication
def _warm_start(folder: Path, digest: str) -> WarmStart:
    """Return a verified warm start of this home. Raises StateError if it is not kept, DigestMismatch if damaged."""
    return read_warm_start(folder / digest, digest)
