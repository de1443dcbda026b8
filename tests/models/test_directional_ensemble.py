"""M5: the stated weights are golden; a member without a prediction leaves the mean."""

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.errors import UnknownName
from pipelines.family_params import EnsembleParams
from pipelines.models.directional_ensemble import directional, ensemble_losses, vote
from pipelines.models.losses import log_losses
from pipelines.settings import load_params

WEIGHTS = load_params().ensemble.model_dump()
ORDER = ("logistic", "random_forest", "lstm", "xgboost")
PROBABILITIES = {"logistic": 0.52, "random_forest": 0.55, "lstm": 0.60, "xgboost": 0.40}
MEMBERS = {name: np.array([p]) for name, p in PROBABILITIES.items()}


@pytest.mark.parametrize(
    ("phase", "weights"),
    [
        (None, (0.25, 0.30, 0.30, 0.15)),
        ("QUIET", (0.25, 0.30, 0.30, 0.15)),
        ("TRENDING", (0.20, 0.25, 0.35, 0.20)),
        ("RANGING", (0.30, 0.20, 0.20, 0.30)),
        ("VOLATILE", (0.25, 0.30, 0.30, 0.15)),
    ],
)
def test_every_phase_has_its_stated_weights(phase, weights):
    predicted = directional(MEMBERS, WEIGHTS, phase)
    np.testing.assert_allclose([predicted.weights[name][0] for name in ORDER], weights)
    assert predicted.p[0] == pytest.approx(sum(w * PROBABILITIES[name] for w, name in zip(weights, ORDER, strict=True)))
    assert predicted.missing == [()]


def test_a_missing_member_leaves_the_mean_and_does_not_count_as_one_half():
    incomplete = {**MEMBERS, "lstm": np.array([np.nan])}
    del incomplete["xgboost"]
    predicted = directional(incomplete, WEIGHTS)
    assert predicted.p[0] == pytest.approx((0.25 * 0.52 + 0.30 * 0.55) / 0.55)
    assert predicted.missing == [("lstm", "xgboost")]
    assert sum(w[0] for w in predicted.weights.values()) == pytest.approx(1.0)
    assert predicted.weights["lstm"][0] == 0.0


def test_rows_are_averaged_one_by_one_and_a_row_without_members_is_nan():
    predicted = directional({"logistic": np.array([0.3, np.nan]), "lstm": np.array([np.nan, np.nan])}, WEIGHTS)
    assert predicted.p[0] == pytest.approx(0.3)
    assert np.isnan(predicted.p[1])
    assert predicted.missing[1] == ORDER
    assert all(w[1] == 0.0 for w in predicted.weights.values())


def test_an_unknown_phase_or_a_member_without_a_weight_is_refused():
    with pytest.raises(UnknownName, match="SIDEWAYS"):
        directional(MEMBERS, WEIGHTS, "SIDEWAYS")
    with pytest.raises(UnknownName, match="oracle"):
        directional({**MEMBERS, "oracle": np.array([1.0])}, WEIGHTS)


def test_the_out_of_fold_table_has_the_ensemble_and_every_member():
    rng = np.random.default_rng(0)
    y = (rng.random(50) < 0.5).astype(float)
    oof = {f"member_{name}": rng.uniform(0.3, 0.7, 50) for name in ORDER} | {"p": np.zeros(50)}
    losses = ensemble_losses(oof, y, WEIGHTS)
    assert set(losses) == {"ensemble_stated", *ORDER}
    p = sum(WEIGHTS["stated"][name] * oof[f"member_{name}"] for name in ORDER)
    np.testing.assert_allclose(losses["ensemble_stated"], log_losses(p, y))
    with pytest.raises(UnknownName, match="member_"):
        ensemble_losses({"p": y}, y, WEIGHTS)


@pytest.mark.parametrize("wrong", [{"lstm": 0.5}, {"lstm": 1.0, "xgboost": 0.0}, {"lstm": 1.5, "logistic": -0.5}])
def test_weights_that_do_not_sum_to_one_or_name_other_members_are_refused(wrong):
    with pytest.raises(ValidationError):
        EnsembleParams(stated={"lstm": 0.5, "logistic": 0.5}, phases={"TRENDING": wrong})


def test_the_vote_on_one_row_is_that_of_the_arrays_to_the_last_bit():
    rng, names = np.random.default_rng(3), list(WEIGHTS["stated"])
    for _ in range(200):
        members = {name: None if rng.random() < 0.2 else float(rng.random()) for name in names if rng.random() < 0.9}
        phase = rng.choice([*WEIGHTS["phases"], "QUIET", None])
        whole = directional({n: np.array([np.nan if p is None else p]) for n, p in members.items()}, WEIGHTS, phase)
        one = vote(members, WEIGHTS, phase)
        if not members:
            assert (one.p, one.missing) == (None, tuple(names))
            continue
        assert one.p == (None if np.isnan(whole.p[0]) else whole.p[0])
        assert (one.missing, one.weights) == (whole.missing[0], {n: share[0] for n, share in whole.weights.items()})
    with pytest.raises(UnknownName, match="oracle"):
        vote({"oracle": 1.0}, WEIGHTS)
