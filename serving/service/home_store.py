"""The store of a home with the key of its chain, and the anchors: what the chain ended with, outside of the store."""

import json
import os
from pathlib import Path

from pipelines.settings import Settings
from pipelines.store import FLOW_WAIT_MS, LOG_BYTES, Anchor, Store
from serving.service import keys

ANCHOR_FILE = "chain_anchors.jsonl"  # under the home: one anchor a line, oldest first


def open_store(where: Settings, wait_ms: int = FLOW_WAIT_MS, log_bytes: int = LOG_BYTES) -> Store:
    """Open the store of a home; its chain begins here if neither it nor an anchor is there. Raises as `Store.open`."""
    store = Store.open(where.store, where.durability, wait_ms, keys.chain_key(where), log_bytes)
    if not read_anchors(where.home):
        store.begin_chain()
    return store


def read_anchors(home: Path) -> list[Anchor]:
    """Return the anchors of a home, oldest first; a line that was cut short is left out."""
    file = home / ANCHOR_FILE
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            stored = json.loads(line)
            where = f"the anchor in {file.name}"
            found.append(Anchor(int(stored["seq"]), str(stored["mac"]), str(stored["at"]), where))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def add_anchor(home: Path, anchor: Anchor) -> None:
    """Append an anchor, durable on return."""
    text = json.dumps({"seq": anchor.seq, "mac": anchor.mac, "at": anchor.at}) + "\n"
    with (home / ANCHOR_FILE).open("a") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
