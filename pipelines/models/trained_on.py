"""Which markets a model speaks of: the symbols whose rows it was fitted on, and the timeframe it decides on."""

from collections.abc import Mapping


def symbols_of(facts: Mapping[str, object]) -> tuple[str, ...]:
    """Return the symbols of a bundle's schema or of a version's tags; none where they name none.

    facts  `symbols` as a list (schema) or joined by commas (tags); up to release 0.10 `symbol`, one market
    """
    named = facts.get("symbols", facts.get("symbol"))
    if isinstance(named, str):
        return tuple(each for each in named.split(",") if each)
    return tuple(str(each) for each in named) if isinstance(named, list | tuple) else ()


def shared_symbols(facts: Mapping[str, object], meta: Mapping[str, object]) -> tuple[str, ...]:
    """Return the symbols that a version and other facts (tags, a schema, meta.json) share; none on other timeframes."""
    if facts.get("decision_timeframe") != meta["decision_timeframe"]:
        return ()
    theirs = symbols_of(meta)
    return tuple(each for each in symbols_of(facts) if each in theirs)


def shares_market(facts: Mapping[str, object], meta: Mapping[str, object]) -> bool:
    """Return whether a version decides on the timeframe of `meta` and speaks of at least one of its symbols."""
    return bool(shared_symbols(facts, meta))


def described(facts: Mapping[str, object]) -> str:
    """Return the markets of a version in words: its symbols and its timeframe."""
    return f"{', '.join(symbols_of(facts)) or 'no stated symbol'} on {facts.get('decision_timeframe')} bars"
