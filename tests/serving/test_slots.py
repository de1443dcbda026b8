"""Slots: only verified bundles that give their golden answers are served; a refusal never takes anything away."""

import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest
from support.model_slots import Place, spoil_weights
from support.serving_fixture import slot_entry

from pipelines.sealed_folder import MANIFEST, sha256
from serving.inference.generation import GENERATION_FILE, acknowledged

AT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def place(home, stand):
    return Place(home, stand)


def test_nothing_is_served_before_anything_was_promoted(place):
    assert place.slots.refresh() is False
    assert place.slots.snapshot.generation == 0
    assert place.slots.snapshot.slots == {}


def test_a_generation_is_loaded_checked_swapped_and_acknowledged(place, stand):
    place.serve(slot_entry("1", place.first), slot_entry("2", place.second, "refused"))
    assert place.slots.refresh() is True
    assert place.slots.refresh() is False
    answers = place.slots.snapshot.predict("validator", stand.rows[:3], stand.columns)
    assert {arm: a.digest for arm, a in answers.items()} == {"champion": place.first, "challenger": place.second}
    assert not np.allclose(answers["champion"].p, answers["challenger"].p)
    assert acknowledged(place.serving) == {os.getpid(): 1}


def test_generations_count_up_and_a_reader_keeps_the_snapshot_it_took(place):
    place.serve(slot_entry("1", place.first))
    place.slots.refresh()
    before = place.slots.snapshot
    assert place.serve(slot_entry("2", place.second)) == 2
    place.slots.refresh()
    assert (before.generation, before.slot("validator", "champion").version) == (1, "1")
    assert place.champion().version == "2"


def test_a_column_that_is_not_computed_makes_the_model_abstain_by_name(place, stand):
    place.serve(slot_entry("1", place.first))
    place.slots.refresh()
    answer = place.slots.snapshot.predict("validator", stand.rows[:1, 1:], stand.columns[1:])["champion"]
    assert answer.reason == [f"MISSING_FEATURE:{stand.columns[0]}"]


def add_pickle(bundle):
    (bundle / "extra.pkl").write_bytes(b"cos\nsystem\n")


def lie_about_golden(bundle):
    """Consistent hashes, wrong golden answers: a model that is not what was tested."""
    with np.load(bundle / "golden.npz") as f:
        golden = dict(f)
    golden["p"][0] = 1.0 - golden["p"][0]
    np.savez(bundle / "golden.npz", **golden)
    return resealed(bundle, "golden.npz")


def resealed(bundle, changed):
    """The bundle under a manifest that is true of its changed file."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][changed] = sha256((bundle / changed).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    renamed = bundle.with_name(sha256((bundle / MANIFEST).read_bytes()))
    bundle.rename(renamed)
    return renamed.name


def read_another_column(bundle):
    """Consistent hashes, and a column that is not computed here."""
    schema = json.loads((bundle / "schema.json").read_text())
    schema["columns"][0] = "moon_phase"
    (bundle / "schema.json").write_text(json.dumps(schema))
    return resealed(bundle, "schema.json")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_weights, "sha256"), (add_pickle, "could carry code"), (lie_about_golden, "golden"),
        (read_another_column, "moon_phase"),
    ],
)  # fmt: skip
def test_a_bundle_that_fails_a_check_is_refused_with_an_alarm_and_the_old_model_stays(place, spoil, why):
    place.serve(slot_entry("1", place.first))
    place.slots.refresh()
    digest = spoil(place.bundles / place.second) or place.second
    place.serve(slot_entry("2", digest))
    assert place.slots.refresh() is True
    snapshot = place.slots.snapshot
    assert (snapshot.generation, place.champion().version) == (2, "1")
    assert [(r.family, r.arm, r.version) for r in snapshot.refused] == [("validator", "champion", "2")]
    assert why in snapshot.refused[0].reason
    assert place.alarms[0][0] == "bundle_refused"


def test_an_entry_that_names_no_bundle_is_refused(place):
    place.serve(slot_entry("9", "0" * 64))
    assert place.slots.refresh() is True
    assert place.champion() is None
    assert len(place.slots.snapshot.refused) == 1


def test_a_generation_file_that_is_not_one_changes_nothing(place):
    place.serve(slot_entry("1", place.first))
    place.slots.refresh()
    (place.serving / GENERATION_FILE).write_text('{"generation": 2')
    assert place.slots.refresh() is False
    assert place.champion().version == "1"
    assert place.alarms[0][0] == "generation_refused"


def test_removing_a_challenger_takes_it_out(place):
    place.serve(slot_entry("1", place.first), slot_entry("2", place.second))
    place.slots.refresh()
    place.serve(slot_entry("1", place.first))
    place.slots.refresh()
    assert place.slots.snapshot.slot("validator", "challenger") is None
