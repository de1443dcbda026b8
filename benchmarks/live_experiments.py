"""Experiments on a live market: real services, the simulator at SPEED, four symbols, versions made better or worse.

One installation runs all cases, one after the other. Its turn trains a validator; the arms of a case are variants of
that bundle whose calibrated log odds are shifted, so that what one of them loses against the other is known. Their
verdicts are put on the ledger here; all that follows is the product's own doing.
Run: python -m benchmarks.evidence ab_live
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from bellwether.operations.replay_decisions import replay_decisions
from benchmarks.scratch_home import environment
from flows.support import experiment_verify, experiments, promotion
from flows.support.installation import Installation, open_installation
from pipelines.contracts import Check, JsonObject, Verdict
from pipelines.experiments.guardrails import GUARDRAIL
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers, example
from pipelines.sealed_folder import MANIFEST, seal
from pipelines.settings import ROOT, Settings, settings
from pipelines.store import RUNNING, Promotion
from pipelines.tracking import Version
from serving.inference.generation import GENERATION_FILE
from serving.inference.predictions import faulty
from serving.service.keys import write_key

FAMILY, SPEED, LIMIT_S = "validator", 3600.0, 600.0
EQUAL_S = 240.0  # what has no gain does not end: it is watched for so long
SHIFT = 1.0  # of the log odds: costs about p (1 - p) / 2, some .1 nat
BOUND = 1.0  # of a block's mean: some five deviations of what such a shift makes of it
FAR = 1e9  # golden rows so far from the training that no model is asked
REPLAYED = 1500  # newest decisions that are made again
# case → shift of the champion, of the challenger; None: its calibration gives no number
CASES: dict[str, tuple[float, float | None]] = {
    "better": (SHIFT, 0.0), "equal": (0.0, 0.0), "worse": (0.0, SHIFT), "faulty": (0.0, None),
}  # fmt: skip
PASSED = Check("rows", True, 1000.0, None, None, ">= 200", 1000)


def changes() -> dict[str, dict[str, Any]]:
    """Return what is changed of params.yaml: an hour of horizon, so that a block takes six, and small models."""
    return {
        "simulator": {"history_days": 90, "live_days": 3, "drift_after_live_days": None, "edge": 1.3},
        "labels": {"horizon_bars": 4},
        "feed": {"speed": SPEED},
        "retrain": {"enabled": False},
        "predictor": {"max_windows": 500, "epochs": 1, "folds": 1},
        "pattern": {"max_windows": 600, "epochs": 1, "folds": 1},
        "regime": {"em_iterations": 20, "folds": 1},
        "importance": {"repeats": 1},
    }


def live_case(case: str) -> JsonObject:
    """Run one case on the installation of all; return what became of the experiment. Raises ServiceDown."""
    folder = Settings().home.resolve() / "evidence" / "ab_live"
    with live_market(folder, changes()):
        installation = open_installation()
        with closing(installation.store):
            challenger = arms_of(installation, case)
            began_s = time.monotonic()
            begun = promotion.begin_experiment(installation, FAMILY, challenger.version, "evidence", case)
            wait_for_end(installation, begun.number, EQUAL_S if case == "equal" else LIMIT_S)
            return found_of(installation, begun.number, case, time.monotonic() - began_s)


@contextmanager
def live_market(folder: Path, changed: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Start an installation in `folder` with its feed, after a turn where there was none; stop it at the end.

    changed  section of params.yaml → key → value
    """
    env = environment(folder, changed)
    with here(env), (folder / "run.log").open("a") as log:
        has_turned = (settings().home / "serving" / GENERATION_FILE).is_file()
        for command in (() if has_turned else (("run", "--once"),)) + (("up",), ("feed", "start")):
            call(env, log, *command)
        os.environ["MLFLOW_TRACKING_TOKEN"] = write_key(settings())
        try:
            yield
        finally:
            call(env, log, "down")


@contextmanager
def here(env: Mapping[str, str]) -> Iterator[None]:
    """Make this process one of an installation for as long as the block: the next case finds what was set before."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in env.items() if name.startswith("BELLWETHER_")})
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def call(env: Mapping[str, str], log: IO[str], *command: str) -> None:
    """Run a command as a user does. Raises CalledProcessError."""
    program = str(Path(sys.executable).with_name("bellwether"))
    subprocess.run([program, *command], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=True)


def arms_of(installation: Installation, case: str) -> Version:
    """Register both arms of a case, make the first champion by hand, and return the challenger."""
    of_champion, of_challenger = CASES[case]
    first = trained(installation)
    champion = register(installation, first, f"{case}: champion", of_champion)
    judge(installation, champion, None)
    promotion.promote(installation, FAMILY, champion.version, "evidence", f"champion of the case {case}")
    if (probation := experiments.running(installation, FAMILY)) is not None:
        experiments.stop(installation, probation.number, "evidence", "another experiment is to begin")
    challenger = register(installation, first, f"{case}: challenger", of_challenger)
    basis = {"unit": "nats", "bound": BOUND, "rows": "stated", "blocks": 0, "skill": 0.1, "least_gain": 0.01}
    judge(installation, challenger, basis)
    return challenger


def trained(installation: Installation) -> Promotion:
    """Return the verdict of the first validator that this installation trained."""
    return next(line for line in installation.store.promotions(FAMILY) if line.action == "challenge")


def register(installation: Installation, first: Promotion, title: str, shift: float | None) -> Version:
    """Register a variant of a trained bundle whose log odds are shifted; None: its answers are no numbers."""
    source = installation.settings.bundles / str(first.digest)
    if not source.exists():
        original = installation.tracking.version(FAMILY, str(first.to_version))
        promotion.fetch_bundle(installation, original)
    into = installation.settings.home / "variants" / title.replace(": ", "-")
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(source, into)
    header = {name: value for name, value in json.loads((into / MANIFEST).read_text()).items() if name != "files"}
    (into / "card.md").write_text(f"{(into / 'card.md').read_text()}\n{title}\n")
    file = into / "calibration.json"
    calibration = json.loads(file.read_text())
    calibration["shift"] = calibration["shift"] + shift if shift is not None else calibration["shift"]
    calibration["slope"] = calibration["slope"] if shift is not None else float("nan")
    file.write_text(json.dumps(calibration))
    (into / MANIFEST).unlink()
    model = load_bundle(into, seal(into, header))
    rows = model.golden["rows"] + (0.0 if shift is not None else FAR)
    golden = model.predict(rows)
    np.savez(into / "golden.npz", rows=rows, p=golden.p, status=np.array(golden.status))
    (into / MANIFEST).unlink()
    digest = seal(into, header)
    model = load_bundle(into, digest)
    asked = example(model)
    tags = installation.tracking.version(FAMILY, str(first.to_version)).tags
    kept = {name: value for name, value in tags.items() if not name.startswith("bellwether.")}
    return installation.tracking.log_candidate(
        FAMILY, into, params={}, metrics={}, points=[], files=[], tags=kept | {"digest": digest}, title=title,
        example=(asked, answers(model, asked)), data=[],
    )  # fmt: skip


def judge(installation: Installation, version: Version, basis: JsonObject | None) -> None:
    """Put a passing verdict on a version."""
    promotion.challenge(installation, version, Verdict(FAMILY, True, (PASSED,), ()), [], "evidence", basis)


def wait_for_end(installation: Installation, number: int, limit_s: float) -> None:
    """Wait until an experiment has ended, or for so long."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and installation.store.experiment_state(number) in RUNNING:
        time.sleep(0.5)


def found_of(installation: Installation, number: int, case: str, seconds: float) -> JsonObject:
    """Return what became of an experiment: states, blocks, figures, arms of its decisions, and what a replay gives.

    faulty_closes   closes whose challenger answered with a fault before the experiment ended
    to_end_s        wall time from the first of those to its end
    """
    store = installation.store
    experiment, moves = store.experiment(number), store.transitions(number)
    view = experiments.view_of(installation, experiment)
    decisions = [record.decision for record in store.decisions(since=experiment.begun)]
    faults = [
        d.ingested_at for d in decisions
        if (answer := d.models.get(FAMILY, {}).get("challenger")) is not None and faulty(answer) is not None
        and d.ingested_at <= moves[-1].at
    ]  # fmt: skip
    replayed = replay_decisions(installation, store.decisions(since=experiment.begun, last=REPLAYED)).to_dict()
    verified = experiment_verify.recompute(installation, number)
    slots = store.slots(FAMILY)
    return {
        "state": moves[-1].state, "states": " ".join(move.state for move in moves), "reason": moves[-1].reason,
        "seconds": seconds, "days": len(view.blocks) * experiment.period_s / 86_400.0,
        **{name: view.figures[name] for name in ("blocks", "void", "gain", "low", "high", "e_value", "clipped_share")},
        "decisions": len(decisions), "by_challenger": sum(d.arm == "challenger" for d in decisions),
        "is_champion": slots.champion is not None and slots.champion.digest == experiment.challenger_digest,
        "faulty_closes": len(faults), "to_end_s": (moves[-1].at - min(faults)).total_seconds() if faults else None,
        "replayed": replayed["decisions"], "replayed_equal": replayed["equal"],
        "same": verified.same, "misassigned": verified.misassigned, "chain": len(store.verify_chain([]).faults),
        "guardrails": [alarm.detail for alarm in store.alarms() if alarm.kind == GUARDRAIL],
    }  # fmt: skip


def live_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by case blocks, gain with its confidence sequence, and seconds."""
    figures: dict[str, JsonObject] = {}
    for case in found:
        name, n = case["case"], case["blocks"]
        figures[f"{name}: {case['state']}, gain"] = {
            "value": case["gain"], "low": case["low"], "high": case["high"], "n": n,
        }  # fmt: skip
        figures[f"{name}: seconds"] = {"value": case["seconds"], "low": None, "high": None, "n": n}
    return figures
