"""A market made from a seed, with the truth it was made from, so that every learner and detector can be scored.

Candle version: 1-minute bars of a price that walks 12 steps a minute (honest highs and lows), four regimes, seasonal
and self-exciting volume, taker flow. A hidden informed pressure u (Ornstein–Uhlenbeck) leans on the taker buy share and
moves the price over the following hours, but how, depends on the regime (`Design.gain`): the flow has to be read
together with volatility and volume. `edge: 0` gives a martingale price with the very same volumes and taker flow.

The same spec gives the same bars. Every kind of noise has its own stream, so the bars before the drift date do not
depend on the drift, the bars of the history do not depend on `live_days`, and other seeds give independent markets.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME, TAKER_BUY, TRADES, VOLUME, Floats, Ints
from pipelines.errors import BadValues
from pipelines.settings import SimulatorParams

MINUTES_A_DAY = 1440
STEPS = 12  # price steps in a minute: one every five seconds
TICK = 0.01  # prices are rounded to it, volumes to LOT: a last-bit difference of a maths library cannot change a file
LOT = 1e-5
BLOCK = 30 * MINUTES_A_DAY  # minutes drawn at a time: memory stays at a few MB however long the history is


@dataclass(frozen=True)
class Design:
    """Constants of the simulated market; four-tuples are in the order of contracts.REGIMES.

    Volumes, shares and clustering are set after BTC/USDT minutes of 2024 (share sd .22 a minute and .09 a quarter hour,
    log volume sd 1.1 with autocorrelation .7, correlation of share and same-minute return .46).
    """

    # regimes: semi-Markov; a stay lasts `min_stay` plus an exponential time, cut at `max_stay`
    # neighbours differ by half: 20 bars measure a volatility to about 16 %, so its percentile tells them apart
    vol_ratio: tuple[float, ...] = (1.5, 1.0, 2.2, 0.6)  # of vol_15m_bps; TRENDING, RANGING, VOLATILE, QUIET
    volume_ratio: tuple[float, ...] = (1.5, 0.8, 2.0, 0.5)
    mean_stay_hours: tuple[float, ...] = (14.0, 16.0, 8.0, 14.0)
    min_stay_hours: float = 3.0
    max_stay_hours: float = 48.0
    # the planted edge
    pressure_half_life_min: float = 180.0
    # Drift of 15 minutes at u = 1, gain 1, edge 1, in the regime's own sd. Measured over six seeds (a year each, 3,300
    # events to learn from, sign of the next four hours, six columns of flow, volatility, volume and momentum): AUC .544
    # to .575 for boosted trees, .522 to .542 for a logistic, .641 for who knows u and the regime.
    drift_per_unit: float = 0.20
    # Moving markets follow informed flow, calm ones absorb it and give it back. Over time the gains nearly cancel:
    # flow alone says little, flow together with volatility says much. Trees find that, a logistic mostly does not.
    gain: tuple[float, ...] = (1.0, -0.6, 0.8, -1.0)
    # taker flow: share of buys = .5 + lean u + echo z + noise, z the minute's own unpredictable move in sd
    share_lean: float = 0.06
    share_echo: float = 0.10
    share_noise: float = 0.18
    # volume: base x regime x season x intensity x shock; intensity = 1 - b + b (decaying mean of past relative volume)
    base_volume: float = 24.0  # base asset a minute
    season_depth: float = 0.5
    season_peak_minute: float = 880.0  # 14:40 UTC, the American open
    branching: float = 0.7  # b: share of the volume that earlier volume caused
    excitement_half_life_min: float = 12.0
    shock_sd: float = 0.6
    trade_size: float = 0.013  # base asset a trade
    trade_size_sd: float = 0.3
    # what changes at the drift date
    drift_vol: float = 3.0  # at 2 one year in seven hides it: a calm regime doubled is still an ordinary one
    drift_share_noise: float = 2.0
    drift_branching: float = 0.9
    drift_excitement_half_life_min: float = 60.0
    drift_edge: float = -1.0


DESIGN = Design()


@dataclass(frozen=True)
class Truth:
    """What the bars were made from; row i speaks of minute i. No feature, label or model may read it.

    regime      (n,) index into contracts.REGIMES
    pressure    (n,) u at the start of the minute, mean 0, variance 1
    drift       (n,) expected log return of the minute that the edge planted; 0 everywhere at edge 0
    drift_time  open time of the first changed bar; None where these bars hold no drift
    edge        strength before the drift date, as asked for
    """

    regime: Ints
    pressure: Floats
    drift: Floats
    drift_time: datetime | None
    edge: float


@dataclass(frozen=True)
class Market:
    """`bars` (n, 8) 1-minute in BAR_FIELDS order, history then live in one path, and their `truth`."""

    bars: Floats
    truth: Truth


@kernel
def _walk(  # type: ignore[no-untyped-def]
    first, drift_at, clock, state, steps, noise, chance, table, knobs, before, after, out, regime, pressure, drift
):
    """Walk one block of minutes; `state` carries log price, u, excitement, regime, minutes in it to the next block.

    first, drift_at  minute number of row 0 and of the first drifted minute; clock: minute of the day of row 0
    steps (n, 12)    price noise; noise (n, 4): pressure, share, volume, trade size; chance (n, 2): leave? where to?
    table (4, 4)     see _table
    knobs            see _knobs; before, after: [vol, share noise, branching, keep of excitement, edge]
    """
    (keep_u, lean, echo, share_noise, season, peak, shock_sd, min_stay, max_stay, trade_size, size_sd) = knobs
    price, u, excitement, minutes = state[0], state[1], state[2], state[4]
    now = int(state[3])
    fresh_u = np.sqrt(1.0 - keep_u * keep_u)
    mean_move = np.sqrt(2.0 / np.pi)
    open_price = np.exp(price)
    for i in range(steps.shape[0]):
        change = after if first + i >= drift_at else before
        vol, noisier, branching, keep, edge = change[0], change[1], change[2], change[3], change[4]
        if minutes >= max_stay or (minutes >= min_stay and chance[i, 0] < table[3, now]):
            now = (now + 1 + int(chance[i, 1] * 3.0)) % 4  # any of the three others
            minutes = 0.0
        minutes += 1.0

        sd = vol * table[0, now]
        lift = edge * vol * table[2, now] * u
        drift[i], pressure[i], regime[i] = lift, u, now
        each = (
            lift - 0.5 * sd * sd
        ) / STEPS  # minus half the variance: the price itself, not its log, is the martingale
        root = sd / np.sqrt(STEPS)
        high = low = price
        total = 0.0
        for k in range(STEPS):
            total += steps[i, k]
            price += each + root * steps[i, k]
            high = max(high, price)
            low = min(low, price)
        move = total / np.sqrt(STEPS)  # the unpredictable part of the minute, in sd: nothing below reads the edge
        close_price = np.exp(price)
        out[i, OPEN], out[i, HIGH], out[i, LOW], out[i, CLOSE] = open_price, np.exp(high), np.exp(low), close_price
        open_price = close_price

        angle = 2.0 * np.pi * (clock + i - peak) / MINUTES_A_DAY
        shock = np.exp(shock_sd * noise[i, 2] - 0.5 * shock_sd * shock_sd) * (0.4 + 0.6 * abs(move) / mean_move)
        relative = (1.0 - branching + branching * excitement) * shock
        excitement = keep * excitement + (1.0 - keep) * relative
        volume = table[1, now] * (1.0 + season * np.cos(angle)) * relative
        share = 0.5 + lean * u + noisier * (echo * move + share_noise * noise[i, 1])
        out[i, VOLUME] = volume
        out[i, TAKER_BUY] = volume * min(max(share, 0.02), 0.98)
        out[i, TRADES] = max(1.0, volume / trade_size * np.exp(size_sd * noise[i, 3]))
        u = keep_u * u + fresh_u * noise[i, 0]
    state[0], state[1], state[2], state[3], state[4] = price, u, excitement, now, minutes


def _keep(half_life: float) -> float:
    return float(0.5 ** (1.0 / half_life))


def _table(spec: SimulatorParams, design: Design) -> Floats:
    """(4 quantities, 4 regimes): sd of a minute, base volume, drift a minute at u = 1, chance a minute to leave."""
    sd_15m = spec.vol_15m_bps * 1e-4 * np.array(design.vol_ratio)
    drift = np.array(design.gain) * design.drift_per_unit * sd_15m / 15.0
    leave = 1.0 / (60.0 * (np.array(design.mean_stay_hours) - design.min_stay_hours))
    return np.stack([sd_15m / np.sqrt(15.0), design.base_volume * np.array(design.volume_ratio), drift, leave])


def _knobs(design: Design) -> tuple[float, ...]:
    return (
        _keep(design.pressure_half_life_min),
        design.share_lean,
        design.share_echo,
        design.share_noise,
        design.season_depth,
        design.season_peak_minute,
        design.shock_sd,
        60.0 * design.min_stay_hours,
        60.0 * design.max_stay_hours,
        design.trade_size,
        design.trade_size_sd,
    )


def _check(spec: SimulatorParams, design: Design) -> None:
    calm = spec.start_price * spec.vol_15m_bps * 1e-4 * min(design.vol_ratio) / np.sqrt(15.0)
    if calm < 5 * TICK:
        raise BadValues(
            f"simulator: a quiet minute of {spec.symbol} moves {calm:.4f}, under five ticks of {TICK}: rounding would "
            f"be the market. Raise simulator.start_price ({spec.start_price}) or vol_15m_bps ({spec.vol_15m_bps})."
        )
    if spec.start.timestamp() % 60:
        raise BadValues(
            f"simulator.start {spec.start.isoformat()} is not a whole minute. Drop its seconds in params.yaml."
        )
    if spec.drift_after_live_days is not None and spec.drift_after_live_days < -spec.history_days:
        raise BadValues(
            f"simulator.drift_after_live_days {spec.drift_after_live_days} lies before the first of "
            f"{spec.history_days} days of history. Use {-spec.history_days} or more, or null for a stationary market."
        )


def simulate(spec: SimulatorParams, design: Design = DESIGN) -> Market:
    """Make `history_days + live_days` days of 1-minute bars in one path, and the truth behind them.

    Prices in quote currency, rounded to 0.01; volumes in base asset, rounded to 1e-5; no value is missing.
    From `start + history_days + drift_after_live_days` on (None: never) the Design.drift_* constants rule.
    Raises BadValues naming the key of params.yaml that makes no market.
    """
    _check(spec, design)
    n = (spec.history_days + spec.live_days) * MINUTES_A_DAY
    drift_at = n
    if spec.drift_after_live_days is not None:
        drift_at = min(n, (spec.history_days + spec.drift_after_live_days) * MINUTES_A_DAY)
    begin = spec.start.astimezone(UTC)

    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(spec.seed).spawn(7)]
    steps, chance, origin, *minute_noise = (
        streams  # one stream a quantity: a longer draw of one moves none of the others
    )
    table, knobs = _table(spec, design), _knobs(design)
    before = np.array([1.0, 1.0, design.branching, _keep(design.excitement_half_life_min), spec.edge])
    after = np.array(
        [
            design.drift_vol,
            design.drift_share_noise,
            design.drift_branching,
            _keep(design.drift_excitement_half_life_min),
            spec.edge * design.drift_edge,
        ]
    )
    state = np.array([np.log(spec.start_price), origin.standard_normal(), 1.0, float(origin.integers(4)), 0.0])

    bars = np.empty((n, BAR_WIDTH))
    regime, pressure, drift = np.empty(n, np.int64), np.empty(n), np.empty(n)
    bars[:, OPEN_TIME] = begin.timestamp() + 60.0 * np.arange(n)
    clock = (begin.hour * 60 + begin.minute) % MINUTES_A_DAY
    for first in range(0, n, BLOCK):
        rows = slice(first, min(first + BLOCK, n))
        size = rows.stop - first
        noise = np.stack([stream.standard_normal(size) for stream in minute_noise], axis=1)
        _walk(
            first, drift_at, clock + first, state,
            steps.standard_normal((size, STEPS)), noise, chance.random((size, 2)),
            table, knobs, before, after, bars[rows], regime[rows], pressure[rows], drift[rows],
        )  # fmt: skip
    _round(bars)
    drift_time = begin + timedelta(minutes=drift_at) if drift_at < n else None
    return Market(bars, Truth(regime, pressure, drift, drift_time, spec.edge))


def _round(bars: Floats) -> None:
    """Round in place: prices to TICK, volumes to LOT (at least one), trades to whole ones."""
    prices = bars[:, OPEN : CLOSE + 1]
    prices[:] = np.maximum(np.round(prices, 2), TICK)
    volume = np.maximum(np.round(bars[:, VOLUME], 5), LOT)
    bars[:, VOLUME] = volume
    bars[:, TAKER_BUY] = np.minimum(np.round(bars[:, TAKER_BUY], 5), volume)
    bars[:, TRADES] = np.rint(bars[:, TRADES])
