"""What a running installation does now, read from the store and the feed's own state: one sample at a time."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypedDict

from pipelines.families import FAMILIES
from pipelines.settings import Settings
from pipelines.store import Store
from serving.service.home_store import open_store
from serving.state.feed_state import FeedState, read_feed_state


class Sample(TypedDict):
    """Hold one sample.

    at           wall time, ISO 8601 UTC; market_time: newest close that was sent, None before the first
    state        running, held, stopped, dead or none (no feed ever ran here); detail: the same in words
    bars_s       base bars a second of wall time; lag_bars: decision bars behind
    decisions    in the ledger; trades: of these, those that opened something
    alarms       open now
    champions    family → version
    """

    at: str
    state: str
    detail: str
    source: str | None
    speed: float | None
    market_time: str | None
    bars_s: float | None
    lag_bars: float | None
    decisions: int
    trades: int
    alarms: int
    champions: dict[str, str]


def sample(settings: Settings, store: Store) -> Sample:
    """Return what the installation does now. Raises StoreFault while the store gives no answer."""
    now, state = datetime.now(UTC), read_feed_state(settings.serving_dir)
    decisions, trades = store.count_decisions()
    found = state if state is not None and state.fault is None else None
    return Sample(
        at=now.isoformat(timespec="seconds"),
        state=word_of(state, now),
        detail="no feed ever ran here" if state is None else state.condition(now),
        source=found.source if found else None,
        speed=found.speed if found else None,
        market_time=found.market_time.isoformat() if found and found.market_time else None,
        bars_s=found.bars_s if found else None,
        lag_bars=found.lag_bars if found else None,
        decisions=decisions,
        trades=trades,
        alarms=len(store.alarms()),
        champions={f: str(line.to_version) for f in FAMILIES if (line := store.slots(f).champion) is not None},
    )


def word_of(state: FeedState | None, now: datetime) -> str:
    """Return the state of a feed in one word."""
    if state is None:
        return "none"
    if state.stopped and state.fault is None:
        return "stopped"
    if not state.is_alive(now):
        return "dead"
    return "held" if state.held else "running"


def text_of(one: Sample) -> str:
    """Return a sample as one line for people."""
    moment = one["market_time"] and one["market_time"][:16].replace("T", " ")
    champions = ", ".join(f"{family} {version}" for family, version in one["champions"].items())
    parts = [
        f"{moment or '–'} UTC",
        f"{one['bars_s'] or 0.0:,.1f} bars/s",
        f"{one['decisions']:,} decisions",
        f"{one['trades']:,} trades",
        f"{one['alarms']:,} alarms",
        champions or "no champion",
    ]
    if (one["lag_bars"] or 0.0) >= 1.0:
        parts.append(f"{one['lag_bars']:.1f} bars behind")
    state = [] if one["state"] == "running" else [f"{one['state']}: {one['detail']}"]  # first: lines are cut at the end
    return "; ".join([*state, *parts])


def samples(settings: Settings, every_s: float = 1.0, sleep: Callable[[float], None] = time.sleep) -> Iterator[Sample]:
    """Yield a sample every `every_s` seconds, without an end."""
    store = open_store(settings)
    try:
        while True:
            yield sample(settings, store)
            sleep(every_s)
    finally:
        store.close()
