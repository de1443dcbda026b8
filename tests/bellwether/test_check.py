"""`bellwether check` and `bellwether alarms`: what they report, and that they start nothing."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from typer.testing import CliRunner

from bellwether.cli.data import show_checked
from bellwether.cli.main import app
from bellwether.operations.check import check, training
from flows.support.installation import open_installation
from pipelines.context_layout import SERIES_FIELDS
from pipelines.data.calendars import CALENDARS
from pipelines.data.quality import REASONS
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadValues, NotEnoughData, UnknownName
from pipelines.features.catalog import FEATURES, absent_columns
from pipelines.market_params import QualityParams
from pipelines.settings import load_params, settings

PARAMS = load_params()
AT = datetime(2025, 1, 1, tzinfo=UTC)
MINUTES_A_DAY = 1440
HEADER = "open_time,open,high,low,close,volume\n"


def candles(path, days=40, holes=(), taker=False, header=HEADER):
    """A walk in a CSV file; `holes` are rows left out."""
    rng = np.random.default_rng(7)
    n = days * MINUTES_A_DAY
    close = 4e4 * np.exp(np.cumsum(rng.normal(0, 5e-4, n)))
    opened = np.r_[4e4, close[:-1]]
    time = 1_704_067_200_000 + 60_000 * np.arange(n)
    columns = [time, opened, np.maximum(opened, close), np.minimum(opened, close), close, rng.lognormal(2, 0.5, n)]
    rows = np.column_stack([*columns, columns[-1] / 2] if taker else columns)
    rows = np.delete(rows, holes, axis=0)
    text = header.strip() + (",taker_buy_volume" if taker else "")
    np.savetxt(path, rows, fmt="%d" + ",%.4f" * (rows.shape[1] - 1), header=text, comments="")
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


def test_a_whole_file_passes_and_reports_what_it_can_train(tmp_path):
    found = check(candles(tmp_path / "a.csv", taker=True), "btcusdt", [], PARAMS, AT)
    assert (found.passed, found.symbol, found.timeframe, found.decision_timeframe) == (True, "BTC/USDT", "1m", "15m")
    assert found.recorded == ["taker", "volume"]
    assert (found.spread_bps, found.spread_share) == (None, 0.0)
    assert found.history_bars == (39 - PARAMS.data.live_days) * 96  # the day of the last bar is live too, as in a run
    assert "order_flow_imbalance" not in found.families["validator"].absent
    assert found.families["predictor"].absent["depth_ratio"] == "book"
    assert all(family.possible for family in found.families.values())


def test_it_says_whether_a_spread_was_recorded(tmp_path, capsys):
    file = candles(tmp_path / "a.csv", days=1)
    header, *lines = file.read_text().splitlines()
    quoted = [f"{row},{0.0001 * float(row.split(',')[4])}" for row in lines[:720]] + [f"{row}," for row in lines[720:]]
    file.write_text("\n".join([f"{header},half_spread", *quoted]) + "\n")
    found = check(file, None, [], PARAMS, AT)
    assert "spread" in found.recorded
    assert (found.spread_bps, found.spread_share) == (pytest.approx(2.0), pytest.approx(0.5))
    show_checked(found)
    assert "mean 2.00 bps, in 50.0 % of the bars" in " ".join(capsys.readouterr().out.replace("%", " %").split())


def test_a_holed_file_is_refused_and_its_score_is_the_product_of_its_parts(tmp_path):
    file = candles(tmp_path / "a.csv", holes=np.arange(10_000, 25_000))
    found = check(file, None, [], PARAMS, AT)
    assert not found.passed
    assert found.score == pytest.approx(np.prod(list(found.parts.values())))
    assert found.gaps == [
        {"from": "2024-01-07T22:40:00+00:00", "until": "2024-01-18T08:40:00+00:00", "bars": 15_000},
    ]


def test_quarantined_rows_are_counted_by_reason(tmp_path):
    file = candles(tmp_path / "a.csv", days=1)
    lines = file.read_text().splitlines()
    time, _, *rest = lines[100].split(",")
    file.write_text("\n".join([*lines, ",".join([time, "-1.0", *rest]), lines[200]]) + "\n")
    found = check(file, None, [], PARAMS, AT)
    assert found.quarantined == {"NON_POSITIVE": 1, "DUPLICATE": 1}
    assert set(found.quarantined) <= set(REASONS)


def test_columns_whose_input_is_not_there_are_absent_and_no_others():
    everything = {"volume", "taker", "book", *(f"context:{n}" for n in ("order_flow", "order_flow_fast"))}
    everything |= {f"context:{name}" for name in ("fear_greed", "reference_close", *SERIES_FIELDS)}
    assert not absent_columns(FEATURES.catalogue, everything)
    values = FEATURES.run(np.column_stack([np.arange(600) * 900.0, *np.random.default_rng(1).uniform(1, 2, (4, 600)),
                                           *np.full((4, 600), np.nan)]))  # fmt: skip
    missing = {name for name, column in zip(FEATURES.columns, values.T, strict=True) if np.isnan(column).all()}
    assert missing == set(absent_columns(FEATURES.catalogue, set()))


def test_a_history_that_can_never_satisfy_the_gate_is_too_short():
    assert "too short" in training("regime", {"volume"}, 1000, PARAMS).explanation
    assert training("regime", {"volume"}, 10_000, PARAMS).possible


def hourly_share(path, weeks=30, split_at=None):
    """Hourly bars of a US share in UTC, 9:30 to 16:00 New York; from row `split_at` on as after four for one."""
    hours = 3600.0 * np.arange(weeks * 168) + 1_704_067_200.0 + 1800.0
    opens = hours[Grid("1h", CALENDARS["us-equity"]).on_grid(hours)]
    rng, n = np.random.default_rng(3), len(opens)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 3e-3, n)))
    rows = np.column_stack([1e3 * opens, close, close * 1.002, close / 1.002, close, rng.lognormal(12, 0.6, n)])
    if split_at is not None:
        rows[split_at:, 1:5] /= 4.0
        rows[split_at:, 5] *= 4.0
    np.savetxt(path, rows, fmt="%d" + ",%.4f" * 5, header=HEADER.strip(), comments="")
    return path


def test_days_set_aside_are_trading_days_where_a_market_closes(tmp_path):
    found = check(hourly_share(tmp_path / "a.csv"), "XYZ/USD", [], PARAMS, AT)
    assert found.sessions.startswith("us-equity")
    assert found.history_bars == (30 * 5 - PARAMS.data.live_days - 1) * 7


def test_a_family_that_is_too_short_names_the_smallest_length_that_suffices():
    found = training("regime", {"volume"}, 1000, PARAMS)
    enough = int(found.explanation.partition("; ")[2].split()[0].replace(",", ""))
    assert training("regime", {"volume"}, enough, PARAMS).possible
    assert not training("regime", {"volume"}, enough - 2, PARAMS).possible


def test_a_split_refuses_the_file_whatever_its_score_and_every_finding_has_its_places(tmp_path, home, capsys):
    file = hourly_share(tmp_path / "a.csv", split_at=300)
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["passed"], answer["score"]) == (1, False, 1.0)
    (found,) = answer["flags"]
    assert (found["code"], found["rows"], found["sizes"]) == ("SPLIT", 1, [4.0])
    assert found["moments"][0] in answer["blocked"] or found["moments"][0][:10] in answer["blocked"]
    allowed = PARAMS.model_copy(
        update={"data": PARAMS.data.model_copy(update={"quality": QualityParams(allow_splits=True)})}
    )
    assert check(file, None, [], allowed, AT).passed


def test_the_page_fits_80_columns_says_how_the_file_was_read_and_never_to_lower_the_floor(tmp_path, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    holed = candles(tmp_path / "holed.csv", days=2, holes=np.arange(1000, 2000))
    for file in (hourly_share(tmp_path / "a.csv", split_at=300), holed):
        page = CliRunner().invoke(app, ["check", str(file)], env={"COLUMNS": "80"}).stdout
        assert "read as: " in page
        assert "refused" in page
        assert "floor" not in page.replace("floor 0.9", "")
        assert max(len(row) for row in page.splitlines() if str(tmp_path) not in row) <= 80


def test_stated_sessions_decide_what_is_missing(tmp_path, home):
    file = hourly_share(tmp_path / "a.csv", weeks=8)
    alone = check(file, None, [], PARAMS, AT)
    assert (alone.score, alone.sessions.partition(":")[0]) == (1.0, "us-equity")
    always = check(file, None, [], PARAMS, AT, sessions="24x7")
    assert always.score < 0.3
    hours = tmp_path / "hours.txt"
    hours.write_text("zone = America/New_York\nMon-Fri 09:30-16:00\n")
    assert check(file, None, [], PARAMS, AT, sessions=str(hours)).score == 1.0
    done = CliRunner().invoke(app, ["check", str(file), "--sessions", "lunar"])
    assert isinstance(done.exception, UnknownName)


def test_a_file_of_another_layout_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(BadColumns, match=r"open = o.*still missing: no column open_time; for example: rename"):
        check(candles(tmp_path / "a.csv", days=1, header="when,o,h,l,c,v\n"), None, [], PARAMS, AT)


def rewritten(file, to, every=1, factor=1.0, at=None, jump=1.0):
    """The same market from elsewhere: prices times `factor`, every n-th bar's close kept, the close of bar `at` off."""
    rows = np.genfromtxt(file, delimiter=",", skip_header=1)
    rows[:, 1:5] *= factor
    if at is not None:
        rows[at, [2, 4]] *= jump  # high and close
    if every > 1:
        blocks = rows.reshape(-1, every, rows.shape[1])
        rows = np.column_stack([
            blocks[:, 0, 0], blocks[:, 0, 1], blocks[:, :, 2].max(1), blocks[:, :, 3].min(1), blocks[:, -1, 4],
            blocks[:, :, 5].sum(1),
        ])  # fmt: skip
    np.savetxt(to, rows, fmt="%d" + ",%.4f" * 5, header=HEADER.strip(), comments="")
    return to


def test_a_second_source_shows_where_it_differs_otherwise_than_usual_and_moves_no_score(tmp_path, home):
    file = candles(tmp_path / "a.csv", days=2)
    other = rewritten(file, tmp_path / "b.csv", factor=1.0003, at=1234, jump=1.01)
    alone, found = check(file, None, [], PARAMS, AT), check(file, None, [], PARAMS, AT, against=other)
    assert alone.against is None
    assert found.score == alone.score
    assert (found.against["shared"], found.against["divergent"]) == (2 * MINUTES_A_DAY, 1)
    assert found.against["median_bps"] == pytest.approx(-3.0, abs=0.01)
    ((stamp, bps),) = found.against["largest"].items()
    assert stamp == "2024-01-01T20:34:00+00:00"
    assert bps == pytest.approx(-3.0 - 99.5, abs=0.1)
    done = CliRunner().invoke(app, ["check", str(file), "--against", str(other)])
    assert done.exit_code == 0
    assert "2024-01-01T20:34:00" in done.stdout


def test_two_sources_of_different_timeframes_are_compared_on_the_coarser(tmp_path):
    file = candles(tmp_path / "a.csv", days=2)
    found = check(file, None, [], PARAMS, AT, against=rewritten(file, tmp_path / "b.csv", every=5)).against
    assert (found["timeframe"], found["shared"], found["divergent"]) == ("5m", 2 * MINUTES_A_DAY // 5, 0)


def test_two_sources_without_ten_bars_in_common_cannot_be_compared(tmp_path):
    file, short = candles(tmp_path / "a.csv", days=2), tmp_path / "b.csv"
    rows = np.genfromtxt(file, delimiter=",", skip_header=1)[-60:]
    rows[:, 0] += 51 * 60_000
    np.savetxt(short, rows, fmt="%d" + ",%.4f" * 5, header=HEADER.strip(), comments="")
    with pytest.raises(NotEnoughData, match="9 bars are in both"):
        check(file, None, [], PARAMS, AT, against=short)


def test_the_command_exits_1_under_the_floor_and_starts_nothing(tmp_path, home):
    whole = candles(tmp_path / "whole.csv", days=2)
    holed = candles(tmp_path / "holed.csv", days=2, holes=np.arange(1000, 2000))
    done = CliRunner().invoke(app, ["check", str(whole), "--json"])
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["passed"], answer["rows"]) == (0, True, 2 * MINUTES_A_DAY)
    done = CliRunner().invoke(app, ["check", str(holed)])
    assert done.exit_code == 1
    assert "refused" in done.stdout
    assert not home.exists()


def test_an_alarm_is_shown_until_it_is_cleared_by_its_number(home):
    home.mkdir()
    number = open_installation().store.raise_alarm("registry_down", "high", "no answer", AT)
    answer = json.loads(CliRunner().invoke(app, ["alarms", "--json"]).stdout)
    assert [alarm["id"] for alarm in answer["alarms"]] == [number]
    answer = json.loads(CliRunner().invoke(app, ["alarms", "--clear", str(number), "--json"]).stdout)
    assert answer == {"alarms": [], "breakers": []}
    again = CliRunner().invoke(app, ["alarms", "--clear", str(number)])
    assert isinstance(again.exception, UnknownName)


def test_a_named_series_is_recorded_with_its_unit_and_lag_and_needs_both(tmp_path, home):
    file = candles(tmp_path / "a.csv", days=40)
    (tmp_path / "flow.csv").write_text("time,calls\n1704067200000,5\n1706067200000,7\n")
    words = ["check", str(file), "--symbol", "btc-usdt", "--context", str(tmp_path / "flow.csv"), "--name",
             "options_flow", "--unit", "contracts", "--lag", "15m", "--max-age", "30d"]  # fmt: skip
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert "context:series_1" in found["recorded"]
    assert found["context_read_as"] == ["series_1: options_flow in contracts, known 900 s after its time, for 30 days"]
    assert "series_1" not in found["families"]["validator"]["absent"]
    assert "series_2" not in found["families"]["validator"]["absent"]  # a spare field lacks nothing
    assert found["families"]["validator"]["reads"] == check(file, None, [], PARAMS, AT).families["validator"].reads + 2
    refused = CliRunner().invoke(app, words[:8])
    assert isinstance(refused.exception, BadValues)
    assert "needs a file, its unit and its lag" in str(refused.exception)
