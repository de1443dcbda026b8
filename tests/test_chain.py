"""The chain: whatever is done to a row by SQL is found and named, and what we do ourselves is no fault."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import numpy as np
import pytest
import sqlalchemy as sa
from support.owner_sql import execute_as_owner

from pipelines.contracts import Decision, Outcome
from pipelines.errors import StateError
from pipelines.migrations import tables as t
from pipelines.store import Anchor, Change, DecisionRecord, Promotion, Signed, Store
from pipelines.store.chain_lines import CHAIN, Fault, merkle_proofs, merkle_root, root_of, sha256_of

KEY, OTHER = b"k" * 32, b"o" * 32
T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def store(url):
    opened = Store.open(url, chain_key=KEY)
    yield opened
    opened.close()


def decision(n, **changes):
    made = Decision(
        id=f"d{n:03}", symbol="BTC/USDT", as_of=T0 + n * HOUR, known_at=T0 + n * HOUR, ingested_at=T0 + n * HOUR,
        action="NO_TRADE", direction=0, confidence=0.5, entry=None, stop=None, take_profits=(), size=0.0, expiry=None,
        edge_bps=None, p=None, regime=None, tier=2, arm="champion", event=None,
    )  # fmt: skip
    return DecisionRecord(replace(made, **changes), b"\x00\x01", b"\x02")


def promotion(version="1", passed=True, **changes):
    made = Promotion(T0, "policy", "challenge", "validator", "challenger", None, version, "ab" * 32, "run", "data",
                     "commit", passed, "passed the gate", {"checks": [{"value": 0.1}]})  # fmt: skip
    return replace(made, **changes)


def fill(store, first=0):
    """Write three rows of every chained kind, and ten decisions of which three have outcomes."""
    store.add_decisions([decision(first + n, event="fvg" if n < 3 else None) for n in range(10)])
    for n in range(3):
        store.add_promotion(promotion(str(first + n)))
        store.add_outcome(Outcome(f"d{first + n:03}", T0 + DAY, 1, "target", 12.5, 10.1, 2.4), T0 + DAY)
        bar = np.array([T0.timestamp() + 60 * (first + n), 1.0, 2.0, 1.0, 1.5, np.nan, np.nan, np.nan, np.nan])
        store.correct(
            "BTC/USDT", [Change(float(bar[0]), float(bar[0]) + 60, bar)], Signed("me", T0 + n * HOUR, "a typing error")
        )


def anchor(store):
    head = store.chain_head()
    return Anchor(head.seq, head.mac, "2024-01-02", "the anchor")


def test_rows_as_they_were_written_are_intact(store):
    fill(store)
    store.seal_decisions(T0 + DAY)
    found = store.verify_chain([anchor(store)])
    assert (found.faults, found.rows, found.decisions, found.lines) == ((), 9, 10, 11)
    assert store.chain_lines()[0].kind == "genesis"


EDITS = {
    "promotions": "UPDATE promotions SET verdict_passed = TRUE, reason = 'x' WHERE id = 2",
    "outcomes": "UPDATE outcomes SET net_bps = 99 WHERE decision_id = 'd001'",
    "corrections": "UPDATE corrections SET reason = 'x' WHERE id = 2",
}
DELETIONS = {
    "promotions": "DELETE FROM promotions WHERE id = 2",
    "outcomes": "DELETE FROM outcomes WHERE decision_id = 'd001'",
    "corrections": "DELETE FROM corrections WHERE id = 2",
}
INSERTIONS = {
    "promotions": "INSERT INTO promotions (id, at, actor, action, family, arm, reason, evidence) SELECT 77, at, actor, "
    "action, family, arm, reason, evidence FROM promotions WHERE id = 1",
    "outcomes": "INSERT INTO outcomes SELECT 'd005', resolved_at, label, barrier, gross_bps, net_bps, cost_bps, "
    "ingested_at FROM outcomes WHERE decision_id = 'd001'",
    "corrections": 'INSERT INTO corrections (id, symbol, open_time, known_at, reason, "by", at) SELECT 77, symbol, '
    'open_time, known_at, reason, "by", at FROM corrections WHERE id = 1',
}
SECOND = {"promotions": "2", "outcomes": "d001", "corrections": "2"}
NEW = {"promotions": "77", "outcomes": "d005", "corrections": "77"}


@pytest.mark.parametrize("table", EDITS)
@pytest.mark.parametrize("since", ["all", "anchor"])
def test_an_edited_deleted_or_inserted_row_is_named(store, table, since):
    fill(store)
    begun = store.chain_lines()[0]  # an incremental run reads every row after its anchor
    anchors = () if since == "all" else [Anchor(begun.seq, begun.mac, "then", "the anchor")]
    for statements, row, what in ((EDITS, SECOND, "edited"), (INSERTIONS, NEW, "inserted"), (DELETIONS, SECOND, "del")):
        execute_as_owner(store, statements[table])
        found = store.verify_chain(anchors, incremental=since == "anchor").faults
        assert f"{table} {row[table]}" in {fault.ref for fault in found if what in fault.what}
    assert {f.ref.split()[0] for f in store.verify_chain().faults} == {table}


def test_rows_that_changed_places_are_named(store):
    fill(store)
    swap = "UPDATE {0} SET {1} = (SELECT {1} FROM {0} AS other WHERE {2} = {3}) WHERE {2} = {4}"
    execute_as_owner(store, swap.format("promotions", "to_version", "id", 1, 3))
    execute_as_owner(store, swap.format("corrections", "open_time", "id", 1, 3))
    execute_as_owner(store, "UPDATE outcomes SET decision_id = 'd007' WHERE decision_id = 'd000'")
    assert [f.describe() for f in store.verify_chain().faults] == [
        "outcomes d000 (line 3 of the chain) was deleted",
        "promotions 3 (line 8 of the chain) was edited",
        "corrections 3 (line 10 of the chain) was edited",
        "outcomes d007 was inserted without a line",
    ]


@pytest.mark.parametrize(
    ("statement", "ref", "what"),
    [
        ("UPDATE chain SET digest = '" + "0" * 64 + "' WHERE seq = 4", "corrections 1", "edited"),
        ("DELETE FROM chain WHERE seq = 4", "chain", "lacks line 4"),
        ("DELETE FROM chain WHERE seq BETWEEN 4 AND 6", "chain", "lacks lines 4 to 6"),
        ("UPDATE chain SET seq = 0 - seq WHERE seq = 4", "chain", "lacks line 4"),
        ("DELETE FROM chain WHERE seq > 8", "chain", "ends at line 8"),
        ("DELETE FROM chain", "chain", "ends at line 0"),
        ("UPDATE chain SET seq = 99 WHERE seq = 10", "chain", "lacks lines 10 to 98"),
    ],
)
def test_a_line_of_the_chain_that_was_changed_moved_or_cut_off_is_named(store, statement, ref, what):
    fill(store)
    anchors = [anchor(store)]
    execute_as_owner(store, statement)
    first, *_ = store.verify_chain(anchors).faults
    assert (first.ref, what in first.what) == (ref, True), first


def test_tables_that_were_cut_together_with_the_chain_are_found_by_an_anchor(store):
    fill(store)
    before = anchor(store)
    fill(store, 20)
    anchors = [before, anchor(store)]
    execute_as_owner(store, f"DELETE FROM chain WHERE seq > {before.seq}")
    for table in ("promotions", "corrections"):
        execute_as_owner(store, f"DELETE FROM {table} WHERE id > 3")
    execute_as_owner(store, "DELETE FROM outcomes WHERE decision_id LIKE 'd02%'")
    assert store.verify_chain([before]).faults == ()  # what an old backup looks like
    (fault,) = store.verify_chain(anchors).faults
    assert "an older backup was restored" in fault.what


def test_rows_of_another_home_are_found(store, tmp_path):
    fill(store)
    other = Store.open(f"sqlite:///{tmp_path / 'other.db'}", chain_key=OTHER)
    fill(other, 50)
    with other._engine.connect() as theirs, store._engine.begin() as ours:
        rows = theirs.execute(sa.select(t.promotions)).mappings().all()
        ours.execute(sa.insert(t.promotions), [{**row, "id": row["id"] + 100} for row in rows])
    assert [f.ref for f in store.verify_chain().faults] == ["promotions 101", "promotions 102", "promotions 103"]
    with other._engine.connect() as theirs, store._engine.begin() as ours:
        last = ours.execute(sa.select(sa.func.max(t.chain.c.seq))).scalar()
        lines = theirs.execute(sa.select(t.chain).where(t.chain.c.seq > last - 2)).mappings().all()
        ours.execute(sa.insert(t.chain), [{**row, "seq": row["seq"] + 2} for row in lines])
    assert any("not made by us" in f.what for f in store.verify_chain().faults)
    other.close()


def test_a_chain_of_another_key_is_named_as_such(store, url):
    fill(store)
    with_other = Store.open(url, chain_key=OTHER)
    (fault,) = with_other.verify_chain().faults
    assert "under another key" in fault.what
    with_other.close()


def test_decisions_are_sealed_once_and_a_changed_one_is_found(store):
    fill(store)
    store.seal_decisions(T0 + 5 * HOUR)
    store.seal_decisions(T0 + DAY)
    seals = [line for line in store.chain_lines() if line.kind == "decisions"]
    assert len(seals) == 2
    assert store.seal_decisions(T0 + DAY).seq == seals[1].seq  # nothing came in since
    for statement, what in (
        ("UPDATE decisions SET tier = 1 WHERE id = 'd002'", "edited"),
        ("DELETE FROM decisions WHERE id = 'd009'", "4 are there"),
    ):
        execute_as_owner(store, statement)
        assert what in store.verify_chain().faults[-1].what
    assert [f.seq for f in store.verify_chain().faults] == [seals[0].seq, seals[1].seq]
    first = Anchor(seals[0].seq, seals[0].mac, "then", "the anchor")
    assert [f.seq for f in store.verify_chain([first], incremental=True).faults] == [seals[1].seq]


def test_an_edited_part_of_records_is_named(store):
    fill(store)
    execute_as_owner(store, "UPDATE record_parts SET content = digest")
    assert {fault.ref.split()[0] for fault in store.verify_chain().faults} == {"record_parts"}


def test_edited_parameters_are_named_and_not_read(store):
    fill(store)
    digest = sha256_of('{"fee": 10}')
    store.add_parameters(digest, '{"fee": 10}', T0)
    store.add_parameters(digest, "another text changes nothing", T0)
    assert store.parameters(digest) == '{"fee": 10}'
    execute_as_owner(store, "UPDATE parameters SET content = '{\"fee\": 1}'")
    assert [fault.describe() for fault in store.verify_chain().faults] == [f"parameters {digest} were edited"]
    with pytest.raises(StateError, match="someone changed them"):
        store.parameters(digest)


def test_the_service_goes_on_writing_while_a_root_is_computed(store, url, monkeypatch):
    fill(store)
    service = Store.open(url, wait_ms=500, chain_key=KEY)

    def and_meanwhile(*arguments):
        service.add_decisions([decision(50)])
        service.add_promotion(promotion("9"))
        return root_of(*arguments)

    monkeypatch.setattr("pipelines.store.chain.root_of", and_meanwhile)
    assert store.seal_decisions(T0 + DAY).kind == "decisions"
    assert store.verify_chain().faults == ()
    service.close()


def test_a_root_leaves_out_what_may_not_be_committed_yet(store):
    store.add_decisions([decision(1)])
    assert store.seal_decisions(T0 + HOUR + timedelta(seconds=30)).kind == "genesis"
    assert store.seal_decisions(T0 + HOUR + timedelta(seconds=61)).kind == "decisions"


def test_pruning_leaves_a_root_of_what_stays_and_can_be_finished_after_a_stop(store, monkeypatch):
    fill(store)
    store.seal_decisions(T0 + DAY)
    monkeypatch.setattr("pipelines.store.retention.ROWS_PER_TRANSACTION", 3)
    writing, calls = store.writing, []

    def interrupted(within=None):
        calls.append(within)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return writing(within)

    monkeypatch.setattr(store, "writing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.prune(T0 + 2 * DAY)
    monkeypatch.setattr(store, "writing", writing)
    (fault,) = store.verify_chain().faults
    assert "run `bellwether prune` to its end" in fault.what
    assert store.prune(T0 + 2 * DAY)["decisions"] > 0
    assert store.verify_chain().faults == ()
    assert [r.decision.id for r in store.decisions()] == ["d000", "d001", "d002", "d009"]  # the newest always stays
    assert [line.kind for line in store.chain_lines()][-2:] == ["decisions", "pruned"]


def test_decisions_that_were_changed_are_not_pruned(store):
    fill(store)
    store.seal_decisions(T0 + DAY)
    execute_as_owner(store, "UPDATE decisions SET tier = 1 WHERE id = 'd008'")
    with pytest.raises(StateError, match="nothing was deleted"):
        store.prune(T0 + 2 * DAY)
    assert len(store.decisions()) == 10


def test_a_store_of_an_earlier_release_begins_with_what_it_holds(url):
    before = Store.open(url)  # without a key, as earlier releases wrote
    fill(before)
    before.close()
    store = Store.open(url, chain_key=KEY)
    assert store.verify_chain().lines == 0
    store.add_promotion(promotion("9"))
    found = store.verify_chain()
    assert (found.faults, found.lines, found.rows) == ((), 11, 10)
    assert '"promotions":4' in store.chain_lines()[0].detail
    execute_as_owner(store, EDITS["outcomes"])
    assert [f.ref for f in store.verify_chain().faults] == ["outcomes d001"]
    store.close()


def test_what_a_person_accepts_is_no_fault_any_more_but_the_next_one_is(store):
    fill(store)
    store.seal_decisions(T0 + DAY)
    old, gone = anchor(store), Anchor(99, "ab" * 32, "2024-01-03", "the anchor")
    execute_as_owner(store, EDITS["promotions"])
    execute_as_owner(store, "DELETE FROM decisions WHERE id = 'd009'")
    found = store.verify_chain([old, gone])
    assert len(found.faults) == 3
    store.accept(found, [old, gone], "me", "restored from the backup of Monday", T0 + DAY)
    again = store.verify_chain([old, gone])
    assert (again.faults, again.accepted, again.rows, again.decisions) == ((), 3, 9, 9)
    assert store.missed_anchor([old, gone]) is None
    assert store.slots("validator").challenger.to_version == "2"
    store.add_promotion(promotion("9"))
    store.seal_decisions(T0 + 2 * DAY)
    new = anchor(store)
    assert store.verify_chain([old, gone, new], incremental=True).since == new.seq
    execute_as_owner(store, EDITS["outcomes"])
    execute_as_owner(store, "UPDATE promotions SET reason = 'y' WHERE id = 2")
    assert {f.ref for f in store.verify_chain([old, gone, new]).faults} == {"outcomes d001", "promotions 2"}


def test_a_chain_whose_key_was_lost_goes_on_under_the_new_one_once_a_person_accepts_it(store, url):
    fill(store)
    other = Store.open(url, chain_key=OTHER)
    assert other.slots("validator").challenger is None  # nothing is proven
    other.accept(other.verify_chain(), (), "me", "the key was on the disk that failed", T0 + DAY)
    assert (other.verify_chain().faults, other.slots("validator").challenger.to_version) == ((), "2")
    assert "under another key" in store.verify_chain().faults[0].what
    other.close()


def test_two_writers_make_one_sequence(store, url):
    others = [Store.open(url, chain_key=KEY) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(s.add_promotion, promotion(str(n))) for n in range(20) for s in (store, *others)]:
            each.result()
    found = store.verify_chain()
    assert (found.faults, found.lines) == ((), 61)
    for each in others:
        each.close()


def test_an_undone_transaction_leaves_no_line(store):
    def promote_and_fail():
        with store.writing() as connection:
            store.add_promotion(promotion(), connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        promote_and_fail()
    assert store.chain_head() is None
    store.add_promotion(promotion())
    assert store.verify_chain().faults == ()


def test_the_tree_of_a_known_set_has_its_root():
    one, two, three = ("01" * 32, "02" * 32, "03" * 32)
    assert merkle_root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle_root([one, two]) != merkle_root([two, one])
    assert merkle_root([one, two, three]) not in (merkle_root([one, two]), merkle_root([one, two, three, three]))


def climbed(digest, proof):
    """The root that a proof leads to."""
    node = sha256(b"\0" + bytes.fromhex(digest)).digest()
    for side, beside in proof:
        other = bytes.fromhex(beside)
        node = sha256(b"\1" + (other + node if side == "L" else node + other)).digest()
    return node.hex()


def test_the_proof_of_every_leaf_leads_to_the_root_and_that_of_another_does_not():
    for n in range(1, 20):
        digests = [sha256(bytes([i])).hexdigest() for i in range(n)]
        proofs = list(merkle_proofs(digests, range(n)))
        assert {climbed(*pair) for pair in zip(digests, proofs, strict=True)} == {merkle_root(digests)}
        assert max(map(len, proofs)) == (n - 1).bit_length()
        assert all(climbed("ff" * 32, proof) != merkle_root(digests) for proof in proofs)
        assert all(climbed(d, p) != merkle_root(digests) for d, p in zip(digests, proofs[1:], strict=False))
    assert list(merkle_proofs(["01" * 32], [0])) == [[]]


def test_without_a_key_nothing_is_verified(url):
    store = Store.open(url)
    with pytest.raises(StateError, match="without the key"):
        store.verify_chain()
    store.close()
    assert CHAIN == "main"
    assert Fault(None, "a", "b").describe() == "a b"
