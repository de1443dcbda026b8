"""The check of a generation file against the ledger, before anything it names is loaded (law L5)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.store import Promotion, Store
from serving.service.home_store import read_anchors

CHAMPION, CHALLENGER = "champion", "challenger"
Arms = Mapping[str, Mapping[str, Any] | None]


def disagreement(store: Store, home: Path, generation: Mapping[str, Any]) -> str | None:
    """Return the first slot of a generation file that the ledger does not bear out, and why; None if there is none.

    A line counts only if the chain proves it. The champion must be the present one and its bytes must have passed the
    gate; a challenger must have been judged with the verdict that the file states. An empty slot is always in order.
    Who decides when must be as the ledger's experiment says, and a challenger that decides must have passed the gate.
    """
    if (missed := store.missed_anchor(read_anchors(home))) is not None:
        return f"the ledger's chain is not the one that was anchored: {missed}; see `bellwether verify`"
    families: Mapping[str, Arms] = generation["families"]
    for family, arms in families.items():
        for arm, entry in arms.items():
            if entry is not None and (why := _wrong(store, family, arm, entry)) is not None:
                return f"{family} {arm} {entry.get('version')}: {why}; `bellwether verify` checks the ledger"
    for family, stated in generation.get("assignments", {}).items():
        if (why := _assigned_wrongly(store, family, families[family], stated)) is not None:
            return f"{family} experiment {stated['experiment']}: {why}; `bellwether verify` checks the ledger"
    return None


def _assigned_wrongly(store: Store, family: str, arms: Arms, stated: Mapping[str, Any]) -> str | None:
    """Return why the ledger does not bear out who decides when; None if it does."""
    assignment = store.assignment(family)
    if assignment is None or assignment.to_dict() != stated:
        return "the ledger's experiment does not say so"
    challenger = arms.get(CHALLENGER) or {}
    judged = store.verdict(family, str(challenger.get("version")), assignment.challenger)
    if assignment.stages and (judged is None or not judged.verdict_passed):
        return "its challenger decides and has no passing verdict"
    return None


def _wrong(store: Store, family: str, arm: str, entry: Mapping[str, Any]) -> str | None:
    """Return why the ledger does not bear out a slot; None if it does."""
    version, digest = str(entry.get("version")), str(entry.get("digest"))
    judged = store.verdict(family, version, digest)
    if arm == CHAMPION:
        champion = store.slots(family).champion
        if champion is None or (champion.to_version, champion.digest) != (version, digest):
            return f"the ledger's champion is {_named(champion)}"
        if judged is None or not judged.verdict_passed:
            return "the ledger has no passing verdict on these bytes"
    elif judged is None:
        return "the ledger has no verdict on these bytes"
    word = "passed" if judged.verdict_passed else "refused"
    if entry.get("verdict") not in (None, "", word):
        return f"the ledger's verdict is {word}, the file says {entry.get('verdict')}"
    return None


def _named(line: Promotion | None) -> str:
    """Return a slot's line for people."""
    return "none" if line is None else f"version {line.to_version}, {str(line.digest)[:12]}"
