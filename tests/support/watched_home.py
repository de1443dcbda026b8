"""A small installation under watch: real store and sealed bundles, a market of feature rows, and a clock of its own."""

import json
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from flows import monitor as monitor_module
from flows.support import live_outcomes, market_time, watches
from flows.support.installation import Installation
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, ModelAnswer, Outcome
from pipelines.data.timeframes import Grid
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import of_market, reference_files
from pipelines.sealed_folder import seal
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, DecisionRecord, Promotion, Store

SYMBOL, QUARTER = "SIM/USDT", timedelta(minutes=15)
START = datetime(2024, 6, 1, tzinfo=UTC)  # the training ended here
BLOCK = load_params().drift.block_bars
EDGE = {
    "base_rate": 0.45, "gain": 0.013, "low": 0.009, "high": 0.017, "blocks": 214, "horizon_s": 14_400.0,
    "log_odds": 0.3, "block_horizons": 5,
}  # fmt: skip


def feature_rows(n: int, seed: int) -> np.ndarray:
    """Return (n, catalogue) rows of stationary, autocorrelated features."""
    rows = np.random.default_rng(seed).standard_normal((n, len(FEATURES.columns)))
    for i in range(1, n):
        rows[i] += 0.5 * rows[i - 1]
    return rows


@cache
def reference_of_training():
    """Return the files of the drift reference of forty blocks of such rows."""
    watched = feature_rows(40 * BLOCK, 1)[:, [FEATURES.index[name] for name in WATCHED_COLUMNS]]
    return reference_files(watched, WATCHED_COLUMNS, load_params().drift, seed=7)


class WatchedHome:
    """Hold an installation whose validator is watched, and `at`, the present of its clock."""

    def __init__(self, home, monkeypatch, with_reference=True, symbols=(SYMBOL,), trained_on=None):
        """Make one whose universe is `symbols`, and whose champion was trained on them or on `trained_on`."""
        self.at, self.symbols, self.trained_on = START, symbols, trained_on or symbols
        store = Store.open(f"sqlite:///{home / 'store.db'}")
        self.installation = Installation(Settings(home=home, store_url=""), load_params(), store)
        for module in (monitor_module, live_outcomes, market_time, watches):
            monkeypatch.setattr(module, "now", lambda: self.at)
        workspace = self.installation.workspace
        (workspace / "artifacts" / "features").mkdir(parents=True)
        (workspace / "data").mkdir()
        grids = {"grid": Grid("15m").to_dict(), "base_grid": Grid("1m").to_dict()}
        meta = {"symbol": symbols[0], "decision_timeframe": "15m", **grids}
        (workspace / "artifacts" / "features" / "meta.json").write_text(json.dumps(meta))
        self.snapshot(START)
        self.digest = self.bundle(with_reference)
        self.line("challenge", "1", True)
        self.line("promote", "1", True)

    @property
    def store(self):
        return self.installation.store

    def snapshot(self, last):
        """Make the workspace one whose newest data version ends at `last`."""
        shared = {"timeframe": "1m", "grid": Grid("1m").to_dict(), "first": START.isoformat(),
                  "last": last.isoformat(), "clock": "wall"}  # fmt: skip
        manifest = {"format": 2, "markets": {symbol: {"symbol": symbol, **shared} for symbol in self.symbols}}
        (self.installation.workspace / "data" / "manifest.json").write_text(json.dumps(manifest))

    def bundle(self, with_reference):
        """Write a sealed bundle as training does, or as releases before 0.8 did, and return its digest."""
        draft = self.installation.settings.bundles / "draft"
        draft.mkdir(parents=True)
        schema = {"symbols": list(self.trained_on), "trained_through": START.timestamp()}
        if with_reference:
            schema["edge"] = EDGE
            for symbol in self.trained_on:
                for name, content in of_market(reference_of_training(), symbol).items():
                    (draft / name).write_bytes(content)
        (draft / "schema.json").write_text(json.dumps(schema))
        digest = seal(draft, {"family": "validator", "format": 2})
        draft.rename(draft.with_name(digest))
        return digest

    def line(self, action, version, passed, family="validator"):
        """Write a line of the promotion ledger; version 1 has the bundle, the others none."""
        self.store.add_promotion(Promotion(
            at=self.at, actor="gate", action=action, family=family, arm="challenger", from_version=None,
            to_version=version, digest=self.digest if version == "1" else version * 64, run_id=None, data_hash="d",
            git_commit="c", verdict_passed=passed, reason="t",
        ))  # fmt: skip

    def retrain(self, reason="drift"):
        """Request a retrain as the event does; where it is not cooling down, run it and let the gate refuse it."""
        cooldown = timedelta(hours=self.installation.params.retrain.cooldown_hours)
        if self.store.request_retrain("validator", reason, self.at, cooldown).state != "queued":
            return False
        claimed = self.store.claim_retrain("host:1", self.at, timedelta(minutes=30), "validator")
        self.line("challenge", str(claimed.id + 1), False)
        self.store.finish_retrain(claimed.id, "host:1", self.at, True, "was refused by the gate")
        return True

    def bars(self, until, symbols=None, came=None):
        """Store the newest observed bar of each market, which closed at `until` and came then, or at `came`."""
        row = np.full((1, BAR_WIDTH), 100.0)
        row[0, OPEN_TIME] = (until - timedelta(minutes=1)).timestamp()
        for symbol in symbols or self.symbols:
            self.store.add_bars(BarBatch(symbol, row, np.array([until.timestamp()]), came or until))

    def serve(self, rows, others=None, **facts):
        """Store one decision a quarter of an hour from the clock on, with these feature rows; move the clock on.

        others  symbol → rows of the other markets at the same closes; None: only the first market decides
        """
        records = []
        for i, row in enumerate(rows):
            self.at += QUARTER
            records.append(self.decision(row.tobytes(), **facts))
            records += [self.decision(more[i].tobytes(), symbol=name) for name, more in (others or {}).items()]
        self.store.add_decisions(records)
        self.bars(self.at)

    def decision(self, features, p=0.5, action="NO_TRADE", arm="champion", digest=None, symbol=None):
        """Return the decision of now on a market, the first by default."""
        answer = ModelAnswer("validator", version="1", digest=digest or self.digest, p=p)
        name = symbol or self.symbols[0]
        decision = Decision(
            id=self.id_of(name), symbol=name, as_of=self.at, known_at=self.at, ingested_at=self.at, direction=1,
            confidence=0.8, entry=100.0, stop=99.0, take_profits=(101.0,), size=0.05, expiry=None, edge_bps=3.0, p=p,
            regime=None, tier=2, event="fvg", models={"validator": {"champion": answer}}, action=action, arm=arm,
        )  # fmt: skip
        return DecisionRecord(decision, features, b"")

    def id_of(self, symbol):
        """Return the id of the decision of now on a market."""
        return f"d{self.symbols.index(symbol)}-{self.at:%j%H%M}"

    def resolve(self, label, net_bps, symbol=None):
        """Give the decision of now its outcome."""
        name = self.id_of(symbol or self.symbols[0])
        ended = Outcome(name, self.at + QUARTER, label, "time", net_bps + 5.0, net_bps, 5.0)
        self.store.add_outcome(ended, self.at + QUARTER)

    def family_watch(self):
        """Return the watch of the validator in all markets, before it gives any reason to retrain."""
        model = monitor_module.model_under_watch(self.installation, "validator")
        return monitor_module.family_watch(self.installation, model, self.installation.symbols)

    def watch(self):
        """Run the watch of the validator once, as the flow does; return (watch, reasons due now)."""
        watched = self.family_watch()
        return watched, monitor_module.reasons_of(self.installation, watched)

    def alarms(self):
        """Return kind → detail of the open alarms."""
        return {alarm.kind: alarm.detail for alarm in self.store.alarms()}
