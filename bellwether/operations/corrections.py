"""What people decide about observed bars: release or drop quarantined ones, set accepted ones aside, correct them.

Each is a record with who, when and why, written to the store; a running service follows it within a second and folds
the symbol again from its warm start, and one that starts reads it. Nothing here reaches behind the warm start: what
lies before belongs to a data version; `bellwether run` makes another from a corrected source.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from flows.support import processes
from flows.support.installation import Installation
from pipelines.contracts import BAR_FIELDS, OPEN_TIME, Floats, JsonObject, utc
from pipelines.data import admission, schemas
from pipelines.data.readers.reading import FileOptions
from pipelines.data.sources import FileSource
from pipelines.errors import BadTimes, BadValues, StateError, UnknownName
from pipelines.store import Change, Correction, Quarantined, Signed
from pipelines.warm_start import WarmStart, read_warm_start
from serving.client import Client
from serving.inference.generation import read_generation
from serving.service.field_errors import FoundError, field_errors
from serving.service.schemas import ObserveRequest

ALARM = "bar_quarantined"
FOLLOW_S = 10.0  # a service that polls four times a second and folds some thousand bars is done long before
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Decided:
    """Report what was decided, or would be: the corrections, the bars dropped, and whether a service follows.

    follows  None: no service answers; the next one to start reads it
    """

    corrections: Sequence[Correction] = ()
    dropped: Sequence[Quarantined] = ()
    follows: bool | None = None

    def to_dict(self) -> JsonObject:
        """Return it JSON-ready."""
        return {
            "corrections": [correction_json(one) for one in self.corrections],
            "dropped": [quarantined_json(one) for one in self.dropped],
            "service_follows": self.follows,
        }


def bar_json(bar: Floats | None) -> JsonObject | None:
    """Return a bar (9,) with its names, open_time in ISO 8601; what was not recorded is None."""
    if bar is None:
        return None
    values = {name: None if v != v else v for name, v in zip(BAR_FIELDS, bar.tolist(), strict=True)}
    return values | {"open_time": utc(bar[OPEN_TIME]).isoformat()}


def quarantined_json(one: Quarantined) -> JsonObject:
    """Return a quarantined bar JSON-ready, times in ISO 8601."""
    return {
        "id": one.id, "symbol": one.symbol, "open_time": utc(one.open_time).isoformat(), "bar": bar_json(one.bar),
        "reason": one.code, "detail": one.detail, "at": one.at.isoformat(), "by": one.by, "state": one.state,
        "closed_at": one.closed_at and one.closed_at.isoformat(), "closed_by": one.closed_by,
        "closed_reason": one.closed_reason,
    }  # fmt: skip


def correction_json(one: Correction) -> JsonObject:
    """Return a correction JSON-ready, times in ISO 8601; a bar that is not there is None."""
    return {
        "id": one.id, "symbol": one.symbol, "open_time": utc(one.open_time).isoformat(),
        "before": bar_json(one.before), "after": bar_json(one.after), "reason": one.reason, "by": one.by,
        "at": one.at.isoformat(),
    }  # fmt: skip


def held(installation: Installation, numbers: Sequence[int], symbol: str | None) -> list[Quarantined]:
    """Return held bars by their numbers, or all of a symbol. Raises BadValues for both and neither, UnknownName."""
    if bool(numbers) == (symbol is not None):
        raise BadValues("name bars by their numbers, or all of a market with --symbol; one of the two")
    if symbol is None:
        return [installation.store.quarantined_bar(number) for number in numbers]
    found = installation.store.quarantined(symbol)
    if not found:
        raise UnknownName(f"no bar of {symbol!r} is in quarantine; `bellwether data quarantine list` shows those held")
    return found


def release(installation: Installation, bars: Sequence[Quarantined], signed: Signed, dry_run: bool = False) -> Decided:
    """Put held bars in as they came. Raises BadTimes for one that the live state reaches no more."""
    for symbol in {one.symbol for one in bars}:
        require_reachable(served(installation, symbol), [one.open_time for one in bars if one.symbol == symbol])
    if dry_run:
        return Decided()
    return _settle(installation, installation.store.release([one.id for one in bars], signed), bars, signed.at)


def drop(installation: Installation, bars: Sequence[Quarantined], signed: Signed, dry_run: bool = False) -> Decided:
    """Give held bars up: the gap stays, and a bar that is sent for it again is not folded."""
    if dry_run:
        return Decided(dropped=bars)
    dropped = installation.store.drop([one.id for one in bars], signed)
    _clear_alarms(installation, {one.symbol for one in bars}, signed.at)
    return Decided(dropped=dropped)


def set_aside(installation: Installation, symbol: str, opened: datetime, signed: Signed) -> Decided:
    """Take an accepted bar out, into quarantine.

    It counts no more for live state, for the next data version, and for outcomes that are not resolved yet.
    Raises  UnknownName where no such bar is read, BadTimes for one that the live state reaches no more
    """
    warm = served(installation, symbol)
    at = opened.timestamp()
    require_reachable(warm, [at])
    found = installation.store.bars(symbol, at - 1.0, at)
    if len(found) == 0 or found[-1, OPEN_TIME] != at:
        raise UnknownName(f"no observed bar of {symbol} opens at {opened:%F %T} UTC; nothing was set aside")
    known_at = warm.base_grid.next_close(at)
    made = installation.store.set_aside(symbol, found[-1], known_at, admission.SET_ASIDE, signed)
    return _settle(installation, made, (), signed.at)


def correct(installation: Installation, symbol: str, rows: Floats, signed: Signed, dry_run: bool = False) -> Decided:
    """Let bars (n, 9) be read as these from now on; those that are read like this already change nothing.

    Raises  BadTimes, BadValues as `admission.require`; BadTimes for a bar that the live state reaches no more
    """
    warm = served(installation, symbol)
    admission.require(rows, warm.base_grid, signed.at, symbol)
    require_reachable(warm, rows[:, OPEN_TIME].tolist())
    if dry_run:
        return Decided()
    changes = [Change(float(row[OPEN_TIME]), warm.base_grid.next_close(row[OPEN_TIME]), row) for row in rows]
    return _settle(installation, installation.store.correct(symbol, changes, signed), (), signed.at)


def served(installation: Installation, symbol: str) -> WarmStart:
    """Return the warm start that live state of a symbol starts from.

    Raises StateError before the first `bellwether run`, UnknownName for another symbol.
    """
    generation = read_generation(installation.settings.serving_dir)
    named = _warm_starts(generation or {})
    if not named:
        raise StateError("nothing is served yet, so no bar was observed: run `bellwether run --once` first")
    if symbol not in named:
        raise UnknownName(f"symbol: {symbol!r} is not served here; known: {', '.join(named)}")
    return read_warm_start(Path(named[symbol]["path"]), named[symbol]["digest"])


def _warm_starts(generation: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return symbol → warm start that a generation names; up to release 0.10 it names one, which knows its symbol."""
    if (several := generation.get("warm_starts")) is not None:
        return dict(several)
    if not (one := generation.get("warm_start")):
        return {}
    return {read_warm_start(Path(one["path"]), one["digest"]).symbol: one}


def require_reachable(warm: WarmStart, opens: Sequence[float]) -> None:
    """Raise BadTimes unless all of these bars come after the last one of the warm start."""
    early = [opened for opened in opens if opened <= warm.last_open_time]
    if early:
        raise BadTimes(
            f"{warm.symbol}: the bar of {utc(min(early)):%F %T} UTC is not after {utc(warm.last_open_time):%F %T} UTC, "
            "the last bar of the data version that live state starts from, so it cannot be folded again here. Correct "
            "it in the source and train on that: `bellwether run`. Nothing was changed."
        )


def rows_of_file(installation: Installation, file: Path, symbol: str, at: datetime) -> Floats:
    """Return the bars (n, 9) of a file, of the timeframe that the symbol holds, ascending. Raises as its reader."""
    timeframe = served(installation, symbol).base_grid.timeframe  # one bar alone does not show it
    frame = FileSource(file, FileOptions(timeframe=timeframe)).fetch(symbol, as_of=at, ingested_at=at)
    rows = schemas.to_matrix(frame)
    return rows[np.argsort(rows[:, OPEN_TIME], kind="stable")]


def row_of_text(text: str, symbol: str) -> Floats:
    """Return the bar (1, 9) that `name=value` words state, with the names and units of `/observe`.

    Raises BadValues naming each field that is wrong.
    """
    fields: dict[str, object] = {}
    for word in text.split():
        name, sign, value = word.partition("=")
        try:
            fields[name] = value if name == "open_time" else float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise BadValues(
                f"--bar: {word!r} is no name=value; write open_time=2024-01-31T09:15Z open=1.5 high=1.6 low=1.4 "
                "close=1.5 volume=120"
            )
    try:
        return ObserveRequest.model_validate({"symbol": symbol, "bars": [fields]}).matrix()
    except ValidationError as error:
        detail = [FoundError(loc=found["loc"], msg=found["msg"], type=found["type"]) for found in error.errors()]
        wrong = [
            f"{found['field'].removeprefix('bars.0.')}: {found['problem']} ({found['remedy']})"
            for found in field_errors(detail)
        ]
        raise BadValues(f"--bar: {'; '.join(wrong)}") from error


def _settle(
    installation: Installation, made: Sequence[Correction], bars: Sequence[Quarantined], at: datetime
) -> Decided:
    """Return what was decided, once a running service has followed it; clear the alarms of markets with none held."""
    _clear_alarms(installation, {one.symbol for one in made} | {one.symbol for one in bars}, at)
    return Decided(made, (), _follows(installation, made))


def _follows(installation: Installation, made: Sequence[Correction]) -> bool | None:
    """Return whether the running service reads these corrections, after waiting for it; None where none runs."""
    if not made or not processes.is_responding(installation.settings, "decision"):
        return None
    deadline = time.monotonic() + FOLLOW_S
    newest = {one.symbol: one.at.isoformat() for one in made}
    with Client(installation.settings) as client:
        while time.monotonic() < deadline:
            symbols: Mapping[str, Mapping[str, object]] = client.status()["symbols"]
            if all(symbols.get(name, {}).get("reading") == moment for name, moment in newest.items()):
                return True
            time.sleep(POLL_S)
    return False


def _clear_alarms(installation: Installation, symbols: set[str], at: datetime) -> None:
    """Clear the alarms of markets of which no bar is held any more."""
    for symbol in symbols:
        if installation.store.quarantined(symbol):
            continue
        for alarm in installation.store.alarms():
            if alarm.kind == ALARM and alarm.detail.startswith(f"{symbol}: "):
                installation.store.clear_alarm(alarm.id, at)
