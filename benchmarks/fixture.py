"""Make a small installation to measure in: a market, the real training stages, two bundles, a published warm start."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import by_symbol as by_symbol
from benchmarks.arms import serve_arms as serve_arms
from pipelines.contracts import OPEN_TIME, Floats, JsonObject, utc
from pipelines.costs import Costs, costs_of
from pipelines.data import data_version, schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.data.sessions import infer_grid
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid
from pipelines.models.base import Dataset
from pipelines.models.catalog import model_family
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params
from pipelines.stage_outputs import features_of, labels_of
from pipelines.training import stages
from pipelines.warm_start import publish_warm_start

MINUTES = Grid("1m")

RECORDED = (
    ROOT.parent / "shared" / "data" / "candles"
)  # no part of the repository; BELLWETHER_RECORDED is another folder
FAMILY = "validator"


LISTED = {  # beginning of a recorded file's name → its venue and market
    "binance_spot": ("binance", "spot"),
    "binance_usdm": ("binance", "perpetual"),
    "oanda_xau": ("oanda", "metal"),
    "oanda_eur": ("oanda", "forex"),
}
SIMULATED = ("simulator", "spot")


def listed(name: str) -> tuple[str | None, str | None]:
    """Return venue and market of a recorded file by its name; None where the name does not say."""
    found = [where for begins, where in LISTED.items() if Path(name).name.startswith(begins)]
    return found[0] if found else (None, None)


def costs_of_file(name: str, params: Params) -> Costs:
    """Return the costs of the market a recorded file is of."""
    return costs_of(params.costs, *listed(name))


def recording(name: str) -> Path:
    """Return the path of a recorded candle file; it may be absent."""
    return Path(os.environ.get("BELLWETHER_RECORDED", RECORDED)) / name


def recorded(path: Path) -> Floats:
    """Return the clean 1-minute bars (n, 9) of a recorded file."""
    return recorded_market(path, "1m")[0]


def recorded_market(path: Path, timeframe: str) -> tuple[Floats, Grid]:
    """Return the clean bars (n, 9) of a recorded file and the grid they show."""
    now = datetime.now(UTC)
    frame = read(path, now).frame
    grid = infer_grid(schemas.to_matrix(frame)[:, OPEN_TIME], timeframe)
    return schemas.to_matrix(assess(frame, grid, now).clean), grid


def simulated(params: Params, history_days: int, live_days: int = 0, **changes: Any) -> Floats:
    """Return 1-minute bars (n, 9) of a stationary simulated market, unless `changes` of its spec make it another."""
    wanted = {"history_days": history_days, "live_days": live_days, "drift_after_live_days": None}
    wanted |= {"drift_every_days": None} | changes
    return simulate(params.simulator.model_copy(update=wanted), tape=False).bars


def snapshot(workspace: Path, bars: Floats, symbol: str, where: tuple[str | None, str | None] = SIMULATED) -> Path:
    """Write 1-minute bars (n, 9) of venue and market `where` as the stages read them; return the workspace."""
    return universe(workspace, {symbol: (bars, MINUTES)}, {symbol: where})


def universe(
    workspace: Path, markets: Mapping[str, tuple[Floats, Grid]], where: Mapping[str, tuple[str | None, str | None]]
) -> Path:
    """Write bars (n, 9) and the grid of every market as the stages read them; return the workspace.

    where  symbol → its venue and market; a symbol that is not named is simulated
    """
    folder, described, content = workspace / "data", {}, hashlib.md5(usedforsecurity=False)
    folder.mkdir(parents=True)
    for symbol, (bars, grid) in markets.items():
        files = data_version.write_market(folder, symbol, schemas.to_frame(bars, grid, None), None, None)
        venue, market = where.get(symbol, SIMULATED)
        first, last = (utc(float(at)).isoformat() for at in bars[[0, -1], OPEN_TIME])
        described[symbol] = {
            "symbol": symbol, "timeframe": grid.timeframe, "grid": grid.to_dict(), "files": files, "first": first,
            "last": last, "rows": len(bars), "clock": "market", "venue": venue, "market": market,
        }  # fmt: skip
        for name in files:
            content.update((folder / name).read_bytes())
    data_version.write_manifest(folder, data_version.DataVersion(described))
    # the stages name the data by it
    (workspace / "data.dvc").write_text(json.dumps({"outs": [{"md5": content.hexdigest()}]}))
    return workspace


def prepare(
    workspace: Path, bars: Floats, symbol: str, params: Params, where: tuple[str | None, str | None] = SIMULATED
) -> Path:
    """Run the stages features and labels of dvc.yaml on bars (n, 9); return their artifacts folder."""
    with contextlib.chdir(snapshot(workspace, bars, symbol, where)), contextlib.redirect_stdout(sys.stderr):
        stages.build_features(params)
        stages.build_labels(params)
    return workspace / "artifacts"


def train(
    workspace: Path, bars: Floats, symbol: str, params: Params, figures: bool = False,
    where: tuple[str | None, str | None] = SIMULATED,
) -> Path:  # fmt: skip
    """Run features, labels, train (and evaluate, with `figures`) as dvc.yaml does; return their artifacts folder.

    where  venue and market the bars are of
    """
    artifacts = prepare(workspace, bars, symbol, params, where)
    with contextlib.chdir(workspace), contextlib.redirect_stdout(sys.stderr):
        stages.fit_family(FAMILY, params)
        if figures:
            stages.evaluate(FAMILY, params)
    return artifacts


@dataclass(frozen=True)
class Fixture:
    """Describe a small installation.

    home has bundles and a generation file, ready to serve; live are 1-minute bars (n, 9) after the history.
    """

    home: Path
    params: Params
    live: Floats
    dataset: Dataset
    digests: tuple[str, str]
    warm: dict[str, str]


@cache
def fixture(tiny: bool) -> Fixture:
    """Train champion and challenger on a simulated history, from two seeds. `tiny` is quick and measures nothing."""
    params, history_days, live_days = load_params(), 120, 30
    if tiny:
        history_days, live_days = 45, 2
        params = params.model_copy(update={"validator": params.validator.model_copy(update={"trees": 10, "depth": 3})})
    root = Path(tempfile.mkdtemp(prefix="bellwether-bench-"))
    atexit.register(shutil.rmtree, root)
    bars = simulated(params, history_days, live_days)
    history, live = np.split(bars, [history_days * MINUTES_A_DAY])
    (root / "home" / "bundles").mkdir(parents=True)
    digests = []
    for seed in (params.seed, params.seed + 1):
        artifacts = train(
            root / f"seed-{seed}", history, params.simulator.symbol, params.model_copy(update={"seed": seed})
        )
        digests.append(json.loads((artifacts / FAMILY / "fit.json").read_text())["digest"])
        (artifacts / FAMILY / "bundle").rename(root / "home" / "bundles" / digests[-1])
    symbol, into = params.simulator.symbol, root / "home" / "serving" / "warm"
    record = json.loads((labels_of(artifacts, symbol) / "traditional.json").read_text())
    warm = publish_warm_start(features_of(artifacts, symbol) / "warm", into, data_hash="0" * 32, **record)
    arms = {arm: arm_of(digest) for arm, digest in zip(("champion", "challenger"), digests, strict=True)}
    serve_arms(Settings(home=root / "home", store_url=""), {FAMILY: arms}, warm, datetime.now(UTC))
    return Fixture(
        root / "home", params, live, model_family(FAMILY).dataset(artifacts, params), (digests[0], digests[1]), warm
    )


def arm_of(digest: str, version: str = "benchmark") -> JsonObject:
    """Return the entry of an arm in a generation file."""
    names = ("run_id", "data_hash", "git_commit")
    return dict.fromkeys(names, "benchmark") | {"version": version, "digest": digest, "verdict": "passed"}


def by_decision_bar(live: Floats, params: Params) -> list[Floats]:
    """Return the live minutes of each whole decision bar."""
    slots = Grid(params.data.decision_timeframe).slots(live[:, OPEN_TIME])
    return np.split(live, np.flatnonzero(np.diff(slots)) + 1)[:-1]
