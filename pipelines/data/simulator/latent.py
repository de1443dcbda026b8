"""The value of the simulated market, minute by minute: regimes, hidden pressure, volume and taker share.

A semi-Markov chain of four regimes sets volatility and volume; an Ornstein–Uhlenbeck pressure u leans on the taker
share and, by `Design.gain`, on the drift of the value. Volume is seasonal and excites itself.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.data.simulator.book_design import STEPS, BookDesign
from pipelines.market_params import SimulatorParams

MINUTES_A_DAY = 1440
LATENT_FIELDS = ("usual_volume", "volume", "taker_share", "sd", "pressure")  # of a minute; sd of the log value
LATENT = len(LATENT_FIELDS)


@dataclass(frozen=True)
class Design:
    """Hold the constants of the simulated market; four-tuples are in the order of contracts.REGIMES.

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
    # Drift of 15 minutes at u = 1, gain 1, edge 1, in the regime's own sd. What can be ranked of it at best, by edge,
    # is in docs/results/simulator-edge.md.
    drift_per_unit: float = 0.20
    # Moving markets follow informed flow, calm ones absorb it and give it back. Over time the gains nearly cancel:
    # flow alone predicts little, flow together with volatility much, and a logistic finds a good deal of that too.
    # RANGING drifts less than TRENDING in its own sd, or only width would distinguish the two (at -1.0 it did not: the
    # regime detector gave them each other's names).
    gain: tuple[float, ...] = (1.2, -0.7, 1.0, -1.2)
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
    # changes at the drift date
    drift_vol: float = 3.0  # at 2 one year in seven hides it: a calm regime doubled is still an ordinary one
    drift_share_noise: float = 2.0
    drift_branching: float = 0.9
    drift_excitement_half_life_min: float = 60.0
    drift_edge: float = -1.0
    book: BookDesign = field(default_factory=BookDesign)  # the market inside a minute


DESIGN = Design()


@kernel(nogil=True)
def walk(
    first: int,
    drift_at: int,
    drift_every: int,
    clock: int,
    state: Floats,
    steps: Floats,
    noise: Floats,
    chance: Floats,
    table: Floats,
    knobs: tuple[float, ...],
    before: Floats,
    after: Floats,
    path: Floats,
    latent: Floats,
    regime: Ints,
    drift: Floats,
) -> None:
    """Draw one block of n minutes; `state` (5,) carries log value, u, excitement, regime, minutes in it onwards.

    first, drift_at  minute number of row 0 and of the first drifted minute; clock: minute of the day of row 0
    drift_every      minutes after which the market changes back, and again after as many; 0 = the drift lasts
    steps (n, 12)    value noise; noise (n, 3): pressure, share, volume; chance (n, 2): leave? where to?
    table (4, 4)     see regime_table
    knobs            see walk_parameters; before, after: [vol, share noise, branching, keep of excitement, edge]
    path (n, 12)     gets the log value after each step; latent (n, LATENT): in the order of LATENT_FIELDS
    regime (n,) int64 and drift (n,) are filled too; every other array is float64
    """
    (keep_u, lean, echo, share_noise, season, peak, shock_sd, min_stay, max_stay) = knobs
    price, u, excitement, minutes = state[0], state[1], state[2], state[4]
    now = int(state[3])
    fresh_u = math.sqrt(1.0 - keep_u * keep_u)
    mean_move = math.sqrt(2.0 / math.pi)
    for i in range(steps.shape[0]):
        since = first + i - drift_at
        change = before
        if since >= 0 and (drift_every == 0 or (since // drift_every) % 2 == 0):
            change = after
        vol, noisier, branching, keep, edge = change[0], change[1], change[2], change[3], change[4]
        if minutes >= max_stay or (minutes >= min_stay and chance[i, 0] < table[3, now]):
            now = (now + 1 + int(chance[i, 1] * 3.0)) % 4  # any of the three others
            minutes = 0.0
        minutes += 1.0

        sd = vol * table[0, now]
        lift = edge * vol * table[2, now] * u
        drift[i], regime[i] = lift, now
        # minus half the variance: the value itself, not its log, is the martingale
        each = (lift - 0.5 * sd * sd) / STEPS
        root = sd / math.sqrt(STEPS)
        total = 0.0
        for k in range(STEPS):
            total += steps[i, k]
            price += each + root * steps[i, k]
            path[i, k] = price
        move = total / math.sqrt(STEPS)  # the unpredictable part of the minute, in sd: nothing below reads the edge

        angle = 2.0 * math.pi * (clock + i - peak) / MINUTES_A_DAY
        shock = math.exp(shock_sd * noise[i, 2] - 0.5 * shock_sd * shock_sd) * (0.4 + 0.6 * abs(move) / mean_move)
        intensity = 1.0 - branching + branching * excitement
        usual = table[1, now] * (1.0 + season * math.cos(angle)) * intensity
        excitement = keep * excitement + (1.0 - keep) * intensity * shock
        share = 0.5 + lean * u + noisier * (echo * move + share_noise * noise[i, 1])
        latent[i, 0], latent[i, 1], latent[i, 2] = usual, usual * shock, min(max(share, 0.02), 0.98)
        latent[i, 3], latent[i, 4] = sd, u
        u = keep_u * u + fresh_u * noise[i, 0]
    state[0], state[1], state[2], state[3], state[4] = price, u, excitement, now, minutes


def decay_factor(half_life: float) -> float:
    """Return the weight left after one step of an exponential decay with this half-life in steps."""
    return float(0.5 ** (1.0 / half_life))


def regime_table(spec: SimulatorParams, design: Design) -> Floats:
    """Return (4 quantities, 4 regimes): sd of a minute, base volume, drift at u = 1, chance to leave a minute."""
    sd_15m = spec.vol_15m_bps * 1e-4 * np.array(design.vol_ratio)
    drift = np.array(design.gain) * design.drift_per_unit * sd_15m / 15.0
    leave = 1.0 / (60.0 * (np.array(design.mean_stay_hours) - design.min_stay_hours))
    return np.stack([sd_15m / np.sqrt(15.0), design.base_volume * np.array(design.volume_ratio), drift, leave])


def walk_parameters(design: Design) -> tuple[float, ...]:
    """Return the constants of `walk`, in the order in which it unpacks them."""
    return (
        decay_factor(design.pressure_half_life_min),
        design.share_lean,
        design.share_echo,
        design.share_noise,
        design.season_depth,
        design.season_peak_minute,
        design.shock_sd,
        60.0 * design.min_stay_hours,
        60.0 * design.max_stay_hours,
    )
