"""M3 as a model family: its rows, its fit, the loss of its probabilities, its baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import REGIMES, Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.models.base import Baseline, Dataset, Export, Log, ModelFamily, NativePredictions
from pipelines.models.export import npz_bytes
from pipelines.models.novelty import fit_novelty
from pipelines.models.regime.density import Density, density_from_dict, fit_density
from pipelines.models.regime.detectors import DETECTORS, readings
from pipelines.models.regime.gaussian import LEAST_ROWS
from pipelines.models.regime.inputs import STEPS, planes, segment_starts
from pipelines.models.regime.served import Ensemble, regime_names
from pipelines.models.snapshot import bar_rows
from pipelines.models.views import VIEWS
from pipelines.params import Params

BATCH_WINDOWS = 2048  # windows in memory at a time


@dataclass(frozen=True, slots=True)
class Regimes:
    """Hold a fitted ensemble and the return density of its probabilities.

    unavailable  detector → why it is not in the vote
    """

    ensemble: Ensemble
    density: Density
    unavailable: Mapping[str, str]

    @property
    def loss_params(self) -> Mapping[str, Any]:
        """Return the density's parameters, JSON-ready."""
        return self.density.to_dict()

    @property
    def calibration_p(self) -> Sequence[Floats]:
        """Return nothing: four probabilities that sum to one have no threshold, and none of them is calibrated."""
        return ()

    def predict(self, inputs: Floats) -> NativePredictions:
        """Return regime probabilities (n, 4) of windows (n, steps, k); p_low is NaN, as no size depends on them."""
        found = self.ensemble.predict(inputs)
        return NativePredictions(found.p, np.full_like(found.p, np.nan), found.members, regime_names(found.code))


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Return the decision bars with a labelled return."""
    return bar_rows(artifacts, "returns", VIEWS["regime"])


def non_overlapping_rows(data: Dataset) -> Ints:
    """Return the numbers of rows whose labels do not overlap in their market: the others repeat their information."""
    chosen, free = [], [-np.inf] * len(data.symbols)
    for i, (known, ended, code) in enumerate(
        zip(data.known.tolist(), data.ended.tolist(), data.symbol.tolist(), strict=True)
    ):
        if known >= free[code]:
            chosen.append(i)
            free[code] = ended
    return np.array(chosen)


def fit_ensemble(data: Dataset, params: Params) -> tuple[Ensemble, dict[str, str]]:
    """Fit every available detector on the newest bars of the training rows; return (ensemble, unavailable detectors).

    Raises  NotEnoughData if weights and detectors differ, if no detector with a weight is available, or under
            LEAST_ROWS rows
    """
    reads, unavailable = readings(data.columns)
    weights = params.regime.weights
    if unknown := sorted(set(weights) ^ set(DETECTORS)):
        raise NotEnoughData(
            f"regime.weights in params.yaml needs one weight for each of {', '.join(DETECTORS)}; correct "
            f"{', '.join(unknown)}"
        )
    if not any(weights[name] > 0 for name in reads):
        raise NotEnoughData(
            f"no regime detector with a weight is available: {unavailable}; bring data with those columns"
        )
    if len(data) < LEAST_ROWS:
        raise NotEnoughData(f"{len(data)} bars to fit regimes on, needs {LEAST_ROWS}: bring a longer history")
    markets = [rows for _, rows in data.by_market()]  # one after the other: no transition leads from one to another
    newest = planes(data.newest()[np.concatenate(markets)], data.columns)
    starts = np.concatenate([segment_starts(data.known[rows]) for rows in markets])
    parameters = {
        name: DETECTORS[name].fit({each: newest[each] for each in inputs}, starts, params)
        for name, inputs in reads.items()
    }
    ensemble = Ensemble(data.columns, reads, parameters, weights, params.regime.margin, params.regime.min_dwell_bars)
    return ensemble, unavailable


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Regimes:
    """Fit the detectors, then the density by maximum likelihood on labels that do not overlap."""
    ensemble, unavailable = fit_ensemble(data, params)
    rows = non_overlapping_rows(data)
    batches = np.array_split(rows, -(-len(rows) // BATCH_WINDOWS))
    p = np.concatenate([ensemble.predict(data.inputs(batch)).p for batch in batches])
    density = fit_density(data.y[rows], data.extras["ewma"][rows], p, data.weight[rows])
    return Regimes(ensemble, density, unavailable)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    """Return (n,) negative log scores in nats of a bundle's probabilities, by that bundle's own density."""
    return density_from_dict(loss_params).losses(data.y, data.extras["ewma"], p)


def _density_baseline(train: Dataset, test: Dataset, tails: bool, volatile: bool) -> Baseline:
    """Return the losses of a density without regimes, fitted on the training rows."""
    rows = non_overlapping_rows(train)
    one = np.ones((len(rows), 1))
    fitted = fit_density(train.y[rows], train.extras["ewma"][rows], one, train.weight[rows], tails, volatile)
    return Baseline(fitted.losses(test.y, test.extras["ewma"], np.ones((len(test), 1))), None)


def ewma(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Score a Gaussian with EWMA volatility; decay, level and power are fitted."""
    return _density_baseline(train, test, tails=False, volatile=True)


def ewma_student(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Score the same with the model's own fat tail: the gain over this is what the regimes add."""
    return _density_baseline(train, test, tails=True, volatile=True)


def constant(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Score one Student-t for every hour."""
    return _density_baseline(train, test, tails=True, volatile=False)


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """Return the export of a fitted `Regimes`: the detectors' arrays and the rules of the vote."""
    ensemble: Ensemble = fitted.ensemble
    arrays = {f"{name}.{key}": value for name, values in ensemble.parameters.items() for key, value in values.items()}
    hmm = ensemble.parameters.get("hmm")
    schema = {
        "classes": list(REGIMES),
        "steps": STEPS,
        "regime": {
            "reads": {name: list(reads) for name, reads in ensemble.reads.items()},
            "labels": {name: list(DETECTORS[name].labels) for name in ensemble.reads},
            "unavailable": dict(fitted.unavailable),
            "weights": dict(ensemble.weights),
            "margin": ensemble.margin,
            "min_dwell_bars": ensemble.min_dwell_bars,
            "transition": None
            if hmm is None
            else {
                name: hmm[key].round(6).tolist()
                for name, key in (("value", "transition"), ("low", "transition_low"), ("high", "transition_high"))
            },
        },
    }
    return Export("regime", {"parameters.npz": npz_bytes(**arrays)}, schema)


def describe(data: Dataset, params: Params) -> list[str]:
    """Return the card's lines on inputs, label and detectors."""
    reads, unavailable = readings(data.columns)
    return [
        f"reads the last {STEPS} decision bars and nothing else; filtered, never smoothed",
        f"label scored: log return over the next {params.regime.horizon_minutes} minutes, basis points; a market has no"
        " true regime, so regimes are scored by the density of that return which they imply",
        f"detectors and weights: {', '.join(f'{name} {params.regime.weights[name]:g}' for name in reads)}",
        *(f"detector {name} leaves the vote: {why}" for name, why in unavailable.items()),
        "transition matrix of the hidden states with 95 % block-bootstrap bounds: schema.json, regime.transition",
    ]


REGIME = ModelFamily(
    family="regime",
    title="Regime detector: TRENDING, RANGING, VOLATILE or QUIET",
    classes=REGIMES,
    loss_name="negative log score of the next hour's return (bps), nats",
    dataset=dataset,
    fit=fit,
    loss=loss,
    baselines={"ewma": ewma, "ewma_student": ewma_student, "constant": constant},
    export=export,
    novelty=lambda rows, params: fit_novelty(rows, params.regime.novelty_quantile),
    describe=describe,
    folds=lambda params: params.regime.folds,
)
