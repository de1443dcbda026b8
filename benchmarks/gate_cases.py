"""The gate on evidence of known truth, and on what real stages make of markets with an edge, without, and recorded."""

import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fixture import FAMILY, SIMULATED, listed, recorded, recording, simulated, train
from pipelines.contracts import JsonObject
from pipelines.settings import load_params
from pipelines.warm_start import hit_rate

RECORDINGS = {
    "BTC/USDT 2024": "binance_spot_btcusdt_1m_2024.parquet",
    "BTC/USDT 2025H1": "binance_spot_btcusdt_1m_2025h1.parquet",
}
# of a perfect model whose skill so many rows can show; an AUC above .60 would be suspected of a leak
LARGE = {"validator": 0.60, "predictor": 0.60, "pattern": 0.6, "regime": 0.12}
LEAKS = 2000  # evidences of a case of the leak check
JUDGED = 1000  # evidences of a case of the gate's sizes, a quarter of them at 5,000 rows


def share(name: str) -> Callable[[list[JsonObject]], dict[str, JsonObject]]:
    """Return a function that counts the cases with a true `name`, with the 95 % Wilson interval."""

    def of(found: list[JsonObject]) -> dict[str, JsonObject]:
        """Return the share of the cases found."""
        return {name: asdict(hit_rate(sum(bool(f[name]) for f in found), len(found)))} if found else {}

    return of


def gate(bars: Any, symbol: str, where: tuple[str | None, str | None] = SIMULATED) -> JsonObject:
    """Run the real stages and the real gate on bars (n, 9) of venue and market `where`; return verdict and figures."""
    from pipelines.evaluation.gates import evidence_of, judge
    from pipelines.evaluation.verdicts import verdict_record

    params = load_params()
    with tempfile.TemporaryDirectory(prefix="bellwether-evidence-") as scratch:
        folder = train(Path(scratch) / "workspace", bars, symbol, params, True, where)
        trials = json.loads((folder / FAMILY / "fit.json").read_text())["decay"]["configurations"]
        verdict = judge(evidence_of(folder / FAMILY, None, trials), params)
        figures = json.loads((folder / "evaluation" / f"{FAMILY}.json").read_text())
    keep = ("n", "hit_rate", "cost_bps", "costs", "loss", "gain_over", "auc", "selective", "every_row_net_bps")
    return {
        "promoted": verdict.passed,
        "reasons": list(verdict.reasons),
        "checks": verdict_record(verdict)["checks"],
        "figures": {name: figures[name] for name in keep},
    }


def noise(seed: str) -> JsonObject:
    """Run the gate on a simulated market without an edge."""
    params = load_params()
    return gate(simulated(params, params.simulator.history_days, seed=int(seed), edge=0.0), params.simulator.symbol)


def planted(seed: str) -> JsonObject:
    """Run the gate on a simulated market with the planted edge."""
    params = load_params()
    return gate(simulated(params, params.simulator.history_days, seed=int(seed)), params.simulator.symbol)


def real(name: str) -> JsonObject:
    """Run the gate on a recorded market."""
    return gate(recorded(recording(RECORDINGS[name])), name.split()[0], listed(RECORDINGS[name]))


def sizes(case: str) -> JsonObject:
    """Judge simulated evidence of known truth; case = family, rows, and what the model is, between bars."""
    from benchmarks.gate_scenarios import refusals

    family, n, what = case.split("|")
    return refusals(family, int(n), what, JUDGED if int(n) <= 1500 else JUDGED // 4, load_params())


def size_cases() -> tuple[str, ...]:
    """Return every case of `sizes`: perfect models of usual and of large skill, and bad ones."""
    from benchmarks.gate_scenarios import OF_FAMILY, USUAL

    return tuple(
        f"{family}|{n}|{what}"
        for family, bad in OF_FAMILY.items()
        for n in (500, 1500, 5000)
        for what in (USUAL[family], LARGE[family], *bad)
    )


def leaks(case: str) -> JsonObject:
    """Check perfect models for a leak; case = family, rows and AUC, between bars. Return how often by state."""
    from benchmarks.gate_scenarios import perfect
    from pipelines.evaluation.gates import no_leak

    (family, n, auc), params = case.split("|"), load_params()
    seed = zlib.crc32(case.encode())
    found = [no_leak(perfect(family, int(n), float(auc), np.random.default_rng([seed, i])), params)[0].passed
             for i in range(LEAKS)]  # fmt: skip
    return {"n": LEAKS, "refused": found.count(False), "few": found.count(None)}


def leak_cases() -> tuple[str, ...]:
    """Return every case of `leaks`."""
    from benchmarks.gate_scenarios import EFFECTS

    families = ("validator", "predictor")
    return tuple(f"{family}|{n}|{auc}" for family in families for n in (500, 1500, 5000) for auc in EFFECTS[family])


def size_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the share of each case that the gate refused, with its Wilson interval."""
    return {case["case"]: asdict(hit_rate(case["refused"], case["n"])) for case in found}


def validator_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return AUC, gains over the baselines and lift of the validator on each recorded market."""
    table = {}
    for case in found:
        name, figures = case["case"], case["figures"]
        table[f"{name}: AUC"] = figures["auc"]["model"]
        table |= {f"{name}: log loss gain over {k}": v for k, v in figures["gain_over"].items()}
        table |= {f"{name}: {k}, top 20 %": v for k, v in figures["selective"]["20%"].items() if isinstance(v, dict)}
    return table | share("promoted")(found)
