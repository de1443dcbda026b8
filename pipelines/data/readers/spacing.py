"""The spacing of times of bars: their timeframe, and stamps on the minute."""

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.data.readers import proved
from pipelines.data.readers.reading import FileOptions
from pipelines.data.readers.times import Stamps
from pipelines.data.sessions import distinct, infer_timeframe
from pipelines.data.timeframes import seconds
from pipelines.errors import BadTimes, UnknownName

MONTH_DAYS = (28, 31)


def timeframe_of(micros: Stamps, lines: Ints, options: FileOptions, where: str) -> tuple[str | None, Stamps, list[str]]:
    """Return the timeframe (None: shorter than a minute), stamps on the grid, notes. Raises BadTimes, UnknownName."""
    if options.timeframe is not None:
        seconds(options.timeframe)
    if np.isnat(micros).any():
        at = int(np.argmax(np.isnat(micros)))
        whole = micros[~np.isnat(micros)]
        if not len(whole):
            raise BadTimes(f"{where}: no row has a time, as line {int(lines[at])}. Find out which bars these are.")
    else:
        whole = micros
    exact = distinct(whole.astype(np.int64))
    unique = exact
    if not proved.are_minutes(exact):
        unique = distinct((exact + proved.MINUTE_US // 2) // proved.MINUTE_US * proved.MINUTE_US)
    step_us = commonest(np.diff(exact))
    if 0 < step_us < proved.MINUTE_US // 2 and len(unique) < 0.9 * len(exact):
        if proved.MINUTE_US % step_us or (whole.astype(np.int64) % step_us).any():
            raise BadTimes(
                f"{where}: saw: rows mostly {step_us / 1e6:g} s apart; still missing: a grid, {step_us / 1e6:g} s is "
                "no part of "
                "a minute or some rows lie between; for example: give bars of 1s, 5s, 1m, or the trades themselves."
            )
        _agrees(options.timeframe, 60.0, where)
        return None, micros, []
    spacing = commonest(np.diff(unique)) / 1e6
    if options.timeframe is not None:
        _agrees(options.timeframe, spacing, where)
        name = options.timeframe
    else:
        name = _inferred(unique / 1e6, spacing, where)
    if np.isnat(micros).any():
        return name, micros, []
    snapped, notes = proved.on_minutes(micros, seconds(name) * 1_000_000, lines, where)
    return name, snapped, notes


def commonest(steps: Ints) -> int:
    """Return the commonest step, 0 where there is none."""
    if not len(steps):
        return 0
    if (steps == steps[0]).all():
        return int(steps[0])
    ordered = np.sort(steps)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return int(ordered[starts[np.argmax(np.diff(np.append(starts, len(ordered))))]])


def _agrees(stated: str | None, spacing: float, where: str) -> None:
    """Raise BadTimes if bars stand closer than the timeframe stated."""
    if stated is not None and 0 < spacing < seconds(stated):
        raise BadTimes(
            f"{where}: saw: rows mostly {spacing:g} s apart; still missing: bars of {stated} ({seconds(stated)} s), "
            "as stated; "
            "for example: leave --timeframe out, or state that of the file."
        )


def _inferred(open_times: Floats, spacing: float, where: str) -> str:
    """Return the name of the commonest spacing; months are of 28 to 31 days. Raises BadTimes naming the file."""
    try:
        return infer_timeframe(np.array([0.0, spacing]))  # what all of them show, in no time
    except BadTimes:
        pass  # irregular ones, and the message, need all
    try:
        return infer_timeframe(open_times)
    except BadTimes as error:
        steps = np.diff(open_times) / 86400.0
        months = len(steps) > 0 and float(((steps >= MONTH_DAYS[0]) & (steps <= MONTH_DAYS[1])).mean()) > 0.9
        if months:
            try:
                seconds("1M")
                return "1M"
            except UnknownName:
                pass  # no months here: the first error says so
        raise BadTimes(f"{where}: {error} State it with --timeframe where a file is too short to show it.") from error
