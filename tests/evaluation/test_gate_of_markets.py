"""The gate of a universe: the pooled figure decides, no market may be worse, and no champion is replaced unseen."""

from dataclasses import replace

import numpy as np

from pipelines.evaluation.gates import Evidence, each_market, judge
from pipelines.settings import load_params

PARAMS, N, SYMBOLS = load_params(), 2_000, ("A/USD", "B/USD", "C/USD")


def evidence(gains, **given):
    """Return evidence of three markets in turn, whose rows gain so much over the base rate each on average."""
    rng, symbol = np.random.default_rng(3), np.arange(N) % len(SYMBOLS)
    p = np.full(N, 0.5)
    loss = rng.normal(0.0, 0.2, N)
    plain = Evidence(
        family="validator", loss_name="log loss", classes=("target_first",), loss=loss,
        baseline_losses={"base_rate": loss + np.array(gains)[symbol] + rng.normal(0.0, 0.05, N)}, p=p,
        y=(rng.random(N) < 0.5).astype(float), champion_loss=None, trials=1, parity_gap=0.0, latency_ms=0.1,
        schema_coverage=1.0, novel_share=0.0, baselines={"base_rate": p}, gross_bps=rng.normal(0.0, 40.0, N),
        symbols=SYMBOLS, symbol=symbol, known=900.0 * (np.arange(N) // len(SYMBOLS)),
    )  # fmt: skip
    return replace(plain, **given)


def lines(e):
    return {check.name: check for check in judge(e, PARAMS).checks}


def test_a_pooled_gain_that_hides_a_worse_market_is_refused_by_its_name():
    found = lines(evidence((0.06, 0.06, -0.03)))
    assert found["gain_over_base_rate"].passed
    assert found["not_worse:A/USD"].passed
    assert found["not_worse:C/USD"].passed is False
    verdict = judge(evidence((0.06, 0.06, -0.03)), PARAMS)
    assert any(reason.startswith("not_worse:C/USD") for reason in verdict.reasons)


def test_no_market_is_refused_by_chance_more_often_than_stated():
    """Holm over three markets without a gain: one of twenty sets."""
    refused = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        e = evidence((0.0, 0.0, 0.0), baseline_losses={"base_rate": rng.normal(0.0, 0.2, N)}, loss=np.zeros(N))
        refused.append(not all(check.passed for check in each_market(e, PARAMS)))
    assert np.mean(refused) < 0.11


def test_a_market_with_few_rows_counts_in_the_pooled_figures_only():
    e = evidence((0.02, 0.02, -0.5), symbol=np.where(np.arange(N) < 40, 2, np.arange(N) % 2))
    line = next(check for check in each_market(e, PARAMS) if check.name == "not_worse:C/USD")
    assert (line.passed, line.n) == (True, 40)
    assert "pooled figures only" in line.detail


def test_a_universe_of_one_has_no_line_of_its_own():
    assert each_market(evidence((0.1, 0.1, 0.1), symbols=SYMBOLS[:1], symbol=np.zeros(N, int)), PARAMS) == []
    assert each_market(evidence((0.1, 0.1, 0.1), symbols=(), symbol=None), PARAMS) == []


def test_a_champion_that_shares_no_market_is_not_replaced():
    found = lines(evidence((0.06, 0.06, 0.06), incomparable="champion version 1 was trained on SIM/USDT on 15m bars"))
    assert found["compared_with_champion"].passed is False
    assert "SIM/USDT" in found["compared_with_champion"].detail
    assert "compared_with_champion" not in lines(evidence((0.06, 0.06, 0.06)))


def test_only_rows_that_both_could_score_are_compared_with_the_champion():
    known_to_champion = np.where(np.arange(N) % 3 == 0, 0.1, np.nan)  # it was trained on A alone
    found = lines(evidence((0.06, 0.06, 0.06), champion_loss=known_to_champion))
    assert found["gain_over_champion"].n == int(np.isfinite(known_to_champion).sum())
