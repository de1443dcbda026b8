"""One close through the decision service: bars and records in, outcomes of what ended, a decision for each symbol.

Nothing is lost and nothing is done twice: what was not answered is sent again, the service recognises what it has, and
a close that has its decision in the ledger is not decided again.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np

from bellwether.operations.feed_report import FeedReport
from pipelines.contracts import OPEN_TIME, Books, ContextFeed, Decision, Floats, JsonObject, Outcome, utc
from pipelines.costs import NO_FUNDING, Costs, funding_rates
from pipelines.data.alignment import known_between
from pipelines.data.feeds import Close, FeedMarket, Sent
from pipelines.errors import BadTimes, InputError, ServiceDown
from pipelines.monitoring.outcomes import resolve
from pipelines.store import Store, decision_of
from serving.client import AGAIN

log = logging.getLogger("bellwether.feed")
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0  # between two attempts at a service that does not answer
MOST_BARS = 1_000  # base bars of a symbol in one request of a backfill
FUNDING_BEFORE = timedelta(days=2)  # rates before a decision that its funding may need
NOT_NOW = re.compile(r"\((401|403|429)\)")  # status of a refusal that is not the data's fault: a key, too many requests
LOADING = 150  # attempts, FIRST_DELAY_S apart, while the service knows none of the symbols
UNKNOWN = "UnknownName"  # kind of the refusal of a symbol that the service does not serve yet
LATER = (UNKNOWN, "StateError", *AGAIN)  # kinds of a refusal that ends when the symbol is served
Observation = tuple[str, Floats, Books | None, ContextFeed | None]


class Stopped(Exception):
    """Signal that the feed is stopped while it waits."""


class DecisionClient(Protocol):
    """Call the decision service, as serving.client.Client does."""

    def observe_all(self, observations: list[Observation]) -> JsonObject:
        """Send bars and records of several symbols; return an answer for each."""
        ...

    def decide_all(self, symbols: list[str]) -> JsonObject:
        """Return a decision for each symbol on its newest closed bar."""
        ...

    def outcome_all(self, outcomes: list[Outcome]) -> JsonObject:
        """Report what became of several decisions; return an answer for each."""
        ...


class Taken(NamedTuple):
    """Hold what the service took of a symbol: how many bars were new, and whether a decision bar closed."""

    new: int
    closed: bool


@dataclass
class Counts:
    """Count what a feed did since it began."""

    closes: int = 0
    bars: int = 0
    decisions: int = 0
    trades: int = 0
    outcomes: int = 0


class Delivery:
    """Deliver closes to the decision service, again and again until it answers.

    wait  sleeps so many seconds and raises Stopped when the feed is stopped meanwhile
    """

    def __init__(
        self,
        client: DecisionClient,
        store: Store,
        markets: Mapping[str, FeedMarket],
        costs: Mapping[str, Costs],
        report: FeedReport,
        wait: Callable[[float], None],
    ) -> None:
        """Take the service and the store; find the decisions whose outcomes are still to come."""
        self._client, self._store, self._markets, self._costs = client, store, markets, costs
        self._report, self._wait = report, wait
        self.counts = Counts()
        self.outages = 0  # attempts that the service did not answer
        self._delay_s = FIRST_DELAY_S
        self._pending: dict[str, dict[str, Decision]] = {symbol: {} for symbol in markets}
        self._unsent: dict[str, list[Sent]] = defaultdict(list)  # of symbols that the service does not serve yet
        self._refused: dict[str, str] = {}  # symbol → the refusal that was logged last
        for record in store.unresolved(until=utc(max((m.closed for m in markets.values()), default=0.0))):
            self._remember(record.decision)

    def deliver(self, close: Close, sends: bool = True, decides: bool = True) -> None:
        """Send what closed, report outcomes, and request decisions; return once all of it is durable.

        sends    False where the bars are in the service already
        decides  False for a close that is too old to be decided on
        Raises   Stopped
        """
        moment, parts = close
        taken = self._send(parts) if sends else dict.fromkeys(parts, Taken(0, False))
        self._report.delivered(moment, sum(len(part.bars) for part in parts.values()))
        self.counts.closes += 1
        self.resolve_outcomes()
        if decides:
            self.decide(moment, [s for s, t in taken.items() if t.closed or self.lacks_decision(s, moment, t.new)])

    def backfill(self, symbol: str, sent: Sent) -> None:
        """Send what a symbol lacks, in order, without a decision: its closes are over. Raises Stopped."""
        bars, parts = sent.bars, []
        for first in range(0, len(bars), MOST_BARS):
            part = bars[first : first + MOST_BARS]
            last = first + MOST_BARS >= len(bars)
            after = -np.inf if first == 0 else float(part[0, OPEN_TIME])
            until = np.inf if last else float(bars[first + MOST_BARS, OPEN_TIME])
            parts.append(Sent(part, *known_between(sent.books, sent.feed, after, until)))
        self._send_in_order(symbol, parts)

    # ---- decisions ------------------------------------------------------------------------------------------------

    def decide(self, moment: float, symbols: Sequence[str]) -> None:
        """Request a decision of each symbol on the bar that closed at `moment` (epoch seconds). Raises Stopped.

        After an attempt that failed, the ledger says whether the decision was made all the same.
        """
        left, attempts = list(symbols), LOADING
        while left:
            answers = self._attempt(lambda: self._client.decide_all(left))  # noqa: B023 - called at once
            if answers is not None:
                left = self._take_decisions(answers["decisions"])
                if left and not attempts:  # the others go on without it
                    log.warning("no decision on %s at %s UTC", ", ".join(left), f"{utc(moment):%F %T}")
                    return
                if left:
                    attempts = self._again(attempts, f"{', '.join(left)} cannot be decided yet")
            left = [symbol for symbol in left if not self._take_up(symbol, moment)]

    def lacks_decision(self, symbol: str, close: float, new: int = 0) -> bool:
        """Return whether the bar that closes then (epoch seconds) is stored, and the ledger has no decision on it.

        new  bars that were stored just now without closing it: it waits for more
        """
        if new:
            return False
        newest = self._store.newest_bar(symbol)
        if newest is None or self._markets[symbol].base.next_close(newest) < close:
            return False
        return not self._made(symbol, close)

    def _made(self, symbol: str, close: float) -> list[Decision]:
        """Return the newest decision of the ledger on this close; empty without one."""
        found = self._store.decisions(symbol, since=utc(close), until=utc(close + 1e-3), last=1)
        return [record.decision for record in found]

    def _take_up(self, symbol: str, close: float) -> bool:
        """Return whether the ledger has a decision on this close, and count it."""
        made = self._made(symbol, close)
        for decision in made:
            self._count(decision)
        return bool(made)

    def _take_decisions(self, answers: Iterable[Mapping[str, Any]]) -> list[str]:
        """Count the decisions; return the symbols whose refusal may be over at once, log the others."""
        again = []
        for answer in answers:
            if "error" in answer:
                if answer.get("kind") in LATER:
                    again.append(str(answer["symbol"]))
                else:
                    self._log_refusal(str(answer["symbol"]), str(answer["error"]))
            else:
                self._count(decision_of({key: value for key, value in answer.items() if key != "api"}))
        return again

    def _count(self, decision: Decision) -> None:
        """Count a decision, and wait for its outcome."""
        self.counts.decisions += 1
        self.counts.trades += decision.action != "NO_TRADE"
        self._remember(decision)

    def _remember(self, decision: Decision) -> None:
        """Wait for the outcome of a decision on an event that can be scored."""
        if decision.event is not None and decision.stop is not None and decision.symbol in self._pending:
            self._pending[decision.symbol][decision.id] = decision

    # ---- bars -----------------------------------------------------------------------------------------------------

    def _send(self, parts: Mapping[str, Sent]) -> dict[str, Taken]:
        """Send what closed. Of a symbol that was not served until now, first what it lacks; return what was taken."""
        late = {symbol: part for symbol, part in parts.items() if self._unsent.get(symbol)}
        taken = self._observe({s: self._unsent[s][0] if s in late else part for s, part in parts.items()})
        for symbol, part in late.items():
            if symbol not in taken:
                self._unsent[symbol].append(part)
                continue
            taken |= self._send_in_order(symbol, [*self._unsent.pop(symbol)[1:], part])
        return taken

    def _send_in_order(self, symbol: str, parts: Sequence[Sent]) -> dict[str, Taken]:
        """Send parts of one symbol in order; where it is not served, the rest waits with the part that was refused."""
        taken: dict[str, Taken] = {}
        for i, part in enumerate(parts):
            taken |= self._observe({symbol: part})
            if self._unsent.get(symbol):
                self._unsent[symbol] += parts[i + 1 :]
                break
        return taken

    def _again(self, attempts: int, why: str) -> int:
        """Wait before the same request is sent again; market time stands meanwhile. Return the attempts left."""
        self.outages += 1
        self._report.hold(why[:300])
        self._wait(FIRST_DELAY_S)
        return attempts - 1

    def _observe(self, parts: Mapping[str, Sent]) -> dict[str, Taken]:
        """Send bars of several symbols until each is taken or refused; return those that were taken. Raises Stopped."""
        waiting, taken, loading = dict(parts), {}, LOADING
        while waiting:
            batch = [(symbol, part.bars, part.books, part.feed) for symbol, part in waiting.items()]
            answers = self._answered(lambda: self._observe_batch(batch))["observations"]  # noqa: B023 - called at once
            first = not any(self._unsent.get(symbol) for symbol in waiting)
            if loading and first and all(answer.get("kind") == UNKNOWN for answer in answers):
                loading = self._again(loading, str(answers[0]["error"]))  # it just started and has no symbol at all
                continue
            again = {}
            for answer in answers:
                symbol = str(answer["symbol"])
                if "error" not in answer:
                    self._refused.pop(symbol, None)
                    self.counts.bars += answer["new"]
                    taken[symbol] = Taken(answer["new"], bool(answer["closed"]))
                elif answer.get("kind") in AGAIN and loading and not self._unsent.get(symbol):
                    again[symbol] = waiting[symbol]
                else:
                    self._refuse(symbol, waiting[symbol], answer)
            waiting = again
            if waiting:
                loading = self._again(loading, f"{', '.join(waiting)} cannot be taken yet")
        return taken

    def _observe_batch(self, batch: list[Observation]) -> JsonObject:
        """Send a batch; where it is refused as a whole, each symbol by itself, so that one's fault is its own."""
        try:
            return self._client.observe_all(batch)
        except InputError as error:
            if NOT_NOW.search(str(error)):
                raise
            if len(batch) == 1:
                return {"observations": [{"symbol": batch[0][0], "error": str(error), "kind": type(error).__name__}]}
        return {"observations": [one for each in batch for one in self._observe_batch([each])["observations"]]}

    def _refuse(self, symbol: str, part: Sent, answer: Mapping[str, Any]) -> None:
        """Log a refusal once. What was sent of a symbol that is not served yet is sent again with its next close."""
        waits = self._unsent[symbol]
        if answer.get("kind") in LATER:
            if not waits:
                waits.append(part)
        elif waits and waits[0] is part:  # bad data are not sent again
            waits.pop(0)
        self._log_refusal(symbol, str(answer["error"]))

    def _log_refusal(self, symbol: str, why: str) -> None:
        """Log why a symbol was refused, unless that was the last thing logged of it."""
        if self._refused.get(symbol) != why:
            self._refused[symbol] = why
            log.warning("%s was refused: %s", symbol, why)

    # ---- outcomes -------------------------------------------------------------------------------------------------

    def resolve_outcomes(self) -> None:
        """Report the outcome of every decision that the stored bars resolve, before the next decision rests on it."""
        ended = [
            (symbol, outcome)
            for symbol, pending in self._pending.items()
            if pending
            for outcome in self._ended(symbol, list(pending.values()))
        ]
        # in order of time, as a restart books them: equity and what is learnt depend on it
        ended.sort(key=lambda pair: pair[1].resolved_at)
        for (symbol, outcome), answer in zip(ended, self._report_outcomes([one for _, one in ended]), strict=True):
            if "error" in answer:  # another outcome is stored for it: that one counts
                self._log_refusal(symbol, str(answer["error"]))
            else:
                self.counts.outcomes += 1
            self._pending[symbol].pop(outcome.decision_id, None)

    def _report_outcomes(self, outcomes: list[Outcome]) -> Sequence[Mapping[str, Any]]:
        """Return what the service answers to each outcome. Raises Stopped."""
        if not outcomes:
            return ()
        try:
            found: Sequence[Mapping[str, Any]] = self._answered(lambda: self._client.outcome_all(outcomes))["outcomes"]
        except InputError as error:  # refused as a whole: the monitor resolves them
            found = [{"error": str(error)}] * len(outcomes)
        return found

    def _ended(self, symbol: str, pending: list[Decision]) -> list[Outcome]:
        """Return the outcomes of these decisions of a symbol, from its stored bars."""
        market, costs = self._markets[symbol], self._costs[symbol]
        oldest = min(decision.as_of for decision in pending)
        before = oldest.timestamp() - market.grid.step_s
        bars = self._store.bars(symbol, after=before - 1e-3)
        rates = NO_FUNDING
        if costs.funding_hours is not None:
            rates = funding_rates(self._store.records(symbol, after=(oldest - FUNDING_BEFORE).timestamp())[1])
        try:
            return resolve(pending, bars, market.base, costs, rates)
        except BadTimes:  # no bar is stored from before the oldest of them: only the first after a gap
            found = []
            for decision in pending:
                try:
                    found += resolve([decision], bars, market.base, costs, rates)
                except BadTimes as error:
                    self._log_refusal(symbol, str(error))
                    self._pending[symbol].pop(decision.id, None)
            return found

    # ---- calls ----------------------------------------------------------------------------------------------------

    def _answered(self, call: Callable[[], JsonObject]) -> JsonObject:
        """Return what a call answers, attempted until the service answers. Raises Stopped."""
        while (answer := self._attempt(call)) is None:
            continue
        return answer

    def _attempt(self, call: Callable[[], JsonObject]) -> JsonObject | None:
        """Return what a call answers; None where the service does not answer, after a delay that doubles each time."""
        try:
            with self._report.calling():
                answer = call()
        except (ServiceDown, InputError) as error:
            if isinstance(error, InputError) and not NOT_NOW.search(str(error)):
                raise
            self.outages += 1
            self._report.hold(f"the decision service does not answer: {error}"[:300])
            log.warning("attempt again in %g s: %s", self._delay_s, error)
            self._wait(self._delay_s)
            self._delay_s = min(LONGEST_DELAY_S, 2.0 * self._delay_s)
            return None
        self._delay_s = FIRST_DELAY_S
        return answer
