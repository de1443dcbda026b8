"""`params.yaml`, typed: everything that can change a metric, one class a section. `pipelines.settings` loads it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.family_params import (
    BaselineParams,
    EnsembleParams,
    FrozenParams,
    PatternParams,
    PredictorParams,
    RegimeParams,
    TrainingParams,
    ValidatorParams,
)
from pipelines.market_params import CostParams, DataParams, FeedParams, SimulatorParams, UniverseParams


class ModelsParams(FrozenParams):
    """Set whether a model answers for symbols that it was not trained on, and who does without the model service."""

    unseen_symbols: Literal["refuse", "allow"] = "refuse"
    fallback: Literal["local", "abstain"] = "local"


class PromotionParams(FrozenParams):
    """Set whether versions are promoted by themselves; a person always may."""

    enabled: bool = True


class AccountParams(FrozenParams):
    """Set which account limits rest on: the ledger's own fills, or what a venue reported at `/fill`."""

    source: Literal["ledger", "reported"] = "ledger"


class SignalsParams(FrozenParams):
    """Name the signals whose events open nothing."""

    disabled: tuple[str, ...] = ()


class PortfolioParams(FrozenParams):
    """Define how `bellwether portfolio` allocates among the symbols.

    method       whose trades it proposes; every method is in its table
    window_days  market days a method sees; every_days: between two decisions
    band_share   an asset is left alone while its share is within this part of 1/N of its target
    weights      symbol → share of the method `custom`; caps: symbol → market capitalisation, in one currency
    """

    method: str = "equal"
    window_days: int = Field(default=60, ge=3)
    every_days: int = Field(default=7, ge=1)
    band_share: float = Field(default=0.2, ge=0, le=1)
    weights: dict[str, float] = Field(default_factory=dict)
    caps: dict[str, float] = Field(default_factory=dict)


class LabelParams(FrozenParams):
    """Define the triple barrier: distances in ATR, horizon in decision bars."""

    target_atr: float = Field(gt=0)
    stop_atr: float = Field(gt=0)
    horizon_bars: int = Field(gt=0)
    min_target_to_cost: float = Field(ge=0)
    decay_half_life_events: float = Field(gt=0)
    few_effective_rows: float = Field(gt=0)

    @property
    def odds(self) -> float:
        """Return b of the Kelly formula: target distance over stop distance."""
        return self.target_atr / self.stop_atr


class ExitParams(FrozenParams):
    """Define how a position is closed. `legs`: (distance in ATR, share of the position), nearest first."""

    plan: Literal["plain", "ladder", "trailing", "ladder_trailing"]
    legs: list[tuple[float, float]] = Field(min_length=1, max_length=3)
    trailing_atr: float = Field(gt=0, allow_inf_nan=False)
    break_even_after_leg: int = Field(ge=0)

    @property
    def laddered(self) -> bool:
        """Return whether the plan closes a position in legs."""
        return self.plan in ("ladder", "ladder_trailing")

    @property
    def trails(self) -> bool:
        """Return whether the plan trails its stop."""
        return self.plan in ("trailing", "ladder_trailing")

    @model_validator(mode="after")
    def _check_legs(self) -> "ExitParams":
        """Refuse legs that are out of order, do not share out the whole position, or leave none to protect."""
        distances, shares = [leg[0] for leg in self.legs], [leg[1] for leg in self.legs]
        if not all(near < far < float("inf") for near, far in zip([0.0, *distances], distances, strict=False)):
            raise ValueError(
                f"legs lie {distances} ATR away; each must be further out than the one before, from above 0"
            )
        if not min(shares) > 0 or not abs(sum(shares) - 1.0) <= 1e-9:
            raise ValueError(f"legs take {shares} of the position, sum {sum(shares):g}; each above 0, together 1")
        if self.break_even_after_leg >= len(self.legs):
            raise ValueError(
                f"break_even_after_leg {self.break_even_after_leg} of {len(self.legs)} legs leaves no position to "
                "protect; at most one less than there are legs, 0 = never"
            )
        return self


class SplitParams(FrozenParams):
    """Define the walk-forward folds of training."""

    folds: int = Field(ge=2)
    min_train_fraction: float = Field(gt=0, lt=1)
    calibration_stretches: int = Field(ge=2)
    recent_share: float = Field(gt=0, lt=1)


class GateParams(FrozenParams):
    """Set what a candidate has to reach before it may be promoted; docs/results/power.md has the reason of each."""

    min_events: int
    coverage: float = Field(gt=0, le=1)
    bootstrap: int = Field(ge=100)
    size: float = Field(gt=0, lt=0.5)
    max_calibration_error: float = Field(gt=0, lt=1)
    min_cells: int = Field(ge=60)
    leak_auc: float = Field(gt=0.5, lt=1)
    leak_auc_sure: float = Field(gt=0.5, lt=1)
    leak_auc_low: float = Field(gt=0.5, lt=1)
    leak_chance: float = Field(gt=0, lt=0.5)
    leak_chance_sure: float = Field(gt=0, lt=0.5)
    least_gain: dict[str, Annotated[float, Field(gt=0)]]
    min_deflated_sharpe: float = Field(gt=0, lt=1)
    min_schema_coverage: float
    max_novel_share: float
    max_parity_gap: float
    max_latency_ms: float
    against_champion: Literal["superior", "non_inferior"]
    min_improvement_share: float = Field(ge=0)
    non_inferiority_share: float = Field(gt=0, le=1)
    min_paired: int = Field(ge=60)


class RampParams(FrozenParams):
    """Set how a challenger that has won begins to act, before it is promoted; of families whose answer acts.

    canary_weight, split_weight  share of (symbol, block) that it decides: first the one, then the other
    canary_blocks, split_blocks  how long each lasts; 0: not at all
    """

    canary_weight: float = Field(default=0.1, gt=0, lt=1)
    canary_blocks: int = Field(default=5, ge=0)
    split_weight: float = Field(default=0.5, gt=0, lt=1)
    split_blocks: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _check_order(self) -> "RampParams":
        """Return self; raise ValueError where the second weight is the smaller: an arm would change within a block."""
        if self.split_weight < self.canary_weight:
            raise ValueError(f"split_weight {self.split_weight} is under canary_weight {self.canary_weight}")
        return self


class GuardrailParams(FrozenParams):
    """Set the limits of harm, compared with the champion on the same closes; their power is in docs/results/ab.md.

    level        chance that a harmless challenger is ever stopped by one of them, each
    abstention   by how much its share of abstentions may exceed the champion's
    novelty      by how much its share of inputs unlike its training may exceed the champion's
    calibration  largest distance of its mean probability from what happened
    latency_ms   longest median time of one answer, in the process that serves
    drawdown     largest loss of the account since the challenger began to act, share of equity
    """

    level: float = Field(default=0.01, gt=0, lt=0.5)
    abstention: float = Field(default=0.1, gt=0, lt=1)
    novelty: float = Field(default=0.2, gt=0, lt=1)
    calibration: float = Field(default=0.05, gt=0, lt=0.5)
    latency_ms: float = Field(default=25.0, gt=0)
    drawdown: float = Field(default=0.02, gt=0, lt=1)


class ExperimentParams(FrozenParams):
    """Set how a challenger that passed the gate is compared with its champion; docs/results/ab.md has the reasons.

    year_budget        expected false promotions in a market year, all families together, at most
    budget_share       of what the year has left: the alpha that an experiment spends when it begins
    block_horizons     length of a block; one more is left out after each
    bound_deviations   block means are clipped to so many of their standard deviations, as the gate's rows had it
    futility_alpha     chance of stopping a challenger that gains `gate.min_improvement_share` of the family's skill,
                       and of serving the version before again though it is no better
    expires_after_blocks  blocks without a verdict after which an experiment ends
    probation_blocks   blocks after a promotion in which the version before is kept, to be served again
    sample_ratio_alpha chance of stopping a split whose arms are assigned as they should be
    """

    year_budget: float = Field(default=1.0, gt=0)
    budget_share: float = Field(default=0.02, gt=0, lt=1)
    block_horizons: int = Field(default=5, ge=5)
    bound_deviations: float = Field(default=5.0, gt=1)
    futility_alpha: float = Field(default=0.2, ge=0, lt=1)
    expires_after_blocks: int = Field(default=120, ge=1)
    ramp: RampParams = RampParams()
    guardrails: GuardrailParams = GuardrailParams()
    probation_blocks: int = Field(default=10, ge=1)
    sample_ratio_alpha: float = Field(default=0.001, gt=0, lt=0.1)


class ImportanceParams(FrozenParams):
    """Define the permutation importance and the selection of columns."""

    repeats: int = Field(gt=0)
    correlation: float = Field(gt=0, le=1)
    low_share: float = Field(gt=0, lt=1)
    reselect_over: float = Field(gt=0, lt=1)


class ValidationParams(FrozenParams):
    """Set the weights of the validation layers."""

    traditional: float = Field(ge=0)
    ai: float = Field(ge=0)
    correlation: float = Field(ge=0)
    valid_above: float = Field(ge=0, lt=1)


class FusionParams(FrozenParams):
    """Set the weights of the signal categories, overall and by regime. Those in `disabled` have no vote."""

    weights: dict[str, float]
    regimes: dict[str, dict[str, float]]
    disabled: tuple[str, ...] = ()
    min_consensus: float
    validation: ValidationParams

    @model_validator(mode="after")
    def _check_disabled(self) -> "FusionParams":
        """Refuse an unknown category, and a vote in which nobody is left."""
        if unknown := [name for name in self.disabled if name not in self.weights]:
            raise ValueError(f"disabled: no category {', '.join(unknown)}; known: {', '.join(self.weights)}")
        if not any(weight for name, weight in self.weights.items() if name not in self.disabled):
            raise ValueError("disabled names every category with a weight, so nobody votes; leave one out")
        return self


class LearningParams(FrozenParams):
    """Set how fast online weights follow outcomes and how far they may move."""

    use: Literal["shadow", "act"] = "shadow"
    floor: float = Field(ge=0, lt=1)
    max_step_a_day: float = Field(gt=0, lt=1)
    history_decisions: int = Field(gt=0)
    outcomes_a_source: int = Field(gt=0)
    rate: float = Field(gt=0)
    share: float = Field(ge=0, lt=1)
    discount: float = Field(gt=0, le=1)
    prior_outcomes: float = Field(gt=0)


Threshold = Literal["strength", "confidence", "confluence", "unicorn", "phase"]
Phase = Literal["UNKNOWN", "ACCUMULATION", "MANIPULATION", "DISTRIBUTION"]  # in the order of their codes (S12)


class BaseThresholds(FrozenParams):
    """Set the thresholds of a decision before the regime's factors."""

    min_strength: float = Field(ge=0, le=100)
    min_confidence: float = Field(gt=0, le=1)
    min_confluence: float = Field(ge=0, le=1)
    min_unicorn: float = Field(ge=0, le=21)
    phase: Phase


class ThresholdFactors(FrozenParams):
    """Set the factors of one regime on the base thresholds."""

    min_strength: float = Field(default=1.0, gt=0)
    min_confidence: float = Field(default=1.0, gt=0)
    min_confluence: float = Field(default=1.0, gt=0)
    min_unicorn: float = Field(default=1.0, gt=0)


class ThresholdParams(FrozenParams):
    """Set the thresholds of a decision by regime, and which of them refuse."""

    require: tuple[Threshold, ...] = ("confidence",)
    base: BaseThresholds
    regimes: dict[Literal["TRENDING", "RANGING", "VOLATILE", "QUIET"], ThresholdFactors]
    high_unicorn: float = Field(gt=0, le=21)
    high_unicorn_confidence: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _check_reachable(self) -> "ThresholdParams":
        """Refuse a threshold that no signal can reach."""
        for name, factors in self.regimes.items():
            for key, most in (("min_strength", 100.0), ("min_confidence", 1.0), ("min_unicorn", 21.0)):
                needed = getattr(self.base, key) * getattr(factors, key)
                if needed > most:
                    raise ValueError(f"{name} needs {key} {needed:g}, above the possible {most:g}")
        return self


class RegimeLimit(FrozenParams):
    """Set the largest position (of equity) and stop distance (of price) in one regime, as fractions."""

    max_position: float = Field(ge=0, le=1)
    max_stop: float = Field(gt=0, le=1)


class BudgetParams(FrozenParams):
    """Set the limits of the portfolio, as fractions of equity."""

    max_gross: float
    max_strategy: float
    max_market: float
    max_asset: float
    max_correlated: float
    max_es: float
    max_stress: float


class TailParams(FrozenParams):
    """Set the forecast behind the budgets of the tail: the filter, and the timeframes on which it counts alone."""

    decay: float = Field(gt=0, lt=1)
    filtered_alone: list[Literal["1m", "5m", "15m", "1h", "4h", "1d"]]

    def method(self, timeframe: str) -> str:
        """Return the name of the forecast on decision bars of this timeframe, for the record of a decision."""
        alone = timeframe in self.filtered_alone
        return "filtered_historical" if alone else "larger of filtered_historical and historical"


class Stage(FrozenParams):
    """Define one stage of the drawdown limit: from `at` of the limit on, sizes are multiplied by `size`."""

    at: float = Field(gt=0, le=1)
    size: float = Field(ge=0, le=1)


class StageParams(FrozenParams):
    """Define the stages of the drawdown limit, in order."""

    reduce: Stage
    half: Stage
    exit_only: Stage
    flat: Stage

    @model_validator(mode="after")
    def _check_order(self) -> "StageParams":
        """Refuse stages that do not rise, or whose size grows."""
        stages = [self.reduce, self.half, self.exit_only, self.flat]
        if [s.at for s in stages] != sorted({s.at for s in stages}) or self.flat.at != 1.0:
            raise ValueError("`at` has to rise from stage to stage and end at 1, the drawdown limit itself")
        if [s.size for s in stages] != sorted((s.size for s in stages), reverse=True) or self.exit_only.size != 0.0:
            raise ValueError("`size` may not rise from stage to stage, and is 0 from exit_only on")
        return self


class RiskParams(FrozenParams):
    """Define sizing and the limits of account and portfolio."""

    sizing: Literal["kelly", "confidence"]
    kelly_fraction: float = Field(ge=0, le=1)
    kelly_cap: float = Field(ge=0, le=1)
    volatility_target: float = Field(gt=0)
    regime_multiplier: dict[str, float]
    regime_limits: dict[str, RegimeLimit]
    budgets: BudgetParams
    account_currency: str = Field(default="USD", pattern=r"^[A-Z0-9]{1,10}$")
    tail: TailParams
    stages: StageParams
    max_open: int
    max_trades_per_day: int
    max_daily_loss: float
    max_drawdown: float
    max_data_age_bars: float


class TierParams(FrozenParams):
    """Set the size by tier of the service, and when a tier changes."""

    size: dict[int, float]
    good_bars: int = Field(ge=1)
    faults_in_row: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "TierParams":
        """Refuse sizes that rise from a better tier to a worse one."""
        sizes = [self.size.get(tier, -1.0) for tier in (1, 2, 3, 4)]
        if len(self.size) != 4 or sizes != sorted(sizes, reverse=True) or sizes[0] > 1.0 or sizes[3] != 0.0:
            raise ValueError("size needs tiers 1 to 4, from at most 1, never rising, to 0: tier 4 opens nothing")
        return self


class BreakerParams(FrozenParams):
    """Set when a circuit breaker trips."""

    spike_atr: float = Field(gt=1)
    book_bars: int = Field(ge=20)
    min_books: int = Field(ge=2)
    spread_multiple: float = Field(gt=1)
    depth_share: float = Field(gt=0, lt=1)
    stale_bars: int = Field(ge=1)
    fault_multiple: int = Field(ge=1)
    trades: int = Field(ge=10)
    fills: int = Field(ge=2)
    max_rejected: int = Field(ge=1)
    max_slippage_bps: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_limits(self) -> "BreakerParams":
        """Refuse a limit of rejected fills, or of recorded books, that can never be reached."""
        if self.max_rejected > self.fills:
            raise ValueError(f"max_rejected {self.max_rejected} can never be reached among {self.fills} fills")
        if self.min_books > self.book_bars:
            raise ValueError(f"min_books {self.min_books} can never be recorded in {self.book_bars} bars")
        return self


class FalseAlarms(FrozenParams):
    """Split the false alarms of one installation, in alarms a month, over the watches that measure."""

    values: float = Field(gt=0)
    missing: float = Field(gt=0)
    loss: float = Field(gt=0)

    @model_validator(mode="after")
    def within_budget(self) -> "FalseAlarms":
        """Refuse a split of more than one false alarm a month."""
        total = self.values + self.missing + self.loss
        if total > 1.0:
            raise ValueError(f"values + missing + loss is {total:g} a month, at most 1")
        return self


class DriftParams(FrozenParams):
    """Define the watch on inputs (values and share missing) and on the champion's gain over the base rate."""

    block_bars: int = Field(gt=1)
    reference_blocks: int = Field(ge=0)
    false_alarms_a_month: FalseAlarms
    edge_share: float = Field(ge=0, lt=1)
    edge_log_odds: float = Field(gt=0)
    edge_block_horizons: int = Field(ge=1)
    harm_alpha: float = Field(gt=0, lt=1)


class RetrainParams(FrozenParams):
    """Set when a family is retrained, and whether promotion needs approval."""

    enabled: bool = True
    interval_days: int
    overdue_intervals: float = Field(gt=0)
    cooldown_hours: float
    lease_minutes: float
    approval: Literal["auto", "manual"]


class Params(FrozenParams):
    """Hold `params.yaml`, typed. An unknown or missing key is refused with its path."""

    seed: int
    universe: UniverseParams
    data: DataParams
    models: ModelsParams = ModelsParams()
    training: TrainingParams = TrainingParams()
    feed: FeedParams = FeedParams()
    promotion: PromotionParams = PromotionParams()
    account: AccountParams = AccountParams()
    signals: SignalsParams = SignalsParams()
    portfolio: PortfolioParams = PortfolioParams()
    simulator: SimulatorParams
    costs: CostParams
    labels: LabelParams
    exits: ExitParams
    splits: SplitParams
    baselines: BaselineParams
    validator: ValidatorParams
    predictor: PredictorParams
    pattern: PatternParams
    regime: RegimeParams
    ensemble: EnsembleParams
    gate: GateParams
    experiment: ExperimentParams = ExperimentParams()
    importance: ImportanceParams
    fusion: FusionParams
    learning: LearningParams
    thresholds: ThresholdParams
    risk: RiskParams
    tiers: TierParams
    breakers: BreakerParams
    drift: DriftParams
    retrain: RetrainParams
