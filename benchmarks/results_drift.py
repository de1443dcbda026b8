"""The page docs/results/drift.md, made from stored evidence by `python -m benchmarks.evidence --write`."""

from collections.abc import Sequence

from benchmarks.results import machines, table
from pipelines.contracts import JsonObject
from pipelines.settings import load_params

PARTS = ("drift_false_alarms", "drift_detection", "drift_missing", "loss_vanished_edge")
INTRODUCTION = """\
Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it with
`python -m benchmarks.evidence {parts}`, then write the page. Thresholds were set before, from [power](power.md)."""
RULE = """\
The reference is of the champion's own training inputs, in its bundle; the watch starts where its training ended. An
alarm is raised once while it lasts, requests one retrain, and says whether it does harm: whether the champion's gain
over the base rate, in blocks since then, is proven gone (harmful), proven there (harmless), or neither (not yet known).
This installation accepts {total:g} false alarms a month: {values:g} on values, {missing:g} on the share missing,
{loss:g} on the loss."""
TITLES = {
    "drift_false_alarms": "A month of a market without drift",
    "drift_detection": "The simulator's planted drift: it begins with the second of four blocks of three days",
    "drift_missing": "A column that vanishes, each watched one in turn",
    "loss_vanished_edge": "An edge that vanishes: the champion of a year serves 180 days of a market with its edge, "
    "and of one without",
}
NOTES = {
    "drift_false_alarms": "With an exact Poisson interval.",
    "drift_detection": "Interval of a share: Wilson; of blocks: least and most.",
    "drift_missing": "Share of the columns that the first block finds; least and most of the markets.",
    "loss_vanished_edge": "Gains in nats an outcome over the base rate; of days and gains, least and most.",
}


def drift_page(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of the parts found, with the budget of `params.yaml`; `incomplete`: missing or not finished."""
    budget = load_params().drift.false_alarms_a_month
    blocks = [
        "# The watch: drift, missing columns, a lost edge",
        INTRODUCTION.format(parts=" ".join(PARTS)),
        *machines(found),
        RULE.format(
            total=budget.values + budget.missing + budget.loss, values=budget.values, missing=budget.missing,
            loss=budget.loss,
        ),
    ]  # fmt: skip
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    for name in PARTS:
        if name in found:
            rows = [
                [figure.replace("_", " "), f"{e['value']:.4g}", f"{e['low']:.4g} to {e['high']:.4g}", f"{e['n']:,}"]
                for figure, e in found[name]["figures"].items()
            ]
            blocks += [f"## {TITLES[name]}", NOTES[name], table(["figure", "value", "interval", "cases"], rows)]
    return "\n\n".join(blocks) + "\n"
