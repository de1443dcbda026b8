"""`python -m benchmarks.power [--write]`: what each check of the gate, statistical breaker and alarm can find.

Every case is stored when it is done, in `artifacts/evidence/power.json`, and a second run continues where the first
ended. `--write` also writes docs/results/power.md. No market's result is read: the page comes first, and its thresholds
stand in params.yaml before any result under them is seen.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import gate_scenarios as scenarios
from pipelines.contracts import Floats, JsonObject
from pipelines.evaluation.gates import against_champion
from pipelines.evaluation.intervals import mean_of
from pipelines.models.losses import log_losses
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params

PAGE = ROOT / "docs" / "results" / "power.md"
REPETITIONS = 120  # of a case; the standard error of 5 % is then 2 points
SIZES = (500, 1500, 5000)
PAIRED = (100, 300, 700)
SERIES = ("independent", "t4", "MA(16)", "MA(16), t4", "AR(.9)", "labels of 8 rows")
TRADE_BPS = 45.0  # standard deviation of a trade's net result on the simulator and on BTC/USDT
CODE = ("intervals", "metrics", "calibration", "deflation", "gates", "verdicts")


def sizes_of(family: str) -> tuple[int, ...]:
    """Return the numbers of rows a family is judged on: the stated ones and a year's."""
    return (*SIZES, scenarios.ROWS[family].n)


def cases() -> list[str]:
    """Return the name of every case: kind, then what it needs, between bars."""
    found = [f"interval|{kind}|{n}" for kind in SERIES for n in (20, 100, *SIZES)]
    for family, effects in scenarios.EFFECTS.items():
        for n in sizes_of(family):
            found += [f"gate|{family}|{n}|{effect}" for effect in effects]
            found += [f"gate|{family}|{n}|{bad}" for bad in scenarios.OF_FAMILY[family]]
    found += [f"champion|{mode}|{n}|{share}" for mode in ("superior", "non_inferior") for n in PAIRED
              for share in (0.0, 0.5, 1.0, 1.5, 2.0)]  # fmt: skip
    found += [f"trades|{n}|{mean}" for n in (60, 100, 200) for mean in (0, -10, -20)]
    return found + [f"slippage|{mean}" for mean in (1, 3, 5, 7, 10)]


def run(case: str) -> JsonObject:
    """Run one case."""
    kind, *rest = case.split("|")
    params = load_params()
    if kind == "interval":
        return coverage(rest[0], int(rest[1]))
    if kind == "champion":
        return paired(rest[0], int(rest[1]), float(rest[2]), params)
    rng = np.random.default_rng(len(case))
    if kind == "trades":
        n, mean = int(rest[0]), float(rest[1])
        draws = [mean + TRADE_BPS * _t4(rng, n, 3) for _ in range(2000)]
        return {"tripped": float(np.mean([mean_of(each).estimate().high < 0.0 for each in draws]))}
    if kind == "slippage":
        draws = [float(rest[0]) + 4.0 * _t4(rng, params.breakers.fills, 1) for _ in range(20_000)]
        return {"tripped": float(np.mean([each.mean() >= params.breakers.max_slippage_bps for each in draws]))}
    return scenarios.refusals(
        rest[0], int(rest[1]), rest[2], REPETITIONS if int(rest[1]) <= 10_000 else REPETITIONS // 2, params
    )


def _t4(rng: np.random.Generator, n: int, span: int) -> Floats:
    """Return (n,) values of unit variance and mean zero, each a mean over `span` draws with four degrees of freedom."""
    return np.convolve(rng.standard_t(4, n + span - 1), np.full(span, (2.0 * span) ** -0.5), "valid")


def series(kind: str, rng: np.random.Generator, n: int) -> Floats:
    """Return (n,) dependent values with mean zero."""
    if kind == "independent":
        return rng.standard_normal(n)
    if kind == "t4":
        return _t4(rng, n, 1)
    if kind == "MA(16)":
        return scenarios.averaged(rng, n, 16)
    if kind == "MA(16), t4":
        return _t4(rng, n, 16)
    if kind == "AR(.9)":
        return scenarios.remembered(rng, n, 0.9)
    return scenarios.outcomes(rng, np.full(n, 0.4), 8) - 0.4


def coverage(kind: str, n: int, repetitions: int = 2000) -> JsonObject:
    """Return how often the interval of a mean holds the truth, and how often there is one."""
    found = [mean_of(series(kind, np.random.default_rng([n, i]), n)).estimate() for i in range(repetitions)]
    known = [each.low <= 0.0 <= each.high for each in found if np.isfinite(each.low)]
    return {"known": len(known) / repetitions, "covered": float(np.mean(known)) if known else None}


def paired(mode: str, n: int, share: float, params: Params) -> JsonObject:
    """Return how often a validator passes against a champion, on n paired rows.

    share  of the champion's own skill by which the candidate is better: 1 = twice the champion's gain
    """
    params = params.model_copy(update={"gate": params.gate.model_copy(update={"against_champion": mode})})
    passed = 0
    for i in range(REPETITIONS):
        rng = np.random.default_rng([n, i])
        e = scenarios.binary("validator", max(n, 500), scenarios.USUAL["validator"], rng)
        # the champion knows c of the truth's log-odds: its gain is about c (2 - c) of the whole, so the rest is `share`
        # of it where 1 / (c (2 - c)) = 1 + share; two fits differ by what each learnt of noise as well
        known = 1.0 - np.sqrt(1.0 - 1.0 / (1.0 + share))
        rate, odds = np.log(0.45 / 0.55), np.log(e.p / (1 - e.p))
        noise = 0.2 * np.std(odds) * rng.standard_normal((2, len(odds)))
        champion = 1.0 / (1.0 + np.exp(-(rate + known * (odds - rate) + noise[0])))
        candidate = 1.0 / (1.0 + np.exp(-(odds + noise[1])))
        losses = log_losses(champion, e.y)
        losses[: len(losses) - n] = np.nan
        e = scenarios.with_losses(replace(e, p=candidate))
        passed += bool(against_champion(replace(e, champion_loss=losses), params).passed)
    return {"passed": passed / REPETITIONS}


# ---- stored, resumed ----------------------------------------------------------------------------------------------


def fingerprint() -> str:
    """Return the sha256 of the params and the code that a case depends on."""
    params = load_params()
    files = [ROOT / "benchmarks" / "gate_scenarios.py", ROOT / "benchmarks" / "power.py"]
    files += [ROOT / "pipelines" / "evaluation" / f"{name}.py" for name in CODE]
    stated = (params.gate.model_dump_json() + params.breakers.model_dump_json()).encode()
    return hashlib.sha256(stated + b"".join(file.read_bytes() for file in files)).hexdigest()


def measured(path: Path, names: Sequence[str], jobs: int) -> dict[str, JsonObject]:
    """Run the cases that are not stored at `path` under this code, `jobs` at a time, and return all."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    code = fingerprint()
    done: dict[str, JsonObject] = content["cases"] if content.get("fingerprint") == code else {}
    todo = [name for name in names if name not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run, name): name for name in todo}
        for count, ended in enumerate(as_completed(waiting), start=1):
            done[waiting[ended]] = ended.result()
            draft = path.with_suffix(".tmp")
            draft.write_text(json.dumps({"fingerprint": code, "cases": done}, indent=1) + "\n")
            draft.replace(path)
            print(f"{count} of {len(todo)}: {waiting[ended]}", file=sys.stderr)
    return done


def main() -> None:
    """Parse the command line, run what is missing, print or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/power.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    options = parser.parse_args()
    from benchmarks.power_page import page

    text = page(measured(Settings().home / "evidence" / "power.json", cases(), options.jobs), load_params())
    if options.write:
        PAGE.write_text(text)
        print(f"wrote {PAGE}", file=sys.stderr)
    else:
        print(text)


if __name__ == "__main__":
    main()
