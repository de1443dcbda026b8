"""The pages of the decision service under load: one table a part, with what is wanted and what was found."""

from collections.abc import Sequence
from textwrap import fill

from benchmarks.earlier import CLOSES, ROUNDS
from benchmarks.results import machines, table
from benchmarks.serving_load import BATCH, CAPACITY_S, IN_TURN, SHARE, SOAK_SHARE, WINDOW_S, WINDOWS
from pipelines.contracts import JsonObject

PARTS, SOAK = ("hundred_symbols", "isolation", "earlier"), ("soak",)
TITLES = {
    "hundred_symbols": "A hundred symbols on one process",
    "isolation": "Isolation from swaps and from a retrain",
    "soak": "An hour at half of the capacity",
    "earlier": "Against the release that decided symbol by symbol",
}
ALL = """\
The real decision service over HTTP, four model families in both arms, store on SQLite, its symbols one simulated market
under many names with 67 days of history. Every decision counted is new, none is answered from memory, and durable
before its answer leaves. Requests are due by the clock (an open loop over one connection): one that is due while
another waits is sent at once after it, and its waiting counts. The outcome of each decision on an event is reported as
the feed does. As all symbols are one market, many outcomes come at one close: they are reported over the next ones, as
they would come from markets of their own. Client and service share the machine."""
TEXTS = {
    "hundred_symbols": """\
Ten minutes at the default speed of the feed, 900 times that of time: a close of 15 minutes each second, which is one
/observe of the 15 one-minute bars of all symbols and one /decide of all. In brackets the least and the most of the
ten-second intervals (processor) and of the tenths of the run (latency); of the share in time it is the 95 % Wilson
interval, in which a close that was due and not sent is late. Bytes written are what Linux counts of worker and
parent.""",
    "isolation": f"""\
The capacity is measured first, {CAPACITY_S:.0f} s of the same requests back to back: /observe and /decide of one symbol
at a time, {IN_TURN} symbols in turn. Then {SHARE:.0%} of it, {WINDOWS} windows of {WINDOW_S:.0f} s of each condition in
turn: while champion and challenger of the validator are exchanged every second, while neither happens, and while a
process stepped back as every job fits all families again and again (each on less data than a retrain has). The /decide
of a close is due half a period after its /observe. A latency is from when the /decide is due until its answer: median
and quartiles of the windows. A ratio is of a window and its neighbour without swaps and retrain.""",
    "soak": f"""\
The capacity is measured first, {CAPACITY_S:.0f} s of the same requests back to back: {BATCH} symbols a request. Then
{SOAK_SHARE:.0%} of it for an hour; the processes are looked at every ten seconds. Growth is from the mean of minutes
5 to 10 to that of the last five, in brackets the least and the most between two samples of them. A sixth is ten
minutes, with the least and the most of its minutes.""",
    "earlier": f"""\
Both releases from their source, on this machine, in turn: {ROUNDS} rounds of {CLOSES} closes each. Each trains its four
families in both arms on the same simulated market, with as many trees, layers and states, and decides in a process of
its own, without HTTP; one symbol, durable. A closing bar is what the service folds at a close, without a book; all
columns are features and signals of one live bar with book and context. In brackets the least and the most of a
round; a ratio is the median of those of the rounds.""",
}
TARGETS = {
    "CPU of the decision worker, % of a core": "at most 70",
    "written to the disk by both, GB an hour": "at most 3",
    "closes durable within 2 s, %": "99.9",
    "p99 during champion swaps / during neither": "at most 2",
    "p99 during a retrain / during neither": "at most 3",
    "growth of the USS of the worker, MB": "under 50",
    "growth of the USS of its parent, MB": "under 50",
    "growth of the descriptors of the worker": "none",
    "growth of the descriptors of its parent": "none",
    "closes of a symbol without a new decision": "0",
    "a close observed and decided, p99: now / 0.13.0": "at most 0.5",
    "all columns of a bar, CPU, p50: now / 0.13.0": "at most 0.5",
}


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what was stored; `incomplete` names the parts that were not run to their end."""
    return _page("The decision service under load", PARTS, found, incomplete)


def soak_page(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of the hour's soak, as `page_of`: it takes an hour, so it may be of an earlier day."""
    return _page("The decision service for an hour", SOAK, found, incomplete)


def _page(title: str, parts: Sequence[str], found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return a page of these parts, as `page_of`."""
    blocks = [
        f"# {title}",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence "
        f"{' '.join(parts)}` stored; nothing here was typed in.",
        *machines(found),
        ALL.replace("\n", " "),
    ]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    for name in [name for name in parts if name in found]:
        blocks += [f"## {TITLES[name]}", TEXTS[name].replace("\n", " ")]
        rows = [
            [figure, TARGETS.get(figure, ""), shown(e), f"{e['n']:,}"] for figure, e in found[name]["figures"].items()
        ]
        blocks.append(table(["figure", "wanted", "found", "n"], rows))
        faults = [fault for case in found[name]["cases"].values() for fault in case.get("faults", ())]
        if faults:
            blocks.append("The first faults: " + "; ".join(" ".join(fault.split()) for fault in faults))
    return (
        "\n\n".join(block if block[0] in "#|-" else fill(block, 120, break_on_hyphens=False) for block in blocks) + "\n"
    )


def shown(figure: JsonObject) -> str:
    """Return a figure with its interval, where it has one."""
    if figure["value"] is None:
        return "none"
    between = "" if figure["low"] is None else f" [{number(figure['low'])}, {number(figure['high'])}]"
    return number(figure["value"]) + between


def number(value: float) -> str:
    """Return a number with three digits at least, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
