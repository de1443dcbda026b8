"""A generation file is served only where the ledger, proven by its chain, bears it out (law L5)."""

from datetime import UTC, datetime
from functools import partial

import pytest
from support.owner_sql import execute_as_owner
from support.serving_fixture import make_bundle, slot_entry

from benchmarks.arms import put_on_ledger
from pipelines.settings import Settings
from pipelines.store import Anchor
from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots
from serving.service.home_store import ANCHOR_FILE, add_anchor, open_store, read_anchors
from serving.service.ledger_check import disagreement

AT = datetime(2024, 1, 1, tzinfo=UTC)


class Place:
    """Hold slots that check the ledger of a home on one of the databases, with a champion that passed the gate."""

    def __init__(self, home, stand, url):
        self.home, self.alarms = home, []
        self.store = open_store(Settings(home=home, store_url=url))
        self.first = make_bundle(home / "bundles", stand.columns, stand.rows, 0.1)
        self.second = make_bundle(home / "bundles", stand.columns, stand.rows, 0.9)
        check = partial(disagreement, self.store, home)
        self.slots = ModelSlots(home / "serving", home / "bundles", lambda *alarm: self.alarms.append(alarm), check)

    def judge(self, **arms):
        """Put arms on the ledger."""
        put_on_ledger(self.store, {"validator": arms}, AT)

    def name(self, champion=None, challenger=None):
        """Write a generation file, as anyone who may write to the home."""
        arms = {"champion": champion, "challenger": challenger}
        write_generation(self.home / "serving", {"validator": arms}, {}, AT)
        return self.slots.refresh()

    def champion(self):
        """Return the version that is served."""
        slot = self.slots.snapshot.slot("validator", "champion")
        return slot and slot.version

    def sql(self, statement):
        """Execute SQL as the owner of the database."""
        execute_as_owner(self.store, statement)


@pytest.fixture
def place(home, stand, url):
    made = Place(home, stand, url)
    made.judge(champion=slot_entry("1", made.first))
    assert made.name(slot_entry("1", made.first)) is True
    yield made
    made.store.close()


def test_what_the_ledger_says_is_served_with_its_challenger(place):
    place.judge(challenger=slot_entry("2", place.second, "refused"))
    assert place.name(slot_entry("1", place.first), slot_entry("2", place.second, "refused")) is True
    assert place.alarms == []


def test_a_hand_edited_file_is_refused_the_old_one_stays_and_the_ledger_may_follow(place):
    place.judge(challenger=slot_entry("2", place.second, "refused"))
    assert place.name(slot_entry("2", place.second, "passed")) is False
    assert place.champion() == "1"
    assert place.slots.refresh() is False  # asked again at each poll, alarmed once
    ((kind, severity, detail),) = place.alarms
    assert (kind, severity) == ("generation_refused", "high")
    assert "validator champion 2: the ledger's champion is version 1" in detail
    place.judge(champion=slot_entry("2", place.second))
    assert place.slots.refresh() is True
    assert (place.champion(), place.slots.refusal) == ("2", None)


@pytest.mark.parametrize(
    ("champion", "challenger", "why"),
    [
        ("other digest", None, "the ledger's champion is version 1"),
        ("other verdict", None, "the ledger's verdict is passed, the file says refused"),
        ("1", "never judged", "no verdict on these bytes"),
        ("1", "refused as passed", "the ledger's verdict is refused, the file says passed"),
    ],
)
def test_each_slot_is_compared_by_version_digest_and_verdict(place, champion, challenger, why):
    place.judge(challenger=slot_entry("2", place.second, "refused"))
    named = {
        "1": slot_entry("1", place.first), "other digest": slot_entry("1", place.second), None: None,
        "other verdict": slot_entry("1", place.first, "refused"), "never judged": slot_entry("7", place.second),
        "refused as passed": slot_entry("2", place.second, "passed"),
    }  # fmt: skip
    assert place.name(named[champion], named[challenger]) is False
    assert why in place.slots.refusal


def test_an_empty_slot_needs_no_proof(place):
    assert place.name(None) is True
    assert place.champion() is None


INSERT = (
    "INSERT INTO promotions (id, at, actor, action, family, arm, to_version, digest, verdict_passed, reason, evidence) "
    "SELECT {id}, at, actor, '{action}', family, '{arm}', '2', '{digest}', {true}, reason, evidence FROM promotions "
    "WHERE id = 1"
)


def test_a_passed_verdict_and_a_promotion_inserted_by_sql_are_neither_served_nor_counted(place):
    for number, (action, arm) in enumerate((("challenge", "challenger"), ("promote", "champion")), 90):
        place.sql(INSERT.format(id=number, action=action, arm=arm, digest=place.second, true="TRUE"))
    assert place.name(slot_entry("2", place.second)) is False
    assert place.champion() == "1"
    assert place.store.slots("validator").champion.to_version == "1"
    assert place.store.verdict("validator", "2", place.second) is None


def test_an_edited_verdict_is_no_verdict(place):
    place.judge(challenger=slot_entry("2", place.second, "refused"))
    place.sql("UPDATE promotions SET verdict_passed = TRUE WHERE to_version = '2'")
    assert place.name(slot_entry("1", place.first), slot_entry("2", place.second)) is False
    assert "no verdict on these bytes" in place.slots.refusal


def test_a_chain_that_was_begun_anew_over_inserted_rows_is_not_the_anchored_one(place):
    head = place.store.chain_head()
    add_anchor(place.home, Anchor(head.seq, head.mac, "2024-01-01", "this home"))
    for number, (action, arm) in enumerate((("challenge", "challenger"), ("promote", "champion")), 90):
        place.sql(INSERT.format(id=number, action=action, arm=arm, digest=place.second, true="TRUE"))
    place.sql("DELETE FROM chain")
    again = open_store(Settings(home=place.home, store_url=str(place.store._engine.url.render_as_string(False))))
    assert again.chain_head() is None  # with an anchor, opening a store begins no chain
    again.begin_chain()
    assert again.slots("validator").champion.to_version == "2"
    again.close()
    assert place.name(slot_entry("2", place.second)) is False
    assert "not the one that was anchored" in place.slots.refusal


def test_anchors_are_read_back_without_a_line_that_was_cut_short(tmp_path):
    add_anchor(tmp_path, Anchor(3, "ab", "2024-01-01", "x"))
    add_anchor(tmp_path, Anchor(9, "cd", "2024-01-02", "x"))
    with (tmp_path / ANCHOR_FILE).open("a") as opened:
        opened.write('{"seq": 12, "ma')
    assert [(one.seq, one.mac) for one in read_anchors(tmp_path)] == [(3, "ab"), (9, "cd")]
    assert read_anchors(tmp_path / "nowhere") == []
