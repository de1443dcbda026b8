"""Who is watched: what serves, and the family that acts once it was judged."""

from datetime import UTC, datetime

from flows.monitor import watched_families
from flows.site import Site
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion, Store


def line(family, action, passed):
    return Promotion(
        at=datetime.now(UTC), actor="gate", action=action, family=family, arm="challenger", from_version=None,
        to_version="1", digest="a" * 64, run_id="r", data_hash="d", git_commit="c", verdict_passed=passed, reason="t",
    )  # fmt: skip


def test_a_family_in_its_first_training_is_not_asked_to_train_again(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    site = Site(Settings(home=tmp_path, store_url=""), load_params(), store)
    assert watched_families(site) == []
    store.add_promotion(line("validator", "challenge", passed=False))
    assert watched_families(site) == ["validator"]
    store.add_promotion(line("pattern", "promote", passed=True))
    assert watched_families(site) == ["pattern"]
    store.close()
