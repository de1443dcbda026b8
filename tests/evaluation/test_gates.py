"""The gate's controls (law L10): a planted edge passes, noise and a leak are refused, and each refusal is named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation.gates import Evidence, evidence_of, judge
from pipelines.evaluation.report import figure_rows
from pipelines.models.losses import log_losses
from pipelines.settings import load_params

PARAMS = load_params()


def evidence(signal: float, seed: int = 0, n: int = 3000, known: float = 1.0) -> Evidence:
    """Return events whose true log-odds vary by `signal`, of which the model knows the share `known`."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    truth = 1 / (1 + np.exp(-(-0.4 + signal * score)))
    y = (rng.random(n) < truth).astype(float)
    p = 1 / (1 + np.exp(-(-0.4 + known * signal * score)))
    base = np.full(n, y.mean())
    faint = np.clip(base + 0.3 * (p - base), 0.01, 0.99)
    gross = np.where(y == 1, 60.0, -40.0) + rng.normal(0, 3, n)
    return with_p(
        Evidence(
            family="validator", loss_name="log loss", classes=("target_first",), loss=np.empty(0),
            baseline_losses={}, p=p, y=y,
            champion_loss=None, trials=1, parity_gap=1e-7, latency_ms=0.1, schema_coverage=1.0, novel_share=0.001,
            baselines={"base_rate": base, "volatility_only": base, "logistic": faint}, gross_bps=gross,
        )
    )  # fmt: skip


def with_p(e: Evidence, **change) -> Evidence:
    """Return the evidence with other probabilities and the losses that follow from them."""
    e = replace(e, **change)
    return replace(
        e, loss=log_losses(e.p, e.y), baseline_losses={k: log_losses(p, e.y) for k, p in e.baselines.items()}
    )


def failed(verdict):
    return {c.name for c in verdict.checks if not c.passed}


def test_a_planted_edge_passes():
    verdict = judge(evidence(0.28), PARAMS)
    assert verdict.passed, verdict.reasons
    assert all(c.n > 0 for c in verdict.checks)


def test_noise_is_refused_in_at_least_19_of_20_seeds():
    rng = np.random.default_rng(9)
    verdicts = []
    for seed in range(20):
        e = evidence(0.0, seed)
        verdicts.append(judge(with_p(e, p=np.clip(0.4 + rng.normal(0, 0.05, len(e.y)), 0.01, 0.99)), PARAMS).passed)
    assert sum(verdicts) <= 1


def test_a_leak_is_refused_and_named():
    verdict = judge(evidence(3.0), PARAMS)
    assert "no_leak_auc" in failed(verdict)
    assert any("LEAK_SUSPECTED" in reason for reason in verdict.reasons)


def test_a_model_that_only_learnt_the_barrier_width_is_refused():
    e = evidence(0.28)
    verdict = judge(with_p(e, baselines={**e.baselines, "volatility_only": e.p}), PARAMS)
    assert "gain_over_volatility_only" in failed(verdict)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"parity_gap": 1e-3}, "export_parity"),
        ({"latency_ms": 500.0}, "latency_ms"),
        ({"schema_coverage": 0.5}, "schema_coverage"),
        ({"novel_share": 0.5}, "novel_share"),
        ({"trials": 10**9}, "deflated_sharpe"),
    ],
)
def test_each_operational_check_can_refuse_alone(change, check):
    assert failed(judge(replace(evidence(0.28), **change), PARAMS)) == {check}


def test_too_few_events_are_refused_without_a_guess():
    e = evidence(0.28, n=200)
    verdict = judge(e, PARAMS)
    assert not verdict.passed
    assert {c.name: c.value for c in verdict.checks}["skill"] is None


def test_a_challenger_must_beat_the_champion_by_the_stated_margin_on_rows_outside_its_training():
    e = evidence(0.28)
    assert "gain_over_champion" in failed(judge(replace(e, champion_loss=e.loss.copy()), PARAMS))
    worse = log_losses(np.clip(1 - e.p, 0.01, 0.99), e.y)
    assert "gain_over_champion" not in failed(judge(replace(e, champion_loss=worse), PARAMS))
    few = worse.copy()
    few[50:] = np.nan
    refused = judge(replace(e, champion_loss=few), PARAMS)
    assert any("50 rows after the champion's data" in reason for reason in refused.reasons)


def test_a_stage_output_of_release_0_5_is_read_under_the_names_of_today(tmp_path):
    fit = {
        "family": "validator", "loss_name": "log loss", "classes": ["target_first"], "parity_gap": 0.0,
        "latency_ms": 0.1, "schema_coverage": 1.0, "novel_share": 0.0, "alone": {"rsi_14": 0.9},
    }  # fmt: skip
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    np.savez(tmp_path / "oof.npz", loss=np.zeros(3), p=np.full(3, 0.5), y=np.ones(3), more_gross_bps=np.arange(3.0))
    read = evidence_of(tmp_path, None, 1)
    assert read.single_column_auc == {"rsi_14": 0.9}
    assert read.gross_bps.tolist() == [0.0, 1.0, 2.0]


def test_figures_of_release_0_5_are_shown_with_their_ensemble_losses():
    estimate = {"value": 0.69, "low": 0.68, "high": 0.7, "n": 100}
    figures = {
        "n": 100, "cost_bps": 5.0, "loss_name": "log loss", "loss": {"model": estimate}, "gain_over": {},
        "reselection": "not judged: windows", "heard": {"lstm": estimate},
    }  # fmt: skip
    assert ["log loss of lstm", "0.6900", "[0.6800, 0.7000]", "100"] in figure_rows(figures, None)
