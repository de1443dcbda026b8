"""Free disk space, and the forecast of when it runs out."""

import pytest

from pipelines import disk

DAY = disk.DAY_S


@pytest.mark.parametrize(
    ("free_bytes", "level"), [(0, "stop"), (99, "stop"), (100, "warn"), (199, "warn"), (200, "ok"), (2**50, "ok")]
)
def test_the_level_follows_the_two_limits(monkeypatch, free_bytes, level):
    monkeypatch.setattr(disk, "free", lambda _: free_bytes)
    found = disk.check_space(disk.Path("/"), warn_bytes=200, stop_bytes=100)
    assert (found.level, found.free_bytes) == (level, free_bytes)


def test_a_home_that_does_not_exist_yet_counts_as_its_nearest_folder(tmp_path):
    assert disk.free(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize(
    ("samples", "days"),
    [
        ([], None),
        ([(0.0, 100)], None),
        ([(0.0, 100), (60.0, 50)], None),  # too short for a forecast
        ([(0.0, 100), (DAY, 100)], None),
        ([(0.0, 100), (DAY, 120)], None),
        ([(0.0, 100), (DAY, 75)], 3.0),
        ([(DAY, 75), (0.0, 100)], 3.0),
        ([(0.0, 100), (DAY, 75), (9 * DAY, 0)], 3.0),  # the last is of a clock that ran ahead
        ([(0.0, 100), (DAY, 0)], 0.0),
    ],
)
def test_the_forecast_is_the_rate_between_the_oldest_and_the_newest_sample(samples, days):
    found = disk.forecast(samples, now_s=2 * DAY)
    assert (found and found.days) == (days if days is None else pytest.approx(days))


def test_the_forecast_names_the_pace():
    assert disk.forecast([(0.0, 100), (DAY, 76)], now_s=DAY).bytes_an_hour == pytest.approx(1.0)


def test_sizes_are_formatted_for_people():
    assert [disk.format_bytes(n) for n in (0, 200 * 2**20, 3 * 2**29)] == ["0 MB", "200 MB", "1.5 GB"]
