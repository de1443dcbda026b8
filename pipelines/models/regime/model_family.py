"""M3 as a recipe: what it is fitted on, what its words are worth, what it has to beat."""

from collections.abc import Mapping
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

PIECE = 2048  # windows held in memory at a time


@dataclass(frozen=True, slots=True)
class Regimes:
    """A fitted ensemble and the density its answers stand for; silent: detector → why it leaves the vote."""

    ensemble: Ensemble
    density: Density
    silent: Mapping[str, str]

    @property
    def loss_params(self) -> Mapping[str, Any]:
        return self.density.to_dict()

    def predict(self, inputs: Floats) -> NativePredictions:
        said = self.ensemble.predict(inputs)
        return NativePredictions(said.p, np.full_like(said.p, np.nan), said.members, regime_names(said.code))


def dataset(artifacts: Path, params: Params) -> Dataset:
    return bar_rows(artifacts, "returns", VIEWS["regime"])


def non_overlapping_rows(data: Dataset) -> Ints:
    """Rows whose labels do not overlap: the next begins where the last ended. They tell a density as much as all do."""
    chosen, free = [], -np.inf
    for i, (known, ended) in enumerate(zip(data.known.tolist(), data.ended.tolist(), strict=True)):
        if known >= free:
            chosen.append(i)
            free = ended
    return np.array(chosen)


def fit_ensemble(data: Dataset, params: Params) -> tuple[Ensemble, dict[str, str]]:
    """Every detector on the newest bars of the training rows, in time order."""
    reads, silent = readings(data.columns)
    weights = params.regime.weights
    if unknown := sorted(set(weights) ^ set(DETECTORS)):
        raise NotEnoughData(f"params.yaml regime.weights must weigh {', '.join(DETECTORS)}; see {', '.join(unknown)}")
    if not any(weights[name] > 0 for name in reads):
        raise NotEnoughData(f"no regime detector with a weight can speak: {silent}; bring data with those columns")
    if len(data) < LEAST_ROWS:
        raise NotEnoughData(f"{len(data)} bars to fit regimes on, needs {LEAST_ROWS}: bring a longer history")
    newest, starts = planes(data.newest(), data.columns), segment_starts(data.known)
    parameters = {
        name: DETECTORS[name].fit({each: newest[each] for each in inputs}, starts, params)
        for name, inputs in reads.items()
    }
    rules = {"margin": params.regime.margin, "min_dwell_bars": params.regime.min_dwell_bars}
    return Ensemble(data.columns, reads, parameters, weights, **rules), silent  # type: ignore[arg-type]


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Regimes:
    """Detectors first, then the few numbers of the density, by maximum likelihood on labels that do not overlap."""
    ensemble, silent = fit_ensemble(data, params)
    rows = non_overlapping_rows(data)
    p = np.concatenate([ensemble.predict(data.inputs(part)).p for part in np.array_split(rows, -(-len(rows) // PIECE))])
    density = fit_density(data.y[rows], data.extras["ewma"][rows], p, data.weight[rows])
    return Regimes(ensemble, density, silent)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    """(n,) negative log score of any bundle's answers, by that bundle's own density."""
    return density_from_dict(loss_params).losses(data.y, data.extras["ewma"], p)


def _rival(train: Dataset, test: Dataset, tails: bool, volatile: bool) -> Baseline:
    rows = non_overlapping_rows(train)
    one = np.ones((len(rows), 1))
    fitted = fit_density(train.y[rows], train.extras["ewma"][rows], one, train.weight[rows], tails, volatile)
    return Baseline(fitted.losses(test.y, test.extras["ewma"], np.ones((len(test), 1))), None)


def ewma(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Gaussian EWMA volatility; decay, level and power fitted."""
    return _rival(train, test, tails=False, volatile=True)


def ewma_student(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """The same with the model's own fat tail: what the regimes add is the gain over this."""
    return _rival(train, test, tails=True, volatile=True)


def constant(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """One Student-t for every hour."""
    return _rival(train, test, tails=True, volatile=False)


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    ensemble: Ensemble = fitted.ensemble
    arrays = {f"{name}.{key}": value for name, told in ensemble.parameters.items() for key, value in told.items()}
    hmm = ensemble.parameters.get("hmm")
    schema = {
        "classes": list(REGIMES),
        "steps": STEPS,
        "regime": {
            "reads": {name: list(reads) for name, reads in ensemble.reads.items()},
            "words": {name: list(DETECTORS[name].labels) for name in ensemble.reads},
            "silent": dict(fitted.silent),
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
    reads, silent = readings(data.columns)
    return [
        f"reads the last {STEPS} decision bars and nothing else; filtered, never smoothed",
        f"label scored: log return over the next {params.regime.horizon_minutes} minutes, basis points; a market has no"
        " true regime, so a regime is worth what it says of that return's density",
        f"detectors and weights: {', '.join(f'{name} {params.regime.weights[name]:g}' for name in reads)}",
        *(f"detector {name} leaves the vote: {why}" for name, why in silent.items()),
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
