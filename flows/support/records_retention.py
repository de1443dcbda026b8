"""Retention: what an installation removes after `keep_days`, and what it never removes.

Removed: decisions without an event or a trade, cleared alarms, closed retrain requests, and local copies of bundles
that nothing names any more (MLflow stores the models). Never removed: the promotion ledger, trials (the deflated Sharpe
ratio counts them), observed bars and records (the next data version is made from them), decisions that were emitted,
rest on an event or have an outcome, fills, breakers, and each bundle that serves, could be rolled back to, or took part
in a decision that stays.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.support.installation import Installation
from flows.support.market_time import ingested_markets, is_market_clocked
from flows.support.promotion import champions, promotion_lease
from pipelines.contracts import utc
from pipelines.families import FAMILIES
from serving.inference.generation import read_generation

RULES = {
    "decisions": "NO_TRADE without an event",
    "alarms": "cleared; the newest stays",
    "family_outcomes": "all: older ones are no evidence on a model that serves",
    "retrain_requests": "closed; the newest of each family stays",
    "bundles": "named by no slot, earlier champion or remaining decision",
}
DIGEST_LETTERS = 64
GONE = ".gone-"  # prefix of a bundle being removed, so that no reader meets half of one


@dataclass(frozen=True, slots=True)
class Removal:
    """Count what is removed of one kind: `oldest` in UTC; `bytes` on disk, None where a database reuses the space."""

    what: str
    n: int
    oldest: datetime | None
    bytes: int | None

    @property
    def rule(self) -> str:
        """Return which records of this kind are removed, for people."""
        return RULES[self.what]


def cutoff(installation: Installation, days: int, at: datetime) -> datetime:
    """Return the moment before which records may be removed: `days` before `at`.

    Never later than the end of the newest data version, and of the training of any champion or challenger here: drift
    is measured on what came after it.
    """
    ends = [at - timedelta(days=days)]
    if (installation.workspace / "data" / "manifest.json").is_file():
        markets = installation.data_version().markets.values()
        ends.append(min(datetime.fromisoformat(str(facts["last"])) for facts in markets))
    for family in FAMILIES:
        slots = installation.store.slots(family)
        for line in (slots.champion, slots.challenger):
            schema = installation.settings.bundles / str(line and line.digest) / "schema.json"
            if schema.is_file():
                ends.append(utc(float(json.loads(schema.read_text())["trained_through"])))
    return min(ends)


def plan(installation: Installation, before: datetime) -> list[Removal]:
    """Return what `prune` would remove now. Changes nothing."""
    rows = [Removal(table, n, oldest, None) for table, (n, oldest) in installation.store.prunable(before).items()]
    return [*rows, _bundle_removal(list(idle_bundles(installation, before)))]


def prune(installation: Installation, before: datetime) -> list[Removal]:
    """Remove what `plan` shows, and return it. Services may run. Raises LeaseHeld while a champion is moved."""
    oldest = {table: moment for table, (_, moment) in installation.store.prunable(before).items()}
    rows = [Removal(table, n, oldest[table], None) for table, n in installation.store.prune(before).items()]
    with promotion_lease(installation):  # no bundle is fetched or published meanwhile
        idle = list(idle_bundles(installation, before))
        bundles = _bundle_removal(idle)
        for bundle in idle:
            bundle.rename(bundle.with_name(GONE + bundle.name))
        for gone in installation.settings.bundles.glob(f"{GONE}*"):  # and what an interrupted prune left
            shutil.rmtree(gone)
    return [*rows, bundles]


def idle_bundles(installation: Installation, before: datetime) -> Iterator[Path]:
    """Yield local bundles older than `before` that nothing names.

    Raises  StateError if the generation file cannot be read: then it is unknown which bundles serve
    """
    named = installation.store.served_digests(before)
    for family in FAMILIES:
        slots, versions = installation.store.slots(family), set(champions(installation.store, family))
        lines = [line for line in installation.store.promotions(family) if line.to_version in versions]
        named |= {str(line.digest) for line in (*lines, slots.champion, slots.challenger) if line is not None}
    served = read_generation(installation.settings.serving_dir) or {"families": {}}
    named |= {str(slot["digest"]) for slots in served["families"].values() for slot in slots.values() if slot}
    came = in_time_of_day(installation, before)
    for folder in sorted(installation.settings.bundles.glob("[0-9a-f]*")):
        is_bundle = folder.is_dir() and len(folder.name) == DIGEST_LETTERS
        if is_bundle and folder.name not in named and _modified(folder) < came:
            yield folder


def in_time_of_day(installation: Installation, before: datetime) -> datetime:
    """Return when it was `before` in this home by the time of day, as folders are stamped.

    A market of the past or a simulated one has another date than the folders that were written while it ran.
    """
    markets = ingested_markets(installation)
    if not is_market_clocked(markets.values()):
        return before
    came = [installation.store.first_arrival(symbol, before.timestamp()) for symbol in markets]
    return min((at for at in came if at is not None), default=before)


def _modified(folder: Path) -> datetime:
    """Return when a folder was last modified, in UTC."""
    return datetime.fromtimestamp(folder.stat().st_mtime, UTC)


def _bundle_removal(bundles: list[Path]) -> Removal:
    """Return how many bundles these are, the oldest and their bytes."""
    size = sum(file.stat().st_size for bundle in bundles for file in bundle.rglob("*") if file.is_file())
    return Removal("bundles", len(bundles), min(map(_modified, bundles), default=None), size)
