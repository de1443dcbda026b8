"""What a home holds of each symbol of its universe, and which models were trained on it."""

import json
from collections.abc import Mapping
from typing import Any

from flows import universe
from flows.support.installation import Installation
from flows.support.market_access import MarketOffer
from pipelines.contracts import JsonObject
from pipelines.data.data_version import MANIFEST, DataVersion
from pipelines.families import FAMILIES


def listing(installation: Installation) -> list[JsonObject]:
    """Return each symbol of the universe, JSON-ready: source, bars held, models trained on it, and state."""
    version = installation.data_version() if (installation.data / MANIFEST).is_file() else DataVersion()
    models = trained_on(installation)
    return [_listed(offer, version, models.get(offer.symbol, [])) for offer in universe.offers(installation)]


def _listed(offer: MarketOffer, version: DataVersion, models: list[str]) -> JsonObject:
    """Return what is held of one symbol."""
    facts: Mapping[str, Any] = version.markets.get(offer.symbol, {})
    state = "held" if facts else "new: the next data version takes it in"
    if why := version.left_out.get(offer.symbol):
        state = f"left out: {why}"
    return {
        "symbol": offer.symbol,
        "source": offer.source,
        "paths": list(offer.paths),
        "bars": facts.get("rows"),
        "timeframe": facts.get("timeframe"),
        "first": facts.get("first"),
        "last": facts.get("last"),
        "models": models,
        "state": state,
    }


def trained_on(installation: Installation) -> dict[str, list[str]]:
    """Return symbol → families whose champion was trained on it."""
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        champion = installation.store.slots(family).champion
        schema = installation.settings.bundles / str(champion and champion.digest) / "schema.json"
        facts = json.loads(schema.read_text()) if schema.is_file() else {}
        for symbol in facts.get("symbols") or [facts[name] for name in ("symbol",) if name in facts]:
            found.setdefault(symbol, []).append(family)
    return found
