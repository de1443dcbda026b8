"""The data versions of an installation: listed, shown, compared, exported, and an older one put into the workspace."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bellwether.operations.feed_wanted import read_order
from flows.support import checked_out
from flows.support.installation import Installation, now, workspace_lease
from pipelines import versioning
from pipelines.contracts import JsonObject
from pipelines.data import data_version
from pipelines.data.data_version import DataVersion
from pipelines.data.symbols import slug_of
from pipelines.errors import BellwetherError, StateError, UnknownName, WouldOverwrite
from pipelines.families import FAMILIES
from pipelines.settings import read_yaml
from pipelines.versioning import KeptVersion

NEWEST = "newest"
CSV_COLUMNS = ["open_time", "open", "high", "low", "close", "volume"]


def whole_hash(installation: Installation, text: str) -> str:
    """Return the data hash that begins with this text, or that of the newest version. Raises UnknownName."""
    kept = versioning.kept_versions(installation.versions)
    if text == NEWEST and kept:
        return kept[-1]
    found = [name for name in kept if name.startswith(text)]
    if len(found) == 1:
        return found[0]
    why = "no data version begins with" if not found else f"{len(found)} data versions begin with"
    raise UnknownName(f"{why} {text!r}; `bellwether data list` shows them, or write {NEWEST}")


def listed(installation: Installation) -> list[JsonObject]:
    """Return every kept data version, the newest last: what it holds, and whether the workspace has it."""
    names = versioning.kept_versions(installation.versions)
    return [_summary(installation, kept) for kept in _described(installation, names)]


def shown(installation: Installation, text: str) -> JsonObject:
    """Return one data version: its markets, what serves on it, and its files. Raises UnknownName."""
    (kept,) = _described(installation, [whole_hash(installation, text)])
    held = _held(kept)
    return {
        **_summary(installation, kept),
        "facts": {symbol: _facts(facts) for symbol, facts in held.markets.items()},
        "left_out": dict(held.left_out),
        "serves": _serves(installation, kept.data_hash),
        "files": dict(kept.files),
    }


def compared(installation: Installation, first: str, second: str) -> JsonObject:
    """Return what differs between two data versions: markets, months and parameters. Raises UnknownName."""
    names = [whole_hash(installation, text) for text in (first, second)]
    a, b = _described(installation, names)
    before, after = _held(a), _held(b)
    both = [symbol for symbol in after.markets if symbol in before.markets]
    return {
        "first": a.data_hash,
        "second": b.data_hash,
        "markets_added": [symbol for symbol in after.markets if symbol not in before.markets],
        "markets_gone": [symbol for symbol in before.markets if symbol not in after.markets],
        "facts": {
            symbol: changed
            for symbol in both
            if (changed := _changed(_facts(before.markets[symbol]), _facts(after.markets[symbol])))
        },
        "files": {
            "added": sorted(set(b.files) - set(a.files)),
            "gone": sorted(set(a.files) - set(b.files)),
            "changed": sorted(name for name in set(a.files) & set(b.files) if a.files[name] != b.files[name]),
        },
        "params": _changed(*(_params(installation, name) for name in names)),
    }


def checkout(installation: Installation, text: str, by: str, reason: str) -> JsonObject:
    """Put a data version into the workspace; the next retrain learns from it as it is, if it is not the newest.

    Raises  UnknownName; StateError while a feed is ordered; LeaseHeld; BellwetherError if its data are gone
    """
    settings, name = installation.settings, whole_hash(installation, text)
    if read_order(settings).wanted:
        raise StateError("a feed brings bars, and each day a newer version: stop it first, `bellwether feed stop`")
    newest = versioning.kept_versions(installation.versions)[-1]
    with workspace_lease(installation):
        versioning.restore(installation.workspace, installation.versions / name / "data.dvc")
        if name == newest:
            checked_out.clear(settings)
        else:
            checked_out.mark(settings, name, newest, by, reason, now())
    marked = checked_out.checked_out(settings)
    return {"data_hash": name, "newest": newest, "next_retrain": marked and asdict(marked)}


def export(installation: Installation, text: str, into: Path, csv: bool) -> JsonObject:
    """Copy a data version to a folder that is not there yet: as it is stored, or a CSV of the bars of each market.

    Raises  UnknownName, WouldOverwrite; BellwetherError if its data are gone
    """
    name = whole_hash(installation, text)
    if into.exists():
        raise WouldOverwrite(f"{into} is there already: name a folder that is not, or move it away")
    versioning.export_version(installation.workspace, installation.versions, name, installation.settings.remote, into)
    if csv:
        data = into / "data"
        for symbol, facts in data_version.read_manifest(data).markets.items():
            bars = data_version.read_bars(data, facts)[CSV_COLUMNS]
            bars.to_csv(into / f"{slug_of(symbol)}.csv", index=False)
    written = sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())
    return {"data_hash": name, "folder": str(into), "files": written}


def _described(installation: Installation, names: Sequence[str]) -> list[KeptVersion]:
    """Return these versions as cache or remote have them."""
    return versioning.describe_versions(
        installation.workspace, installation.versions, names, installation.settings.remote
    )


def _held(kept: KeptVersion) -> DataVersion:
    """Return what a version holds. Raises BellwetherError if neither cache nor remote has it."""
    if kept.manifest is None:
        raise BellwetherError(
            f"data version {kept.data_hash} is in neither cache nor remote: {', '.join(versioning.PROVENANCE)} are all "
            "that is left of it"
        )
    return data_version.manifest_of(kept.manifest, f"{versioning.MANIFEST} of data version {kept.data_hash}")


def _summary(installation: Installation, kept: KeptVersion) -> JsonObject:
    """Return a version in a line: symbols, bars and span are None where its data are gone."""
    held = None if kept.manifest is None else _held(kept)
    markets = list(held.markets.values()) if held else []
    return {
        "data_hash": kept.data_hash,
        "kept_at": kept.kept_at.isoformat(timespec="seconds"),
        "in_workspace": versioning.data_hash(installation.workspace) == kept.data_hash,
        "symbols": list(held.markets) if held else None,
        "bars": sum(int(facts.get("rows", 0)) for facts in markets) if held else None,
        "first": min((str(facts["first"]) for facts in markets), default=None),
        "last": max((str(facts["last"]) for facts in markets), default=None),
        "bytes": kept.size,
    }


def _facts(facts: JsonObject) -> JsonObject:
    """Return what one compares of a market, by short names."""
    names = ("timeframe", "rows", "first", "last", "venue", "market", "has_book", "has_context")
    quality = facts.get("quality") or {}
    return {name: facts.get(name) for name in names} | {name: quality.get(name) for name in ("score", "quarantined")}


def _changed(before: JsonObject, after: JsonObject) -> JsonObject:
    """Return name → [before, after] of what differs, names of nested objects dotted."""
    found: JsonObject = {}
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= {f"{name}.{inner}": change for inner, change in _changed(old, new).items()}
        elif old != new:
            found[name] = [old, new]
    return found


def _params(installation: Installation, name: str) -> JsonObject:
    """Return the parameters kept with a version; none where it has none."""
    file = installation.versions / name / "params.yaml"
    return dict(read_yaml(file)) if file.is_file() else {}


def _serves(installation: Installation, data_hash: str) -> list[str]:
    """Return which serving versions were trained on these data, in words."""
    found = []
    for family in FAMILIES:
        slots = installation.store.slots(family)
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            if line is not None and line.data_hash == data_hash:
                found.append(f"{family} {arm} version {line.to_version}")
    return found
