"""The data of a champion age by trading days: a weekend on which the market is shut makes them no older."""

from datetime import UTC, datetime

import pytest

from flows.monitor import trading_age
from pipelines.data.calendars import CALENDARS
from pipelines.data.timeframes import Grid

CLOSE, WEEKS_LATER = datetime(2024, 6, 7, 20, tzinfo=UTC), datetime(2024, 6, 24, 20, tzinfo=UTC)


@pytest.mark.parametrize(("hours", "days"), [("us-equity", 11.0), ("24x7", 17.0)])
def test_seventeen_days_are_eleven_sessions_of_a_share(hours, days):
    assert trading_age(Grid("1h", CALENDARS[hours]), CLOSE, WEEKS_LATER).total_seconds() / 86_400 == pytest.approx(days)
