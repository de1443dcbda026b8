"""The live tails of all markets, sent to the service close by close: what comes after the history of training."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from flows.support.holdings import held_bars, held_market, overlap
from flows.support.installation import Installation, now
from flows.support.market_access import MarketOffer, grid_of_market, history_end, market_records, market_source, placed
from flows.support.market_left_out import UNFIT, each_usable
from flows.support.progress import report_progress, track
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, Floats, Outcome, utc
from pipelines.costs import Costs, costs_of, funding_rates, venue_of
from pipelines.data import schemas
from pipelines.data.alignment import known_between
from pipelines.data.quality import assess
from pipelines.data.series import require_same
from pipelines.data.sources import Records, SimulatorSource
from pipelines.data.timeframes import Grid, decision_timeframe
from pipelines.errors import InputError, NotEnoughData, ServiceDown
from pipelines.monitoring.outcomes import resolve
from pipelines.store import decision_of
from serving.client import AGAIN, Client

Answer = Mapping[str, Any]  # a decision, as the service sends it
ATTEMPTS, PAUSE_S = 20, 0.5  # of a request that cannot be answered now; PAUSE_S between two


@dataclass(frozen=True, slots=True)
class Tail:
    """Hold a market as it is known now: what its history ends with, and what is for the live service.

    cut     end of the history, epoch seconds
    bars    (n, 9) all base bars, ascending; known: all records
    begun   whether the service has seen bars of it: its history is then what this home holds
    """

    symbol: str
    cut: float
    bars: Floats
    known: Records
    begun: bool

    @property
    def live(self) -> Floats:
        """Return (k, 9) the bars from the cut on."""
        return self.bars[self.bars[:, OPEN_TIME] >= self.cut]

    @property
    def ends(self) -> float:
        """Return the open of the last bar, epoch seconds; -inf without one."""
        return float(self.bars[-1, OPEN_TIME]) if len(self.bars) else -np.inf


def live_tails(installation: Installation, offers: Sequence[MarketOffer]) -> tuple[dict[str, Tail], dict[str, str]]:
    """Return symbol → tail of each market, and symbol → why of those that cannot be used.

    The histories of all end at one moment (`common_cut`): nothing is trained on what another market does later. A
    market that the service goes on with has no reason to be left out: where its source fails it has no new bars.
    Raises  as `each_usable`
    """
    prepare_simulated(installation, offers)
    tails, left_out = each_usable(
        {offer.symbol: offer for offer in offers}, lambda offer: live_tail(installation, offer)
    )
    cut = common_cut(list(tails.values()))
    shared, short = each_usable(
        {symbol: tail if tail.begun else replace(tail, cut=cut) for symbol, tail in tails.items()}, require_history
    )
    return shared, {**left_out, **short}


def prepare_simulated(installation: Installation, offers: Sequence[MarketOffer]) -> None:
    """Make the simulated markets that have not begun side by side, and save them where the feed goes on from."""
    origin = SimulatorSource(installation.params.simulator)
    wanted = [
        offer.symbol
        for offer in offers
        if offer.source == "simulator"
        and offer.symbol in origin.symbols
        and not already_ingested(installation, offer.symbol)
    ]
    if wanted:
        origin.save_states(installation.settings.simulator_states, wanted)


def common_cut(tails: Sequence[Tail]) -> float:
    """Return where the history of every market ends whose service has not begun, epoch seconds.

    Where the service has begun with others, that is the newest moment they have reached. Else it is the earliest end
    among the markets that are live at the latest one: a market that stopped long before holds back no other.
    """
    if begun := [tail.cut for tail in tails if tail.begun]:
        return max(begun)
    latest = max(tail.cut for tail in tails)
    return min(tail.cut for tail in tails if tail.ends >= latest or tail.cut == latest)


def require_history(tail: Tail) -> Tail:
    """Return a tail that leaves a history. Raises NotEnoughData."""
    if not tail.begun and not (len(tail.bars) and tail.bars[0, OPEN_TIME] < tail.cut):
        raise NotEnoughData(
            f"{tail.symbol}: no usable bar before {utc(tail.cut):%F %H:%M} UTC, where the history of this universe "
            "ends. Give a longer file (or --days)"
        )
    return tail


def live_tail(installation: Installation, offer: MarketOffer) -> Tail:
    """Return one market as it is known now, cut where the live service begins or goes on.

    The tail is the simulator's live days, or the last data.live_days trading days of a file or exchange; where the
    service has begun, everything it has not seen.
    Raises  NotEnoughData where no history is left before the tail; as grid_of_market for other bars than those held
    """
    symbol, newest = offer.symbol, installation.store.newest_bar(offer.symbol)
    if already_ingested(installation, symbol) and newest is not None:
        require_same(installation.manifest(symbol), offer.series)
        return going_on(installation, offer, newest)
    if not offer.gives_bars and (held := held_market(installation.workspace, symbol)) is not None:
        stored = schemas.to_matrix(held.bars())
        return Tail(symbol, held.grid.next_close(stored[-1, OPEN_TIME]), stored, (None, None), True)
    bars, known, grid = known_now(installation, offer)
    params = installation.params
    if offer.source == "simulator":
        cut = (params.simulator.start + timedelta(days=params.simulator.history_days)).timestamp()
    else:
        where = ", ".join(offer.paths) or offer.source
        cut = live_from(bars[:, OPEN_TIME], grid, params.data.live_days, symbol, where)
    return Tail(symbol, cut, bars, known, False)


def going_on(installation: Installation, offer: MarketOffer, newest: float) -> Tail:
    """Return what the service has not seen of a market it has begun with, the market having gone on meanwhile.

    newest  open of the last bar it saw, epoch seconds. Other bars than those held are refused; a source that gives
            nothing at all leaves no tail
    """
    cut = installation.base_grid(offer.symbol).next_close(newest)
    nothing = Tail(offer.symbol, cut, np.empty((0, BAR_WIDTH)), (None, None), True)
    if not offer.gives_bars or (offer.source == "simulator" and cut >= simulated_until(installation)):
        return nothing
    try:
        bars, known, _ = known_now(installation, offer)
    except UNFIT as fault:
        if len(installation.symbols) == 1:
            raise
        report_progress(f"{offer.symbol}: nothing new from {offer.source}: {fault}")
        return nothing
    return replace(nothing, bars=bars, known=known)


def simulated_until(installation: Installation) -> float:
    """Return where the live days of the simulator end, epoch seconds: from there on the feed brings its bars."""
    spec = installation.params.simulator
    return (spec.start + timedelta(days=spec.history_days + spec.live_days)).timestamp()


def known_now(installation: Installation, offer: MarketOffer) -> tuple[Floats, Records, Grid]:
    """Return usable base bars (n, 9) of a market, those held and those of its source, records, and its grid."""
    origin, symbol = market_source(installation, offer), offer.symbol
    frame = origin.fetch(symbol, as_of=now(), ingested_at=now())
    known = market_records(origin, symbol, offer.context, now(), offer.series)
    grid = grid_of_market(installation.workspace, origin, symbol, frame, offer.sessions)
    bars = schemas.to_matrix(assess(placed(origin, frame, grid), grid, now()).clean)
    held = held_market(installation.workspace, symbol)
    if held is not None and offer.source_of_history == "files":
        stored = held_bars(installation, held)
        found = overlap(stored, bars)
        report_progress(f"{symbol}: {found.describe(past_is_taken=not already_ingested(installation, symbol))}")
        bars = np.concatenate([stored, bars[found.new]])
        bars = bars[np.argsort(bars[:, OPEN_TIME], kind="stable")]
    return bars, known, grid


def live_from(opens: Floats, grid: Grid, live_days: int, symbol: str, where: str) -> float:
    """Return history_end of a market's bars (n,).

    Raises NotEnoughData where not one whole trading day is left before it, with the number of days that suffice.
    """
    cut = history_end(opens, grid, live_days)
    if not len(opens) or cut <= opens[0]:
        days = len(np.unique(grid.at("1d").slots(opens)))
        raise NotEnoughData(
            f"{symbol}: {where} has {len(opens):,} usable bars on {days:,} trading days, no history before the last "
            f"{live_days}, which are for the live service. Give a longer file (or --days): {live_days + 2:,} days."
        )
    return cut


def already_ingested(installation: Installation, symbol: str) -> bool:
    """Return whether the newest data version holds this market and the service has seen bars of it."""
    return held_market(installation.workspace, symbol) is not None and installation.store.newest_bar(symbol) is not None


# ---- sending them


@dataclass(frozen=True, slots=True)
class Step:
    """Hold what one market sends at one close: its base bars (n, 9), and what became known after `since`."""

    close: float
    symbol: str
    bars: Floats
    since: float


@dataclass(slots=True)
class Sent:
    """Follow one market while it is sent: the bars of its tail, and its decisions whose outcome is not known yet."""

    bars: Floats
    known: Records
    grid: Grid
    costs: Costs
    seen: int
    pending: dict[str, Decision]


def send_live_bars(client: Client, installation: Installation, tails: Sequence[Tail]) -> dict[str, list[Answer]]:
    """Send the tails of all markets in the order of time, and request decisions on all that closed at each close.

    Bars already stored are not sent again, nor what was known when the last one closed. Outcomes are sent as they come,
    so that the account the next decision rests on is the real one. A market that is refused is left out by name.
    Returns  symbol → its decisions, as the service sends them. Raises InputError if the only market is refused
    """
    sent: dict[str, Sent] = {}
    steps: list[Step] = []
    for tail in tails:
        following, closes = plan_of(installation, tail)
        if closes:
            sent[tail.symbol] = following
            steps += closes
    answers: dict[str, list[Answer]] = {symbol: [] for symbol in sent}
    steps.sort(key=attrgetter("close"))  # stable: in the order of the universe
    title = f"live: {len(steps):,} decision bars of {', '.join(sent)}"
    at_close = [list(group) for _, group in groupby(steps, key=attrgetter("close"))]
    for closing in track(at_close, title, len(at_close)) if steps else ():
        _send(client, [each for each in closing if each.symbol in sent], sent, answers)
    return answers


def plan_of(installation: Installation, tail: Tail) -> tuple[Sent, list[Step]]:
    """Return how a market is followed, and its steps; none where the service has seen all of it."""
    symbol, params = tail.symbol, installation.params
    newest, facts = installation.store.newest_bar(symbol), installation.manifest(symbol)
    last = datetime.fromisoformat(facts["last"]).timestamp() if newest is None else newest
    bars = tail.live if newest is None else tail.bars[tail.bars[:, OPEN_TIME] > last]
    base_grid = installation.base_grid(symbol)
    grid = base_grid.at(decision_timeframe(base_grid.timeframe, params.data.decision_timeframe))
    steps, since = (
        [],
        base_grid.next_close(last),
    )  # what became known while the market was closed comes with its next bar
    for close, group in by_decision_bar(bars, grid) if len(bars) else ():
        steps.append(Step(close, symbol, group, since))
        since = close
    return Sent(bars, tail.known, base_grid, costs_of(params.costs, *venue_of(facts)), 0, {}), steps


def _send(client: Client, closing: Sequence[Step], sent: dict[str, Sent], answers: dict[str, list[Answer]]) -> None:
    """Send what all markets have at one close, the outcomes that are known by it, and request their decisions."""
    if not closing:
        return
    batch = [(s.symbol, s.bars, *known_between(*sent[s.symbol].known, s.since, s.close)) for s in closing]
    for refusal in _errors(_repeated(lambda: client.observe_all(batch)["observations"])):
        _refused(refusal, sent)
    taken, ended = [each for each in closing if each.symbol in sent], list[Outcome]()
    for each in taken:
        following = sent[each.symbol]
        following.seen += len(each.bars)
        rates = funding_rates(following.known[1])
        seen, waiting = following.bars[: following.seen], list(following.pending.values())
        for outcome in resolve(waiting, seen, following.grid, following.costs, rates):
            ended.append(outcome)
            del following.pending[outcome.decision_id]
    if ended:
        _report(client, sorted(ended, key=attrgetter("resolved_at")))
    if not taken:
        return
    decided = _repeated(lambda: client.decide_all([each.symbol for each in taken])["decisions"])
    for refusal in _errors(decided):
        _refused(refusal, sent)
    for each, answer in zip(taken, decided, strict=True):
        if "error" in answer:
            continue
        if answer["event"] is not None and answer["stop"] is not None:
            decision = decision_of({key: value for key, value in answer.items() if key != "api"})
            sent[each.symbol].pending[answer["id"]] = decision
        answers[each.symbol].append(answer)


def _report(client: Client, outcomes: Sequence[Outcome]) -> None:
    """Report outcomes, in order of time: equity and what is learnt depend on it. Raises InputError for a refusal."""
    for refusal in _errors(_repeated(lambda: client.outcome_all(outcomes)["outcomes"])):
        raise InputError(f"outcome of decision {refusal['decision_id']} was refused: {refusal['error']}")


def _repeated(request: Callable[[], Sequence[Answer]]) -> Sequence[Answer]:
    """Return the replies to a request, which is repeated while it cannot be answered now, as on a busy machine.

    The service recognises what it has already done. Raises ServiceDown when ATTEMPTS of them failed
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            replies = request()
            if not left or not any(refusal["kind"] in AGAIN for refusal in _errors(replies)):
                return replies
        except ServiceDown:
            if not left:
                raise
        time.sleep(PAUSE_S)
    raise AssertionError


def _errors(replies: Sequence[Answer]) -> list[Answer]:
    """Return the replies that say why a market was refused."""
    return [reply for reply in replies if "error" in reply]


def _refused(refusal: Answer, sent: dict[str, Sent]) -> None:
    """Go on without a market that the service refuses. Raises InputError if it was the only one."""
    symbol, text = str(refusal["symbol"]), f"{refusal['symbol']}: the service refused it: {refusal['error']}"
    sent.pop(symbol, None)
    if not sent:
        raise InputError(text)
    report_progress(f"{text}; the turn goes on without it")


def by_decision_bar(bars: Floats, grid: Grid) -> Iterator[tuple[float, Floats]]:
    """Yield (close time in epoch seconds, its base bars) of each decision bar in `bars`, in time order."""
    opens = grid.holding(bars[:, OPEN_TIME])
    edges = np.flatnonzero(np.diff(opens)) + 1
    for opened, part in zip(opens[np.r_[0, edges]], np.split(bars, edges), strict=True):
        yield grid.next_close(opened), part
