"""How the suite is shared out to two workers: the real servers' tests first and to one of them, others by file."""

from xdist.scheduler import LoadScopeScheduling

SERVERS = "tests/integration/"  # one stack, started once


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("stack") is None)


class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        return SERVERS if nodeid.startswith(SERVERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)
