"""The page docs/results/gate.md, from stored evidence. Measures nothing."""

from benchmarks.gate_scenarios import BAD, EFFECTS, OF_FAMILY
from benchmarks.results import machines, table
from pipelines.contracts import JsonObject

PARTS = ("gate_sizes", "gate_leaks", "gate_on_noise", "gate_on_planted_edge")
INTRODUCTION = """\
Made by `python -m benchmarks.evidence --write` from what a run stored. Repeat it with
`python -m benchmarks.evidence {parts}`, then write the page. What each check should find, and why its threshold is what
it is: [power](power.md), which came first."""
SIZES = """\
Simulated evidence with a known truth, through the real `judge`: outcomes that overlap, noise with four degrees of
freedom. *Refused*: cases in which a check showed that the candidate lacks what is required. *Too few*: no check did,
and some had too few rows to decide; that is no promotion either. *Not promoted*: both, with the 95 % Wilson interval.
Then the checks that refused, and that had too few rows, in at least 2 of 100 cases."""
LEAKS = """\
Perfect models of an AUC over all pairs: share suspected of a leak, and in brackets the share above .65 on rows too few
to tell, if any. Honest models reach .57. Pairs are of one fold, where slow knowledge ranks worse: a predictor of .58 on
500 rows shows .566. {n:,} cases a cell."""
MARKETS = """\
The whole pipeline on simulated markets: features, labels, fit, walk-forward evaluation, gate. Noise has no edge; the
planted edge is the default of `params.yaml`."""


def gate_page(found: dict[str, JsonObject], incomplete: list[str]) -> str:
    """Return the page of the parts found."""
    blocks = ["# The gate, measured", INTRODUCTION.format(parts=" ".join(PARTS)), *machines(found)]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    if "gate_sizes" in found:
        blocks += ["## Size and power of each check", SIZES, sizes_table(found["gate_sizes"])]
    if "gate_leaks" in found:
        cases = found["gate_leaks"]["cases"]
        blocks += ["## Leaks", LEAKS.format(n=next(iter(cases.values()))["n"]), leaks_table(cases)]
    markets = [name for name in PARTS[2:] if name in found]
    if markets:
        rows = []
        for name in markets:
            share = found[name]["figures"]["promoted"]
            rows.append([found[name]["description"], f"{share['value']:.0%}",
                         f"[{share['low']:.1%}, {share['high']:.1%}]", f"{share['n']}"])  # fmt: skip
        blocks += ["## Whole markets", MARKETS, table(["what", "promoted", "95 %", "markets"], rows)]
        blocks += [refusing_table(name, found[name]["cases"]) for name in markets]
    return "\n\n".join(blocks) + "\n"


def sizes_table(part: JsonObject) -> str:
    """Return the table of simulated evidence."""
    rows = []
    for name, case in part["cases"].items():
        family, n, what = name.split("|")
        share = part["figures"][name]
        lines = [f"{check} {count / case['n']:.0%}" for check, count in sorted(case["checks"].items(), key=_most)
                 if count >= 0.02 * case["n"]]  # fmt: skip
        lines += [f"{check} few {count / case['n']:.0%}" for check, count in case["few"].items()
                  if count >= 0.02 * case["n"]]  # fmt: skip
        model = what if what in BAD else f"perfect, {what}"
        at = (list(OF_FAMILY).index(family), int(n), what in BAD, what)
        promoted = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
        few = case["only_few"] / case["n"]
        states = [f"{case['refused'] / case['n'] - few:.1%}", f"{few:.1%}", promoted]
        rows.append((at, [family, f"{int(n):,}", model, *states, ", ".join(lines) or "–", f"{case['n']:,}"]))
    heads = ["family", "n", "model", "refused", "too few", "not promoted", "by", "cases"]
    effects = ", ".join(f"{family} {effects[0]:g} to {effects[-1]:g}" for family, effects in EFFECTS.items())
    note = f"The page of power has perfect models of more effects: {effects}."
    return table(heads, [row for _, row in sorted(rows)]) + f"\n\n{note}"


def leaks_table(cases: dict[str, JsonObject]) -> str:
    """Return the shares of perfect models suspected of a leak, by family, rows and AUC."""
    aucs = sorted({case.split("|")[2] for case in cases})
    rows = []
    for at in {case.rpartition("|")[0] for case in cases}:
        family, n = at.split("|")
        cells = [_leaks(cases.get(f"{at}|{auc}")) for auc in aucs]
        rows.append(((family != "validator", int(n)), [family, f"{int(n):,}", *cells]))
    return table(["family", "n", *aucs], [row for _, row in sorted(rows)])


def _leaks(case: JsonObject | None) -> str:
    """Return the shares of one case, a dash if it was not run."""
    if case is None:
        return "–"
    few = f" ({case['few'] / case['n']:.1%})" if case["few"] else ""
    return f"{case['refused'] / case['n']:.1%}{few}"


def _most(item: tuple[str, int]) -> int:
    """Return the key by which the most frequent check comes first."""
    return -item[1]


def refusing_table(name: str, cases: dict[str, JsonObject]) -> str:
    """Return how often each check of whole markets refused."""
    counts: dict[str, int] = {}
    for case in cases.values():
        for check in case["checks"]:
            counts[check["name"]] = counts.get(check["name"], 0) + (not check["passed"])
    rows = [[check, f"{count} of {len(cases)}"] for check, count in sorted(counts.items(), key=_most) if count]
    return table([f"{name}: check", "refused"], rows)
