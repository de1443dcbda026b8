"""Outcomes of families, run by run over a home: what is stored is what the labels stage computes on all its bars."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from support.labelled_market import DIGESTS, LOSS_PARAMS, MINUTES, PARAMS, QUARTERS, SYMBOL, decided, market_with_a_gap

from flows.support import live_outcomes
from flows.support.installation import Installation
from flows.support.live_outcomes import Resolved, live_losses, resolve_market
from pipelines.contracts import OPEN_TIME, utc
from pipelines.data import schemas
from pipelines.errors import UnknownName
from pipelines.families import FAMILIES
from pipelines.family_labels import LABELS, READ_BY, longest_horizon, without_broken_rows
from pipelines.settings import Settings
from pipelines.store import BarBatch, Promotion, Store

HISTORY = 1_100  # decision bars in the data version; the rest is observed
HORIZON = longest_horizon(QUARTERS, PARAMS)


@pytest.fixture(scope="module")
def market():
    return market_with_a_gap(16, gap=1_000)


@pytest.fixture
def home(tmp_path, market):
    """Return an installation with the history as its data version, champions of all families, and no bar observed."""
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    installation = Installation(Settings(home=tmp_path, store_url=""), PARAMS, store)
    data, until = installation.data, market.closes[HISTORY - 1]
    base = market.base[market.base[:, OPEN_TIME] < until]
    schemas.write_bars(schemas.to_frame(base, MINUTES, None), data / "bars.parquet")
    manifest = {
        "symbol": SYMBOL, "timeframe": "1m", "grid": MINUTES.to_dict(), "file": "bars.parquet",
        "first": utc(base[0, 0]).isoformat(), "last": utc(base[-1, 0]).isoformat(), "source": {"source": "simulator"},
    }  # fmt: skip
    (data / "manifest.json").write_text(json.dumps(manifest))
    for family, digest in DIGESTS.items():
        bundle = installation.settings.bundles / digest
        bundle.mkdir(parents=True)
        schema = {"symbols": [SYMBOL], "trained_through": until, "loss_params": LOSS_PARAMS[digest]}
        (bundle / "schema.json").write_text(json.dumps(schema))
        store.add_promotion(Promotion(
            at=datetime.now(UTC), actor="gate", action="promote", family=family, arm="champion", from_version=None,
            to_version="1", digest=digest, run_id=None, data_hash="d", git_commit="c", verdict_passed=True, reason="t",
        ))  # fmt: skip
    yield installation
    store.close()


def live(home, market, first, last):
    """Observe decision bars [first, last) and decide at each of their closes."""
    since, until = market.closes[first - 1], market.closes[last - 1]
    bars = market.base[(market.base[:, OPEN_TIME] >= since) & (market.base[:, OPEN_TIME] < until)]
    home.store.add_bars(BarBatch(SYMBOL, bars, MINUTES.closes(bars[:, OPEN_TIME]), utc(until)))
    rng = np.random.default_rng(first)
    home.store.add_decisions([decided(market, at, rng) for at in range(first, last)])


def labels_of_the_stage(market, family):
    """Return (known, label) of a family's rows that were decided on and are final."""
    name = next(name for name in LABELS if READ_BY.get(name, name) == family)
    rows, _ = without_broken_rows(LABELS[name](market, PARAMS), name, market)
    final = market.closes[-1] - HORIZON * 900.0
    chosen = (rows["known"] >= market.closes[HISTORY]) & (rows["known"] <= final)
    return rows["known"][chosen].tolist(), rows["y"][chosen].tolist()


def test_runs_over_a_live_market_store_each_label_once_as_training_computes_it(home, market, monkeypatch):
    read = []
    decisions = Store.decisions
    monkeypatch.setattr(
        Store, "decisions",
        lambda self, symbol, since=None: read.append(found := decisions(self, symbol, since=since)) or found,
    )  # fmt: skip
    assert resolve_market(home, SYMBOL) == Resolved(0, 0)
    stored = 0
    for first in range(HISTORY, len(market.decision), 100):
        live(home, market, first, min(first + 100, len(market.decision)))
        stored += resolve_market(home, SYMBOL).families
    assert max(map(len, read)) <= 100 + HORIZON + 1  # of 436: only what was not final before
    assert resolve_market(home, SYMBOL) == Resolved(0, 0)
    found = {family: home.store.family_outcomes(family) for family in FAMILIES}
    assert sum(map(len, found.values())) == stored > 800
    for family in ("validator", "predictor", "regime"):
        got = [one.as_of.timestamp() for one in found[family]], [one.label for one in found[family]]
        assert got == labels_of_the_stage(market, family)
    assert [one.as_of.timestamp() for one in found["pattern"]] == labels_of_the_stage(market, "pattern")[0]
    losses = {each.family: each for each in live_losses(home, [SYMBOL])}
    assert list(losses) == list(FAMILIES)
    for family, each in losses.items():
        assert each.outcomes == len(found[family])
        assert each.mean == pytest.approx(np.mean([one.losses[DIGESTS[family]] for one in found[family]]))
        assert 0 < each.blocks.n < 436


def test_a_bundle_that_is_not_here_scores_nothing_and_stops_nothing(home, market):
    (home.settings.bundles / DIGESTS["regime"] / "schema.json").unlink()
    live(home, market, HISTORY, HISTORY + 60)
    assert resolve_market(home, SYMBOL).families > 0
    assert home.store.family_outcomes("regime") == []
    assert [each.family for each in live_losses(home, [SYMBOL])] == ["validator", "pattern", "predictor"]


def test_without_an_outcome_there_is_no_loss_and_an_unknown_market_is_refused(home, market):
    assert live_losses(home, [SYMBOL]) == []
    home.store.add_decisions([replace(decided(market, HISTORY, np.random.default_rng(0)))])
    with pytest.raises(UnknownName):
        live_outcomes.market_known(home, "XAU/USD")
