"""Print what must not change when names, folders or layouts do: what one turn learned, judged and decided.

    python tests/support/turn_digest.py HOME            # print it as JSON
    python tests/support/turn_digest.py HOME OTHER      # compare two homes; exit code 1 and the differences

Data hash, figures and checks of each verdict, actions, refusal codes, and of each decision its action, tier, p, size
and edge. Digests of bundles and ids are left out: they change with every release.
"""

import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from pipelines.record_codec import part_digest, part_of, read_record
from pipelines.renamed_keys import current_word

TOLERANCE = 1e-9  # two runs on one machine are equal; another CPU rounds in another way


def digest(home: Path) -> dict[str, Any]:
    """Return what is compared, of a home whose turn has ended. Raises sqlite3.Error if it holds no store."""
    with closing(sqlite3.connect(f"file:{home / 'store.db'}?mode=ro", uri=True)) as database:
        lines = database.execute(
            "SELECT family, action, arm, verdict_passed, data_hash, evidence FROM promotions WHERE verdict_passed IS "
            "NOT NULL AND actor = 'gate' ORDER BY family, id"
        ).fetchall()
        decisions = _decisions(database)
    return {
        "data_hash": sorted({line[4] for line in lines}),
        "verdicts": [
            {"family": family, "passed": bool(passed), "checks": _checks(json.loads(evidence))}
            for family, _, _, passed, _, evidence in lines
        ],
        "actions": dict(Counter(decision["action"] for decision in decisions)),
        "refusals": dict(Counter(_code(decision["reasons"][0]) for decision in decisions)),
        "decisions": {d["as_of"]: [d["action"], d["tier"], d["p"], d["size"], d["edge_bps"]] for d in decisions},
    }


def differences(first: Any, second: Any, at: str = "") -> list[str]:
    """Return where two digests differ, floats by more than TOLERANCE, as `path: first != second`."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(set(first) | set(second))
        return [line for key in keys for line in differences(first.get(key), second.get(key), f"{at}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{at}/{i}")]
    if isinstance(first, float) and isinstance(second, float):
        return [] if abs(first - second) <= TOLERANCE else [f"{at}: {first} != {second}"]
    return [] if first == second else [f"{at}: {first} != {second}"]


def _decisions(database: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return the JSON of every decision, whichever release stored it."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(decisions)")}
    if "record" not in columns:  # a schema before 0008
        return [json.loads(row[0]) for row in database.execute("SELECT payload FROM decisions ORDER BY as_of")]
    parts = {row[0]: part_of(*row) for row in database.execute("SELECT digest, content FROM record_parts")}
    rows = database.execute("SELECT payload, record FROM decisions ORDER BY as_of")
    return [
        json.loads(payload) if record is None else read_record(record, parts[part_digest(record)]).decision.to_dict()
        for payload, record in rows
    ]


def _checks(evidence: dict[str, Any]) -> dict[str, Any]:
    return {
        check["name"]: [check["passed"], check["value"], check["low"], check["high"]]
        for check in evidence["checks"]
        if check["name"] != "latency_ms"  # a time: no two runs have the same
    }


def _code(reason: str) -> str:
    return current_word(reason.partition(":")[0])


def main(homes: list[str]) -> int:
    found = [digest(Path(home)) for home in homes]
    if len(found) == 1:
        print(json.dumps(found[0], indent=1))
        return 0
    lines = differences(*found)
    print("\n".join(lines[:50]) or f"equal: {len(found[0]['decisions']):,} decisions, {found[0]['actions']}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
