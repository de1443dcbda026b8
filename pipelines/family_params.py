"""Sections of `params.yaml` that define how the model families are fitted, and the base of every section.

`pipelines.params` has the other sections and the whole.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FrozenParams(BaseModel):
    """Refuse unknown keys and any change of a value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaselineParams(FrozenParams):
    """Define the logistic baselines and the logistic member of the directional ensemble. `logistic_c`: 1 / L2."""

    logistic_c: float = Field(gt=0)


class ForestParams(FrozenParams):
    """Fit of a random forest. `leaf_events`: effective rows that a leaf holds at least."""

    trees: int = Field(gt=0)
    depth: int = Field(gt=0)
    leaf_events: int = Field(gt=0)


class BoostedParams(FrozenParams):
    """Fit of boosted trees. `leaf_events`: events that a leaf holds at least, converted to XGBoost's hessian sum."""

    trees: int = Field(gt=0)
    depth: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    leaf_events: float = Field(gt=0)
    subsample: float = Field(gt=0, le=1)
    reg_lambda: float = Field(ge=0)


class ValidatorParams(BoostedParams):
    """Fit of the validator family."""

    decay_half_lives_events: list[float] = Field(min_length=1)
    half_life_tail: float = Field(gt=0, lt=1)
    left_out: list[str] = []
    novelty_quantile: float = Field(gt=0, lt=1)


class PredictorParams(FrozenParams):
    """Fit of the predictor family."""

    configuration: Literal["four", "core"]
    horizon_bars: int = Field(gt=0)
    folds: int = Field(ge=1)
    max_windows: int = Field(gt=0, le=20_000)
    tail_share: float = Field(gt=0, lt=1)
    epochs: int = Field(gt=0, le=100)
    patience: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    forest: ForestParams
    boosted: BoostedParams
    novelty_quantile: float = Field(gt=0, lt=1)


class PatternParams(FrozenParams):
    """Fit of the pattern family."""

    target_atr: float = Field(gt=0)
    stop_atr: float = Field(gt=0)
    horizon_bars: int = Field(gt=0)
    folds: int = Field(ge=1)
    tail_share: float = Field(gt=0, lt=1)
    forest: ForestParams
    boosted: BoostedParams
    max_windows: int = Field(gt=0)
    channels: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    epochs: int = Field(gt=0)
    patience: int = Field(gt=0)
    batch: int = Field(gt=0)
    network_rate: float = Field(gt=0)
    pooled_rows: float = Field(gt=0)
    confidence: float = Field(gt=0, lt=1)
    novelty_quantile: float = Field(gt=0, lt=1)


class RegimeParams(FrozenParams):
    """Define the detectors of the regime family, and the weights of their votes."""

    horizon_minutes: int = Field(gt=0)
    folds: int = Field(ge=1)
    weights: dict[str, float]
    margin: float = Field(ge=0, lt=1)
    min_dwell_bars: int = Field(gt=0)
    trend_bars: int = Field(gt=1, lt=128)
    adx_edge: float = Field(gt=0)
    volatility_edges: tuple[float, float]
    volume_quantiles: tuple[float, float]
    momentum_share: float = Field(gt=0, le=1)
    momentum_edge: float = Field(gt=0)
    sentiment_edges: tuple[float, float, float, float]
    softness: float = Field(gt=0)
    em_iterations: int = Field(gt=0)
    prior_rows: float = Field(ge=0)
    prior_moves: float = Field(gt=0)
    novelty_quantile: float = Field(gt=0, lt=1)


class EnsembleParams(FrozenParams):
    """Set the weights of the ensemble's members, as stated and by market phase; each set sums to 1."""

    stated: dict[str, float]
    phases: dict[str, dict[str, float]]

    @model_validator(mode="after")
    def _check_weights(self) -> "EnsembleParams":
        """Refuse weights that name other members, are negative or do not sum to 1."""
        for name, weights in {"stated": self.stated, **self.phases}.items():
            if set(weights) != set(self.stated):
                raise ValueError(f"{name} weighs {sorted(weights)}, stated weighs {sorted(self.stated)}")
            if min(weights.values()) < 0 or abs(sum(weights.values()) - 1.0) > 1e-9:
                raise ValueError(f"{name} sums to {sum(weights.values()):g}; weights are not negative and sum to 1")
        return self


class TrainingParams(FrozenParams):
    """Set where networks are fitted: weights, and so the digest of a bundle, differ between devices."""

    device: Literal["cpu", "cuda"] = "cpu"
