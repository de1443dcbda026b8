"""Load by the clock, its figures and their page; the parts run the real service and are evidence, not tests."""

import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import earlier, evidence, open_loop, results, serving_load, serving_page
from benchmarks.arms import serve_arms
from benchmarks.open_loop import CLOSE, DECIDE, DUE, LATE, Close, Load, Outcomes, closes_in_turn, paced
from benchmarks.serving_load import CLIENT, PARENT, WORKER
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, utc
from pipelines.errors import BadValues, InputError
from pipelines.settings import Settings, load_params
from serving.inference.generation import read_generation
from serving.service.home_store import open_store
from serving.service.ledger_check import disagreement
from tests.support.records import DECISION

PARAMS = load_params()
SYMBOLS = ("A/USDT", "B/USDT", "C/USDT", "D/USDT")


def minutes(n):
    bars = np.full((n, BAR_WIDTH), np.nan)
    bars[:, OPEN_TIME], bars[:, 1:5] = 60.0 * np.arange(n), 100.0
    return bars


class Service:
    """A decision service without a socket: a new decision a symbol and close, as slow as a test wants."""

    def __init__(self, slow=()):
        self.slow, self.closes, self.order, self.outcomes = dict(slow), dict.fromkeys(SYMBOLS, 0), [], []

    def observe(self, symbol, bars):
        self.closes[symbol] += 1
        self.order.append(symbol)
        return {}

    def observe_all(self, sent):
        return {"observations": [self.observe(symbol, bars) for symbol, bars, _, _ in sent]}

    def decide(self, symbol):
        time.sleep(self.slow.get(len(self.order), self.slow.get("always", 0.0)))
        return {"id": f"{symbol} {self.closes[symbol]}", "symbol": symbol, "generation": 1}

    def decide_all(self, symbols):
        return {"decisions": [self.decide(symbol) for symbol in symbols]}


def load_on(service, batch=1, n=15 * 41):
    return Load(service, closes_in_turn(minutes(n), PARAMS, SYMBOLS, batch), Outcomes(minutes(n), PARAMS))


def test_a_request_that_waited_for_another_is_sent_at_once_and_its_waiting_counts():
    load = load_on(Service(slow={4: 0.3}))
    times = paced(load, seconds=1.0, every_s=0.05, gap_s=0.02)
    assert times[:, DUE] == pytest.approx(0.05 * np.arange(20))  # none is left out, and none is due later
    assert times[3, CLOSE] >= 0.3
    assert np.all(times[4:8, LATE] >= 0.3 - 0.05 * np.arange(1, 5))
    assert np.all(times[4:8, DECIDE] >= 0.3 - 0.05 * np.arange(1, 5) - 0.02)
    assert times[:, DECIDE] == pytest.approx(times[:, CLOSE] - 0.02)
    assert (load.decided, load.failed, load.retries) == (20, 0, 0)


def test_a_service_that_cannot_keep_up_falls_behind_and_the_load_ends_all_the_same():
    times = paced(load_on(Service(slow={"always": 0.05})), seconds=0.3, every_s=0.01)
    assert len(times) < open_loop.due_closes(0.3, 0.01) == 30
    assert np.all(np.diff(times[:, LATE]) > 0.0)


def test_symbols_close_in_turn_within_a_bar_of_each_other_until_the_bars_are_over():
    service = Service()
    load = load_on(service, batch=2, n=15 * 4)
    with pytest.raises(BadValues, match="all 3 closes of 4 symbols are sent"):
        open_loop.back_to_back(load, 60.0)
    assert service.order == [*SYMBOLS] * 3
    assert load.decided == 12


def test_an_answer_from_memory_and_a_refusal_are_no_decisions():
    service, close = Service(), Close(SYMBOLS[:2], minutes(15))
    load = load_on(service)
    load.decide(close)
    load.decide(close)  # nothing closed in between
    assert (load.decided, load.failed) == (2, 2)

    def refuse(symbols):
        raise InputError("decide was refused (429)")

    service.decide_all = refuse
    load.decide(close)
    service.decide_all = lambda symbols: {"decisions": [{"symbol": name, "error": "not served"} for name in symbols]}
    load.decide(close)
    assert (load.decided, load.failed) == (2, 6)
    assert load.faults == ["decide was refused (429)", "not served", "not served"]


def test_outcomes_are_reported_in_order_and_spread_as_those_of_different_markets():
    load = load_on(service := Service(), batch=4)

    def decide(symbol):
        close = utc(900.0 * service.closes[symbol])
        event = replace(DECISION, id=f"{symbol} {close}", symbol=symbol, as_of=close, event="bos")
        return replace(event, stop=99.0, take_profits=(101.0,), expiry=close + timedelta(minutes=15)).to_dict()

    def outcome_all(outcomes):
        service.outcomes += outcomes
        return {"outcomes": [{"decision_id": one.decision_id, "new": True} for one in outcomes]}

    service.decide, service.outcome_all = decide, outcome_all
    reported = []
    for _ in range(4):  # the prices stand: every event ends with its time, a bar after it
        close = load.next_close()
        load.observe(close)
        load.decide(close)
        load.report_outcomes(close)
        reported.append(len(service.outcomes))
    assert reported == [0, 2, 4, 6]
    assert load.outcomes == 6
    assert [outcome.decision_id[:1] for outcome in service.outcomes] == ["A", "B", "C", "D", "A", "B"]
    assert {outcome.barrier for outcome in service.outcomes} == {"time"}


def samples_of(n):
    """Samples ten seconds apart: the worker uses half a core, grows by 1 MB and writes 10 MB between two."""

    def one(i):
        worker = {"uss": i * 2**20, "rss": i * 2**20, "fds": 20, "threads": 5, "cpu_s": 5.0 * i, "written": 10**7 * i}
        parent = worker | {"cpu_s": 0.0, "written": 0}
        return {"at": 10.0 * i, WORKER: worker, PARENT: parent, CLIENT: worker, "store": 0, "wal": 0}

    return [one(i) for i in range(n)]


def test_a_close_that_was_due_and_not_sent_is_not_in_time():
    times = np.zeros((50, 4))
    times[:, DUE], times[:10, CLOSE], times[-1, LATE] = np.arange(50), 2.1, 1.5
    found = serving_load.hundred_figures(times, samples_of(7), seconds=60.0, pace_s=1.0, grown=5 * 10**7)
    assert found["closes that were due and not sent"]["value"] == 10
    assert found["closes durable within 2 s, %"]["value"] == pytest.approx(100 * 40 / 60)
    assert found["lateness of the last close that was sent, s"]["value"] == 1.5
    closes = found["the same, p99, ms"]
    assert closes["low"] <= closes["value"] <= closes["high"]
    assert found["CPU of the decision worker, % of a core"] == {"value": 50.0, "low": 50.0, "high": 50.0, "n": 6}
    assert found["written to the disk by both, GB an hour"]["value"] == pytest.approx(3.6)
    assert found["growth of the home, GB an hour"]["value"] == pytest.approx(3.0)


def test_growth_is_from_minutes_five_to_ten_of_an_hour_to_its_last_five():
    samples = samples_of(361)
    samples[45][WORKER]["uss"] += 5 * 2**20  # a peak
    found = serving_load.growth(samples, 3600.0, lambda one: one[WORKER]["uss"] / 2**20)
    assert found["value"] == pytest.approx(np.mean(range(330, 361)) - np.mean(range(30, 60)) - 5 / 30)
    assert (found["low"], found["high"]) == (330 - 59, 360 - 30)


def test_a_ratio_is_of_a_window_and_its_neighbour():
    p99 = {"swaps": (20.0, 60.0), "neither": (10.0, 40.0), "retrain": (30.0, 40.0)}
    windows = [
        {"condition": name, "p50_ms": 5.0, "p99_ms": p99[name][i], "closes": 9, "due": 10, "done": 3, "served": 2}
        for i in range(2)
        for name in serving_load.CONDITIONS
    ]
    found = serving_load.isolation_figures(windows, capacity=80.0)
    assert found["p99 during champion swaps / during neither"]["value"] == pytest.approx((2.0 + 1.5) / 2)
    assert found["p99 during a retrain / during neither"]["value"] == pytest.approx((3.0 + 1.0) / 2)
    assert (found["swaps written"]["value"], found["fits ended"]["value"]) == (6, 6)
    assert found["of them seen in the answers meanwhile"]["value"] == 4
    assert found["closes that were due and not sent"]["value"] == 6
    assert found["pace, closes of one symbol a second"]["value"] == 20.0


def test_the_ledger_bears_out_an_exchange_of_the_validators_arms(tmp_path):
    where = Settings(home=tmp_path, store_url="")
    arms = {"champion": {"version": "7", "digest": "a" * 64}, "challenger": {"version": "7", "digest": "b" * 64}}
    serve_arms(where, {"validator": arms, "regime": arms}, None, utc(0))
    turns, count = iter((False, False, False, True)), SimpleNamespace(value=0)
    serving_load.swap_champions(
        where, SimpleNamespace(set=int), SimpleNamespace(wait=lambda seconds: next(turns)), count
    )
    content = read_generation(where.serving_dir)
    digests = {family: held["champion"]["digest"][0] for family, held in content["families"].items()}
    assert digests == {"validator": "b", "regime": "a"}
    assert content["generation"] == 4
    assert count.value == 3
    store = open_store(where)
    assert disagreement(store, where.home, content) is None
    store.close()


def compared():
    """Figures of two releases in turn: the earlier one takes 4 and 12, this one 2 and 6."""

    def side(ms):
        return {
            "closes": [{"s": [[ms * 1e-3, k * ms * 1e-3]] * 50, "answers": [6, 8] * 25} for k in (1, 3)],
            "bars": [{"close_s": [ms * 1e-6] * 50, "fold_s": [ms * 1e-6] * 50} for _ in range(2)],
        }

    return earlier.figures([{"release": "0.13.0", "found": {"earlier": side(4.0), "now": side(2.0)}}])


def test_the_page_states_what_is_wanted_and_found_and_which_part_is_missing(tmp_path):
    times = np.zeros((50, 4))
    figures = serving_load.hundred_figures(times, samples_of(7), 60.0, 1.0, 0)
    case = {"figures": figures, "faults": ["decide was\nrefused"]}
    evidence.save(tmp_path / "hundred_symbols.json", evidence.PARTS["hundred_symbols"], {"ten minutes": case})
    page = tmp_path / "page.md"
    results.write_page(page, tmp_path, serving_page.PARTS, serving_page.page_of)
    text = page.read_text()
    assert "| CPU of the decision worker, % of a core | at most 70 | 50 [50, 50] | 6 |" in text
    assert "**Not run, or not to its end: isolation, earlier.**" in text
    assert "The first faults: decide was refused" in text
    soak = serving_load.soak_figures(times, samples_of(361), 3600.0, 10.0, 16)
    windows = [{"condition": name, "p50_ms": 1.0, "p99_ms": 1.0, "closes": 1, "due": 1, "done": 1, "served": 1}
               for name in serving_load.CONDITIONS]  # fmt: skip
    load = load_on(Service())
    isolation = serving_load.isolation_figures(windows, 1.0)
    known = {*figures, *soak, *isolation, *serving_load.counts(load), *compared()}
    assert set(serving_page.TARGETS) <= known


def test_two_releases_in_turn_are_compared_round_by_round():
    found = compared()
    assert found["a close observed and decided, now, p50, ms"] == {"value": 6.0, "low": 4.0, "high": 8.0, "n": 100}
    assert found["a close decided, 0.13.0, p99, ms"]["high"] == pytest.approx(12.0)
    assert found["all columns of a bar, CPU, now, p50, µs"]["value"] == pytest.approx(2.0)
    assert found["a close observed and decided, p99: now / 0.13.0"]["value"] == pytest.approx(0.5)
    assert found["answers of models a close, now, mean"] == {"value": 7.0, "low": 6.0, "high": 8.0, "n": 100}
