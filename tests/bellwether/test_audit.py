"""`bellwether audit`: a stranger verifies a day with Python alone, and finds whatever was changed."""

import ast
import json
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from unittest.mock import patch

import numpy as np
import pytest
import sqlalchemy as sa
from support.command_line import bellwether
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.operations import audit
from flows.support.installation import Installation
from pipelines.contracts import Decision, EnsembleVote, ModelAnswer, Outcome, ThresholdCheck
from pipelines.errors import BadTimes, UnknownName, WouldOverwrite
from pipelines.migrations import tables as t
from pipelines.sealed_folder import seal
from pipelines.settings import Settings, load_params
from pipelines.store import Anchor, Change, DecisionRecord, Promotion, Signed, decision_payload
from serving.policy.decision_row import policy_of
from serving.service.home_store import add_anchor, open_store

T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OF = date(2024, 1, 2)
LOOKS_LIKE_A_MARK = struct.unpack(">d", b"\xcb" * 8)[0]


def decision(n, version, digest, policy):
    answer = ModelAnswer(
        "validator", version, digest, "passed", "active", "fvg", -1, {"up": 0.25, "down": None}, 0.5, novelty=1e-300,
        members={"a": 0.5}, ensemble=EnsembleVote(0.5, None, {"a": 1.0}, ("b",)),
    )  # fmt: skip
    values = {
        "id": f"d{n:03}", "symbol": "BTC/USDT", "as_of": T0 + n * HOUR, "known_at": T0 + n * HOUR,
        "ingested_at": T0 + n * HOUR + timedelta(microseconds=n), "action": "SELL", "direction": -1, "confidence": 0.1,
        "entry": 100, "stop": LOOKS_LIKE_A_MARK, "take_profits": (1.5, 2), "size": 0.0, "expiry": T0 + DAY,
        "edge_bps": None, "p": None, "regime": "ruhig – Ü", "tier": 2, "arm": "champion", "event": "fvg",
        "generation": 70_000,
        "models": {"validator": {"champion": answer}, "regime": {"champion": ModelAnswer("regime")}},
        "lineage": {"params": policy}, "reasons": ("x" * 300, "NO_EVENT"), "account": {"equity": 1e6, "free": None},
        "thresholds": {"volume": ThresholdCheck("trend", 1.5, True, False)},
    }  # fmt: skip
    return DecisionRecord(Decision(**values), bytes(range(256)) * 9 * n, b"\xcb" * 12)


def promotion(store, version, at, action="challenge"):
    store.add_promotion(Promotion(at, "policy", action, "validator", "challenger", None, version, "ab" * 32, "run",
                                  "data", "commit", True, "passed the gate", {"checks": [{"value": 0.1}]}))  # fmt: skip


@pytest.fixture
def installation(url, tmp_path):
    """Two days and a half of decisions, sealed twice, with outcomes, verdicts, corrections, anchors and a card."""
    settings = Settings(home=tmp_path / "home", store_url=url)
    opened = Installation(settings, load_params(), open_store(settings))
    draft = settings.bundles / "draft"
    draft.mkdir(parents=True)
    (draft / "card.md").write_text("# A card\n")
    digest = seal(draft, {"family": "validator", "format": 2})
    draft.rename(settings.bundles / digest)
    made_by = policy_of(opened.params)
    opened.store.add_parameters(made_by.digest, made_by.content, T0)
    policy = made_by.digest
    store = opened.store
    for n in range(60):
        model = ("8", "cd" * 32) if n == 31 else ("7", digest)  # a version whose bundle is not here any more
        store.add_decisions([decision(n, *model, "0" * 64 if n == 30 else policy)])
    for n in (10, 30, 31, 55):
        store.add_outcome(Outcome(f"d{n:03}", T0 + 3 * DAY, 1, "target", 12.5, 10.1, 2.4), T0 + 3 * DAY)
    for n in range(5):
        promotion(store, str(n), T0 + n * 12 * HOUR, "promote" if n == 1 else "challenge")
        bar = np.array([T0.timestamp() + 60 * n, 1.0, 2.0, 1.0, 1.5, np.nan, np.nan, np.nan, np.nan])
        signed = Signed("me", T0 + n * 12 * HOUR, "a typing error")
        store.correct("BTC/USDT", [Change(float(bar[0]), float(bar[0]) + 60, bar)], signed)
    for at in (T0 + 30 * HOUR, T0 + 45 * HOUR):
        head = store.seal_decisions(at)
        add_anchor(settings.home, Anchor(head.seq, head.mac, at.isoformat(), "this home"))
    yield opened
    store.close()


def written(installation, to):
    """The audit of the second day, unpacked where nothing else is."""
    made = audit.make(installation, OF, to / "day.zip", T0 + 3 * DAY)
    with zipfile.ZipFile(made.file) as zipped:
        zipped.extractall(to / "stranger")
    return made, to / "stranger"


def verify(folder, *words, script="verify.py"):
    return subprocess.run([sys.executable, "-I", script, *map(str, words)], cwd=folder, capture_output=True,
                          text=True, check=False)  # fmt: skip


def found_in(folder, key, capsys):
    """Run verify.py of a folder in this process; return its exit code and what it printed."""
    with patch.object(sys, "argv", ["verify.py", str(folder), "--key", str(key)]), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / "verify.py"), run_name="__main__")
    code, printed = ended.value.code, capsys.readouterr().out
    return (code, printed) if isinstance(code, int) else (1, printed + code)


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def edited(folder, name, change):
    """Return a copy of the folder with the rows of a file changed, and a manifest that says so."""
    copy = folder.with_name(f"{folder.name}-edited")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    found, manifest = rows(folder, name), json.loads((copy / "manifest.json").read_text())
    found = change(found) or found
    (copy / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    manifest["files"][f"{name}.jsonl"] = sha256((copy / f"{name}.jsonl").read_bytes()).hexdigest()
    if name == "chain":
        manifest["head"] |= {"seq": found[-1]["seq"], "mac": found[-1]["mac"]}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def put(found, at, **changes):
    """Change fields of one row, `row__x` in its row."""
    for name, value in changes.items():
        inside, _, last = name.rpartition("__")
        (found[at][inside] if inside else found[at])[last] = value


def chain_of(found, kind):
    return [n for n, line in enumerate(found) if line["kind"] == kind]


EDITS = {
    "a decision": ("decisions", lambda f: put(f, 3, decision__action="BUY"), "read as their rows: decision d027"),
    "a row": ("decisions", lambda f: put(f, 3, row__tier=1), "decision d027 was edited or inserted"),
    "a size": ("decisions", lambda f: put(f, 0, decision__size=0.1), "read as their rows: decision d024"),
    "the features": ("decisions", lambda f: put(f, 3, features=f[4]["features"]), "read as their rows: decision d027"),
    "a seal taken away": ("decisions", lambda f: put(f, 3, seal=None), "decision d027 was edited or inserted"),
    "a decision of another day": ("decisions", lambda f: put(f, -1, row__as_of="2024-01-03"), "rows: decision d047"),
    "an outcome": ("outcomes", lambda f: put(f, 0, net_bps=99.0), "outcomes d030 was edited or inserted"),
    "an outcome left out": ("outcomes", lambda f: f[1:], "outcomes: none is missing: outcomes d030"),
    "a promotion inserted": ("promotions", lambda f: [*f, {**f[1], "id": 77}], "promotions 77 was edited or inserted"),
    "a promotion doubled": ("promotions", lambda f: [{**f[1], "reason": "x"}, *f], "promotions 2 was edited"),
    "a promotion left out": ("promotions", lambda f: [f[0], *f[2:]], "promotions: none is missing: promotions 2"),
    "the end of the ledger": ("promotions", lambda f: f[:-2], "promotions: none is missing: promotions 4"),
    "a correction": ("corrections", lambda f: put(f, 1, reason="x"), "corrections 2 was edited or inserted"),
    "a chain line dropped": ("chain", lambda f: f[:3] + f[4:], "chain: no line is missing: line 4"),
    "the end of the chain": ("chain", lambda f: f[:-1], "anchors: on the chain: the one of 2024-01-02T21:00:00+00:00"),
    "a chain line": ("chain", lambda f: put(f, 3, ref="x"), "chain: macs of this key: line 4"),
    "an anchor": ("anchors", lambda f: put(f, 0, mac="0" * 64), "on the chain: the one of 2024-01-02T06:00:00"),
    "a part": ("record_parts", lambda f: put(f, 0, content=f[0]["content"][:-8]), "cannot be read"),
}  # fmt: skip


def test_a_stranger_verifies_a_day_and_whatever_is_changed_is_named(installation, tmp_path, capsys):
    made, folder = written(installation, tmp_path)
    key = installation.settings.home / "chain_key"
    assert (made.intact, made.over) == (True, True), made.checks
    assert made.counts == {
        "decisions": 24, "not sealed": 3, "outcomes": 2, "promotions": 5, "corrections": 5, "lines of the chain": 17,
        "cards": 1,
    }  # fmt: skip
    assert [text.split(":")[0] for text in made.missing] == ["card of validator-8", "parameters 000000000000"]
    with_key, without = verify(folder, "--key", key), verify(folder)
    assert (with_key.returncode, without.returncode) == (0, 0), with_key.stdout + without.stdout
    assert "decisions: 21 under roots, 3 not sealed" in without.stdout
    assert ("NOT CHECKED" in without.stdout, "NOT CHECKED" in with_key.stdout) == (True, False)
    assert not (with_key.stderr + without.stderr)
    other = tmp_path / "other_key"
    other.write_text("f" * 48)
    assert "FAULT  chain: macs of this key: line 1" in verify(folder, "--key", other).stdout
    for name, (file, change, expected) in EDITS.items():
        code, printed = found_in(edited(folder, file, change), key, capsys)
        assert (code, expected in printed) == (1, True), (name, printed)


def test_what_it_holds_is_what_was_decided_and_nothing_secret(installation, tmp_path):
    made, folder = written(installation, tmp_path)
    assert made.file.stat().st_mode & 0o777 == 0o600
    stored = installation.store.decisions(since=T0 + DAY, until=T0 + 2 * DAY)
    shown = {entry["row"]["id"]: entry["decision"] for entry in rows(folder, "decisions")}
    assert [Decision.from_dict(shown[record.decision.id]) for record in stored] == [r.decision for r in stored]
    assert [line["id"] for line in rows(folder, "promotions")] == [1, 2, 3, 4, 5]  # the fifth shows where the day ends
    parameters = {each["digest"]: each["content"] for each in json.loads((folder / "parameters.json").read_text())}
    ((digest, known),) = [(digest, found) for digest, found in parameters.items() if found]
    assert (sha256(known.encode()).hexdigest(), known) == (digest, installation.params.model_dump_json())
    assert (folder / "cards" / "validator-7.md").read_text() == "# A card\n"
    secret = (installation.settings.home / "chain_key").read_bytes().strip()
    assert not [file for file in folder.rglob("*") if file.is_file() and secret in file.read_bytes()]


def test_a_file_that_was_changed_alone_is_named_and_the_zip_is_verified_as_it_is(installation, tmp_path):
    made, folder = written(installation, tmp_path)
    assert verify(folder, made.file).returncode == 0
    (folder / "cards" / "validator-7.md").write_text("# Another card")
    done = verify(folder)
    assert done.returncode == 1
    assert "FAULT  files: as in the manifest: cards/validator-7.md" in done.stdout
    assert "FAULT  cards: as their bundles' digests: validator-7" in done.stdout


def test_the_command_writes_the_zip(installation):
    home, variables = installation.settings.home, {"BELLWETHER_STORE_URL": installation.settings.store}
    made = bellwether(home, "audit", "2024-01-02", "--json", **variables)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert (found["intact"], len(found["missing"]), found["counts"]["decisions"]) == (True, 2, 24)
    assert verify(home, home / "audits" / "2024-01-02.zip", script=audit.VERIFIER).returncode == 0


def test_the_command_shows_what_is_missing_and_ends_with_1_for_a_fault(installation, monkeypatch):
    monkeypatch.setattr("flows.support.installation.open_installation", lambda: installation)
    home = installation.settings.home
    shown = CliRunner().invoke(app, ["audit", "2024-01-02", "--dry-run"])
    assert (shown.exit_code, "would be written" in shown.stdout) == (0, True)
    assert not (home / "audits").exists()
    made = CliRunner().invoke(app, ["audit", "2024-01-02"])
    assert (made.exit_code, "its verifier found no fault" in made.stdout) == (0, True), made.output
    assert "missing: card of validator-8" in made.stdout
    assert "3 decisions are not sealed yet" in made.stdout
    with installation.store._engine.begin() as connection:
        connection.execute(sa.update(t.outcomes).where(t.outcomes.c.decision_id == "d030").values(net_bps=1.0))
    broken = CliRunner().invoke(app, ["audit", "2024-01-02", "--to", str(home / "b.zip")])
    assert broken.exit_code == 1
    assert "outcomes d030 was edited or inserted" in broken.stdout


def test_a_store_that_was_changed_is_written_as_it_is_and_its_verifier_says_so(installation, tmp_path):
    with installation.store._engine.begin() as connection:
        connection.execute(sa.update(t.outcomes).where(t.outcomes.c.decision_id == "d030").values(net_bps=1.0))
        connection.execute(sa.update(t.decisions).where(t.decisions.c.id == "d040").values(tier=1))
    made = audit.make(installation, OF, tmp_path / "day.zip", T0 + 3 * DAY)
    assert not made.intact
    faults = [line for line in made.checks if line.startswith("FAULT")]
    assert "outcomes d030 was edited" in faults[0]
    assert "decision d0" in faults[1]  # a root shows its span only, and the first decision of the day in it is named
    assert made.file.exists()


def test_a_day_without_decisions_and_what_is_no_day_are_refused(installation, tmp_path):
    with pytest.raises(UnknownName, match=r"no decision of 2024-02-01.*the ledger has 2024-01-01 to 2024-01-03"):
        audit.make(installation, date(2024, 2, 1), tmp_path / "day.zip", T0)
    with pytest.raises(BadTimes, match="write 2024-01-31"):
        audit.day_of("yesterday")
    assert list(tmp_path.glob("*day.zip*")) == []
    (tmp_path / "day.zip").touch()
    with pytest.raises(WouldOverwrite):
        audit.preview(installation, OF, tmp_path / "day.zip")


def test_decisions_of_before_records_are_verified_as_their_release_wrote_them(installation, tmp_path, capsys):
    made = decision(26, "7", "ab" * 32, "0" * 64)
    with installation.store._engine.begin() as connection:
        columns = {c.name: getattr(made.decision, c.name, None) for c in t.decisions.columns}
        columns |= {"id": "old", "payload": decision_payload(made.decision), "features": b"f", "signals": b"s"}
        connection.execute(sa.insert(t.decisions), columns | {"record": None, "ingested_at": T0 + 59 * HOUR})
    audited, folder = written(installation, tmp_path)
    assert audited.intact, audited.checks
    change = edited(folder, "decisions", lambda f: put(f, -1, decision__size=1.0))
    assert "read as their rows: decision" in found_in(change, installation.settings.home / "chain_key", capsys)[1]


def test_the_verifier_is_under_100_lines_of_python_3_8_and_its_standard_library():
    text = audit.VERIFIER.read_text()
    assert len(text.splitlines()) < 100
    tree = ast.parse(text, feature_version=(3, 8))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names | {"__future__"} <= sys.stdlib_module_names
    assert [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)] == ["__future__"]
