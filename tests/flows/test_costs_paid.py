"""What a market pays reaches every place that books a trade: outcomes, the live feed and a candidate's backtest."""

import json
from datetime import timedelta

import numpy as np
import pytest
from support.stage_folders import stage_folders

from flows import monitor as monitor_module
from flows.monitor import resolve_outcomes
from flows.support.backtest import run
from flows.support.installation import Installation
from flows.support.live_feed import Tail, send_live_bars
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import BAR_WIDTH, HALF_SPREAD, OPEN_TIME, ContextFeed, Decision, utc
from pipelines.data import records, schemas
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import InputError
from pipelines.evaluation.backtest import TRADE_FIELDS
from pipelines.features.catalog import FEATURES
from pipelines.settings import Settings, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events
from pipelines.store import BarBatch, DecisionRecord, Store
from serving.risk.codes import NO_EDGE_AFTER_COST

PARAMS = load_params()
SYMBOL, HOUR = "BTC/USDT:USDT", 3600.0
MIDNIGHT = 1_704_067_200.0
FEE_AND_SPREAD = 11.0  # of a perpetual at binance, where no spread was recorded; the default row pays 21
MINUTES = Grid("1m")
MARKET = {
    "symbol": SYMBOL, "timeframe": "1m", "grid": MINUTES.to_dict(), "venue": "binance", "market": "perpetual",
    "first": utc(MIDNIGHT).isoformat(), "last": utc(MIDNIGHT).isoformat(),
}  # fmt: skip


@pytest.fixture
def installation(tmp_path):
    opened = Installation(Settings(home=tmp_path), PARAMS, Store.open(f"sqlite:///{tmp_path}/store.db"))
    (opened.workspace / "data").mkdir(parents=True)
    yield opened
    opened.store.close()


def minutes(first, n):
    """Return n quiet one-minute bars from `first` (epoch seconds) on."""
    bars = np.full((n, BAR_WIDTH), 100.0)
    bars[:, HALF_SPREAD] = np.nan
    bars[:, OPEN_TIME] = first + 60.0 * np.arange(n)
    return bars


def rates(*known):
    """Return a feed of funding rates: (epoch seconds at which it was known, fraction a period)."""
    at, value = np.array(known).T
    return ContextFeed(at, np.full(len(at), CONTEXT_INDEX["funding_rate"]), value)


def long(as_of, hours):
    """Return a long on an event at 100 that no quiet bar stops, until so many hours later."""
    at = utc(as_of)
    return Decision(
        id="d", symbol=SYMBOL, as_of=at, known_at=at, ingested_at=at, action="BUY", direction=1, confidence=0.8,
        entry=100.0, stop=99.0, take_profits=(101.0,), size=0.05, expiry=at + timedelta(hours=hours), edge_bps=1.0,
        p=0.6, regime=None, tier=3, arm="champion", event="fvg",
    )  # fmt: skip


def test_an_outcome_pays_the_row_of_its_venue_and_the_funding_of_snapshot_and_service(installation, monkeypatch):
    monkeypatch.setattr(monitor_module, "open_installation", lambda: installation)
    data, bars = installation.workspace / "data", minutes(MIDNIGHT + 7.9 * HOUR, 510)
    schemas.write_bars(schemas.to_frame(bars[:100], Grid("1m"), None), data / "bars.parquet")
    records.write_context(records.from_feed(rates((MIDNIGHT + 8 * HOUR, 3e-4)), None), data / "context.parquet")
    described = MARKET | {"file": "bars.parquet", "context": "context.parquet"}
    (data / "manifest.json").write_text(json.dumps(described))
    observed = rates((MIDNIGHT + 16 * HOUR, 2e-4))
    known = bars[100:, OPEN_TIME] + 60.0
    installation.store.add_bars(BarBatch(SYMBOL, bars[100:], known, utc(known[-1]), feed=observed))
    installation.store.add_decisions([DecisionRecord(long(MIDNIGHT + 7.95 * HOUR, 8.1), b"", b"")])
    assert resolve_outcomes.fn(SYMBOL).events == 1
    ((_, outcome),) = installation.store.resolved()
    assert (outcome.barrier, outcome.cost_bps) == ("time", pytest.approx(FEE_AND_SPREAD + 3.0 + 2.0))


class OneDecision:
    """Answer the first request with one decision on an event, every other one with none; record outcomes."""

    def __init__(self, decision):
        self.answers, self.outcomes = [decision.to_dict() | {"api": 1}], []

    def observe_all(self, markets):
        """Take bars and records."""
        return {"observations": [{"symbol": symbol} for symbol, *_ in markets]}

    def decide_all(self, symbols):
        """Return the next answer."""
        return {"decisions": [self.answers.pop() if self.answers else {"event": None, "stop": None} for _ in symbols]}

    def outcome_all(self, outcomes):
        """Record outcomes."""
        self.outcomes += outcomes
        return {"outcomes": [{"decision_id": one.decision_id, "new": True} for one in outcomes]}


def test_outcomes_of_the_live_feed_pay_row_and_funding_too(installation):
    start = MIDNIGHT + 7.75 * HOUR
    described = MARKET | {"last": utc(start - 60.0).isoformat()}
    (installation.workspace / "data" / "manifest.json").write_text(json.dumps(described))
    tail = Tail(SYMBOL, start, minutes(start, 60), (None, rates((MIDNIGHT + 8 * HOUR + 0.01, 3e-4))), False)
    client = OneDecision(long(start + 900.0, 0.5))
    send_live_bars(client, installation, [tail])
    (outcome,) = client.outcomes
    assert (outcome.barrier, outcome.cost_bps) == ("time", pytest.approx(FEE_AND_SPREAD))  # filled at the funding time
    client = OneDecision(long(start, 0.5))
    send_live_bars(client, installation, [tail])
    (outcome,) = client.outcomes
    assert outcome.cost_bps == pytest.approx(FEE_AND_SPREAD + 3.0)


def test_an_outcome_that_the_service_refuses_ends_the_live_part_with_its_reason(installation):
    start = MIDNIGHT + 7.75 * HOUR
    described = MARKET | {"last": utc(start - 60.0).isoformat()}
    (installation.workspace / "data" / "manifest.json").write_text(json.dumps(described))
    client = OneDecision(long(start, 0.5))

    def refuse(outcomes):
        kept = {"error": "stored another; kept the first", "kind": "BadValues", "fields": []}
        return {"outcomes": [{"decision_id": one.decision_id} | kept for one in outcomes]}

    client.outcome_all = refuse
    tail = Tail(SYMBOL, start, minutes(start, 60), (None, rates((MIDNIGHT + 8 * HOUR + 0.01, 3e-4))), False)
    with pytest.raises(InputError, match=r"outcome of decision .* was refused: stored another; kept the first"):
        send_live_bars(client, installation, [tail])


def artifacts(installation, p, miss_atr):
    """Write what the stages leave of a perpetual's market, every event of its second half scored alike."""
    spec = PARAMS.simulator.model_copy(update={"history_days": 20, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    base[:, HALF_SPREAD] = np.nan
    decision = resample(base, Grid("1m"), Grid("15m"))
    features, signals = FEATURES.run(decision), SIGNALS.run(decision)
    paid = base[0, OPEN_TIME] + 8 * HOUR * np.arange(1, 60)
    index = events(features, signals).index
    scored = np.flatnonzero(index > len(decision) // 2)
    folder = installation.workspace / "artifacts"
    frames = {"grid": Grid("15m").to_dict(), "base_grid": MINUTES.to_dict()}
    features_folder, labels_folder = stage_folders(folder, **(MARKET | frames))
    (folder / "validator").mkdir(exist_ok=True)
    arrays = {"base": base, "decision": decision, "features": features, "signals": signals,
              "funding": np.column_stack([paid, np.full(len(paid), 3e-4)])}  # fmt: skip
    for name, array in arrays.items():
        np.save(features_folder / f"{name}.npy", array)
    closes = Grid("15m").closes(decision[index, OPEN_TIME])
    np.savez(labels_folder / "events.npz", index=index, known=closes)
    ones = np.ones(len(scored))
    np.savez(folder / "validator" / "oof.npz", row=scored, p=p * ones, p_low=0.9 * p * ones, miss_atr=miss_atr * ones)
    return index[scored]


def test_a_backtest_pays_row_and_funding_and_counts_misses_as_each_fold_saw_them(installation):
    index = artifacts(installation, p=0.95, miss_atr=-0.9)
    trades = run(installation, "validator")[SYMBOL].trades
    gross, net = (trades[:, TRADE_FIELDS.index(name)] for name in ("gross_bps", "net_bps"))
    cost = np.round(gross - net, 6)
    slipped = FEE_AND_SPREAD + PARAMS.costs.stop_slippage_bps
    assert len(trades) > 20
    assert {FEE_AND_SPREAD, FEE_AND_SPREAD + 3.0} < set(cost)
    assert set(cost) <= {paid + held for paid in (FEE_AND_SPREAD, slipped) for held in (0.0, 3.0, -3.0)}
    for miss_atr, refused in ((1.0, 0.0), (-1.0, 1.0)):  # at one chance in three
        artifacts(installation, p=0.34, miss_atr=miss_atr)
        codes = run(installation, "validator")[SYMBOL].codes[index - index[0]]
        assert ((codes & NO_EDGE_AFTER_COST) > 0).mean() == refused
