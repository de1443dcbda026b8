"""Records of decisions: small, exact to the last bit, readable for ever, and never without their part."""

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.four_families import decisions_of
from support.legacy_store import add_json_decision, alembic_to, contents
from support.serving_fixture import stand

from bellwether.operations.audit_verifier import content
from pipelines.contracts import Decision, EnsembleVote, ModelAnswer, ThresholdCheck
from pipelines.errors import BadValues, StateError, StoredAlready
from pipelines.migrations import tables as t
from pipelines.record_codec import (
    Part,
    kind_of,
    message_of,
    new_part,
    part_digest,
    part_of,
    read_as_stored,
    read_record,
    record_of,
)
from pipelines.store import DecisionRecord, Store, decision_of, decision_payload

T0 = datetime(2024, 1, 1, tzinfo=UTC)
__all__ = ["stand"]


@pytest.fixture(scope="module")
def records(stand):
    """Two hundred decisions of four families in both arms."""
    return decisions_of(stand, 200)


@pytest.fixture
def store(url):
    opened = Store.open(url)
    yield opened
    opened.close()


def as_json(decision):
    """The JSON that a client receives, byte for byte."""
    return json.dumps(decision_payload(decision), allow_nan=False)


def through_a_record(record, part=None):
    message = message_of(record)
    part = part or new_part(message)[0]
    return read_record(record_of(message, part), part)


def column(store, name):
    with store.writing() as connection:
        return connection.scalars(sa.select(t.METADATA.tables[name].columns.values()[-1])).all()


def n_parts(store):
    return len(column(store, "record_parts"))


# ---- what comes back


def test_decisions_of_four_families_in_both_arms_come_back_as_from_json_in_under_two_kilobytes(records):
    first = new_part(message_of(records[0]))[0]
    assert sum(r.decision.event is not None for r in records) > 10
    for record in records:
        assert len(record.decision.models) == 4
        found = through_a_record(record, first)  # whatever the part, the record is whole
        assert found == record
        assert as_json(found.decision) == as_json(decision_of(json.loads(as_json(record.decision))))
    json_sizes = [len(json.dumps(decision_payload(r.decision), separators=(",", ":"))) for r in records]
    assert np.median(json_sizes) > 8000
    assert np.median(sizes_of([replace(r, features=b"", signals=b"") for r in records])) < 2048
    assert np.median(sizes_of(records)) < 3000  # with feature and signal bytes, which were 1,920


def sizes_of(records):
    """Bytes of each record, written against the part of its kind."""
    parts = {}
    for record in records:
        parts.setdefault(kind_of(record.decision), new_part(message_of(record))[0])
    assert len(parts) < 10
    return [len(record_of(message_of(r), parts[kind_of(r.decision)])) for r in records]


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
known = st.none() | finite
probabilities = known | st.dictionaries(text, known, max_size=3)
times = st.datetimes(timezones=st.just(UTC))
votes = st.builds(
    EnsembleVote,
    known,
    st.none() | text,
    st.dictionaries(text, finite, max_size=3),
    st.lists(text, max_size=2).map(tuple),
)
answers = st.builds(
    ModelAnswer, text, version=text, digest=text, verdict=text, role=text, event=st.none() | text,
    direction=st.integers(-1, 1), p=probabilities, p_low=probabilities, label=st.none() | text, status=text,
    reason=st.none() | text, novelty=known, members=st.none() | st.dictionaries(text, probabilities, max_size=3),
    ensemble=st.none() | votes,
)  # fmt: skip
checks = st.builds(ThresholdCheck, known | text, finite | text, st.booleans(), st.booleans())
numbers, words, some = (
    st.dictionaries(text, finite, max_size=4),
    st.dictionaries(text, text, max_size=4),
    st.none() | text,
)
decisions = st.builds(
    Decision, id=text, symbol=text, as_of=times, known_at=times, ingested_at=times,
    action=st.sampled_from(["BUY", "SELL", "NO_TRADE"]), direction=st.integers(-1, 1), confidence=known, entry=known,
    stop=known, take_profits=st.lists(finite, max_size=3).map(tuple), size=finite, expiry=st.none() | times,
    edge_bps=known, p=known, regime=some, tier=st.integers(1, 4), arm=text, event=some, weights=numbers,
    contributions=numbers, coverage=finite, reasons=st.lists(text, max_size=3).map(tuple),
    generation=st.integers(0, 2**53),
    models=st.dictionaries(text, st.dictionaries(st.sampled_from(["champion", "challenger"]), answers), max_size=2),
    lineage=words, account=st.dictionaries(text, known, max_size=4), breakers=st.lists(text, max_size=2).map(tuple),
    tier_reason=text, tier_multiplier=finite, trail=words, category_scores=numbers,
    validation=st.dictionaries(text, known, max_size=3), stage=text, capped_by=some, learned=numbers,
    thresholds=st.dictionaries(text, checks, max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(decision=decisions, features=st.binary(max_size=40), other=decisions)
def test_any_decision_comes_back_whole_whatever_part_it_was_written_against(decision, features, other):
    record = DecisionRecord(decision, features, b"\x00" + features)
    for part in (None, new_part(message_of(DecisionRecord(other, b"", b"")))[0]):
        found = through_a_record(record, part)
        assert found == record
        assert as_json(found.decision) == as_json(decision)  # -0.0 and the order of keys too


def assert_a_stranger_reads(record, part=None):
    """The verifier of an audit, which has a reader of its own, reads the record as we do."""
    message = message_of(record)
    part = part or new_part(message)[0]
    stored = record_of(message, part)
    decision, *inputs = read_as_stored(stored, part)
    row = {"record": b64encode(stored).decode()}
    assert content(row, {part.digest: part.message}) == [decision, *(b64encode(each).decode() for each in inputs)]
    assert Decision.from_dict(json.loads(json.dumps(decision, allow_nan=False))) == record.decision


@settings(max_examples=100, deadline=None)
@given(decision=decisions, features=st.binary(max_size=40))
def test_the_verifier_of_an_audit_reads_any_record(decision, features):
    assert_a_stranger_reads(DecisionRecord(decision, features, b"\xcb" + features))


def test_the_verifier_of_an_audit_reads_the_records_of_four_families(records):
    part = new_part(message_of(records[0]))[0]
    for record in records:
        assert_a_stranger_reads(record, part)


def test_what_is_of_another_type_than_its_field_states_comes_back_as_it_was_stored(records):
    odd = replace(records[0].decision, lineage={"data_hash": None}, weights={"ict": np.float64(0.5)}, expiry=None)
    found = through_a_record(replace(records[0], decision=odd)).decision
    assert found == odd
    assert type(found.weights["ict"]) is float


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), object(), "\ud800"])
def test_what_json_cannot_hold_is_refused(records, bad):
    broken = replace(records[0].decision, account=records[0].decision.account | {"gross": bad})
    with pytest.raises(BadValues, match="not storable as JSON"):
        message_of(replace(records[0], decision=broken))


def test_bytes_that_look_like_a_float_or_like_an_infinity_are_stored(records):
    mark = "\u02ff\u02c0"  # two bytes each, of which the first stands before a float in MessagePack
    decision = records[0].decision
    for reasons in ((mark,), (mark * 5, "x" * 7 + mark), ("\u02ff\u0ff0",)):
        for end in ({}, {mark: ThresholdCheck(mark, 0.5, reached=True, refuses=False)}):
            odd = replace(decision, reasons=reasons, lineage={mark: mark}, learned={mark: 0.1}, thresholds=end)
            assert through_a_record(replace(records[0], decision=odd)).decision == odd
    alike = float(np.frombuffer(b"\x00\xcb\x7f\xf8\x01\x02\x03\x3f")[0])  # the bytes of a NaN within a number
    odd = replace(decision, size=alike, entry=float(np.frombuffer(b"\x00\x01\xf8\x7f\xcb\x00\x03\x3f")[0]))
    assert through_a_record(replace(records[0], decision=odd)).decision == odd


# ---- damage


def test_a_changed_byte_is_found_or_changes_nothing(records):
    part, content = new_part(message_of(records[0]))
    whole, found = record_of(message_of(records[1]), part), 0
    places = range(17, len(whole), 13)
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        try:
            assert read_record(bytes(damaged), part) == records[1]  # copied from another place that holds the same
        except StateError:
            found += 1
    assert found > 0.95 * len(places)
    with pytest.raises(StateError, match="cut short"):
        read_record(whole[:-1], part)
    with pytest.raises(StateError, match=r"part .* is damaged"):
        part_of(part.digest, content[:-1])
    with pytest.raises(StateError, match="damaged"):
        read_record(whole, Part(part.digest, part.message + b"\x00"))


def test_a_record_of_a_later_version_is_refused_with_what_to_do():
    with pytest.raises(StateError, match=r"record version 3.*newer"):
        part_digest(b"\x03" + bytes(40))


# ---- parts in the store


def test_decisions_of_one_kind_share_a_part_and_any_process_reads_them(url, store, records):
    for record in records[:40]:
        store.add_decisions([record])
    assert n_parts(store) == len({kind_of(r.decision) for r in records[:40]})
    again = Store.open(url)
    assert again.decisions() == records[:40]
    again.add_decisions(records[40:80])  # all in one transaction; a writer that starts brings parts of its own
    assert again.decisions() == store.decisions() == records[:80]
    again.close()


def test_a_part_whose_transaction_failed_is_stored_with_the_next_decision(url, store, records):
    def fail(within_one):
        with store.writing() as connection:
            store.add_decisions(records[:within_one], connection)
            store.add_decisions(records[within_one : within_one + 1], connection)
            raise RuntimeError

    for within_one in (1, 2):
        with pytest.raises(RuntimeError):
            fail(within_one)
        assert n_parts(store) == 0
    store.add_decisions(records[:3])
    with pytest.raises(StoredAlready):
        store.add_decisions(records[2:4])
    store.add_decisions(records[3:5])
    again = Store.open(url)
    assert again.decisions() == records[:5]
    again.close()


def test_after_an_outage_no_part_counts_as_stored(store, records):
    store.add_decisions(records[:1])
    with pytest.raises(sa.exc.OperationalError), store.writing():
        raise sa.exc.OperationalError("commit", None, Exception("the server went away"))
    assert kind_of(records[0].decision) == kind_of(records[1].decision)
    store.add_decisions(records[1:2])  # brings its part, whichever server has answered
    assert n_parts(store) == 2
    assert store.decisions() == records[:2]


def test_what_was_stored_as_json_and_as_a_record_is_read_alike(store, records):
    for record in records[:6:2]:
        add_json_decision(store, record)
    store.add_decisions(records[1:6:2])
    assert store.decisions() == records[:6]
    assert store.served_digests(T0 - timedelta(days=1)) == {f"{i}{j}" * 32 for i in range(4) for j in range(2)}


def test_a_part_that_is_gone_is_named_and_the_others_are_read(url, store, records):
    store.add_decisions(records[:1])
    with store.writing() as connection:
        lost = record_of(message_of(records[1]), Part(bytes(16), b"gone"))
        whole = connection.execute(sa.select(t.decisions)).mappings().one()
        connection.execute(sa.insert(t.decisions), [{**whole, "id": "lost", "record": lost, "seq": None}])
    with pytest.raises(StateError, match=r"part 0{32} .* is not stored"):
        store.decision("lost")
    assert store.decision(records[0].decision.id) == records[0]


def test_parts_only_grow(url, store, records):
    store.add_decisions(records[:1])
    truncate = ["TRUNCATE record_parts"] if url.startswith("postgresql") else []
    for statement in ("UPDATE record_parts SET content = digest", "DELETE FROM record_parts", *truncate):
        with (
            pytest.raises(sa.exc.DBAPIError, match="append-only"),
            sa.create_engine(url, poolclass=sa.NullPool).begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert n_parts(store) == 1


# ---- the migration


def test_json_rows_stay_as_they_are_and_a_downgrade_writes_json_again(url, records):
    alembic_to(url, "0007")
    engine = sa.create_engine(url)
    store = Store.open(url)
    for record in records[:3]:
        add_json_decision(store, record)
    store.add_decisions(records[3:6])
    before = [row[:-2] for row in contents(url)["decisions"] if row[-2:] == (None, None)]
    store.close()
    alembic_to(url, "0007", downgrade=True)
    with engine.connect() as connection:
        assert not sa.inspect(connection).has_table("record_parts")
        names = [c["name"] for c in sa.inspect(connection).get_columns("decisions")]
        payloads = connection.scalars(sa.select(sa.table("decisions", sa.column("payload", sa.JSON)).c.payload)).all()
    engine.dispose()
    assert names[-3:] == ["payload", "features", "signals"]
    assert {json.dumps(p) for p in payloads} == {as_json(r.decision) for r in records[:6]}
    after = {row[0]: row for row in contents(url)["decisions"]}
    assert len(before) == 3
    assert all(after[row[0]] == row for row in before)  # untouched, bit for bit
    for record in records[3:6]:
        assert after[record.decision.id][-2:] == (record.features, record.signals)
    store = Store.open(url)  # and up again
    assert store.decisions() == records[:6]
    store.add_decisions(records[6:7])
    assert store.decision(records[6].decision.id) == records[6]
    store.close()
