"""What the samples of a running installation come to: the figures of live_half_hour, and its page."""

import itertools
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import mean

from benchmarks.live_samples import JOBS
from benchmarks.results import machines, table
from pipelines.contracts import JsonObject, utc
from pipelines.data.timeframes import Grid
from pipelines.store import Store

DAY = timedelta(days=1)
JUDGED_DAYS = 2.0  # promised: market days from the request of a retrain to the verdict on its challenger
GROWTH_MB = 50.0  # promised, of a service
DISK_MB_HOUR = 300.0  # promised, of the home
EMERGENCY = 4  # tier


def closes(store: Store, symbols: Sequence[str], timeframe: str, since: datetime, until: datetime) -> JsonObject:
    """Return symbol → closes after `since` and up to `until`, how many of them have no decision, or more than one."""
    grid, found = Grid(timeframe), {}
    for symbol in symbols:
        records = store.decisions(symbol, since=since + timedelta(seconds=1), until=until + timedelta(seconds=1))
        counts = Counter(record.decision.as_of for record in records)
        expected, close = [], since.timestamp()
        while (close := close + grid.step_s) <= until.timestamp():
            expected.append(utc(close))
        found[symbol] = {
            "closes": len(expected),
            "missing": sum(counts[each] == 0 for each in expected),
            "doubled": sum(n > 1 for n in counts.values()),
            "decisions": sum(counts.values()),
        }
    return found


def summary(
    samples: Sequence[JsonObject],
    counted: JsonObject,
    dates: Sequence[datetime],
    max_age_bars: float,
    gap_s: float,
) -> JsonObject:
    """Return the figures of all samples, oldest first.

    counted  as of `closes`; dates: planted drift dates, market time; max_age_bars: above it data are stale
    gap_s    samples further apart than this do not cover what lies between
    """
    good = [one for one in samples if "error" not in one]
    counted_home = [one for one in samples if "folders" in one]
    ages = [age for one in good for age in one["age_bars"].values() if age is not None]
    pairs = list(itertools.pairwise(samples))
    covered = sum(b["at"] - a["at"] for a, b in pairs if b["at"] - a["at"] <= gap_s)
    held = sum(b["at"] - a["at"] for a, b in pairs if b["at"] - a["at"] <= gap_s and a.get("held"))
    return {
        "samples": len(samples),
        "covered_s": round(covered, 1),
        "held_s": round(held, 1),
        "runs": len({one["run"] for one in samples}),
        "errors": sorted({one["error"] for one in samples if "error" in one}),
        "status_true": sum(not one["differences"] for one in good),
        "differences": sorted({each for one in good for each in one["differences"]}),
        "market_days": _market_days(good),
        "closes": counted,
        "oldest_age_bars": max(ages, default=None),
        "stale_samples": sum(_is_stale(one, max_age_bars) for one in good),
        "health": dict(Counter(one["health"] for one in good)),
        "drift": drift_found(good, dates),
        "retrains": retrains(good),
        "growth_mb": growth_mb(samples),
        "jobs_mb": round(max((one["rss"].get(JOBS, 0) for one in samples), default=0) / 1e6, 1),
        "rss_mb": {name: round(size / 1e6, 1) for name, size in (samples[-1]["rss"] if samples else {}).items()},
        "home_mb_hour": folder_growth(samples, gap_s),
        "home_end_mb_hour": end_growth(counted_home, gap_s),
        "home_mb": [round(size(map(home_bytes, counted_home)) / 1e6) for size in (min, max)] if counted_home else [],
    }


def _market_days(samples: Sequence[JsonObject]) -> float:
    """Return the market days between the first and the last sample."""
    times = [datetime.fromisoformat(one["market_time"]) for one in samples if one["market_time"]]
    return round((times[-1] - times[0]) / DAY, 2) if times else 0.0


def _is_stale(one: JsonObject, max_age_bars: float) -> bool:
    """Return whether a sample shows data older than allowed, or a symbol in the emergency tier."""
    old = any(age is not None and age > max_age_bars for age in one["age_bars"].values())
    return old or any(tier == EMERGENCY for tier in one["tiers"].values())


def drift_found(samples: Sequence[JsonObject], dates: Sequence[datetime]) -> JsonObject:
    """Return the planted dates, and for each the market days until a drift alarm was first seen; None = not found."""
    first: dict[int, datetime] = {}
    for one in samples:
        for alarm in one["alarms"]:
            if alarm["kind"] == "drift" and one["market_time"]:
                first.setdefault(alarm["id"], datetime.fromisoformat(one["market_time"]))
    known = (one["market_time"] for one in samples)  # none before the first live bar
    begun = next((datetime.fromisoformat(at) for at in known if at), None)
    inside = [date for date in dates if begun is not None and date > begun]
    after = {
        date.isoformat(): min((round((at - date) / DAY, 2) for at in first.values() if at > date), default=None)
        for date in inside
    }
    before = sum(begun is not None and begun < at and not any(date < at for date in inside) for at in first.values())
    return {"dates": after, "alarms_before": before}


def retrains(samples: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the retrains that were requested while samples were taken, with market days until their verdict."""
    if not samples:
        return []
    known = {each["id"] for each in samples[0]["retrains"]}
    found = []
    for each in sorted(samples[-1]["retrains"], key=lambda request: request["id"]):
        if each["id"] in known:
            continue
        ended = each["finished_at"] and datetime.fromisoformat(each["finished_at"])
        days = None if not ended else round((ended - datetime.fromisoformat(each["at"])) / DAY, 2)
        found.append({**each, "days": days})
    return found


def growth_mb(samples: Sequence[JsonObject]) -> dict[str, float]:
    """Return service → MB by which its least memory of the last fifth exceeds that of the first fifth; of no job.

    The least of many samples leaves out what a job holds for a while. Of the newest run alone: a new process starts
    small.
    """
    newest = [one for one in samples if one["run"] == samples[-1]["run"]] if samples else []
    fifth = max(len(newest) // 5, 1)
    names = [name for name in newest[-1]["rss"] if name != JOBS] if newest else []
    found = {name: round((_least(newest[-fifth:], name) - _least(newest[:fifth], name)) / 1e6, 1) for name in names}
    if newest:
        first, last = (min(one["run_rss"] for one in part) for part in (newest[:fifth], newest[-fifth:]))
        found["bellwether run"] = round((last - first) / 1e6, 1)
    return found


def _least(samples: Sequence[JsonObject], name: str) -> int:
    """Return the least memory of a service that ran; 0 if it never did."""
    return min((one["rss"][name] for one in samples if one["rss"].get(name)), default=0)


def folder_growth(samples: Sequence[JsonObject], gap_s: float) -> dict[str, float]:
    """Return folder of the home → MB an hour it grew by, with the sum under "all"; a fall counts as such.

    From the sample at which the home was smallest in the first fifth to that of the last: a retrain that runs holds
    columns twice, until retention takes the earlier ones back within a market day. Time between runs does not count.
    """
    counted = [one for one in samples if "folders" in one]
    fifth = max(len(counted) // 5, 1)
    if len(counted) <= fifth:
        return {}
    first, last = (min(part, key=home_bytes) for part in (counted[:fifth], counted[-fifth:]))
    within = [one["at"] for one in samples if first["at"] <= one["at"] <= last["at"]]
    hours = sum(b - a for a, b in itertools.pairwise(within) if b - a <= gap_s) / 3600.0
    names = sorted({*first["folders"], *last["folders"]})
    grown = {n: (last["folders"].get(n, 0) - first["folders"].get(n, 0)) / 1e6 / hours for n in names}
    return {name: round(value, 1) for name, value in {**grown, "all": sum(grown.values())}.items()}


def end_growth(counted: Sequence[JsonObject], gap_s: float) -> float | None:
    """Return MB an hour by which the home grew from the first sample that counted it to the last, whatever ran then."""
    hours = sum(b["at"] - a["at"] for a, b in itertools.pairwise(counted) if b["at"] - a["at"] <= gap_s) / 3600.0
    return round((home_bytes(counted[-1]) - home_bytes(counted[0])) / 1e6 / hours, 1) if hours else None


def home_bytes(sample: JsonObject) -> int:
    """Return the bytes of the home at a sample that counted them."""
    return sum(sample["folders"].values())


def live_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the figures of a finished half hour, without an interval; n = samples."""
    figures = {}
    for case in found:
        judged = [each["days"] for each in case["retrains"] if each["days"] is not None and each["state"] == "done"]
        delays = [days for days in case["drift"]["dates"].values() if days is not None]
        values = {
            "minutes": case["covered_s"] / 60.0,
            "of them market time held": case["held_s"] / 60.0,
            "market days": case["market_days"],
            "status true, share of samples": case["status_true"] / case["samples"],
            "samples without an answer": case["samples"] - sum(case["health"].values()),
            "stale samples": case["stale_samples"],
            "oldest data, bars": case["oldest_age_bars"],
            "closes without a decision": sum(each["missing"] for each in case["closes"].values()),
            "closes with two": sum(each["doubled"] for each in case["closes"].values()),
            "planted drifts": len(case["drift"]["dates"]),
            "of them found": len(delays),
            "market days until found, mean": mean(delays) if delays else None,
            "drift alarms before": case["drift"]["alarms_before"],
            "retrains by themselves": len(case["retrains"]),
            "of them judged": len(judged),
            f"most market days until judged, at most {JUDGED_DAYS:g}": max(judged, default=None),
            f"most growth of a service, MB, at most {GROWTH_MB:g}": max(case["growth_mb"].values(), default=None),
            f"growth of the home between its smallest moments, MB an hour, at most {DISK_MB_HOUR:g}": (
                case["home_mb_hour"].get("all")
            ),
            "growth of the home from the first sample to the last, MB an hour": case["home_end_mb_hour"],
        }
        for name, value in values.items():
            known = None if value is None else float(value)
            figures[name] = {"value": known, "low": None, "high": None, "n": case["samples"]}
    return figures


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what is stored, as `results.write_page` asks for it."""
    part = found["live_half_hour"]
    blocks = [
        "# Half an hour of the market at the default speed",
        "Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it "
        "with `python -m benchmarks.evidence live_half_hour`, then write the page. `bellwether run` on the default "
        "universe in a new home, looked at every ten seconds; a drift is planted some market days after the turn.",
        *machines(found),
    ]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    blocks.append(table(["figure", "value"], [[name, _shown(e["value"])] for name, e in part["figures"].items()]))
    for case in part["cases"].values():
        blocks += _case_tables(case)
    return "\n\n".join(blocks) + "\n"


def _shown(value: float | None) -> str:
    """Return a figure for the page."""
    return "none" if value is None else f"{value:,.4g}"


def _case_tables(case: JsonObject) -> list[str]:
    """Return the tables of a run: symbols, retrains, memory, folders, and what status showed wrongly."""
    symbols = [
        [symbol, str(each["closes"]), str(each["decisions"]), str(each["missing"]), str(each["doubled"])]
        for symbol, each in case["closes"].items()
    ]
    requests = [
        [each["family"], each["reason"], each["at"][:16], each["state"], _shown(each["days"]), each["detail"]]
        for each in case["retrains"]
    ]
    memory = [[name, _shown(case["rss_mb"].get(name)), _shown(grown)] for name, grown in case["growth_mb"].items()]
    folders = [[name, _shown(grown)] for name, grown in case["home_mb_hour"].items()]
    blocks = [
        table(["symbol", "closes", "decisions", "closes without one", "closes with two"], symbols),
        "Retrains that were requested meanwhile:",
        table(["family", "reason", "requested, market time", "state", "market days until judged", "outcome"], requests),
        "Memory: at the end, and the least of the last fifth less the least of the first. Flow runs, which `flows` "
        f"starts and which end, took {case['jobs_mb']:,.0f} MB at most and are not counted with it.",
        table(["service", "MB at the end", "growth, MB"], memory),
        "The home, where it was smallest in the first fifth and in the last; files with several links count once. "
        f"It held {' to '.join(f'{size:,}' for size in case['home_mb'])} MB, the most while a retrain ran: a half "
        "hour that ends while one runs shows a larger growth from the first sample to the last.",
        table(["folder", "growth, MB an hour"], folders),
    ]
    if case["differences"]:
        blocks.append("What status showed that the ledger did not hold: " + "; ".join(case["differences"]))
    if case["errors"]:
        blocks.append("Samples without an answer: " + "; ".join(case["errors"]))
    return blocks
