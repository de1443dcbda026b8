"""Portfolio: allocate among the symbols of the universe, by their returns or by what the decisions in them earned."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.support.installation import Installation, now, open_installation
from flows.support.progress import step
from flows.support.run_names import run_name
from pipelines.contracts import CLOSE, OPEN_TIME, Floats, utc
from pipelines.costs import costs_of, venue_of
from pipelines.data.symbols import slug_of
from pipelines.errors import BadValues
from pipelines.evaluation.allocation import (
    Allocated,
    DailyReturns,
    Plan,
    allocate,
    of_decisions,
    of_markets,
    to_dict,
    trades,
)
from pipelines.stage_outputs import grids_of

Of = Literal["markets", "decisions"]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Hold what was allocated: the returns it rests on, every method, shares held now, and the trades of one method."""

    of: Of
    data: DailyReturns
    plan: Plan
    methods: list[Allocated]
    held: Floats
    method: str
    trades: Floats | None

    def to_dict(self) -> Mapping[str, Any]:
        """Return the whole as JSON."""
        symbols = self.data.symbols
        return {
            "of": self.of,
            "symbols": list(symbols),
            "first": f"{utc(self.data.days[0]):%F}",
            "last": f"{utc(self.data.days[-1]):%F}",
            "days": len(self.data.days),
            "window_days": self.plan.window,
            "every_days": self.plan.every,
            "band": self.plan.band_share / len(symbols),
            "cost_bps": self.plan.cost_bps,
            "methods": [to_dict(one, symbols) for one in self.methods],
            "held": dict(zip(symbols, self.held.tolist(), strict=True)),
            "method": self.method,
            "trades": None if self.trades is None else dict(zip(symbols, self.trades.tolist(), strict=True)),
        }


def market_returns(installation: Installation) -> DailyReturns:
    """Return the daily returns of the universe: those of the newest data version, then those of observed bars."""
    closes = {}
    for symbol in installation.symbols:
        folder = installation.workspace / "artifacts" / "features" / slug_of(symbol)
        grid, base_grid = grids_of(installation.meta_of(symbol))
        bars = np.load(folder / "decision.npy", mmap_mode="r")
        newer = installation.store.bars(symbol, after=float(bars[-1, OPEN_TIME]))
        times = np.concatenate([grid.closes(bars[:, OPEN_TIME]), base_grid.closes(newer[:, OPEN_TIME])])
        prices = np.concatenate([bars[:, CLOSE], newer[:, CLOSE]])
        order = np.argsort(times, kind="stable")
        closes[symbol] = times[order], prices[order]
    return of_markets(closes)


def decision_returns(installation: Installation) -> DailyReturns:
    """Return what the emitted decisions of each symbol earned a day, after costs. Raises NotEnoughData."""
    resolved = [
        (record.decision.symbol, outcome.resolved_at.timestamp(), record.decision.size, outcome.net_bps)
        for record, outcome in installation.store.resolved()
        if record.decision.action != "NO_TRADE"
    ]
    return of_decisions(resolved, installation.symbols)


def held_shares(installation: Installation, symbols: tuple[str, ...]) -> Floats:
    """Return (k,) the share of equity in the open long positions of each symbol, by the ledger."""
    held = np.zeros(len(symbols))
    emitted = [record.decision for record in installation.store.decisions(emitted_only=True)]
    closed = {outcome.decision_id for outcome in installation.store.outcomes_of([one.id for one in emitted])}
    for decision in emitted:
        if decision.id not in closed and decision.action == "BUY" and decision.symbol in symbols:
            held[symbols.index(decision.symbol)] += decision.size
    return held


def study(installation: Installation, of: Of = "markets", method: str | None = None) -> Allocation:
    """Return the allocation by every method; writes nothing, needs no server.

    of      returns of the markets, or of the decisions in them
    method  whose trades are proposed; None = `portfolio.method` of params.yaml
    Raises  BadValues for an unknown method or `of`; NotEnoughData with too few days
    """
    params = installation.params.portfolio
    if of not in ("markets", "decisions"):
        raise BadValues(f"--of {of}: give markets or decisions")
    data = market_returns(installation) if of == "markets" else decision_returns(installation)
    rows = [costs_of(installation.params.costs, *venue_of(installation.meta_of(name))) for name in data.symbols]
    plan = Plan(
        window=params.window_days, every=params.every_days, band_share=params.band_share,
        cost_bps=max(row.round_trip_bps for row in rows) / 2.0,
        given=stated(params.weights, data.symbols, "weights"),
        caps=stated(params.caps, data.symbols, "caps"),
    )  # fmt: skip
    held = held_shares(installation, data.symbols)
    found = allocate(data, plan, held)
    wanted = method or params.method
    chosen = next((one for one in found if one.method == wanted), None)
    if chosen is None:
        raise BadValues(f"no portfolio method {wanted!r}; use one of {', '.join(one.method for one in found)}")
    return Allocation(
        of, data, plan, found, held, wanted, None if chosen.now is None else trades(chosen.now, held, plan)
    )


def stated(values: Mapping[str, float], symbols: tuple[str, ...], key: str) -> Floats | None:
    """Return (k,) the numbers that params.yaml states for these symbols; None where it states none.

    Raises  BadValues where it states some of them, or others
    """
    if not values:
        return None
    if set(values) != set(symbols):
        raise BadValues(
            f"portfolio.{key} of params.yaml names {', '.join(values)}; the universe is {', '.join(symbols)}. Name "
            "each symbol once, or leave the key empty"
        )
    return np.array([values[name] for name in symbols])


def write(allocation: Allocation, folder: Path) -> Path:
    """Write portfolio.json to a folder, which is created if absent; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "portfolio.json"
    path.write_text(json.dumps(allocation.to_dict(), indent=1) + "\n")
    return path


@task
def report(allocation: Allocation, at: datetime) -> str:
    """Write the figures under reports and show them as a Prefect table. Return the path of the file."""
    rows = [
        {"method": one["method"], **{key: _shown(one[key]) for key in ("weights", "net_return", "sharpe", "abstained")}}
        for one in allocation.to_dict()["methods"]
    ]
    create_table_artifact(key="portfolio", table=rows, description=f"Allocation by {allocation.of}, {at:%F %H:%M} UTC")
    return str(write(allocation, open_installation().settings.home / "reports" / f"portfolio-{at:%Y%m%dT%H%M%S}"))


def _shown(value: object) -> str:
    """Return a figure, an estimate or weights as one short text."""
    if isinstance(value, Mapping) and "low" in value:
        parts = [value[key] for key in ("value", "low", "high")]
        return "–" if parts[0] is None else " ".join("?" if v is None else f"{v:.3f}" for v in parts)
    if isinstance(value, Mapping):
        return ", ".join(f"{symbol} {share:.2f}" for symbol, share in value.items())
    return "–" if value is None else str(value)


@flow(name="portfolio", flow_run_name=run_name("portfolio of {of}"), log_prints=True)
def portfolio(of: Of = "markets", method: str | None = None) -> Mapping[str, Any]:
    """Allocate among the symbols of the universe. Return the figures of every method and the trades of one.

    Args:
        of: "markets" are the symbols' own returns, "decisions" what the decisions in them earned.
        method: Whose trades are proposed; empty = portfolio.method of params.yaml.
    """
    with step(f"portfolio: allocate by {of}"):
        found = study(open_installation(), of, method)
    return {**found.to_dict(), "file": report(found, now())}
