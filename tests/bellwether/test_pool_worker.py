"""The home of a worker of the pool: the keys of the home it works for, and none of its own."""

import pytest

from bellwether.operations.launch.worker import home_of
from pipelines.errors import StateError
from pipelines.settings import Settings
from serving.service import keys


@pytest.fixture
def where(tmp_path):
    return Settings(home=tmp_path / "home", profile="cluster", _env_file=None)


def test_a_worker_has_the_keys_of_its_home_closed_to_others_and_newer_ones_after_the_next_start(where):
    key, chain = keys.write_key(where), keys.chain_key(where)
    own = where.model_copy(update={"home": home_of(where, "worker-1")})
    assert own.home == where.home / "workers" / "worker-1"
    assert (keys.read_key(own), keys.chain_key(own)) == (key, chain)
    for file in (keys.key_file(own), keys.chain_key_file(own)):
        assert file.stat().st_mode & 0o077 == 0
    keys.rotate_key(where)
    home_of(where, "worker-1")
    assert keys.read_key(own) == keys.read_key(where) != key


@pytest.mark.parametrize("lacking", ["write_key", "chain_key"])
def test_a_worker_without_a_key_of_the_home_makes_none_and_says_which_to_copy(where, lacking):
    keys.write_key(where)
    keys.chain_key(where)
    (where.home / lacking).unlink()
    with pytest.raises(StateError, match=f"{lacking} is not here: copy it"):
        home_of(where, "worker-1")
    assert not (where.home / lacking).exists()
