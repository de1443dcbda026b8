"""One decision and one live bar against the release before this service decided in batches, in turn on one machine.

The earlier code is read from git and runs from a folder of its own, as this code does, in processes of their own. Each
trains its four families in both arms on the same simulated market and serves them; each then takes the same closes, a
few hundred at a time in turn. Measured in the process of the service, without HTTP: the fifteen base bars of a close
are stored and folded, every model answers, fusion, risk, and the decision is durable.

Run: python -m benchmarks.evidence earlier
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.fixture import RECORDED
from benchmarks.upgrade import check_out, environment_of, install_missing, run_python
from pipelines.compiled import cache_dir
from pipelines.contracts import Floats, JsonObject
from pipelines.settings import ROOT

EARLIER = "d9adf560"  # the service of 0.13.0, which decides symbol by symbol, with the benchmarks that measure it
CASES = ("in turn",)
ROUNDS, CLOSES, WARM = 3, 600, 12  # closes of a round that are timed, and those before them, which load code
SIDES = ("earlier", "now")

# Both releases run the same three pieces.
MAKE = """
import sys
from pathlib import Path
from pipelines.bootstrap import bootstrap
bootstrap()
import numpy as np
from benchmarks.four_families import four_families, of_symbols
into = Path(sys.argv[1])
at = four_families(False)
of_symbols(at, (at.params.simulator.symbol,), into / "home")
np.save(into / "live.npy", at.live)
"""
DECIDE = """
import asyncio, json, sys
from pathlib import Path
from time import perf_counter
from pipelines.bootstrap import bootstrap
bootstrap()
import numpy as np
from pipelines.contracts import BAR_FIELDS, utc
from pipelines.settings import Settings, load_params
from serving.service.decision_engine import DecisionEngine
from serving.service.schemas import ObserveRequest
into, first, closes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
params = load_params()
name, live = params.simulator.symbol, np.load(into / "live.npy")
groups = np.split(live, np.flatnonzero(np.diff(live[:, 0] // 900)) + 1)[:-1][first:first + closes]
def body(rows):
    bars = [
        {"open_time": utc(row[0]).isoformat()} | {k: v for k, v in zip(BAR_FIELDS[1:], row[1:]) if v == v}
        for row in rows.tolist()
    ]
    return json.dumps({"symbol": name, "bars": bars})
sent = [body(rows) for rows in groups]
async def decided():
    engine, took, answers = DecisionEngine(Settings(home=into / "home", store_url=""), params), [], []
    await engine.start()
    for one in sent:
        began = perf_counter()
        await engine.intake.observe(ObserveRequest.model_validate_json(one))
        between = perf_counter()
        (made,) = await engine.decider.decide([name])
        took.append((between - began, perf_counter() - between))
        answers.append(sum(answer.status == "OK" for arms in made.models.values() for answer in arms.values()))
    await engine.stop()
    return took, answers
took, answers = asyncio.run(decided())
print(json.dumps({"s": took, "answers": answers}))
"""
BARS = """
import json, sys
from pathlib import Path
from time import perf_counter
from pipelines.bootstrap import bootstrap
bootstrap()
import numpy as np
from benchmarks.features import WINDOW, market
from benchmarks.signals_speed import everything_live
from pipelines.data.timeframes import Grid, resample
from pipelines.warm_start import read_warm_start
from serving.state.symbols import Symbol
into = Path(sys.argv[1])
window, single = everything_live(market(False)[0])
window()
alone = [single(i) for _ in range(4) for i in range(WINDOW)]
(warm,) = (into / "home" / "serving" / "warm").iterdir()
symbol, took = Symbol(read_warm_start(warm, warm.name)), []
for bar in resample(np.load(into / "live.npy"), Grid("1m"), Grid("15m")):
    began = perf_counter()
    symbol.on_bar(bar)
    took.append(perf_counter() - began)
print(json.dumps({"fold_s": alone, "close_s": took[12:]}))
"""


def in_turn(case: str) -> JsonObject:
    """Return seconds of each side and round: of the closes (ROUNDS, CLOSES, observe or decide), and of live bars."""
    with tempfile.TemporaryDirectory(prefix="bellwether-earlier-") as scratch:
        tree = Path(scratch) / "code"
        release = check_out(EARLIER, tree)
        packages = install_missing(tree / "requirements.lock", Path(scratch) / "packages")
        trees = {"earlier": tree, "now": ROOT}
        into = {side: Path(scratch) / side for side in SIDES}
        env = {side: environment_of(into[side] / "home") | {"BELLWETHER_RECORDED": str(RECORDED)} for side in SIDES}
        env["earlier"] |= {
            "PYTHONPATH": f"{tree}{os.pathsep}{packages}",
            "BELLWETHER_KERNEL_CACHE": str(Path(scratch) / "kernels"),
        }
        env["now"] |= {"PYTHONPATH": str(ROOT), "BELLWETHER_KERNEL_CACHE": str(cache_dir())}

        def run(side: str, code: str, *words: str) -> str:
            """Run code of one side; return the last line that it printed, if it printed any."""
            return run_python(trees[side], env[side], code, *words).strip().rpartition("\n")[2]

        for side in SIDES:
            _say(f"{side}: training four families in both arms")
            run(side, MAKE, str(into[side]))
        found: dict[str, dict[str, list[object]]] = {side: {"closes": [], "bars": []} for side in SIDES}
        for i in range(ROUNDS):
            for side in SIDES:
                _say(f"round {i + 1} of {ROUNDS}, {side}")
                at = str(i * (WARM + CLOSES)), str(WARM + CLOSES)
                closes = json.loads(run(side, DECIDE, str(into[side]), *at))
                found[side]["closes"].append({name: values[WARM:] for name, values in closes.items()})
                found[side]["bars"].append(json.loads(run(side, BARS, str(into[side]))))
        return {"release": release, "found": found}


def _say(text: str) -> None:
    """Print what is done now."""
    print(f"earlier: {text}", file=sys.stderr, flush=True)


def figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return p50 and p99 of both sides, all rounds together, with the least and the most of a round; the median of the
    rounds' ratios, now / earlier; and how many models answered a close, which has to be the same.
    """
    made: dict[str, JsonObject] = {}
    for case in found:
        sides = {side: _of_side(case["found"][side]) for side in SIDES}
        for what in sides["now"]:
            unit = "ms" if what.startswith("a close") else "µs"
            scale = {"ms": 1e3, "µs": 1e6}[unit]
            for name, level in (("p50", 50), ("p99", 99)):
                each = {side: [float(np.percentile(s, level)) for s in rounds[what]] for side, rounds in sides.items()}
                whole = {side: float(np.percentile(np.concatenate(sides[side][what]), level)) for side in SIDES}
                n = sum(map(len, sides["now"][what]))
                for side, label in (("earlier", case["release"]), ("now", "now")):
                    value, low, high = (scale * x for x in (whole[side], min(each[side]), max(each[side])))
                    made[f"{what}, {label}, {name}, {unit}"] = {"value": value, "low": low, "high": high, "n": n}
                ratios = [now / before for now, before in zip(each["now"], each["earlier"], strict=True)]
                made[f"{what}, {name}: now / {case['release']}"] = {
                    "value": float(np.median(ratios)), "low": min(ratios), "high": max(ratios), "n": len(ratios),
                }  # fmt: skip
        for side, label in (("earlier", case["release"]), ("now", "now")):
            counts = np.concatenate([one["answers"] for one in case["found"][side]["closes"]])
            made[f"answers of models a close, {label}, mean"] = {
                "value": float(counts.mean()), "low": float(counts.min()), "high": float(counts.max()), "n": len(counts)
            }  # fmt: skip
    return made


def _of_side(found: JsonObject) -> dict[str, list[Floats]]:
    """Return what was timed → seconds of each round."""
    closes = [np.array(one["s"]) for one in found["closes"]]
    return {
        "a close observed and decided": [s.sum(axis=1) for s in closes],
        "a close decided": [s[:, 1] for s in closes],
        "a closing bar in the service": [np.array(one["close_s"]) for one in found["bars"]],
        "all columns of a bar, CPU": [np.array(one["fold_s"]) for one in found["bars"]],
    }
