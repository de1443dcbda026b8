"""What an installation serves and since which evidence, from stored state where services are down."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypedDict

from flows.support import experiments, pacing, processes, promotion
from flows.support.frozen import freezes
from flows.support.installation import Installation, now, open_installation
from flows.support.market_time import ingested_markets, is_market_clocked, learning_now
from pipelines import versioning
from pipelines.contracts import utc
from pipelines.errors import BellwetherError
from pipelines.families import FAMILIES
from pipelines.models.trained_on import symbols_of
from pipelines.settings import settings
from serving.client import Client
from serving.state.feed_state import read_feed_state
from serving.state.service_level import stored_report


class Health(TypedDict):
    """Report the health of the decision service and its reason."""

    health: str
    health_reason: str
    waiting_for_first_turn: bool


class Score(TypedDict):
    """Report what one version scored when the gate judged it; `rows` are figure, value, 95 % interval and n."""

    version: str
    arm: str
    gate: str
    symbol: str
    rows: list[list[str]]
    reasons: list[str]


class SymbolStatus(TypedDict):
    """Report one symbol of the universe: figures of the service where it answers, else of the store.

    newest_bar  when its newest bar closed, by its market, ISO 8601
    age_s       wall time since that bar arrived; a market that trades now: since it closed
    age_bars    decision bars without news, by the clock of its market; None while the service does not say
    tier        of the service now, else of its newest decision; None before any
    left_out    why the newest data version does not hold it
    """

    symbol: str
    clock: str | None
    timeframe: str | None
    newest_bar: str | None
    age_s: float | None
    age_bars: float | None
    tier: int | None
    tier_reason: str | None
    left_out: str | None


class FeedStatus(TypedDict):
    """Report the feed as it wrote of itself last; `state` is running | held | stopped | dead | unknown."""

    state: str
    condition: str
    source: str
    speed: float | None
    market_time: str | None
    bars_s: float | None
    lag_bars: float | None
    at: str


def stored_status() -> dict[str, object]:
    """Return health, families, services, universe, feed, service level, what is due and frozen, and open alarms.

    All of it is ready for JSON.
    """
    installation = open_installation()
    pointer = installation.workspace / "data.dvc"
    last = installation.store.decisions(last=1)
    families = promotion.live(installation)
    return {
        **decision_service_health(),
        "families": families,
        "experiments": experiments.lines(installation),
        "services": processes.services(settings()),
        "tier": last[0].decision.tier if last else None,
        "data_hash": versioning.data_hash(installation.workspace) if pointer.is_file() else None,
        "market_time": market_time(installation),
        "universe": universe(installation, service_symbols()),
        "feed": feed_status(installation, now()),
        "service_level": stored_report(installation.settings.serving_dir, now()),
        "due": pacing.describe(installation),
        "frozen": [{**asdict(each), "text": each.describe()} for each in freezes(installation.settings)],
        "disabled": {
            "signals": list(installation.params.signals.disabled),
            "fusion": list(installation.params.fusion.disabled),
        },
        "figures": latest_scores(installation),
        "alarms": [
            {"kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat()}
            for a in installation.store.alarms()
        ],
    }


def market_time(installation: Installation) -> str | None:
    """Return the present time of a market with a clock of its own; None where markets trade now, or before any data."""
    markets = ingested_markets(installation)
    return learning_now(installation).isoformat() if is_market_clocked(markets.values()) else None


def service_symbols() -> Mapping[str, Mapping[str, Any]]:
    """Return symbol → what the decision service says of it; nothing where it does not answer."""
    try:
        with Client(settings()) as client:
            found: Mapping[str, Mapping[str, Any]] = client.status()["symbols"]
    except BellwetherError:
        return {}
    return found


def universe(installation: Installation, served: Mapping[str, Mapping[str, Any]]) -> list[SymbolStatus]:
    """Return every symbol of the newest data version, those it leaves out, and what else the service knows.

    served  as of `service_symbols`
    """
    markets = ingested_markets(installation)
    excluded = installation.data_version().left_out if markets else {}
    names = dict.fromkeys([*markets, *excluded, *installation.store.symbols(), *served])
    return [
        _symbol_status(installation, name, markets.get(name, {}), served.get(name, {}), excluded.get(name))
        for name in names
    ]


def _symbol_status(
    installation: Installation, symbol: str, facts: Mapping[str, Any], reported: Mapping[str, Any], left_out: str | None
) -> SymbolStatus:
    """Return one symbol: facts of the data version, `reported` by the service; empty where they know nothing of it."""
    newest = installation.store.newest_close(symbol)
    last = installation.store.decisions(symbol, last=1) if not reported else []
    return SymbolStatus(
        symbol=symbol,
        clock=reported.get("clock") or facts.get("clock"),
        timeframe=facts.get("timeframe") or reported.get("base_timeframe"),
        newest_bar=None if newest is None else utc(newest).isoformat(),
        age_s=_age_s(installation, symbol, newest, facts.get("clock") or reported.get("clock")),
        age_bars=reported.get("age_bars"),
        tier=reported.get("tier", last[0].decision.tier if last else None),
        tier_reason=reported.get("tier_reason", last[0].decision.tier_reason if last else None) or None,
        left_out=left_out,
    )


def _age_s(installation: Installation, symbol: str, newest: float | None, clock: str | None) -> float | None:
    """Return the seconds of wall time without news of a symbol; None before its first bar."""
    if newest is None:
        return None
    came = utc(newest) if clock == "wall" else installation.store.newest_arrival(symbol)
    return None if came is None else round(max(0.0, (now() - came).total_seconds()), 1)


def feed_status(installation: Installation, at: datetime) -> FeedStatus | None:
    """Return the state of the feed at `at`, time of day; None where none ever ran."""
    feed = read_feed_state(installation.settings.serving_dir)
    if feed is None:
        return None
    if feed.fault is not None:
        state = "unknown"
    elif feed.stopped:
        state = "stopped"
    elif not feed.is_alive(at):
        state = "dead"
    else:
        state = "held" if feed.held else "running"
    return FeedStatus(
        state=state,
        condition=feed.condition(at),
        source=feed.source,
        speed=None if math.isnan(feed.speed) else feed.speed,
        market_time=None if feed.market_time is None else feed.market_time.isoformat(),
        bars_s=feed.bars_s,
        lag_bars=feed.lag_bars,
        at=feed.at.isoformat(),
    )


def decision_service_health() -> Health:
    """Return health and its reason from the decision service; UNHEALTHY if it does not answer."""
    try:
        with Client(settings()) as client:
            answer = client.ready()
    except BellwetherError as error:
        return Health(health="UNHEALTHY", health_reason=str(error), waiting_for_first_turn=False)
    return Health(
        health=answer["health"],
        health_reason=answer["health_reason"],
        waiting_for_first_turn=answer["waiting_for_first_turn"],
    )


def latest_scores(installation: Installation) -> dict[str, Score]:
    """Return family → what its champion on this market scored, or without one its newest candidate."""
    market = next(iter(ingested_markets(installation)), None)
    scores: dict[str, Score] = {}
    for family in FAMILIES:
        slots = installation.store.slots(family)
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            evidence = promotion.gate_evidence(installation.store, line)
            if family in scores or line is None or market not in symbols_of(evidence):
                continue
            scores[family] = Score(
                version=str(line.to_version),
                arm=arm,
                gate="passed" if evidence["passed"] else "refused",
                symbol=str(market),
                rows=evidence["figures"],
                reasons=evidence["reasons"],
            )
    return scores
