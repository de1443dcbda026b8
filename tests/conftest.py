"""How the suite is shared out to two workers: the real servers' tests first and to one of them, others by file.

And the two databases the store runs on.
"""

import pytest
from postgres import postgres_server, postgres_url, second_postgres_url
from xdist.scheduler import LoadScopeScheduling

__all__ = ["postgres_server", "postgres_url", "second_postgres_url", "url"]
SERVERS = "tests/integration/"  # one stack, started once


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("stack") is None)


class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        return SERVERS if nodeid.startswith(SERVERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Of an empty database, once of either kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'new' / 'store.db'}"
