"""Controls on the simulated market, through the real stages: the planted edge is found, noise is refused, and the
committed data pointer describes exactly the market that is regenerated here."""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulator_edge import MOST_AUC
from flows.ingest import matches_pointer
from flows.support.backtest import ATR, backtest_policy, missed
from flows.support.data_writer import write_snapshot
from pipelines import versioning
from pipelines.costs import costs_of, target_cost_bps, venue_of
from pipelines.data import reference_year
from pipelines.data.data_version import read_bars, read_manifest
from pipelines.data.quality import assess
from pipelines.data.schemas import to_matrix
from pipelines.data.sources import make_source
from pipelines.data.timeframes import Grid
from pipelines.evaluation.backtest import T_ROW
from pipelines.evaluation.gates import Evidence, evidence_of, judge
from pipelines.models.base import present_columns
from pipelines.models.validator import VALIDATOR, expected_miss
from pipelines.settings import ROOT, load_params, read_yaml
from pipelines.stage_outputs import facts_of, features_of, labels_of, read_meta
from pipelines.training import stages
from pipelines.training.fit import complete_rows
from pipelines.training.walk import out_of_fold
from serving.risk.codes import KELLY_ZERO

MINUTES = Grid("1m")

PARAMS = load_params()
DECISIONS_A_WEEK = 7 * 96  # bars of 15 minutes


def history(workspace: Path, **changes: object) -> str:
    """Write the simulator's history into a workspace of its own, as `ingest` does; return its hash."""
    versioning.prepare(workspace, ROOT, ROOT / "params.yaml", str(workspace.parent / "remote"))
    spec = PARAMS.simulator.model_copy(update=changes)
    origin = make_source("simulator", spec=spec)
    until = spec.start + timedelta(days=spec.history_days)
    frame = origin.fetch(spec.symbol, until, datetime.now(UTC))
    records = origin.records(spec.symbol, until)
    write_snapshot(workspace / "data", spec.symbol, assess(frame, MINUTES, until), origin.describe(), records)
    return versioning.snapshot(workspace)


def trained(workspace: Path) -> Path:
    with contextlib.chdir(workspace):
        for words in (["features"], ["labels"], ["train", "validator"]):
            stages.main(words)
    return workspace / "artifacts"


def evidence(folder: Path) -> Evidence:
    return evidence_of(folder / "validator", None, 1)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("planted") / "workspace"
    history(workspace)
    trained(workspace)
    return workspace


def test_the_committed_pointer_describes_the_regenerated_market(market):
    """Byte for byte on the CPU type the year was made on; elsewhere 1,000 sampled bars within 1e-9."""
    data, about = market / "data", read_yaml(ROOT / "data.dvc")["meta"]
    facts = read_manifest(data).market()
    assert reference_year.holds_sample(to_matrix(read_bars(data, facts)))
    if about["cpu"] == reference_year.cpu_type() and "symbols" in about:
        assert reference_year.market_digest(data, facts) == about["symbols"][facts["symbol"]]


def test_another_market_than_the_committed_one_is_not_called_so(market):
    bars = read_bars(market / "data", read_manifest(market / "data").market())
    assert matches_pointer("0" * 32, {PARAMS.simulator.symbol: bars.iloc[:1000]}) == ""


def test_the_planted_edge_passes_the_gate_without_a_suspected_leak(market):
    verdict = judge(evidence(market / "artifacts"), PARAMS)
    assert verdict.passed, verdict.reasons
    leak = next(check for check in verdict.checks if check.name == "no_leak_auc")
    assert leak.value <= MOST_AUC  # the default edge is one that a leak check never suspects


@pytest.fixture(scope="module")
def traded(market):
    """(the backtest, lower bound and net break-even of the event at every row of it)."""
    folder = market / "artifacts"
    features = features_of(folder, PARAMS.simulator.symbol)
    arrays = {n: np.load(features / f"{n}.npy") for n in ("base", "decision", "features", "signals")}
    with (
        np.load(labels_of(folder, PARAMS.simulator.symbol) / "events.npz") as f,
        np.load(folder / "validator" / "oof.npz") as oof,
    ):
        bars, p, p_low, miss_atr = f["index"][oof["row"]], oof["p"], oof["p_low"], missed(oof)
    costs = costs_of(PARAMS.costs, *venue_of(facts_of(read_meta(folder))))
    assert costs.row == "simulator spot taker"
    result = backtest_policy(
        **arrays,
        bars=bars,
        p=p,
        p_low=p_low,
        miss_atr=miss_atr,
        grid=Grid("15m"),
        base_grid=MINUTES,
        params=PARAMS,
        costs=costs,
    )
    low, stop_bps = np.full(len(arrays["decision"]), np.nan), 1e4 * arrays["features"][:, ATR]
    low[bars] = p_low
    break_even = (stop_bps + target_cost_bps(costs, arrays["decision"])) / (2.5 * stop_bps)
    return result, low[bars[0] :], break_even[bars[0] :]


def test_the_rule_of_emission_is_met_at_least_ten_times_a_simulated_week(traded):
    """U3 requires confidence and a return above cost; risk then sizes on the lower bound of p, often at zero."""
    result, *_ = traded
    met = np.isin(result.codes, (0, KELLY_ZERO)).sum() / (len(result.codes) / DECISIONS_A_WEEK)
    assert met >= 10.0
    assert 3.0 < result.emissions_per_week.value < met
    assert result.net_bps.low > 0.0


def test_no_trade_of_the_simulated_year_is_sized_under_its_net_break_even(traded):
    """Gross odds sized 63 of 560 trades whose lower bound was under it."""
    result, p_low, break_even = traded
    at = result.trades[:, T_ROW].astype(int)
    assert len(at) > 100
    assert (p_low[at] > break_even[at]).all()
    once_sized = (result.codes == KELLY_ZERO) & (p_low > 0.4)  # 0.4 is the break-even of the gross odds 1.5
    assert once_sized.sum() > 30


def test_every_fold_states_what_its_own_training_rows_returned_where_the_target_was_missed(market):
    with np.load(market / "artifacts" / "validator" / "oof.npz") as oof:
        known, miss_atr = oof["known"], oof["miss_atr"]
    of_folds = np.unique(miss_atr)
    assert len(of_folds) == PARAMS.splits.folds
    assert (np.diff(miss_atr[np.argsort(known)]) != 0.0).sum() == PARAMS.splits.folds - 1  # one stretch a fold
    assert ((of_folds > -1.0) & (of_folds < -0.8)).all()
    data = VALIDATOR.dataset(market / "artifacts", PARAMS)
    first = data.select_rows(data.ended < known.min())
    assert expected_miss(first) == pytest.approx(miss_atr[known.argmin()], abs=0.02)  # less the embargo
    schema = json.loads((market / "artifacts" / "validator" / "bundle" / "schema.json").read_text())
    assert schema["miss_atr"] == pytest.approx(expected_miss(data), abs=0.01)


def trained_again(market: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """Train the validator on the market's events after `change` of their arrays; return its artifacts."""
    folder.mkdir()
    shutil.copytree(market / "artifacts", folder / "artifacts", ignore=shutil.ignore_patterns("validator"))
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(market / name, folder)
    (folder / "data").symlink_to(market / "data")
    events = labels_of(folder / "artifacts", PARAMS.simulator.symbol) / "events.npz"
    with np.load(events) as f:
        labels = dict(f)
    change(labels)
    np.savez(events, **labels)
    with contextlib.chdir(folder):
        stages.main(["train", "validator"])
    return folder / "artifacts"


def test_pure_noise_is_refused(market, tmp_path):
    """Outcomes of a third of the year later: as many, as clustered and as paid as the real ones, and not these rows'.

    Markets that are simulated without an edge are the part `gate_on_noise` of `make evidence`.
    """

    def move(labels):
        for name in ("y", "gross_bps"):
            labels[name] = np.roll(labels[name], len(labels["y"]) // 3)

    verdict = judge(evidence(trained_again(market, tmp_path / "noise", move)), PARAMS)
    failed = {check.name for check in verdict.checks if not check.passed}
    assert "gain_over_base_rate" in failed
    assert any(name.startswith("lift_bps") for name in failed)


def test_a_leaking_column_is_exploited_and_then_refused_by_name(market, tmp_path):
    leaking = []

    def leak(labels):
        columns = labels["columns"].tolist()
        leaking.append("momentum_10" if "momentum_10" in columns else str(columns[0]))
        noise = np.random.default_rng(3).normal(0.0, 0.2, len(labels["y"]))
        labels["rows"][:, columns.index(leaking[0])] = labels["y"] + noise

    verdict = judge(evidence(trained_again(market, tmp_path / "leak", leak)), PARAMS)
    check = next(check for check in verdict.checks if check.name == "no_leak_auc")
    assert (verdict.passed, check.passed) == (False, False)
    assert check.value > 0.95
    assert f"{leaking[0]} alone ranks it" in check.detail


def test_a_second_model_of_the_same_family_is_no_better_than_the_first(market, tmp_path):
    """A/A: another seed on the same rows is not superior to its twin, whichever came first, nor found inferior."""
    superior = PARAMS.model_copy(update={"gate": PARAMS.gate.model_copy(update={"against_champion": "superior"})})
    folder = market / "artifacts"
    data = VALIDATOR.dataset(folder, PARAMS)
    embargo_s = (PARAMS.labels.horizon_bars + 500) * 900.0
    data = data.select_columns(present_columns(data.newest(), data.columns)[0])
    twins = [
        out_of_fold(
            VALIDATOR,
            data.select_rows(complete_rows(data)),
            PARAMS.model_copy(update={"seed": seed}),
            embargo_s,
            lambda _: None,
        )
        for seed in (PARAMS.seed, PARAMS.seed + 1)
    ]
    base = evidence(folder)
    for one, other in (twins, twins[::-1]):
        compared = replace(base, loss=one.loss, p=one.p, champion_loss=other.loss)
        better, no_worse = (
            {check.name: check.passed for check in judge(compared, params).checks}["gain_over_champion"]
            for params in (superior, PARAMS)
        )
        assert better is not True
        assert no_worse is not False


def test_other_days_of_the_same_market_have_another_hash(tmp_path):
    once, again, other = (
        history(tmp_path / name, seed=seed, history_days=30) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert once == again != other
