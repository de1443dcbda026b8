"""Backup and restore: the same rows bit for bit, on either database and from one to the other, or nothing at all."""

import hashlib
import itertools
import json
import threading
import zipfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.legacy_store import SCHEMA_010, alembic_to, contents, release_010

from pipelines.backup import MANIFEST, back_up, examine, restore
from pipelines.contracts import Outcome
from pipelines.errors import StateError, UnreadableFile, WouldOverwrite
from pipelines.migrations.tables import METADATA, SCHEMA
from pipelines.store import BarBatch, BlockScore, Experiment, FamilyOutcome, Fill, Promotion, Signed, Store
from pipelines.store.chain_lines import sha256_of

T0 = datetime(2024, 1, 1, tzinfo=UTC)
KEY = b"k" * 32
EXPERIMENT = Experiment(
    T0,
    "validator",
    "1",
    "a" * 64,
    "2",
    "b" * 64,
    "nats",
    0.1,
    14_400.0,
    5,
    0.02,
    0.15,
    0.002,
    0.1,
    120,
    {"skill": 1 / 3},
)
FILES = {"serving/generation.json": b'{"generation": 3}'}


@pytest.fixture
def source(url):
    """Return the URL of a store with rows in every table: those of release 0.1.0, migrated, and of this one."""
    release_010(url)
    store = Store.open(url, chain_key=KEY)
    store.add_bars(one_bar(0.1))
    with store.writing() as connection:
        connection.execute(METADATA.tables["records"].insert(), [
            {"symbol": "BTC/USDT", "kind": "book", "known_at": 0.3, "payload": bytes(range(256)), "ingested_at": T0},
        ])  # fmt: skip
    old = store.decision("d1")
    store.add_decisions([replace(old, decision=replace(old.decision, id=f"n{i}", p=0.1 * i)) for i in range(3)])
    signed = Signed("ann", T0, "a wrong price")
    store.set_aside("BTC/USDT", store.bars("BTC/USDT")[0], T0.timestamp(), "SET_ASIDE", signed)
    store.add_fill(Fill("f1", "d1", T0, T0, "filled", 42290.1, 0.1 + 0.2))
    store.add_fill(Fill("f2", "d1", T0, T0, "rejected", None, None, "margin"))
    store.put_home_files({"universe.json": "{}"}, T0)
    store.add_parameters(sha256_of("{}"), "{}", T0)
    outcome = FamilyOutcome("d1", "regime", "BTC/USDT", T0, T0, 0.1 + 0.2, {"a" * 64: 1 / 3})
    store.add_family_outcomes("BTC/USDT", [outcome], T0, T0)
    begun = store.begin_experiment(EXPERIMENT, "policy", "passed the gate")
    store.add_block_scores([BlockScore(begun.number, 0, 0.1, 12, 1 / 3, "", T0)])
    store.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    """Return the URL of an empty database, of either kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("second_postgres_url")
    return f"sqlite:///{tmp_path / 'other' / 'store.db'}"


@pytest.fixture
def backup_file(source, tmp_path):
    file = tmp_path / "backup.zip"
    back_up(source, file, T0, lambda: FILES)
    return file


def one_bar(open_time):
    row = np.array([[open_time, 1.0, 2.0, 0.5, 1.5, *[np.nan] * 4]])
    return BarBatch("ETH/USDT", row, row[:, 0] + 60.0, T0)


def without_leases(url):
    return {table: rows for table, rows in contents(url).items() if table != "leases"}


def comparable(url):
    """Return the rows as text that is equal for both databases' drivers."""

    def same(value):
        if isinstance(value, datetime):
            return f"{value.astimezone(UTC):%F %T.%f}"
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True) if isinstance(value, dict) else value

    return repr({t: [tuple(same(v) for v in row) for row in rows] for t, rows in without_leases(url).items()})


def without_booleans(url):
    """Return `comparable` with booleans as the numbers that SQLite stores."""
    return comparable(url).replace("True", "1").replace("False", "0")


def test_a_restored_store_holds_every_row_bit_for_bit_whichever_database_it_came_from(source, backup_file, empty):
    backup, files = restore(empty, backup_file)
    assert backup.rows() == {t: len(rows) for t, rows in without_leases(source).items()}
    assert all(backup.rows().values())
    assert without_booleans(empty) == without_booleans(source)
    assert files == FILES
    stores = [Store.open(url) for url in (source, empty)]
    first, second = [{record.decision.id: record for record in store.decisions()} for store in stores]
    assert first == second
    assert len(first) == 5
    for store in stores:
        store.close()
    restored = Store.open(empty, chain_key=KEY)
    assert (restored.verify_chain().faults, restored.verify_chain().rows) == ((), 7)
    restored.close()


def test_a_restored_store_goes_on_counting_and_its_ledger_still_only_grows(backup_file, empty):
    restore(empty, backup_file)
    store = Store.open(empty)
    line = Promotion(T0, "ann", "refuse", "validator", "champion", "1", "2", None, None, None, None, None, "no")
    assert store.add_promotion(line) == 3
    assert store.add_trial("validator", "r8", "h", T0) == 3
    assert store.raise_alarm("x", "low", "y", T0) == 3
    assert store.outcomes_of(["d1"]) == [
        Outcome("d1", T0 + timedelta(hours=1), 1, "target", 150.00000000000003, 145.0, 5.0)
    ]
    with pytest.raises(Exception, match="append-only"), store.writing() as connection:
        connection.exec_driver_sql("DELETE FROM promotions")
    store.close()


def test_an_empty_store_is_backed_up_and_restored_and_gives_its_first_id(url, empty, tmp_path):
    Store.open(url).close()
    back_up(url, tmp_path / "b.zip", T0, dict)
    restore(empty, tmp_path / "b.zip")
    with closing(Store.open(empty)) as restored:
        assert restored.add_trial("validator", "r", "h", T0) == 1


def test_a_backup_of_a_store_that_is_being_written_is_of_one_moment(url, tmp_path):
    store, stop = Store.open(url), threading.Event()

    def write():
        for i in itertools.count():
            if stop.is_set():
                return
            with store.writing() as connection:  # a bar and a trip together, or neither
                store.add_bars(one_bar(float(i)), within=connection)
                values = {"name": f"n{i}", "tripped_at": T0, "reason": "r"}
                connection.execute(METADATA.tables["latches"].insert().values(**values))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [back_up(url, tmp_path / f"{i}.zip", T0, dict).rows() for i in range(5)]
    finally:
        stop.set()
        writer.join()
    assert all(rows["bars"] == rows["latches"] for rows in counts)
    assert counts[0]["bars"] < counts[-1]["bars"]
    store.close()


def test_a_store_of_the_release_before_is_backed_up_as_it_is_and_restored_into_the_present_schema(url, empty, tmp_path):
    release_010(url)
    before = contents(url)
    backup = back_up(url, tmp_path / "b.zip", T0, dict)
    assert (backup.schema, contents(url)) == (SCHEMA_010, before)
    restore(empty, tmp_path / "b.zip")
    assert set(contents(empty)) == {t.name for t in METADATA.sorted_tables}
    assert (contents(empty)["records"], contents(empty)["fills"]) == ([], [])
    with closing(Store.open(empty)) as restored:
        assert len(restored.decisions()) == len(before["decisions"])


# ---- refusals


@pytest.mark.parametrize("schema", [SCHEMA_010, SCHEMA])
def test_a_store_with_a_single_row_is_left_as_it_is(sqlite_backup, empty, schema):
    alembic_to(empty, schema)
    with closing(Store.open(empty)) as store, store.writing() as connection:
        connection.exec_driver_sql("INSERT INTO trials VALUES (1, 'regime', 'r', 's', '2024-01-01 00:00:00.000000')")
    before = contents(empty)
    with pytest.raises(WouldOverwrite, match="holds 1 trials"):
        restore(empty, sqlite_backup)
    assert contents(empty) == before


def test_a_backup_never_replaces_a_file(source, backup_file):
    before = backup_file.read_bytes()
    with pytest.raises(WouldOverwrite, match=r"backup\.zip is there"):
        back_up(source, backup_file, T0, dict)
    assert backup_file.read_bytes() == before


def test_a_backup_that_fails_leaves_nothing_behind(source, tmp_path):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        back_up(source, tmp_path / "out" / "b.zip", T0, fail)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_store_there_is_nothing_to_back_up(tmp_path, postgres_url):
    with pytest.raises(StateError, match="no store"):
        back_up(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "b.zip", T0, dict)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StateError, match="no store"):
        back_up(postgres_url, tmp_path / "b.zip", T0, dict)


@pytest.fixture
def sqlite_backup(tmp_path):
    release_010(f"sqlite:///{tmp_path / 'from' / 'store.db'}")
    Store.open(f"sqlite:///{tmp_path / 'from' / 'store.db'}").close()
    file = tmp_path / "backup.zip"
    back_up(f"sqlite:///{tmp_path / 'from' / 'store.db'}", file, T0, lambda: FILES)
    return file


def test_any_damaged_byte_is_found_and_nothing_is_restored(sqlite_backup, tmp_path):
    url, whole, refused = f"sqlite:///{tmp_path / 'to' / 'store.db'}", sqlite_backup.read_bytes(), 0
    places, expected = range(0, len(whole), 97), comparable(f"sqlite:///{tmp_path / 'from' / 'store.db'}")
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        sqlite_backup.write_bytes(damaged)
        try:
            restore(url, sqlite_backup)
        except UnreadableFile:
            assert not (tmp_path / "to").exists()
            refused += 1
            continue
        # a byte that no reader uses (a time stamp in the zip's own directory): everything was restored
        assert comparable(url) == expected
        (tmp_path / "to").rename(tmp_path / f"to-{at}")
    assert refused > 0.5 * len(places)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(sqlite_backup, share):
    whole = sqlite_backup.read_bytes()
    sqlite_backup.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableFile, match="cut short"):
        examine(sqlite_backup)


def rewritten(file, change, rows=None):
    """Write the backup again with a changed manifest, or other rows of trials."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members[MANIFEST])
    change(manifest)
    members |= {MANIFEST: json.dumps(manifest).encode()} | ({} if rows is None else {"tables/trials.jsonl": rows})
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(schema="9999"), StateError, "schema 9999.*newer release"),
        (lambda m: m.update(format=2), StateError, "format 2.*newer release"),
        (lambda m: m.update(schema="0000"), UnreadableFile, "no release had"),
        (lambda m: m["tables"]["bars"].update(sha256="0" * 64), UnreadableFile, r"tables/bars\.jsonl"),
        (lambda m: m["tables"].pop("bars"), UnreadableFile, r"tables/bars\.jsonl.*not in both"),
        (lambda m: m["tables"]["bars"].update(rows=1), UnreadableFile, "bars reads 2 rows back"),
        (lambda m: m.pop("files"), UnreadableFile, "files"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_and_nothing_is_restored(
    sqlite_backup, tmp_path, change, error, message
):
    url = f"sqlite:///{tmp_path / 'to' / 'store.db'}"
    rewritten(sqlite_backup, change)
    with pytest.raises(error, match=message):
        restore(url, sqlite_backup)
    assert not (tmp_path / "to").exists() or contents(url) == {}


def test_a_path_out_of_the_home_folder_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'from' / 'store.db'}"
    Store.open(url).close()
    back_up(url, tmp_path / "b.zip", T0, lambda: {"../outside": b""})
    with pytest.raises(UnreadableFile, match="outside"):
        examine(tmp_path / "b.zip")


def test_rows_that_do_not_fit_undo_the_whole_restore(sqlite_backup, empty):
    rows = b'[1,"validator","r","s",null]\n'
    digest = hashlib.sha256(rows).hexdigest()
    rewritten(sqlite_backup, lambda m: m["tables"]["trials"].update(sha256=digest, rows=1), rows)
    with pytest.raises(UnreadableFile, match="rows of trials do not fit"):
        restore(empty, sqlite_backup)
    assert contents(empty) == {}


def test_a_text_that_only_sqlite_lets_pass_is_refused_by_postgresql_as_a_whole(tmp_path, postgres_url):
    url = f"sqlite:///{tmp_path / 'from' / 'store.db'}"
    store = Store.open(url)
    store.add_trial("validator", "r" * 100, "h", T0)
    store.close()
    back_up(url, tmp_path / "b.zip", T0, dict)
    with pytest.raises(UnreadableFile, match="rows of trials do not fit"):
        restore(postgres_url, tmp_path / "b.zip")
    assert contents(postgres_url) == {}
