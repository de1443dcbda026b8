"""Sheets of bars → one bars frame: order, unit and grid as the values show them, one history of several files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pandas as pd

from pipelines.contracts import Floats, Ints
from pipelines.data.readers import proved, times
from pipelines.data.readers.reading import FileOptions, NoBar, Order, ReadAs, Reading
from pipelines.data.readers.sheets import Sheet
from pipelines.data.readers.spacing import MONTH_DAYS, commonest, timeframe_of
from pipelines.data.readers.times import Stamps, Times
from pipelines.data.schemas import AMOUNTS, COLUMNS, PRICES, SPREAD, constant_stamp, stamps_of
from pipelines.data.sessions import distinct
from pipelines.data.timeframes import seconds
from pipelines.errors import BadTimes, BadValues

FROM_QUOTE = {
    "volume": "",
    "taker_buy_volume": "taker_buy_",
}  # where volume counts contracts: field → stem of its column
DAY_US = 86_400_000_000
LEAST_DAYS = 5  # a week of sessions
LEAST_SHARED = 10  # times that two files share before they are compared
FOR_EXAMPLE_ZONE = "--timezone UTC, --timezone America/New_York or --timezone -05:00"


@dataclass(frozen=True)
class Part:
    """Hold the bars of one member in time order (as far as the file has one).

    values  field → (n,) float64;  known, ingested: of canonical files alone
    """

    sheet: Sheet
    micros: Stamps
    times: Times
    order: Order
    values: dict[str, Floats]
    lines: Ints
    notes: list[str]
    gone: list[str]
    sources: dict[str, str]
    known: Stamps | None = None
    ingested: Stamps | None = None


def bars_of(sheets: Sequence[Sheet], ingested_at: datetime, options: FileOptions) -> Reading:
    """Return the reading of files of bars."""
    parts = [_part(sheet, options) for sheet in sheets]
    dated = {part.times.dated for part in parts}
    if len(dated) > 1:
        raise BadTimes(
            f"{parts[0].sheet.saw}; still missing: times in all files, some hold dates alone; for example: give daily "
            "files "
            "and files of shorter bars apart."
        )
    notes = _noted(parts)
    if len(parts) > 1:
        _one_market(parts)
    parts, seams = _in_sequence(parts)
    notes += seams
    micros = _end_to_end([part.micros for part in parts])
    lines = _end_to_end([part.lines for part in parts])
    member = _end_to_end([np.full(len(part.lines), sheets.index(part.sheet), dtype=np.int64) for part in parts])
    absent = [_nothing(len(part.micros)) for part in parts]
    values = {
        name: _end_to_end([part.values.get(name, nothing) for part, nothing in zip(parts, absent, strict=True)])
        for name in (*PRICES, *AMOUNTS, SPREAD)
    }
    extra = None
    if all(part.known is not None for part in parts):
        extra = [_end_to_end([getattr(part, name) for part in parts]) for name in ("known", "ingested")]
    kept, copies = _without_copies(micros, values, lines, sheets, member)
    notes += copies
    if not kept.all():
        micros, lines, member = micros[kept], lines[kept], member[kept]
        values = {name: column[kept] for name, column in values.items()}
        extra = None if extra is None else [column[kept] for column in extra]
    where = parts[0].sheet.name
    timeframe, micros, snapped = timeframe_of(micros, lines, options, where)
    notes += snapped
    if timeframe is None:  # shorter than a minute
        if (np.diff(micros) < np.timedelta64(0, "us")).any():
            raise BadTimes(
                f"{where}: saw: bars shorter than a minute, not in order; still missing: order; for example: sort "
                "them by time."
            )
        n = len(micros)
        micros, values, starts = proved.to_minutes(micros, values)
        lines, member, extra, timeframe = lines[starts], member[starts], None, "1m"
        notes.append(
            f"{n:,} bars shorter than a minute were put together to {len(micros):,} of a minute; the first and the "
            "last hold what the file covers of them"
        )
    step = np.timedelta64(seconds(timeframe), "s")
    if options.stamp == "end" and dated == {True}:
        notes.append("dates of sessions have no close stamp: --stamp end was not needed")
    elif options.stamp == "end":
        micros = micros - step
        notes.append(f"times are those of the close, as stated: open_time is {timeframe} before")
    frame = frame_of(micros, values, step, ingested_at)
    if extra is not None:
        frame = _canonical_times(frame, extra, micros, step, lines, timeframe, where)
    order = _order(parts, micros, lines, notes)
    gone = {name for part in parts for name in part.gone}
    missing = [name for name in (*AMOUNTS, SPREAD) if np.isnan(values[name]).all()]
    reasons = [next((one for one in sorted(gone) if one.startswith(name)), name) for name in missing]
    return _reading(frame, timeframe, sheets, parts, order, notes, reasons, options, lines, member)


def _reading(
    frame: pd.DataFrame, timeframe: str, sheets: Sequence[Sheet], parts: Sequence[Part], order: Order,
    notes: list[str], gone: list[str], options: FileOptions, lines: Ints, member: Ints,
) -> Reading:  # fmt: skip
    """Return a reading of bars."""
    first = next(part for part in parts if part.sheet is sheets[0])
    no_bar: NoBar = "no-trade" if all(sheet.plan.no_bar == "no-trade" for sheet in sheets) else "missing"
    made = read_as_of(
        sheets, first.sources, first.times.form, order, len(frame), notes, gone, options.no_bar or no_bar, timeframe
    )
    return Reading(frame, timeframe, made, first.times.dated, lines, member)


def read_as_of(
    sheets: Sequence[Sheet], sources: dict[str, str], time_form: str, order: Order, rows: int, notes: list[str],
    gone: list[str], no_bar: NoBar, timeframe: str,
) -> ReadAs:  # fmt: skip
    """Return how files were read; the form of the first, and a note where another differs."""
    first = sheets[0]
    layouts = list(dict.fromkeys(sheet.plan.layout for sheet in sheets))
    venues = {sheet.plan.venue for sheet in sheets}
    forms = {(sheet.encoding, sheet.separator, sheet.signs.decimal) for sheet in sheets}
    if len(forms) > 1:
        notes = [*notes, f"the files differ in form: {'; '.join(sorted(' '.join(map(str, form)) for form in forms))}"]
    read = {i for sheet in sheets[:1] for i in sheet.plan.used()}
    unread = [name for i, name in enumerate(first.plan.names) if i not in read and name]
    if unread:
        notes = [*notes, f"columns not read: {', '.join(unread[:12])}"]
    return ReadAs(
        layout=" and ".join(layouts), members=tuple(sheet.name for sheet in sheets), encoding=first.encoding,
        separator=first.separator, decimal=first.signs.decimal, header_line=first.header_line,
        skipped_lines=first.skipped, columns={"open_time": first.plan.time_name, **sources}, time_form=time_form,
        order=order, rows=rows, notes=tuple(notes), not_recorded=tuple(gone), no_bar=no_bar, timeframe=timeframe,
        venue=next(iter(venues)) if len(venues) == 1 else None,
    )  # fmt: skip


def _part(sheet: Sheet, options: FileOptions) -> Part:
    """Return the bars of one member. Raises BadColumns, BadTimes, BadValues."""
    plan = sheet.plan
    if plan.closes and options.stamp != "end":
        raise BadTimes(
            f"{sheet.saw}, {plan.time_name} = the close of a bar; still missing: its open; for example: --stamp end."
        )
    stamps = sheet.stamps(plan.time, options.day_first)
    stamps, order = stamps, direction(stamps.micros)
    flip = order == "descending"
    lines = sheet.lines[::-1] if flip else sheet.lines
    notes = list(sheet.notes)
    if flip:
        turned = None if stamps.midnights is None else stamps.midnights[::-1]
        stamps = replace(stamps, micros=stamps.micros[::-1], midnights=turned)
        notes.append("the newest row came first: turned round")
    stamps = _placed(stamps, sheet, lines, options, notes)
    values, sources = _values(sheet, flip)
    if not plan.ordered:
        names = proved.price_order([values[price] for price in PRICES], sheet.saw)
        if names != PRICES:
            columns = [values[price] for price in PRICES]
            values |= dict(zip(names, columns, strict=True))
            sources |= dict(zip(names, [sources[price] for price in PRICES], strict=True))
            notes.append(f"the four prices are in the order {', '.join(names)}, as their values show")
    else:
        proved.check_price_names(values, sources, sheet.saw)
    quote, taker = (values.pop(name, None) for name in ("quote_volume", "taker_buy_quote_volume"))
    if contracts := proved.base_volume(values, quote, taker, sheet.saw):
        notes += contracts
        sources |= {
            field: plan.names[plan.fields[f"{stem}quote_volume"]]
            for field, stem in FROM_QUOTE.items()
            if field in values
        }
    proved.refuse_premium(values, sheet.saw)
    notes += _metatrader(sheet, values, sources, flip)
    gone = proved.unrecorded(values)
    known = ingested = None
    if "known_at" in plan.fields:
        both = [sheet.stamps([plan.fields[name]], None) for name in ("known_at", "ingested_at")]
        naive = next((name for name, one in zip(("known_at", "ingested_at"), both, strict=True) if not one.aware), None)
        if naive is not None:
            raise no_zone(sheet, naive)
        known, ingested = (one.micros[::-1] if flip else one.micros for one in both)
    return Part(sheet, stamps.micros, stamps, order, values, lines, notes, gone, sources, known, ingested)


def _values(sheet: Sheet, flip: bool) -> tuple[dict[str, Floats], dict[str, str]]:
    """Return field → values in time order, and field → the source's column."""
    plan, names = sheet.plan, sheet.plan.names
    numbers = {field: sheet.number(i) for field, i in plan.fields.items() if field not in ("known_at", "ingested_at")}
    sources = {field: names[i] for field, i in plan.fields.items() if field in numbers}
    if plan.kind == "sides":
        for price in PRICES:
            numbers[price] = (numbers[f"bid_{price}"] + numbers[f"ask_{price}"]) / 2.0
            sources[price] = f"({names[plan.fields[f'bid_{price}']]} + {names[plan.fields[f'ask_{price}']]}) / 2"
        numbers[SPREAD] = (numbers["ask_close"] - numbers["bid_close"]) / 2.0
        sources[SPREAD] = f"({names[plan.fields['ask_close']]} - {names[plan.fields['bid_close']]}) / 2"
    wanted = (*PRICES, *AMOUNTS, SPREAD, "quote_volume", "taker_buy_quote_volume")
    values = {field: values[::-1] if flip else values for field, values in numbers.items() if field in wanted}
    return values, {field: source for field, source in sources.items() if field in (*PRICES, *AMOUNTS, SPREAD)}


def _metatrader(sheet: Sheet, values: dict[str, Floats], sources: dict[str, str], flip: bool) -> list[str]:
    """Put MetaTrader's volume and spread in place; return notes.

    Its spread is in points, of which one is the last decimal place of the prices; its tick volume counts changes of the
    quote, which are no amounts traded.
    """
    plan, notes = sheet.plan, []
    if plan.tick_volume is not None:
        traded = values.get("volume")
        if traded is None or not np.nansum(traded) > 0:
            values.pop("volume", None)
            sources.pop("volume", None)
            notes.append(
                f"{plan.names[plan.tick_volume]} counts changes of the quote and no amount: volume is not recorded"
            )
    if plan.spread_points is not None and sheet.places:
        points = sheet.number(plan.spread_points)
        if np.nansum(points) > 0:
            half = points * 10.0**-sheet.places / 2.0
            values[SPREAD] = half[::-1] if flip else half
            sources[SPREAD] = plan.names[plan.spread_points]
            notes.append(
                f"spread counts points: one is 1e-{sheet.places}, the last place of the prices; prices are bids"
            )
    return notes


def direction(micros: Stamps) -> Order:
    """Return the order of times."""
    absent = np.isnat(micros)
    there = micros[~absent] if absent.any() else micros
    if (there[1:] >= there[:-1]).all():
        return "ascending"
    return "descending" if (there[1:] <= there[:-1]).all() else "mixed"


def _placed(stamps: Times, sheet: Sheet, lines: Ints, options: FileOptions, notes: list[str]) -> Times:
    """Return times in UTC. Raises BadTimes where a local time has no zone."""
    if stamps.aware and stamps.midnights is not None and _are_sessions(stamps.midnights):
        notes.append("midnights of an exchange's own zone, none on a weekend, are the dates of its sessions")
        return replace(stamps, micros=stamps.midnights, dated=True)
    if stamps.aware:
        return stamps
    midnight = stamps.micros.astype(np.int64) % DAY_US == 0
    if not stamps.dated and midnight.all() and len(midnight) > 1:
        stamps = replace(stamps, dated=bool(np.abs(np.diff(stamps.micros)).astype(np.int64).max() >= DAY_US))
    if stamps.dated:
        notes.append(
            "dates without a time are those of sessions, not midnights"
            + (f": --timezone {options.timezone} was not needed" if options.timezone else "")
        )
        return stamps
    if options.timezone is None:
        raise no_zone(sheet, sheet.plan.time_name)
    return times.localise(stamps, options.timezone, lines, sheet.name)


def _are_sessions(midnights: Stamps) -> bool:
    """Return whether local midnights are dates of sessions: a market that never shuts has bars on weekends."""
    if len(midnights) < LEAST_DAYS:
        return False
    weekday = (midnights.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    return bool((weekday < 5).all())


def no_zone(sheet: Sheet, name: str) -> BadTimes:
    """Return the error for times without an offset."""
    plan = sheet.plan
    shown = [(field, plan.names[i]) for field, i in plan.fields.items() if field in (*PRICES, "volume", "bid", "ask")]
    fields = ", ".join(field if field == source else f"{field} = {source}" for field, source in shown)
    hint = FOR_EXAMPLE_ZONE
    if plan.zone_hint is not None:
        hint = f"--timezone {plan.zone_hint}, which HistData documents for its files, all year"
    elif plan.layout.startswith("MetaTrader"):
        hint = "--timezone Europe/Athens, or America/New_York+07:00 where the day ends at 17:00 New York"
    return BadTimes(
        f"{sheet.saw}, time = {name}, {fields}; still missing: the time zone, column {name} has no time zone, so its "
        "bars "
        f"could be hours off; for example: {hint}."
    )


def _noted(parts: Sequence[Part]) -> list[str]:
    """Return the notes of all parts, with the member's name where there are several."""
    if len(parts) == 1:
        return list(parts[0].notes)
    common = set.intersection(*(set(part.notes) for part in parts))
    notes = [f"in all {len(parts)} files: {note}" for note in parts[0].notes if note in common]
    return notes + [f"{part.sheet.name}: {note}" for part in parts for note in part.notes if note not in common]


def _one_market(parts: Sequence[Part]) -> None:
    """Raise BadTimes if files have bars of different lengths, BadValues if two differ at most times they share."""
    steps = [
        (commonest(np.abs(np.diff(distinct(part.micros.astype(np.int64))))), part)
        for part in parts
        if len(part.lines) > 3
    ]
    if steps and all(part.sheet.plan.no_bar == "missing" for _, part in steps):
        (short, one), (long, other) = min(steps, key=_first), max(steps, key=_first)
        if long >= 2 * max(short, 1) and long < MONTH_DAYS[0] * DAY_US:
            raise BadTimes(
                f"{other.sheet.saw}; still missing: one timeframe, its rows are mostly {long / 1e6:g} s apart and "
                "those of "
                f"{one.sheet.name} {short / 1e6:g} s; for example: give the files of one timeframe at a time."
            )
    spans = [(np.nanmin(part.micros), np.nanmax(part.micros)) for part in parts]
    for i, one in enumerate(parts):
        for j, other in enumerate(parts[i + 1 :], i + 1):
            if spans[j][0] > spans[i][1] or spans[j][1] < spans[i][0]:
                continue
            closes = [pd.Series(part.values["close"], part.micros).groupby(level=0).first() for part in (one, other)]
            both = pd.concat(closes, axis=1, join="inner").dropna()
            differs = int((both.iloc[:, 0] != both.iloc[:, 1]).sum())
            if len(both) >= LEAST_SHARED and 2 * differs > len(both):
                raise BadValues(
                    f"{other.sheet.saw}; still missing: one market, its closes differ from those of {one.sheet.name} "
                    "at "
                    f"{differs} of {len(both)} shared times; for example: give the files of one market at a time."
                )


def _first(step: tuple[int, Part]) -> int:
    """Return the step of a step and its part."""
    return step[0]


def _in_sequence(parts: list[Part]) -> tuple[list[Part], list[str]]:
    """Return parts by their first times, and a note where that is not the order given."""
    if len(parts) == 1 or any(part.order == "mixed" for part in parts):
        return parts, []
    ordered = sorted(parts, key=lambda part: np.nanmin(part.micros))
    if all(one is other for one, other in zip(ordered, parts, strict=True)):
        return parts, []
    return ordered, ["the files were put in the order of their times"]


def _end_to_end(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays as one; a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _nothing(n: int) -> Floats:
    """Return (n,) NaN, read-only: all fields that a part has not share it."""
    nothing = np.full(n, np.nan)
    nothing.setflags(write=False)
    return nothing


def _without_copies(
    micros: Stamps, values: dict[str, Floats], lines: Ints, sheets: Sequence[Sheet], member: Ints
) -> tuple[np.ndarray, list[str]]:
    """Return which rows to keep, all but exact copies of a row of an earlier file, and a note.

    Rows that contradict one another stay, and so do copies inside one file: quality.assess has a reason for them.
    """
    kept = np.ones(len(micros), dtype=bool)
    if len(sheets) == 1 or (np.diff(micros) > np.timedelta64(0, "us")).all():
        return kept, []
    table = pd.DataFrame({"open_time": micros, **values})
    kept = ~(table.duplicated() & ~table.assign(member=member).duplicated()).to_numpy()
    if kept.all():
        return kept, []
    at = int(np.argmin(kept))
    copies = f"line {int(lines[at])} of {sheets[member[at]].name} is a copy of a row of an earlier file"
    return kept, [f"{copies}: {int((~kept).sum())} copies were left out"]


def _order(parts: Sequence[Part], micros: Stamps, lines: Ints, notes: list[str]) -> Order:
    """Return the order of all rows; adds a note with the first line out of it."""
    back, same = micros[1:] < micros[:-1], micros[1:] == micros[:-1]
    if same.any():
        line = int(lines[int(np.argmax(same)) + 1])
        notes.append(f"line {line} has the time of the row before it ({int(same.sum())} such rows): left as it is")
    if not back.any():
        return "ascending" if any(part.order != "descending" for part in parts) else "descending"
    line = int(lines[int(np.argmax(back)) + 1])
    notes.append(f"line {line} is earlier than the row before it ({int(back.sum())} such places): left as it is")
    return "mixed"


def frame_of(micros: Stamps, values: dict[str, Floats], step: np.timedelta64, ingested_at: datetime) -> pd.DataFrame:
    """Return a bars frame; known_at = open_time + step."""
    columns: dict[str, pd.DatetimeIndex | Floats] = {
        "open_time": stamps_of(micros),
        "known_at": stamps_of(micros + step),
    }
    columns["ingested_at"] = constant_stamp(ingested_at, len(micros))
    columns |= {name: np.ascontiguousarray(values[name]) for name in (*PRICES, *AMOUNTS, SPREAD)}
    return pd.DataFrame({name: columns[name] for name in COLUMNS}, copy=False)


def _canonical_times(
    frame: pd.DataFrame,
    extra: list[Stamps],
    micros: Stamps,
    step: np.timedelta64,
    lines: Ints,
    timeframe: str,
    where: str,
) -> pd.DataFrame:
    """Return the frame with its own known_at and ingested_at. Raises BadTimes where a bar is known before its close."""
    known, ingested = extra
    early = ~np.isnat(micros) & ~(known >= micros + step)  # a row without a time is for quality.assess
    if early.any():
        raise BadTimes(
            f"{where}: known_at of line {int(lines[np.argmax(early)])} is before its bar has closed ({early.sum()} "
            "rows): "
            f"a bar cannot be known then. Set it to open_time + {timeframe} or later, or leave the column out."
        )
    return frame.assign(known_at=stamps_of(known), ingested_at=stamps_of(ingested))
