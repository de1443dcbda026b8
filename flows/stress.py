"""Stress: what the largest portfolio that the limits allow loses in crises, as a page and JSON in an MLflow run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_link_artifact

from flows.support.installation import Installation, now, open_installation
from flows.support.progress import step
from flows.support.run_names import run_name
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Floats, utc
from pipelines.costs import costs_of, venue_of
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.data.schemas import to_matrix
from pipelines.data.sessions import market_grid
from pipelines.data.symbols import slug_of
from pipelines.data.timeframes import TIMEFRAMES, resample
from pipelines.errors import NotEnoughData
from pipelines.evaluation.stress_limits import Case, largest, stress_of_limits, verdict
from pipelines.evaluation.stress_report import write_page
from pipelines.evaluation.stressed import MarketHistory

HOUR = "1h"
BID, ASK = 0, 1


@dataclass(frozen=True, slots=True)
class StressStudy:
    """Hold a market and its cases; `limit` is the drawdown limit, `about` what the figures rest on."""

    symbol: str
    about: str
    limit: float
    cases: list[Case]

    def to_dict(self) -> Mapping[str, Any]:
        """Return the figures as JSON; losses are fractions of equity."""
        return {
            "symbol": self.symbol,
            "about": self.about,
            "drawdown_limit": self.limit,
            "verdict": verdict(self.cases, self.limit),
            "cases": [case.to_dict(self.limit) for case in self.cases],
        }

    def metrics(self) -> dict[str, float]:
        """Return the losses of the largest portfolio by case and scenario, for MLflow."""
        return {
            f"{case.side}.{'stop' if case.stopped else 'no_stop'}.{r.scenario.replace(':', '.')}": r.loss.value
            for case in largest(self.cases)
            for r in case.results
            if r.loss is not None
        }


def crisis_bars(path: Path, at: datetime) -> tuple[Floats, float]:
    """Return ((m, 9) bars of at least an hour, their seconds) of a recorded file. Raises as `files.read`."""
    frame = read(path, at).frame
    grid = market_grid(frame)
    bars, hours = to_matrix(assess(frame, grid, at).clean), grid.at(HOUR)
    if grid.step_s >= hours.step_s:
        return bars, float(grid.step_s)
    return resample(bars, grid, hours), float(hours.step_s)


def gather(
    installation: Installation, crises: Path | None, equity: float | None, symbol: str | None = None
) -> MarketHistory:
    """Return a market's decision bars and spreads, and the bars of crises from a file, if one is given.

    symbol  of the newest data version; None = its first
    Raises StateError before the first ingest; UnknownName for a symbol it does not hold; NotEnoughData for fewer than
    two bars; as `files.read`
    """
    meta = installation.meta_of(symbol)
    path, step_s = None, float(TIMEFRAMES[HOUR])
    if crises is not None:
        path, step_s = crisis_bars(crises, now())
    folder = installation.features_of(meta["symbol"])
    bars, levels = np.load(folder / "decision.npy"), np.load(folder / "books.npy")
    if len(bars) < 2:
        raise NotEnoughData(
            f"the newest data version holds {len(bars)} decision bars of {meta['symbol']}; ingest a longer history"
        )
    whole = np.isfinite(bars[:, [OPEN, HIGH, LOW, CLOSE]]).all(axis=1)
    return MarketHistory(
        symbols=(str(meta["symbol"]),),
        step_s=float(TIMEFRAMES[meta["decision_timeframe"]]),
        bars=bars[whole, None],
        spread=spreads(levels)[whole, None],
        crises=None if path is None else path[:, None],
        crises_step_s=step_s,
        crises_market="" if crises is None else crises.stem,
        equity=equity,
    )


def spreads(levels: Floats) -> Floats:
    """Return (n,) spreads as fractions of the mid price, of books (n, 2, levels, 3); NaN where none was recorded."""
    if levels.shape[2] == 0:
        return np.full(len(levels), np.nan)
    bid, ask = levels[:, BID, 0, 0], levels[:, ASK, 0, 0]
    return np.asarray((ask - bid) / ((ask + bid) / 2.0))


def study(
    installation: Installation, crises: Path | None = None, equity: float | None = None, symbol: str | None = None
) -> StressStudy:
    """Return every row of the limits under every scenario on one market; writes nothing, needs no server."""
    recorded, params = gather(installation, crises, equity, symbol), installation.params
    costs = costs_of(params.costs, *venue_of(installation.meta_of(symbol)))
    side_bps = costs.round_trip_bps / 2.0
    cases = stress_of_limits(recorded, params.risk, side_bps, params.gate.bootstrap, params.seed)
    time = recorded.bars[:, 0, OPEN_TIME]
    file = f"crises from {crises.name}" if crises is not None else "no file of crises"
    about = (
        f"{recorded.symbols[0]}, {len(time):,} bars of {recorded.step_s / 60:g} minutes, {utc(time[0]):%F} to "
        f"{utc(time[-1]):%F} UTC; {file}; costs: {costs.describe()}"
    )
    return StressStudy(recorded.symbols[0], about, params.risk.max_drawdown, cases)


def write(studied: StressStudy, folder: Path) -> list[Path]:
    """Write stress.html and stress.json to a folder, which is created if absent. Return both paths."""
    title = f"Stress of {studied.symbol}"
    page = write_page(folder / "stress.html", title, studied.cases, studied.limit, studied.about)
    figures = folder / "stress.json"
    figures.write_text(json.dumps(studied.to_dict(), indent=1))
    return [page, figures]


def log(installation: Installation, studied: StressStudy, files: list[Path], at: datetime) -> str:
    """Log page, JSON and metrics as a run of their own in MLflow. Return the address of its artifacts."""
    name = slug_of(studied.symbol)
    tags = {"kind": "stress", "symbol": studied.symbol, "rests_on": studied.about[:500]}
    run_id = installation.tracking.log_study(f"stress-{name}-{at:%Y%m%dT%H%M%S}", tags)
    installation.tracking.log_report(run_id, files, "stress", studied.metrics())
    return f"{installation.tracking.run_link(run_id)}/artifacts"


@task(timeout_seconds=900)
def report(studied: StressStudy) -> dict[str, str]:
    """Write the study under reports, log it in MLflow, link it in Prefect. Return where the page is."""
    installation, at = open_installation(), now()
    files = write(studied, installation.settings.home / "reports" / f"{at:%Y%m%dT%H%M%S}")
    link = log(installation, studied, files, at)
    create_link_artifact(
        key="stress",
        link=link,
        link_text=f"Stress of {studied.symbol}, in its MLflow run",
        description="\n\n".join(verdict(studied.cases, studied.limit)),
    )
    return {"page": str(files[0]), "mlflow": link}


@flow(name="stress", flow_run_name=run_name("stress {symbol}"), log_prints=True)
def stress(crises: str | None = None, equity: float | None = None, symbol: str | None = None) -> Mapping[str, Any]:
    """Stress what the limits allow on one market; None = the first. Return the figures and where the report is."""
    with step("stress: scenarios"):
        studied = study(open_installation(), Path(crises) if crises else None, equity, symbol)
    with step("stress: report"):
        where = report(studied)
    return {**studied.to_dict(), **where}
