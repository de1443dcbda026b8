"""The table of a stress study, from its figures as JSON; flows/stress.py computes them and writes the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.contracts import Estimate
from pipelines.evaluation.stress_report import format_percent


def columns(study: Mapping[str, Any]) -> list[str]:
    """Return the column headings of `rows`: the scenario, then each case of a side, with stops and without."""
    return ["scenario", *(case["name"] for case in _largest(study))]


def rows(study: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each scenario with the losses of the largest portfolio, in per cent of equity."""
    return [
        [results[0]["scenario"], *(_loss(result) for result in results)]
        for results in zip(*(case["results"] for case in _largest(study)), strict=True)
    ]


def _largest(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the cases of the largest portfolio."""
    return [case for case in study["cases"] if case["row"] == study["cases"][0]["row"]]


def _loss(result: Mapping[str, Any]) -> str:
    """Return a loss with its interval, or the reason why there is none."""
    loss = result["loss"]
    if loss is None:
        return str(result["absent"])
    value, low, high = (np.nan if loss[name] is None else float(loss[name]) for name in ("value", "low", "high"))
    return format_percent(Estimate(value, low, high, int(loss["n"])))
