"""Two kinds of configuration. `Settings`: where we run and what is secret (environment, `.env`), read by flows and
services only. `Params`: everything that can change a metric (`params.yaml`), handed down as plain arguments."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.contracts import TIMEFRAME_SECONDS
from pipelines.errors import BadValues, UnreadableFile

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where one installation runs. Every field is an environment variable `BELLWETHER_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BELLWETHER_", env_file=".env", extra="ignore", frozen=True)

    home: Path = ROOT / "artifacts"  # everything a run writes
    host: str = "127.0.0.1"
    mlflow_port: int = 5000
    prefect_port: int = 4200
    decision_port: int = 3000
    model_port: int = 3001
    evidently_port: int = 8000
    store_url: str = ""  # empty = SQLite under `home`
    remote_url: str = ""  # DVC remote; empty = a folder under `home`
    write_key: SecretStr | None = None  # the key of all servers; empty = made once under `home`, mode 0600
    allowed_hosts: str = ""  # further values of Host, as a proxy in front passes them: "desk.example,desk:8443"
    durability: Literal["process", "power"] = "process"
    models: Literal["local", "remote"] = "local"  # who answers for the decision service: itself, or the model service
    model_timeout_ms: int = Field(default=150, gt=0)  # remote: a model service slower than this is not waited for
    model_retry_seconds: float = Field(default=2.0, gt=0)  # remote: between two looks whether it answers
    exchange_url: str = ""  # put before the URL of every exchange request (ccxt's proxyUrl); empty = straight there
    exchange_pause_ms: int = Field(default=0, ge=0)  # at least this between two requests; 0 = the venue's own limit
    fit_timeout_minutes: float = Field(default=30.0, gt=0)  # a family that takes longer is stopped; the others go on
    keep_days: int = Field(default=365, ge=30)  # `bellwether prune` lets go of what is older, where it may
    disk_warn_mb: int = Field(default=2048, ge=0)  # less free under `home` than this is an alarm
    disk_stop_mb: int = Field(default=512, ge=0)  # less than this: no position is opened, nothing more is recorded
    hang_seconds: float = Field(default=60.0, ge=0)  # a service that answered, and then not for this long, is restarted
    params_file: Path = ROOT / "params.yaml"

    @model_validator(mode="after")
    def _warned_before_stopped(self) -> "Settings":
        if self.disk_stop_mb > self.disk_warn_mb:
            raise ValueError(
                f"BELLWETHER_DISK_STOP_MB is {self.disk_stop_mb}, above BELLWETHER_DISK_WARN_MB {self.disk_warn_mb}; "
                "warn before you stop"
            )
        return self

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def decision_url(self) -> str:
        return f"http://{self.host}:{self.decision_port}"

    @property
    def model_url(self) -> str:
        return f"http://{self.host}:{self.model_port}"

    @property
    def evidently_url(self) -> str:
        return f"http://{self.host}:{self.evidently_port}"

    @property
    def proxy_hosts(self) -> tuple[str, ...]:
        """`allowed_hosts` as a list, in lower case."""
        return tuple(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite:///{self.home / 'store.db'}"

    @property
    def remote(self) -> str:
        return self.remote_url or str(self.home / "dvc-remote")

    @property
    def workspace(self) -> Path:
        """Private working copy of the build graph: runs write here, never into the repository."""
        return self.home / "workspace"

    @property
    def exchange_pages(self) -> Path:
        """Pages of bars fetched from exchanges: what an interrupted backfill goes on from."""
        return self.home / "exchange"

    @property
    def bundles(self) -> Path:
        """Verified model bundles, one folder a digest."""
        return self.home / "bundles"

    @property
    def serving_dir(self) -> Path:
        """The generation file and warm starts: what serving follows."""
        return self.home / "serving"


@cache
def settings() -> Settings:
    return Settings()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExchangeParams(_Frozen):
    venues: list[str] = Field(min_length=1)
    timeframe: str
    silence_bars: int = Field(gt=0)


class DataParams(_Frozen):
    decision_timeframe: str
    quality_floor: float = Field(gt=0, le=1)
    live_days: int = Field(ge=0)
    retention_days: int = Field(gt=0)
    exchange: ExchangeParams

    def decision_timeframe_for(self, base: str) -> str:
        """The timeframe to decide on over bars of `base`: the stated one, or the source's own where that is coarser."""
        coarser = TIMEFRAME_SECONDS[base] > TIMEFRAME_SECONDS[self.decision_timeframe]
        return base if coarser else self.decision_timeframe


class SimulatorParams(_Frozen):
    symbol: str
    seed: int
    start: AwareDatetime
    history_days: int = Field(gt=0)
    live_days: int = Field(ge=0)
    drift_after_live_days: int | None
    start_price: float = Field(gt=0)
    vol_15m_bps: float = Field(gt=0)
    edge: float = Field(ge=0)
    book_every_minutes: int = Field(default=15, gt=0)


class CostParams(_Frozen):
    fee_bps: float = Field(ge=0)
    half_spread_bps: float = Field(ge=0)

    @property
    def round_trip_bps(self) -> float:
        return 2.0 * (self.fee_bps + self.half_spread_bps)


class LabelParams(_Frozen):
    target_atr: float = Field(gt=0)
    stop_atr: float = Field(gt=0)
    horizon_bars: int = Field(gt=0)
    min_target_to_cost: float = Field(ge=0)
    decay_half_life_days: float = Field(gt=0)

    @property
    def odds(self) -> float:
        """b of the Kelly formula: target distance over stop distance."""
        return self.target_atr / self.stop_atr


class ExitParams(_Frozen):
    plan: Literal["plain", "ladder", "trailing", "ladder_trailing"]
    legs: list[tuple[float, float]] = Field(min_length=1, max_length=3)
    trailing_atr: float = Field(gt=0, allow_inf_nan=False)
    break_even_after_leg: int = Field(ge=0)

    @property
    def laddered(self) -> bool:
        return self.plan in ("ladder", "ladder_trailing")

    @property
    def trails(self) -> bool:
        return self.plan in ("trailing", "ladder_trailing")

    @model_validator(mode="after")
    def _whole(self) -> "ExitParams":
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


class SplitParams(_Frozen):
    folds: int = Field(ge=2)
    min_train_fraction: float = Field(gt=0, lt=1)


class ValidatorParams(_Frozen):
    trees: int = Field(gt=0)
    depth: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    min_child_weight: float
    subsample: float = Field(gt=0, le=1)
    reg_lambda: float
    novelty_quantile: float = Field(gt=0, lt=1)


class PredictorParams(_Frozen):
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
    trees: int = Field(gt=0)
    depth: int = Field(gt=0)
    leaf: float = Field(gt=0)
    novelty_quantile: float = Field(gt=0, lt=1)


class PatternParams(_Frozen):
    target_atr: float = Field(gt=0)
    stop_atr: float = Field(gt=0)
    horizon_bars: int = Field(gt=0)
    folds: int = Field(ge=1)
    tail_share: float = Field(gt=0, lt=1)
    trees: int = Field(gt=0)
    forest_depth: int = Field(gt=0)
    boosted_depth: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    leaf: float = Field(gt=0)
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


class RegimeParams(_Frozen):
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
    novelty_quantile: float = Field(gt=0, lt=1)


class EnsembleParams(_Frozen):
    stated: dict[str, float]
    phases: dict[str, dict[str, float]]

    @model_validator(mode="after")
    def _whole(self) -> "EnsembleParams":
        for name, weights in {"stated": self.stated, **self.phases}.items():
            if set(weights) != set(self.stated):
                raise ValueError(f"{name} weighs {sorted(weights)}, stated weighs {sorted(self.stated)}")
            if min(weights.values()) < 0 or abs(sum(weights.values()) - 1.0) > 1e-9:
                raise ValueError(f"{name} sums to {sum(weights.values()):g}; weights are not negative and sum to 1")
        return self


class GateParams(_Frozen):
    min_events: int
    coverage: float = Field(gt=0, le=1)
    bootstrap: int = Field(ge=100)
    max_ece: float
    leak_auc: float
    min_deflated_sharpe: float
    max_pbo: float
    min_schema_coverage: float
    max_novel_share: float
    max_parity_gap: float
    max_latency_ms: float
    min_improvement: float
    min_paired: int


class ImportanceParams(_Frozen):
    repeats: int = Field(gt=0)
    correlation: float = Field(gt=0, le=1)
    low_share: float = Field(gt=0, lt=1)
    reselect_over: float = Field(gt=0, lt=1)


class ValidationParams(_Frozen):
    traditional: float = Field(ge=0)
    ai: float = Field(ge=0)
    correlation: float = Field(ge=0)
    valid_above: float = Field(ge=0, lt=1)


class FusionParams(_Frozen):
    weights: dict[str, float]
    regimes: dict[str, dict[str, float]]
    min_consensus: float
    validation: ValidationParams


class LearningParams(_Frozen):
    use: Literal["shadow", "act"] = "shadow"
    floor: float = Field(ge=0, lt=1)
    max_step_a_day: float = Field(gt=0, lt=1)
    history_decisions: int = Field(gt=0)
    outcomes_a_source: int = Field(gt=0)
    rate: float = Field(gt=0)
    share: float = Field(ge=0, lt=1)
    discount: float = Field(gt=0, le=1)
    prior_outcomes: float = Field(gt=0)


class BaseThresholds(_Frozen):
    min_strength: float = Field(ge=0, le=100)
    min_confidence: float = Field(gt=0, le=1)
    min_confluence: float = Field(ge=0, le=1)
    min_unicorn: float = Field(ge=0, le=21)
    phase: Literal["UNKNOWN", "ACCUMULATION", "MANIPULATION", "DISTRIBUTION"]


class ThresholdFactors(_Frozen):
    min_strength: float = Field(default=1.0, gt=0)
    min_confidence: float = Field(default=1.0, gt=0)
    min_confluence: float = Field(default=1.0, gt=0)
    min_unicorn: float = Field(default=1.0, gt=0)


class ThresholdParams(_Frozen):
    base: BaseThresholds
    regimes: dict[Literal["TRENDING", "RANGING", "VOLATILE", "QUIET"], ThresholdFactors]
    high_unicorn: float = Field(gt=0, le=21)
    high_unicorn_confidence: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _reachable(self) -> "ThresholdParams":
        for name, factors in self.regimes.items():
            for key, most in (("min_strength", 100.0), ("min_confidence", 1.0), ("min_unicorn", 21.0)):
                asked = getattr(self.base, key) * getattr(factors, key)
                if asked > most:
                    raise ValueError(f"{name} asks for {key} {asked:g}, more than the {most:g} there can be")
        return self


class RegimeLimit(_Frozen):
    max_position: float = Field(ge=0, le=1)
    max_stop: float = Field(gt=0, le=1)


class BudgetParams(_Frozen):
    max_gross: float
    max_strategy: float
    max_market: float
    max_asset: float
    max_correlated: float
    max_es: float
    max_stress: float


class Stage(_Frozen):
    at: float = Field(gt=0, le=1)
    size: float = Field(ge=0, le=1)


class StageParams(_Frozen):
    reduce: Stage
    half: Stage
    exit_only: Stage
    flat: Stage

    @model_validator(mode="after")
    def _deepening(self) -> "StageParams":
        stages = [self.reduce, self.half, self.exit_only, self.flat]
        if [s.at for s in stages] != sorted({s.at for s in stages}) or self.flat.at != 1.0:
            raise ValueError("`at` has to rise from stage to stage and end at 1, the drawdown limit itself")
        if [s.size for s in stages] != sorted((s.size for s in stages), reverse=True) or self.exit_only.size != 0.0:
            raise ValueError("`size` may not rise from stage to stage, and is 0 from exit_only on")
        return self


class RiskParams(_Frozen):
    sizing: Literal["kelly", "confidence"]
    kelly_fraction: float = Field(ge=0, le=1)
    kelly_cap: float = Field(ge=0, le=1)
    volatility_target: float = Field(gt=0)
    regime_multiplier: dict[str, float]
    regime_limits: dict[str, RegimeLimit]
    budgets: BudgetParams
    stages: StageParams
    max_open: int
    max_trades_per_day: int
    max_daily_loss: float
    max_drawdown: float
    max_data_age_bars: float


class TierParams(_Frozen):
    size: dict[int, float]
    good_bars: int = Field(ge=1)
    faults_in_row: int = Field(ge=1)

    @model_validator(mode="after")
    def _falling(self) -> "TierParams":
        sizes = [self.size.get(tier, -1.0) for tier in (1, 2, 3, 4)]
        if len(self.size) != 4 or sizes != sorted(sizes, reverse=True) or sizes[0] > 1.0 or sizes[3] != 0.0:
            raise ValueError("size needs tiers 1 to 4, from at most 1, never rising, to 0: tier 4 opens nothing")
        return self


class BreakerParams(_Frozen):
    spike_atr: float = Field(gt=1)
    book_bars: int = Field(ge=20)
    spread_multiple: float = Field(gt=1)
    depth_share: float = Field(gt=0, lt=1)
    stale_bars: int = Field(ge=1)
    fault_multiple: int = Field(ge=1)
    trades: int = Field(ge=10)
    fills: int = Field(ge=2)
    max_rejected: int = Field(ge=1)
    max_slippage_bps: float = Field(gt=0)

    @model_validator(mode="after")
    def _within(self) -> "BreakerParams":
        if self.max_rejected > self.fills:
            raise ValueError(f"max_rejected {self.max_rejected} can never be reached among {self.fills} fills")
        return self


class DriftParams(_Frozen):
    block_bars: int
    min_bars: int
    reference_blocks: int
    false_alarm_budget: float = Field(gt=0, lt=1)
    budget_blocks: int
    loss_delta: float
    loss_threshold: float
    loss_degradation: float
    min_outcomes: int


class RetrainParams(_Frozen):
    interval_days: int
    overdue_intervals: float = Field(gt=0)
    cooldown_hours: float
    lease_minutes: float
    approval: Literal["auto", "manual"]


class Params(_Frozen):
    """`params.yaml`, typed. An unknown or missing key is refused with its path."""

    seed: int
    data: DataParams
    simulator: SimulatorParams
    costs: CostParams
    labels: LabelParams
    exits: ExitParams
    splits: SplitParams
    validator: ValidatorParams
    predictor: PredictorParams
    pattern: PatternParams
    regime: RegimeParams
    ensemble: EnsembleParams
    gate: GateParams
    importance: ImportanceParams
    fusion: FusionParams
    learning: LearningParams
    thresholds: ThresholdParams
    risk: RiskParams
    tiers: TierParams
    breakers: BreakerParams
    drift: DriftParams
    retrain: RetrainParams


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, by libyaml where PyYAML was built with it: a seventeenth of the time, and every process
    reads params.yaml. Raises UnreadableFile if it is damaged."""
    try:
        return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UnreadableFile(f"{path} is damaged: {why}. Restore it from git or a backup.") from error


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Read and check `params.yaml`. Raises BadValues naming the key and what it should be."""
    try:
        return Params.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadValues(
            f"{path.name}: {key}: {first['msg']} (got {first['input']!r}). Mend that key and rerun."
        ) from error
