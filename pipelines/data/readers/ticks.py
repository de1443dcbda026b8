"""Sheets of trades or of quotes → bars."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow

from pipelines.contracts import BAR_FIELDS, OPEN_TIME, Floats, Ints, Trades
from pipelines.data.readers import times
from pipelines.data.readers.bars import direction, frame_of, no_zone, read_as_of
from pipelines.data.readers.reading import FileOptions, NoBar, Reading
from pipelines.data.readers.sheets import Sheet
from pipelines.data.readers.trades import (
    Tape,
    bars_from_quotes,
    bars_from_trades,
    coin_margined,
    joined,
    once_and_in_order,
)
from pipelines.data.schemas import AMOUNTS, SPREAD
from pipelines.data.timeframes import seconds
from pipelines.errors import BadValues


def bars_from_ticks(sheets: Sequence[Sheet], ingested_at: datetime, options: FileOptions) -> Reading:
    """Return the reading of files of trades or of quotes as bars, of a minute unless another timeframe is stated."""
    timeframe = options.timeframe or "1m"
    width = seconds(timeframe)
    notes = [note for sheet in sheets for note in sheet.notes]
    no_bar: NoBar = "missing"
    if sheets[0].plan.kind == "trades":
        tape, form, found = tape_of(sheets, options)
        tape, more, whole = once_and_in_order(tape, sheets[0].saw)
        notes += found + more
        no_bar = "no-trade" if whole else "missing"
        matrix = bars_from_trades(Trades(tape.time, tape.price, tape.size, tape.side), width, tape.fills)
        if np.isnan(tape.side).any():
            matrix[:, BAR_FIELDS.index("taker_buy_volume")] = np.nan
        time, lines, member = tape.time, tape.lines, tape.member
    else:
        parts = [_quotes(sheet, options) for sheet in sheets]
        form = parts[0][4]
        time, bid, ask, lines = (np.concatenate([part[i] for part in parts]) for i in range(4))
        member = np.concatenate([np.full(len(part[0]), i, dtype=np.int64) for i, part in enumerate(parts)])
        order = np.argsort(time, kind="stable")
        time, bid, ask, lines, member = time[order], bid[order], ask[order], lines[order], member[order]
        try:
            matrix = bars_from_quotes(time, bid, ask, width)
        except BadValues as error:
            raise BadValues(
                f"{sheets[0].saw}; still missing: quotes, {error}; for example: a bid and an ask a row."
            ) from error
    notes.append(
        f"{len(time):,} {sheets[0].plan.kind} were made into {len(matrix):,} bars of {timeframe}; the first and the "
        "last hold what the files cover of them"
    )
    opened = matrix[:, OPEN_TIME]
    first = np.minimum(np.searchsorted(time, opened, "left"), len(time) - 1)
    values = {name: matrix[:, i] for i, name in enumerate(BAR_FIELDS) if i != OPEN_TIME}
    micros = np.rint(opened * 1e6).astype(np.int64).astype("datetime64[us]")
    frame = frame_of(micros, values, np.timedelta64(width, "s"), ingested_at)
    sources = {name: sheets[0].plan.names[i] for name, i in sheets[0].plan.fields.items()}
    gone = [name for name in (*AMOUNTS, SPREAD) if np.isnan(values[name]).all()]
    made = read_as_of(sheets, sources, form, "ascending", len(frame), notes, gone, options.no_bar or no_bar, timeframe)
    return Reading(frame, timeframe, made, False, lines[first], member[first])


def _seconds_of(sheet: Sheet, options: FileOptions) -> tuple[Floats, str, bool]:
    """Return (n,) epoch seconds in time order, how they were written, and whether rows were turned round."""
    stamps = sheet.stamps(sheet.plan.time, options.day_first)
    flip = direction(stamps.micros) == "descending"
    lines = sheet.lines[::-1] if flip else sheet.lines
    placed = replace(stamps, micros=stamps.micros[::-1]) if flip else stamps
    if not placed.aware:
        if options.timezone is None:
            raise no_zone(sheet, sheet.plan.time_name)
        placed = times.localise(placed, options.timezone, lines, sheet.name)
    return placed.micros.astype(np.int64) / 1e6, placed.form, flip


def tape_of(sheets: Sequence[Sheet], options: FileOptions) -> tuple[Tape, str, list[str]]:
    """Return the trades of all files in the order of the files, how times are written, and notes."""
    tapes, notes, form = [], [], ""
    for at, sheet in enumerate(sheets):
        time, form, flip = _seconds_of(sheet, options)
        fields = sheet.plan.fields
        held = {
            name: sheet.number(i) for name, i in fields.items() if name in ("price", "size", "first", "last", "quote")
        }
        aggregated = "first" in held and "last" in held
        base = coin_margined(held["price"], held["size"], held.get("quote"))
        if base is not None:
            held["size"] = base
            notes.append(
                f"{sheet.plan.names[fields['size']]} counts contracts: the base amount was read from "
                f"{sheet.plan.names[fields['quote']]}"
            )
        fills = held["last"] - held["first"] + 1.0 if aggregated else np.ones(len(time))
        tape = Tape(
            time, held["price"], held["size"], _side(sheet), fills, _ids(sheet),
            sheet.lines, np.full(len(sheet.lines), at, dtype=np.int64),
        )  # fmt: skip
        tapes.append(replace(tape.select(np.arange(len(time))[::-1]), time=time) if flip else tape)
    return joined(tapes), form, notes


def _side(sheet: Sheet) -> Floats:
    """Return (n,) +1 where the buyer was the aggressor, -1 where the seller was, NaN where it is not recorded."""
    fields = sheet.plan.fields
    if "maker" not in fields and "side" not in fields:
        return np.full(len(sheet.lines), np.nan)
    i = fields["maker"] if "maker" in fields else fields["side"]
    column = sheet.columns[i]
    words = np.char.lower(
        np.asarray(
            sheet.text(i).to_numpy(zero_copy_only=False)
            if not pyarrow.types.is_boolean(column.type)
            else column.cast(pyarrow.string()).to_numpy(zero_copy_only=False),
            dtype=str,
        )
    )
    buying, selling = (
        (("false", "0"), ("true", "1")) if "maker" in fields else (("buy", "b", "bid"), ("sell", "s", "ask"))
    )
    made = np.where(np.isin(words, buying), 1.0, np.where(np.isin(words, selling), -1.0, np.nan))
    if np.isnan(made).any():
        at = int(np.argmax(np.isnan(made)))
        raise BadValues(
            f"{sheet.saw}; still missing: who traded, column {sheet.plan.names[i]} is {words[at][:20]!r} in line "
            f"{int(sheet.lines[at])}; for example: {buying[0]} or {selling[0]}."
        )
    return made


def _ids(sheet: Sheet) -> np.ndarray | None:
    """Return (n,) ids of rows, as whole numbers where they are; None where there are none."""
    if "id" not in sheet.plan.fields:
        return None
    text = sheet.text(sheet.plan.fields["id"])
    try:
        return np.asarray(text.cast(pyarrow.int64()).to_numpy(), dtype=np.int64)
    except pyarrow.ArrowInvalid:
        return np.asarray(text.to_numpy(zero_copy_only=False), dtype=str)


def _quotes(sheet: Sheet, options: FileOptions) -> tuple[Floats, Floats, Floats, Ints, str]:
    """Return times, bids, asks and lines of quotes in time order, and how times are written."""
    time, form, flip = _seconds_of(sheet, options)
    bid, ask = (sheet.number(sheet.plan.fields[name]) for name in ("bid", "ask"))
    turn = slice(None, None, -1) if flip else slice(None)
    return time, bid[turn], ask[turn], sheet.lines[turn], form
