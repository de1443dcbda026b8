"""A challenger next to its champion: the paired fit in its own process, and the columns a reselection leaves out."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from support.stage_folders import stage_folders

from flows import evaluate as evaluate_module
from flows import train as train_module
from flows.evaluate import champion_on_unseen, fit_paired, gather, incomparable, later_rows, rival, trial_sharpes
from flows.retrain import reselections
from flows.support.installation import Installation, now
from flows.train import register
from pipelines import versioning
from pipelines.contracts import BAR_WIDTH, OPEN_TIME
from pipelines.data.data_version import DataVersion, write_manifest
from pipelines.data.timeframes import Grid
from pipelines.errors import StateError
from pipelines.evaluation.gates import judge
from pipelines.evaluation.report import read_oof
from pipelines.features.catalog import FEATURES
from pipelines.settings import ROOT, Settings, load_params, read_yaml
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.store import Promotion, Store
from pipelines.tracking import Version
from pipelines.training import stages

BEFORE, AFTER, STEP_S = 3_000, 600, 10_800.0  # an event every twelve bars of 15 minutes
META = {
    "data_hash": "d1", "symbol": "SIM/USDT", "venue": "simulator", "market": "spot", "has_funding": False,
    "base_timeframe": "1m", "decision_timeframe": "15m", "catalogue_hash": "c1",
    "base_grid": Grid("1m").to_dict(), "grid": Grid("15m").to_dict(),
}  # fmt: skip


class Registry:
    """Keep versions in memory, as MLflow does with their tags."""

    def __init__(self):
        self.known = []

    def log_candidate(self, family, bundle, *, params, metrics, points, files, tags, title, example, data):
        number = str(len(self.known) + 1)
        self.known.insert(
            0, Version(family, number, f"run{number}", tags["digest"], tags["data_hash"], "c", "pending", (), tags)
        )
        self.logged, self.points, self.example, self.data = params, list(points), example, data
        return self.known[0]

    def metrics(self, run_id):
        return {}

    def versions(self, family):
        return self.known

    def version(self, family, version):
        return next(each for each in self.known if each.version == version)

    def judge(self, verdict):
        newest = self.known[0]
        self.known[0] = Version(
            *[getattr(newest, name) if name != "verdict" else verdict for name in Version.__slots__]
        )


def write_events(artifacts, n):
    """Write the validator's labels of n events: the first column predicts the outcome, the others do not."""
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(BEFORE + AFTER, len(VALIDATOR_COLUMNS)))
    y = (rng.random(len(rows)) < 1 / (1 + np.exp(-1.5 * rows[:, 0]))).astype(float)
    known = 1.7e9 + STEP_S * np.arange(len(rows))
    features, labels = stage_folders(artifacts, **META)
    bars = np.zeros((len(rows), BAR_WIDTH))
    bars[:, OPEN_TIME] = known
    np.save(features / "decision.npy", bars)
    np.save(features / "features.npy", rng.normal(size=(len(rows), len(FEATURES.columns))))
    ones = np.ones(len(rows))
    arrays = {
        "rows": rows, "y": y, "uniqueness": ones, "known": known, "ended": known + STEP_S, "gross_bps": 20 * y - 10,
        "direction": ones, "atr": 0.01 * ones, "regime": 0 * ones, "volatility": rng.normal(size=(len(rows), 2)),
        "cost_bps": 5 * ones, "target_cost_bps": 5 * ones, "spread_known": 0 * ones,
    }  # fmt: skip
    columns = np.array(VALIDATOR_COLUMNS)
    np.savez(labels / "events.npz", columns=columns, **{k: v[:n] for k, v in arrays.items()})


def write_params(path):
    """Write the parameters of a quick validator."""
    tree = read_yaml(ROOT / "params.yaml")
    tree["validator"] |= {"trees": 20, "depth": 3}
    tree["splits"] |= {"folds": 2, "calibration_stretches": 2}
    tree["importance"] |= {"repeats": 1}
    tree["gate"] |= {"min_paired": 100}
    path.write_text(yaml.safe_dump(tree))


def fit(installation):
    """Run the validator's stages and register what they made."""
    workspace = installation.workspace
    with contextlib.chdir(workspace):
        stages.main(["train", "validator"])
        stages.main(["evaluate", "validator"])
    digest = json.loads((workspace / "artifacts/validator/fit.json").read_text())["digest"]
    return register(installation, "validator", digest, "d1")


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """Return an installation whose champion was fitted on BEFORE events, and whose newest fit on AFTER more."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, store_url="")
    settings.workspace.mkdir(parents=True)
    write_params(settings.workspace / "params.yaml")
    store = Store.open(f"sqlite:///{home / 'store.db'}")
    made = Installation(settings, load_params(settings.workspace / "params.yaml"), store)
    made.data.mkdir()
    held = {"SIM/USDT": {"timeframe": "1m", "rows": 9, "first": "2024-01-01", "last": "2024-02-01", "files": ["a"]}}
    write_manifest(made.data, DataVersion(held))
    made.__dict__["tracking"] = Registry()
    write_events(made.workspace / "artifacts", BEFORE)
    champion = fit(made)
    settings.bundles.mkdir(parents=True, exist_ok=True)
    (made.workspace / "artifacts/validator/bundle").rename(settings.bundles / champion.digest)
    store.add_promotion(
        Promotion(
            at=now(), actor="gate", action="promote", family="validator", arm="champion", from_version=None,
            to_version="1", digest=champion.digest, run_id="r", data_hash="d", git_commit="c", verdict_passed=True,
            reason="t",
        )
    )  # fmt: skip
    write_events(made.workspace / "artifacts", BEFORE + AFTER)
    fit(made)
    yield made
    store.close()


def test_the_challenger_is_compared_by_a_fit_that_ends_where_the_champions_data_end(installation, monkeypatch):
    monkeypatch.setattr(evaluate_module, "open_installation", lambda: installation)
    with pytest.raises(StateError, match="bellwether retrain validator"):
        gather(installation, "validator")  # nothing was paired yet
    fit_paired.fn("validator", "2")
    found = gather(installation, "validator")
    both = np.isfinite(found.champion_loss) & np.isfinite(found.paired_loss)
    assert 0.9 * AFTER < both.sum() <= AFTER
    # the same recipe on the same rows is the same model, whatever came later
    np.testing.assert_allclose(found.paired_loss[both], found.champion_loss[both], atol=1e-5)
    assert np.abs(found.loss[both] - found.champion_loss[both]).max() > 0.01
    path = installation.workspace / "artifacts/paired/validator.npz"
    with np.load(path) as f:
        np.savez(path, **{**f, "through": np.float64(0.0)})
    with pytest.raises(StateError, match="bellwether retrain validator"):
        gather(installation, "validator")


def test_the_candidate_is_registered_with_its_data_its_charts_and_an_example_with_its_answer(installation):
    logged = installation.tracking
    (data,) = logged.data
    assert (data.name, data.digest, data.source.name, data.columns) == ("SIM/USDT", "d1", "d1", VALIDATOR_COLUMNS)
    assert data.profile == {"rows": 9, "first": "2024-01-01", "last": "2024-02-01"}
    asked, answered = logged.example
    assert len(asked) == len(answered) == 5
    assert answered["p"].between(0.0, 1.0).all()
    charts = {name: [each for each in logged.points if each.chart == name] for name in {p.chart for p in logged.points}}
    assert set(charts) == {"walk_forward/loss", "walk_forward/gain_over_base_rate", "calibration/observed_share"}
    gains = charts["walk_forward/gain_over_base_rate"]
    assert [each.step for each in gains] == list(range(1, 21))
    oof = read_oof(installation.workspace / "artifacts" / "validator")
    found = np.mean([each.value for each in gains])
    assert found == pytest.approx(float((oof["loss_base_rate"] - oof["loss"]).mean()), rel=0.05)
    assert gains[-1].at_s == oof["known"][-1]
    observed = charts["calibration/observed_share"]
    assert observed[0].step < 500 < observed[-1].step
    assert observed[0].value < 0.5 < observed[-1].value


@contextlib.contextmanager
def fitted_on(installation, *symbols):
    """Let the newest fit say that it was trained on these symbols."""
    file = installation.workspace / "artifacts/validator/bundle/schema.json"
    stored = file.read_text()
    file.write_text(json.dumps(json.loads(stored) | {"symbols": list(symbols)}))
    yield
    file.write_text(stored)


def test_a_champion_that_shares_no_market_with_the_candidate_is_not_replaced_and_named(installation):
    with fitted_on(installation, "BTC/USDT", "ETH/USDT"):
        found = gather(installation, "validator")
    assert found.champion_loss is None
    line = next(check for check in judge(found, installation.params).checks if check.name == "compared_with_champion")
    assert line.passed is False
    for word in ("version 1", "SIM/USDT on 15m bars", "BTC/USDT, ETH/USDT", "bellwether symbols add"):
        assert word in line.detail


def test_a_champion_that_shares_one_market_is_compared_there(installation):
    with fitted_on(installation, "BTC/USDT", "SIM/USDT"):
        champion = rival(installation, "validator")
        assert later_rows(installation, champion) > 0
        assert incomparable(installation, "validator") == ""
    champion.schema["symbols"] = ["BTC/USDT"]  # as if it had never seen the market of these rows
    assert later_rows(installation, champion) == 0
    at = np.arange(50)
    assert np.isnan(champion_on_unseen(installation, champion, at)).all()


def test_three_half_lives_are_three_trials(installation):
    assert installation.store.count_trials("validator") == 3 * len(installation.tracking.known)
    assert installation.tracking.known[0].tags["half_life_events"] in {"500", "2000", "8000"}


def test_the_next_retrain_leaves_out_what_the_newest_version_proposed_until_such_a_challenger_is_refused(installation):
    newest = installation.tracking.known[0]
    proposed = newest.tags["reselect_without"].split(",")
    assert newest.tags["left_out"] == "none"
    assert VALIDATOR_COLUMNS[0] not in proposed
    assert len(proposed) > 0.3 * len(VALIDATOR_COLUMNS)
    assert reselections(installation, ["validator", "predictor"]) == {"validator": proposed}
    versioning.set_left_out(installation.workspace, {"validator": proposed})
    narrow = fit(installation)
    columns = json.loads((installation.workspace / "artifacts/validator/bundle/schema.json").read_text())["columns"]
    assert columns == [name for name in VALIDATOR_COLUMNS if name not in proposed]
    assert narrow.tags["left_out"].split(",") == proposed
    assert installation.tracking.logged["validator.left_out"] == proposed
    assert set(reselections(installation, ["validator"])["validator"]) >= set(proposed)
    installation.tracking.judge("refused")
    assert reselections(installation, ["validator"]) == {}


def test_a_proposal_of_another_market_or_of_a_release_without_the_tag_changes_nothing(installation):
    newest = installation.tracking.known[0]
    for tags in (
        {**newest.tags, "symbols": "BTC/USDT", "left_out": "none"},
        {"symbol": META["symbol"], "decision_timeframe": "15m"},
    ):
        known = SimpleNamespace(versions=lambda family, tags=tags: [SimpleNamespace(tags=tags, verdict="pending")])
        other = SimpleNamespace(tracking=known, meta=lambda: META, params=load_params())
        assert train_module.reselected(other, "validator") == []


def version_with(verdict="refused", **tags):
    """Return an installation whose newest version has these tags, of the market of META, and which a person edits."""
    market = {key: META[key] for key in ("symbol", "decision_timeframe")}
    newest = SimpleNamespace(tags=market | {"reselect_without": "none"} | tags, verdict=verdict)
    return SimpleNamespace(
        tracking=SimpleNamespace(versions=lambda family: [newest]), meta=lambda: META, params=load_params()
    )


def leaving_out(installation, *columns):
    """Write these columns as a person does."""
    validator = installation.params.validator.model_copy(update={"left_out": list(columns)})
    installation.params = installation.params.model_copy(update={"validator": validator})
    return installation


def test_columns_that_a_person_left_out_are_no_reselection():
    one, two, three = VALIDATOR_COLUMNS[:3]
    # a refused version without any reselection of its own: its proposal still stands
    refused = leaving_out(version_with(left_out=one, left_out_by_hand=one, reselect_without=f"{one},{two}"), one)
    assert train_module.reselected(refused, "validator") == [two]
    # by a release without the tag
    refused = leaving_out(version_with(left_out=one, reselect_without=two), one)
    assert train_module.reselected(refused, "validator") == [two]
    # the person took it back
    assert train_module.reselected(version_with("passed", left_out=one, left_out_by_hand=one), "validator") == []
    both = leaving_out(version_with(left_out=f"{one},{three}", left_out_by_hand=one, reselect_without=two), one)
    assert train_module.reselected(both, "validator") == []  # such a challenger was refused
    both.tracking.versions("validator")[0].verdict = "passed"
    assert train_module.reselected(both, "validator") == [three, two]


def test_luck_is_judged_by_the_trials_of_this_market_alone():
    other = {"symbol": "BTC/USDT", "decision_timeframe": "15m"}
    slower = {"symbol": META["symbol"], "decision_timeframe": "1h"}
    tags = [META, other, slower, {}, META]
    versions = [SimpleNamespace(run_id=run, tags=each) for run, each in enumerate(tags)]
    ratios = [{"lift_sharpe.value": 0.1}, *[{"lift_sharpe.value": 9.0}] * 3, {}]
    tracking = SimpleNamespace(versions=lambda family: versions, metrics=lambda run: ratios[run])
    assert trial_sharpes(SimpleNamespace(tracking=tracking, meta=lambda: META), "validator") == [0.1]
