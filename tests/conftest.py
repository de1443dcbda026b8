"""Order of the whole suite: what needs the real servers runs last, so that they live only as long as they are used."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("stack") is not None)
