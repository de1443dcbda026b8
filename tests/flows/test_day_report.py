"""The report of a market day: what lies in it, by the clock of the market and by the time of day it was lived in."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from typer.testing import CliRunner

from bellwether.cli import learning
from flows import report
from flows.support import market_time
from flows.support.installation import Installation
from pipelines.contracts import BAR_WIDTH, Decision, Outcome
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, DecisionRecord, Promotion, Store

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
BEGIN = datetime(2024, 6, 5, tzinfo=UTC)  # of the market day that is reported
CAME = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)  # its first bar arrived; a market hour took a minute
WENT = CAME + 24 * MINUTE


def lived(at):
    """Return the time of day at which a moment of the market arrived."""
    return CAME + (at - BEGIN) / 60


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Return a home that lived through three market days of two symbols."""
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    found = Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    (found.workspace / "data").mkdir(parents=True)
    market = {"timeframe": "1m", "grid": Grid("1m").to_dict(), "clock": "market", "first": BEGIN.isoformat()}
    markets = {name: {**market, "symbol": name, "last": (BEGIN - DAY).isoformat()} for name in ("A/USD", "B/USD")}
    (found.workspace / "data" / "manifest.json").write_text(json.dumps({"format": 2, "markets": markets}))
    for symbol in markets:
        for hour in range(-24, 30):
            row = np.full((1, BAR_WIDTH), 100.0)
            row[0, 0] = (BEGIN + hour * HOUR).timestamp()
            closes = np.array([row[0, 0] + 60.0])
            store.add_bars(BarBatch(symbol, row, closes, lived(BEGIN + hour * HOUR)))
    yield found
    store.close()


def decide(installation, symbol, at, action="NO_TRADE", **facts):
    """Store a decision of this moment of the market; return its id."""
    facts = {"reasons": ("CONFIDENCE: .4 under .7",) if action == "NO_TRADE" else ()} | facts
    made = Decision(
        id=f"{symbol}{at:%d%H%M}", symbol=symbol, as_of=at, known_at=at, ingested_at=lived(at), direction=1,
        confidence=0.8, entry=100.0, stop=99.0, take_profits=(101.0,), size=0.05, expiry=None, edge_bps=3.0, p=0.5,
        regime=None, tier=2, event="fvg", action=action, arm="champion", **facts,
    )  # fmt: skip
    installation.store.add_decisions([DecisionRecord(made, b"", b"")])
    return made.id


def resolve(installation, decision_id, at, net_bps):
    installation.store.add_outcome(
        Outcome(decision_id, at, int(net_bps > 0), "target" if net_bps > 0 else "stop", net_bps + 5.0, net_bps, 5.0),
        lived(at),
    )


@pytest.fixture
def day(installation):
    """Fill the day: two trades that end on it, one that stays open, and what lies around it."""
    store = installation.store
    early = decide(installation, "A/USD", BEGIN - 2 * HOUR, "BUY")
    resolve(installation, early, BEGIN + HOUR, 20.0)
    won = decide(installation, "B/USD", BEGIN + 3 * HOUR, "SELL")
    resolve(installation, won, BEGIN + 5 * HOUR, -8.0)
    decide(installation, "B/USD", BEGIN + 23 * HOUR, "BUY")
    decide(installation, "A/USD", BEGIN + 4 * HOUR)
    late = decide(installation, "A/USD", BEGIN + DAY, "BUY")
    resolve(installation, late, BEGIN + DAY + HOUR, 500.0)
    store.raise_alarm("drift", "warning", "validator: score 9", BEGIN + 6 * HOUR)  # of the market
    store.raise_alarm("disk_low", "high", "2 GB", lived(BEGIN + 7 * HOUR))  # by the time of day
    store.raise_alarm("disk_low", "high", "of another day", WENT + HOUR)
    request = store.request_retrain("validator", "drift: score 9", BEGIN + 6 * HOUR, HOUR)
    store.claim_retrain("host:1", CAME, HOUR, "validator")
    store.finish_retrain(request.id, "host:1", BEGIN + 7 * HOUR, True, "version 2 passed the gate")
    line = Promotion(
        at=lived(BEGIN + 7 * HOUR), actor="policy", action="promote", family="validator", arm="champion",
        from_version="1", to_version="2", digest="a" * 64, run_id=None, data_hash="d", git_commit="c",
        verdict_passed=True, reason="drift",
    )  # fmt: skip
    store.add_promotion(line)
    store.add_promotion(replace(line, at=WENT + DAY, to_version="9"))
    return report.gather(installation, BEGIN.date())


def test_results_are_those_of_the_day_by_symbol_and_together_with_their_source(day):
    assert (day["day"], day["complete"], set(day["symbols"])) == ("2024-06-05", True, {"A/USD", "B/USD"})
    every = day["all"]
    assert (every["decisions"], every["emitted"], every["trades_closed"], every["won"]) == (3, 2, 2, 1)
    assert every["net_bps"]["n"] == 2
    assert every["net_bps"]["value"] == pytest.approx(6.0)
    assert every["equity_bps"] == pytest.approx(0.05 * 20.0 - 0.05 * 8.0)
    assert every["equity_bps"] == pytest.approx(sum(one["equity_bps"] for one in day["symbols"].values()))
    assert every["source"].startswith("ledger")
    assert day["symbols"]["A/USD"]["refusals"] == {"CONFIDENCE": 1}
    assert [(t["symbol"], t["net_bps"]) for t in day["trades"]] == [("A/USD", 20.0), ("B/USD", -8.0), ("B/USD", None)]


def test_learning_of_the_day_is_found_by_either_clock(day):
    assert [alarm["detail"] for alarm in day["drift"]] == ["validator: score 9"]
    assert [alarm["detail"] for alarm in day["alarms"]] == ["2 GB"]
    assert [(one["family"], one["state"]) for one in day["retrains"]] == [("validator", "done")]
    assert [one["version"] for one in day["promotions"]] == ["2"]
    assert day["lived_through"] == [CAME.isoformat(), WENT.isoformat()]


def test_page_and_figures_are_written_whole_and_the_page_needs_no_network(installation, day):
    page = report.write(installation, day)
    assert page == installation.settings.home / "reports" / "2024-06-05" / "report.html"
    text = page.read_text()
    assert "Report of 2024-06-05" in text
    assert "A/USD" in text
    assert "version 2 passed the gate" in text
    assert "src=" not in text
    assert "http" not in text
    assert json.loads(page.with_name("report.json").read_text()) == day
    assert sorted(file.name for file in page.parent.iterdir()) == ["report.html", "report.json"]


def test_the_newest_day_that_is_over_is_the_default_and_one_to_come_is_refused(installation, monkeypatch):
    assert report.newest_day(installation) == BEGIN.date()
    assert report.gather(installation, date(2024, 6, 6))["complete"] is False
    with pytest.raises(BadTimes, match="still to come"):
        report.gather(installation, date(2024, 6, 8))
    monkeypatch.setattr(market_time, "is_market_clocked", lambda markets: False)
    monkeypatch.setattr(report, "is_market_clocked", lambda markets: False)
    monkeypatch.setattr(market_time, "now", lambda: CAME)
    quiet = report.gather(installation, CAME.date())  # a market that trades now: no bar of it came today
    assert (quiet["all"]["decisions"], quiet["all"]["net_bps"]["value"]) == (0, None)


def test_the_command_prints_a_row_a_symbol_and_json(installation, day, monkeypatch):
    monkeypatch.setattr("flows.support.installation.open_installation", lambda: installation)
    shown = CliRunner().invoke(learning.app, ["report", "2024-06-05"])
    assert shown.exit_code == 0, shown.output
    assert "A/USD" in shown.stdout
    assert "1 retrains" in shown.stdout
    assert "report.html" in shown.stdout
    as_json = json.loads(CliRunner().invoke(learning.app, ["report", "--json"]).stdout)
    assert as_json["all"]["decisions"] == 3
    assert as_json["page"].endswith("report.html")
    assert isinstance(CliRunner().invoke(learning.app, ["report", "June"]).exception, BadTimes)
