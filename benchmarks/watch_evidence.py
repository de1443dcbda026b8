"""The long runs behind docs/results/drift.md, on the simulator: drift, missing columns and a vanished edge.

`benchmarks/evidence.py` names, stores and resumes them; `benchmarks/results_drift.py` writes the page.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fixture import FAMILY, prepare, simulated, train
from pipelines.contracts import DAY_S, Floats, JsonObject
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.catalog import model_family
from pipelines.models.edge import Edge
from pipelines.models.reference import DriftReference, fit_reference
from pipelines.models.runtime import load_bundle
from pipelines.models.views import select
from pipelines.monitoring.drift import AlarmRates, alarm_rates, detect
from pipelines.monitoring.loss import LossDrift, loss_drift
from pipelines.params import Params
from pipelines.settings import load_params

BLOCKS_A_MONTH = 10  # of three days
DRIFT_AFTER_BLOCKS, DRIFT_BLOCKS = 1, 4  # the planted drift begins where the second of four watched blocks begins
LIVE_DAYS = 180  # of outcomes after the training, for the edge
EDGE_FIGURES = ("days_to_alarm", "expected", "kept_gain", "gone_gain")
WARM_DAYS = 60  # of the market without an edge before its outcomes count


def market(
    params: Params, seed: int, blocks: int, drift_after: int | None
) -> tuple[DriftReference, Floats, AlarmRates]:
    """Return the reference of a simulated year, the feature rows of so many blocks after it, and the rates of a block.

    drift_after  blocks after which the planted drift begins; None: never
    """
    grid = Grid(params.data.decision_timeframe)
    bar_s = grid.step_s
    block_days = -(-params.drift.block_bars * bar_s // int(DAY_S))
    day = None if drift_after is None else drift_after * block_days
    days = params.simulator.history_days
    bars = simulated(params, days, blocks * block_days, seed=seed, drift_after_live_days=day)
    rows = FEATURES.run(resample(bars, Grid("1m"), grid))[:, [FEATURES.index[name] for name in WATCHED_COLUMNS]]
    history = days * int(DAY_S) // bar_s
    reference = fit_reference(rows[:history], WATCHED_COLUMNS, params.drift, params.seed)
    return reference, rows[history:], alarm_rates(params.drift.false_alarms_a_month, params.drift.block_bars, bar_s, 1)


def stationary(seed: str) -> JsonObject:
    """Watch a market without drift for a month."""
    reference, live, rates = market(load_params(), int(seed), BLOCKS_A_MONTH, None)
    result = detect(reference, live, rates)
    values, missing = [b.alarm for b in result.blocks], [b.missing_alarm for b in result.blocks]
    return {
        "alarm": any(values), "missing_alarm": any(missing), "blocks_in_alarm": sum(values),
        "missing_blocks_in_alarm": sum(missing), "blocks": len(values), "reason": result.reason,
    }  # fmt: skip


def drifted(seed: str) -> JsonObject:
    """Watch a market whose drift begins after DRIFT_AFTER_BLOCKS blocks."""
    reference, live, rates = market(load_params(), int(seed), DRIFT_BLOCKS, DRIFT_AFTER_BLOCKS)
    result = detect(reference, live, rates)
    alarms = [i for i, block in enumerate(result.blocks) if block.alarm]
    later = [i for i in alarms if i >= DRIFT_AFTER_BLOCKS]
    return {
        "alarm": bool(later), "lasts": bool(result.alarm), "before_drift": len(alarms) > len(later),
        "blocks_to_alarm": later[0] - DRIFT_AFTER_BLOCKS + 1 if later else None, "reason": result.reason,
    }  # fmt: skip


def vanished(seed: str) -> JsonObject:
    """Let every watched column of a month vanish in turn, wholly and in three of ten rows, and count what is found."""
    reference, live, rates = market(load_params(), int(seed), 2, None)
    rng, counts = np.random.default_rng(int(seed)), {"wholly": 0, "three_in_ten": 0}
    for name, share in (("wholly", 1.0), ("three_in_ten", 0.3)):
        for column in reference.watched:
            rows = live.copy()
            rows[rng.random(len(rows)) < share, WATCHED_COLUMNS.index(column)] = np.nan
            counts[name] += column in detect(reference, rows, rates).blocks[0].vanished
    columns = len(reference.watched)
    return {"columns": columns, **{name: n / columns for name, n in counts.items()}}


def vanished_edge(seed: str) -> JsonObject:
    """Train the validator on a market with the planted edge; watch it on that market, and on one that has none."""
    params, days = load_params(), load_params().simulator.history_days
    with tempfile.TemporaryDirectory(prefix="bellwether-evidence-") as scratch:
        home = Path(scratch)
        bars = simulated(params, days, LIVE_DAYS, seed=int(seed))
        history = bars[: days * MINUTES_A_DAY]
        folder = train(home / "training", history, params.simulator.symbol, params) / FAMILY
        digest = json.loads((folder / "fit.json").read_text())["digest"]
        without = simulated(params, WARM_DAYS, LIVE_DAYS, seed=int(seed) + 1000, edge=0.0)
        kept = _watched(home / "kept", bars, folder / "bundle", digest, days, params)
        gone = _watched(home / "gone", without, folder / "bundle", digest, WARM_DAYS, params)
    return {
        "expected": kept.expected, "kept_gain": kept.gain.value, "gone_gain": gone.gain.value,
        "false_alarm": bool(kept.alarm), "found": bool(gone.alarm), "days_to_alarm": _days(gone),
        "blocks": gone.gain.n, "sd": float(gone.blocks.mean.std()),
    }  # fmt: skip


def _watched(home: Path, bars: Floats, bundle: Path, digest: str, days: int, params: Params) -> LossDrift:
    """Return the watch of a bundle over the events of a market after its first `days`."""
    artifacts = prepare(home, bars, params.simulator.symbol, params)
    start = float(bars[0, 0]) + days * DAY_S
    data = model_family(FAMILY).dataset(artifacts, params)
    live = data.select_rows(data.known > start)
    model = load_bundle(bundle, digest)
    p = np.asarray(model.predict(select(live.all_inputs(), live.columns, model.columns)).p)
    scored = np.isfinite(p)
    return loss_drift(
        live.known[scored], p[scored], live.y[scored], Edge(**model.schema["edge"]), params, origin_s=start,
        until_s=float(bars[-1, 0]),
    )  # fmt: skip


def _days(found: LossDrift) -> float | None:
    """Return the days from the first block to the end of the one that alarmed; None without an alarm."""
    if found.alarm_at_s is None:
        return None
    return float(found.alarm_at_s - found.blocks.start_s[0]) / DAY_S + 1.0


# ---- figures ---------------------------------------------------------------------------------------------------------


def false_alarm_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return alarms a month with an exact Poisson interval, for values and for the share missing."""
    from scipy.stats import chi2

    table = {}
    for name, key in (
        ("values, blocks a month", "blocks_in_alarm"),
        ("missing, blocks a month", "missing_blocks_in_alarm"),
    ):
        n, months = sum(case[key] for case in found), sum(case["blocks"] for case in found) / BLOCKS_A_MONTH
        if months:
            low = float(chi2.ppf(0.025, 2 * n) / 2 / months) if n else 0.0
            high = float(chi2.ppf(0.975, 2 * n + 2) / 2 / months)
            table[name] = {"value": n / months, "low": low, "high": high, "n": len(found)}
    return table


def mean_figures(*names: str) -> Callable[[list[JsonObject]], dict[str, JsonObject]]:
    """Return a function that averages the named figures over the cases that have them, with least and most."""

    def of(found: list[JsonObject]) -> dict[str, JsonObject]:
        """Return the means of the cases found."""
        table = {}
        for name in names:
            known = [float(case[name]) for case in found if case[name] is not None]
            if known:
                table[name] = {"value": float(np.mean(known)), "low": min(known), "high": max(known), "n": len(known)}
        return table

    return of
