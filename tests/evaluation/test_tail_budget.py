"""The forecast behind the tail budgets covers losses where plain history fails, and params.yaml uses what passed."""

import re
from datetime import UTC, datetime

import numpy as np
import pytest

from benchmarks.fixture import recording
from benchmarks.tail_budget import (
    BUDGET_RECORDINGS,
    FILTERED,
    LARGER,
    LEAST,
    PLAIN,
    TIMEFRAMES,
    budget_cases,
    closes_of,
    holm_rejects,
    passed,
    used,
)
from benchmarks.tail_risk import PAGE
from pipelines.contracts import TIMEFRAME_SECONDS
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.settings import load_params

PARAMS = load_params()
MONTHLY = PARAMS.model_copy(update={"retrain": PARAMS.retrain.model_copy(update={"interval_days": 28})})  # quicker


def closes_of_changing_volatility(seed, n=44_000, step_s=900.0):
    """Return (n, 2) closes: t-distributed shocks, the log of their volatility an AR(1) with a half-life of ten days."""
    rng = np.random.default_rng(seed)
    shocks, moves = rng.standard_t(6, n) * np.sqrt(4 / 6), rng.normal(size=n)
    kept, level = 0.5 ** (1.0 / 960.0), np.empty(n)
    level[0] = moves[0]
    for i in range(1, n):
        level[i] = kept * level[i - 1] + np.sqrt(1.0 - kept * kept) * moves[i]
    returns = 2e-3 * np.exp(0.6 * level) * shocks
    return np.column_stack([1_704_067_200.0 + step_s * np.arange(1, n + 1), 100.0 * np.exp(np.cumsum(returns))])


def test_on_changing_volatility_plain_history_is_refused_and_the_budgets_forecast_is_not():
    cases = [
        case
        for seed in (1, 2, 3)
        for case in budget_cases(f"market {seed}", "15m", closes_of_changing_volatility(seed), MONTHLY)
    ]  # fmt: skip
    assert min(case.found.n for case in cases) > LEAST
    assert {m: passed(cases, "15m", m) for m in (PLAIN, FILTERED, LARGER)} == {
        PLAIN: False,
        FILTERED: True,
        LARGER: True,
    }
    violations = sum(case.found.violations for case in cases if case.method == FILTERED)
    expected = sum(case.found.expected for case in cases if case.method == FILTERED)
    assert violations == pytest.approx(expected, rel=0.15)
    for market in {case.market for case in cases}:  # not one market by luck
        assert min(p for case in cases if (case.market, case.method) == (market, PLAIN) for p in case.p.values()) < 1e-3


def test_a_timeframe_with_too_few_forecasts_gets_the_larger_of_both():
    cases = [
        case
        for seed in (1, 2)
        for case in budget_cases(str(seed), "15m", closes_of_changing_volatility(seed, 20_000), MONTHLY)
    ]
    assert 0 < max(case.found.n for case in cases) < LEAST
    assert passed(cases, "15m", FILTERED) is None
    assert used(cases, "15m") == LARGER == PARAMS.risk.tail.method(TIMEFRAME_SECONDS["1d"])
    one = budget_cases("1", "15m", closes_of_changing_volatility(1), MONTHLY)  # enough forecasts, but one market alone
    assert passed(one, "15m", FILTERED) is None


def test_later_prices_change_no_forecast():
    closes = closes_of_changing_volatility(4, 12_000)
    garbage = closes.copy()
    garbage[9_000:, 1] *= 3.0
    before, after = (budget_cases("m", "15m", c[:9_100], MONTHLY) for c in (closes, garbage))
    for a, b in zip(before, after, strict=True):
        assert (a.found.n, a.found.es_over_var) == pytest.approx((b.found.n, b.found.es_over_var), rel=0.01)


def test_holm_compares_the_smallest_p_with_the_size_of_all():
    assert not holm_rejects([0.02, 0.5, 0.9, np.nan])
    assert holm_rejects([0.016, 0.5, 0.9, np.nan])
    assert not holm_rejects([np.nan])


def test_params_use_the_filter_alone_where_the_page_says_it_passed_and_nowhere_else():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == list(TIMEFRAMES)
    for timeframe, _, _, filtered, _, _, chosen in rows:
        method = PARAMS.risk.tail.method(TIMEFRAME_SECONDS[timeframe])
        assert method == chosen == (FILTERED if filtered == "passed" else LARGER)
    assert {row[2] for row in rows} <= {"refused", "too few"}  # plain history, the method until release 0.5


def test_on_recorded_hours_the_budgets_forecast_passes_where_plain_history_failed():
    wanted = [r for r in BUDGET_RECORDINGS if r[:2] in {("ETH/USDT", "1h"), ("EUR/USD", "1h")}]
    if not all(recording(names[0]).is_file() for _, _, names, _ in wanted):
        pytest.skip("no recorded hours of ETH and EUR; BELLWETHER_RECORDED names the folder of the recorded candles")
    now, cases = datetime.now(UTC), []
    for market, base, names, _ in wanted:
        bars = schemas.to_matrix(assess(read(recording(names[0]), now).frame, base, now).clean)
        cases += budget_cases(market, "1h", closes_of(bars, "1h", base), MONTHLY)
    assert min(case.found.n for case in cases) > LEAST
    assert {method: passed(cases, "1h", method) for method in (PLAIN, FILTERED, LARGER)} == {
        PLAIN: False, FILTERED: True, LARGER: True,
    }  # fmt: skip
