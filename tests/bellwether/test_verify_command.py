"""`bellwether verify`: what was changed is named, blocks promotions, and goes on only if a person accepts it."""

import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from support.command_line import bellwether

from flows.support.installation import Installation
from flows.support.ledger_chain import BROKEN, require_intact
from pipelines.errors import ChainBroken
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion
from serving.service.home_store import open_store, read_anchors

T0 = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def home(tmp_path):
    """A home whose ledger has four lines."""
    with_four = open_store(Settings(home=tmp_path))
    for version in "1234":
        with_four.add_promotion(
            Promotion(T0, "policy", "challenge", "validator", "challenger", None, version, "ab" * 32, "r", "d", "c",
                      True, "passed the gate")
        )  # fmt: skip
    with_four.close()
    return tmp_path


def edit(home, statement="UPDATE promotions SET reason = 'x' WHERE id = 2"):
    engine = sa.create_engine(f"sqlite:///{home / 'store.db'}")
    with engine.begin() as connection:
        for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_an_intact_ledger_is_anchored_and_the_next_run_begins_there(home):
    first, second = bellwether(home, "verify", "--json"), bellwether(home, "verify", "--json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    found, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (found["lines"], found["rows"], found["since_line"], found["anchored_line"]) == (5, 4, 0, 5)
    assert (again["since_line"], again["rows"]) == (5, 4)  # promotions are always read
    assert [anchor.seq for anchor in read_anchors(home)] == [5, 5]
    assert (home / "chain_key").stat().st_mode & 0o777 == 0o600


def test_an_edited_row_is_named_in_80_columns_alarmed_and_blocks_promotions_until_it_is_accepted(home):
    edit(home)
    done = bellwether(home, "verify")
    assert done.returncode == 1
    assert "promotions 2 (line 3 of the chain) was edited" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    opened = Installation(Settings(home=home), load_params(), open_store(Settings(home=home)))
    (alarm,) = opened.store.alarms()
    assert (alarm.kind, alarm.severity) == (BROKEN, "critical")
    with pytest.raises(ChainBroken, match="No champion moves; what is served stays"):
        require_intact(opened)
    refused = bellwether(home, "verify", "--accept")
    assert (refused.returncode, "--reason" in refused.stderr) == (1, True)
    accepted = bellwether(home, "verify", "--accept", "--reason", "an import gone wrong", "--by", "ann", "--json")
    assert accepted.returncode == 0, accepted.stderr
    assert json.loads(accepted.stdout)["accepted"] == 1
    require_intact(opened)
    assert opened.store.alarms() == []
    (began,) = [json.loads(line.detail) for line in opened.store.chain_lines() if line.kind == "accepted"]
    assert (began["by"], began["reason"], len(began["faults"])) == ("ann", "an import gone wrong", 1)
    opened.store.close()


def test_an_older_store_put_in_place_of_the_present_one_is_found_by_the_anchor(home):
    older = (home / "store.db").read_bytes()
    opened = open_store(Settings(home=home))
    opened.add_promotion(Promotion(T0, "policy", "refuse", "validator", "champion", None, "5", "ab" * 32, "r", "d",
                                   "c", False, "why"))  # fmt: skip
    opened.close()
    assert bellwether(home, "verify").returncode == 0
    for name in ("store.db-wal", "store.db-shm"):
        (home / name).unlink(missing_ok=True)
    (home / "store.db").write_bytes(older)
    done = bellwether(home, "verify", "--json")
    assert done.returncode == 1
    (fault,) = json.loads(done.stdout)["faults"]
    assert "an older backup was restored" in fault["what"]


def test_a_home_whose_chain_key_was_lost_says_so(home):
    (home / "chain_key").unlink()
    done = bellwether(home, "verify", "--json")
    assert "under another key" in json.loads(done.stdout)["faults"][0]["what"]
