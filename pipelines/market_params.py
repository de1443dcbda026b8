"""Sections of `params.yaml` on markets: the universe, its data and feed, the simulator, and what a trade costs."""

from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from pipelines.family_params import FrozenParams


class ExchangeParams(FrozenParams):
    """Define where live bars come from. `silence_bars`: bars without news before a venue counts as silent."""

    venues: list[str] = Field(min_length=1)
    timeframe: str
    silence_bars: int = Field(gt=0)


class QualityParams(FrozenParams):
    """Set from where on bars are flagged: a standstill, a jump, two sources that differ; and quarantined: the collar.

    allow_splits   a move that looks like a share split is a real one, and does not forbid training
    collar_factor  a high above so many times the highest of the newest `collar_bars` bars, or a low as far below their
                   lowest, is outside: one wrong price spoils averages for weeks
    collar_mads    ... if the move is also so many robust standard deviations: coarse bars of a wild market move far
    collar_bars    what the range is of; half of a trading day in minutes and a year in days are both long enough
    collar_run     in a file, more bars outside in a row are a lasting shift, which may be true
    """

    stale_bars: int = Field(default=10, ge=2)
    jump_mads: float = Field(default=20.0, gt=0)
    divergent_mads: float = Field(default=20.0, gt=0)
    divergent_bps: float = Field(default=5.0, ge=0)
    allow_splits: bool = False
    collar_factor: float = Field(default=1.5, gt=1, le=100, allow_inf_nan=False)
    collar_mads: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    collar_bars: int = Field(default=240, ge=16, le=10_000)
    collar_run: int = Field(default=10, ge=1, le=240)


class DataParams(FrozenParams):
    """Set the timeframe to decide on, and the quality and age of data."""

    decision_timeframe: str
    quality_floor: float = Field(gt=0, le=1)
    quality: QualityParams = QualityParams()
    live_days: int = Field(ge=0)
    retention_days: int = Field(gt=0)
    exchange: ExchangeParams


class UniverseParams(FrozenParams):
    """Name the symbols of a new installation. `groups`: name, such as crypto, → its symbols."""

    symbols: list[str] = Field(min_length=1)
    groups: dict[str, list[str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_symbols(self) -> "UniverseParams":
        """Refuse a symbol that is named twice, and a group with a symbol that is not in the universe."""
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"symbols names one twice: {', '.join(self.symbols)}")
        for group, members in self.groups.items():
            if unknown := [symbol for symbol in members if symbol not in self.symbols]:
                raise ValueError(f"groups.{group}: {', '.join(unknown)} is not among symbols")
        return self


class FeedParams(FrozenParams):
    """Set how fast the feed of a recorded or simulated market goes, and what it waits for.

    speed     market seconds a second of wall time; 1 = real time, as every market that trades now has
    wait_for  market time stands while a retrain or a promotion runs (`retrain`), or never (`nothing`)
    poll_s    seconds between two requests to an exchange
    """

    speed: float = Field(default=900.0, gt=0, le=100_000)
    wait_for: Literal["retrain", "nothing"] = "retrain"
    poll_s: float = Field(default=5.0, gt=0)


class FollowerParams(FrozenParams):
    """Define one further simulated market, `symbol`, which follows the first.

    beta         its part of the common factor
    lag_minutes  by so much it follows the first market's moves; 0 = together
    edge         strength of its own planted edge, as a factor on simulator.edge
    """

    symbol: str
    beta: float = Field(default=0.8, ge=0, le=1)
    lag_minutes: int = Field(default=0, ge=0, le=60)
    edge: float = Field(default=1.0, ge=0)
    start_price: float = Field(gt=0)


class SimulatorParams(FrozenParams):
    """Define the simulated market: `symbol` and, correlated with it, its `followers`."""

    symbol: str
    followers: tuple[FollowerParams, ...] = ()
    seed: int
    start: AwareDatetime
    history_days: int = Field(gt=0)
    live_days: int = Field(ge=0)
    drift_after_live_days: int | None
    drift_every_days: int | None = Field(default=None, gt=0)  # after the first drift; None = it lasts
    start_price: float = Field(gt=0)
    vol_15m_bps: float = Field(gt=0)
    edge: float = Field(ge=0)
    book_every_minutes: int = Field(default=15, gt=0)


MarketKind = Literal["spot", "perpetual", "future", "forex", "metal", "stock"]


class MarketCosts(FrozenParams):
    """Set the costs of one side of a trade in one market of a venue, in basis points of its price.

    half_spread_bps, stop_slippage_bps  None = those of the whole table
    funding_hours  hours between two funding payments, counted from 00:00 UTC; None = those of the whole table for a
                   perpetual, and no funding for any other market
    """

    taker_bps: float = Field(ge=0, allow_inf_nan=False)
    maker_bps: float = Field(ge=0, allow_inf_nan=False)
    half_spread_bps: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    stop_slippage_bps: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    funding_hours: int | None = Field(default=None, ge=1, le=24)


class CostParams(FrozenParams):
    """Set what a trade costs, by venue and market. `pipelines.costs.costs_of` finds the row of a market.

    order              which fee both fills pay; a stop always takes
    half_spread_bps    of one side, where the bars record no spread
    stop_slippage_bps  by how much a stop is filled beyond its level, on average
    perpetual_funding_hours  hours between the funding payments of a perpetual that has no own row, or whose row states
                       none
    default            the row of a venue that `venues` does not name
    """

    order: Literal["taker", "maker"]
    half_spread_bps: float = Field(ge=0, allow_inf_nan=False)
    stop_slippage_bps: float = Field(ge=0, allow_inf_nan=False)
    perpetual_funding_hours: int = Field(ge=1, le=24)
    default: MarketCosts
    venues: dict[str, dict[MarketKind, MarketCosts]]

    @model_validator(mode="after")
    def _check_venues(self) -> "CostParams":
        """Refuse a venue without a market, and a name that no source would write."""
        for name, markets in self.venues.items():
            if not markets or name != name.strip().lower():
                raise ValueError(f"venue {name!r} needs a lower-case name and at least one market: spot, perpetual, …")
        return self
