"""Keys and words that earlier releases wrote, and their present names: the one table for everything that is stored.

A stored record, file or bundle keeps the bytes it was written with; its reader passes it through `current_names`.
An old key in a request is not translated: `renamed_key` names the new one for the error response.
"""

from collections.abc import Mapping
from typing import Any

# artefact → old key → present key
RENAMED: dict[str, dict[str, str]] = {
    "decision": {"said": "category_scores"},
    "decision.validation": {"of": "combined"},
    "tier state": {"held": "tier_floor", "held_reason": "tier_floor_reason", "calm": "good_bars"},
    "bundle schema": {"terms": "loss_params"},
    "category scores": {"heard": "signals_used"},
    "request": {"asks": "inference_requests"},
    "fit figures": {"alone": "single_column_auc"},
    "evaluation figures": {"alone": "single_column_auc", "heard": "ensemble_loss"},
}
# Values that are words of our own, in any artefact.
RENAMED_WORDS: dict[str, str] = {"NO_VOICE": "NO_SIGNAL", "acts": "active", "committee": "ensemble"}


def current_names(artefact: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a stored mapping with present keys; keys that were never renamed stay as they are."""
    renamed = RENAMED[artefact]
    return {renamed.get(key, key): value for key, value in payload.items()}


def current_word(word: str) -> str:
    """Return the present word for a stored one; a word that was never renamed is returned as it is."""
    return RENAMED_WORDS.get(word, word)


def renamed_key(key: str) -> str | None:
    """Return the present name of a request's key of an earlier release, None if no release had such a key."""
    return RENAMED["request"].get(key)
