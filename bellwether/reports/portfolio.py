"""An allocation as tables: the methods, and what each symbol added and trades now."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from pipelines.errors import BadValues

COLUMNS = ["method", "net return, % a year", "over 1/N, points", "Sharpe", "drawdown, %", "turnover", "cost, bps"]
SYMBOL_COLUMNS = ["symbol", "added", "held", "target", "trade"]


def what(text: str) -> Literal["markets", "decisions"]:
    """Return what is allocated. Raises BadValues for another word."""
    if text not in ("markets", "decisions"):
        raise BadValues(f"--of {text}: give markets or decisions")
    return cast(Literal["markets", "decisions"], text)


def title(found: Mapping[str, Any]) -> str:
    """Return what the table rests on."""
    return (
        f"{len(found['symbols'])} {found['of']}, {found['days']} days {found['first']} to {found['last']}; a window of "
        f"{found['window_days']} days, a decision every {found['every_days']}; {found['cost_bps']:.3g} bps a side"
    )


def rows(found: Mapping[str, Any]) -> list[list[str | None]]:
    """Return a row a method; a dash where it never allocated."""
    return [
        [
            one["method"],
            _interval(one["net_return"], 100.0, 1),
            _interval(one["over_equal"], 100.0, 1),
            _interval(one["sharpe"], 1.0, 2),
            _number(one["max_drawdown"], 100.0, 1),
            _number(one["turnover"], 1.0, 2),
            _number(one["cost"], 1e4, 1),
        ]
        for one in found["methods"]
    ]


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield why methods abstain, and whether any differs visibly from 1/N."""
    for one in found["methods"]:
        if one["abstained"]:
            yield f"{one['method']} abstains: {one['abstained']}."
    apart = [
        one["method"]
        for one in found["methods"]
        if (e := one["over_equal"]) is not None and e["low"] is not None and (e["low"] > 0 or e["high"] < 0)
    ]
    yield (
        f"Told apart from 1/N by the whole 95 % interval of the return: {', '.join(apart) or 'none'}. Long only; cash "
        "earns nothing."
    )


def symbol_rows(found: Mapping[str, Any]) -> list[list[str | None]]:
    """Return a row a symbol: what it added under the chosen method, held, target and trade in % of equity."""
    chosen = next(one for one in found["methods"] if one["method"] == found["method"])
    return [
        [
            symbol,
            _number((chosen["attribution"] or {}).get(symbol), 100.0, 1),
            _number(found["held"][symbol], 100.0, 1),
            _number((chosen["weights"] or {}).get(symbol), 100.0, 1),
            _number((found["trades"] or {}).get(symbol), 100.0, 1),
        ]
        for symbol in found["symbols"]
    ]


def _interval(estimate: Mapping[str, Any] | None, scale: float, digits: int) -> str | None:
    """Return an estimate with its interval; None for none."""
    if estimate is None or estimate["value"] is None:
        return None
    text = f"{scale * estimate['value']:.{digits}f}"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{text} (too few rows)"
    return f"{text} [{scale * estimate['low']:.{digits}f}, {scale * estimate['high']:.{digits}f}]"


def _number(value: float | None, scale: float, digits: int) -> str | None:
    """Return a number; None for none."""
    return None if value is None else f"{scale * value:.{digits}f}"
