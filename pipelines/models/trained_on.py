"""Which symbols a model was trained on, as its bundle or its registered version says it."""

from collections.abc import Mapping


def symbols_of(facts: Mapping[str, object]) -> tuple[str, ...]:
    """Return the symbols that a schema or the tags of a version name; empty where they name none.

    facts  `symbols`: a list, or names joined by commas; up to release 0.10 `symbol`, one name
    """
    named = facts.get("symbols")
    if isinstance(named, str):
        return tuple(name.strip() for name in named.split(",") if name.strip())
    if isinstance(named, list | tuple):
        return tuple(str(name) for name in named)
    return (str(facts["symbol"]),) if facts.get("symbol") else ()
