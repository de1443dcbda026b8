"""The row of a tape for hand-made events, against the definition computed apart, and in parts as at once."""

import numpy as np
import pytest

from pipelines.context_layout import TAPE_INDEX, TAPE_WIDTH
from pipelines.data.orderbook import tape as reader
from pipelines.data.orderbook.limit_order_book import ADD, ASK, BID, CANCEL, LOG_WIDTH, TRADE
from pipelines.data.simulator.book_design import LOTS
from pipelines.data.simulator.latent import DESIGN
from pipelines.data.simulator.market_path import MarketPath
from pipelines.settings import load_params

MS = 1000
START = 1_700_000_000_000_000


class Events:
    """Rows of a log, each with what is left at its level; a lot is one unit, a tick one unit of quote currency."""

    def __init__(self):
        self.rows, self.levels, self.now, self.read = [], {}, START, 0
        self.tapes = reader.fresh_tape(1.0, 1.0)

    def __call__(self, kind, side, tick, lots, after_us=1):
        self.now += after_us
        left = self.levels.get((side, tick), 0) + (lots if kind == ADD else -lots)
        self.levels[side, tick] = left
        self.rows.append((self.now, kind, side, tick, lots, left))

    def order(self, side, lots, tick=None, after_us=20 * MS):
        """One order of a taker that eats the side at one tick, where there is plenty."""
        self.levels[side, tick or (100 if side == BID else 101)] = 10**9
        self(TRADE, side, tick or (100 if side == BID else 101), lots, after_us)

    def row(self, after_us=1):
        self.now += after_us
        rows, out = np.array(self.rows, np.int64).reshape(-1, LOG_WIDTH), np.zeros(TAPE_WIDTH)
        reader.apply_events(self.tapes[0], rows, self.read, len(rows))
        self.read = len(rows)
        reader.write_row(self.tapes[0], self.now, out)
        return {name: out[j] for name, j in TAPE_INDEX.items()}


@pytest.fixture
def events():
    made = Events()
    for side, worse in ((BID, -1), (ASK, 1)):
        for k in range(30):
            made(ADD, side, (100 if side == BID else 101) + worse * k, 10)
    made.row()
    return made


def refilled(events, *sizes, wait=1, side=BID):
    """The level behind the best is eaten whole and filled again with each of these sizes in turn."""
    tick = 99 if side == BID else 102
    for lots in sizes:
        events(TRADE, side, tick, events.levels[side, tick], 5_000 * MS)
        events(ADD, side, tick, lots, wait)


@pytest.mark.parametrize(("side", "name"), [(BID, "iceberg_bid"), (ASK, "iceberg_ask")])
def test_a_level_that_is_filled_and_refilled_to_the_same_size_twice_is_an_iceberg(events, side, name):
    refilled(events, 7, side=side)
    assert events.row()[name] == 0.0
    refilled(events, 7, side=side)
    assert events.row()[name] == 14.0  # what both refills replaced
    refilled(events, 7, side=side)
    row = events.row()
    assert row[name] == 7.0
    assert events.row()[name] == 0.0


@pytest.mark.parametrize(("sizes", "wait"), [((7, 8, 7, 8), 1), ((7, 7, 7), 101 * MS)])
def test_refills_of_other_sizes_or_that_come_late_are_none(events, sizes, wait):
    refilled(events, *sizes, wait=wait)
    assert events.row()["iceberg_bid"] == 0.0


def test_only_what_a_refill_replaces_is_the_icebergs(events):
    refilled(events, 7, 7)
    events(ADD, BID, 99, 20, 200 * MS)  # another order joins the level, and trades first
    events(TRADE, BID, 99, 24)  # 20 of it his, 4 of the iceberg
    events(ADD, BID, 99, 4)
    assert events.row()["iceberg_bid"] == 14.0 + 4.0


def usual(events, lots=10):
    for _ in range(reader.USUAL):
        events(ADD, BID, 95, lots, 10 * MS)
        events(CANCEL, BID, 95, lots, 10 * MS)


def test_a_large_order_that_is_withdrawn_before_it_trades_is_a_spoof(events):
    usual(events)
    events.row()
    events(ADD, ASK, 106, 60)
    events(CANCEL, ASK, 106, 40, 5_000 * MS)
    events(ADD, BID, 96, 60)
    assert events.row()["spoof_ask"] == 0.0
    events(CANCEL, ASK, 106, 10, 5_000 * MS)
    row = events.row()
    assert (row["spoof_bid"], row["spoof_ask"]) == (0.0, 1.0)


@pytest.mark.parametrize("why", ["not large", "traded", "late", "far away"])
def test_an_order_is_no_spoof_when(events, why):
    usual(events)
    tick = 101 + reader.SPOOF_NEAR * 10 + 1 if why == "far away" else 106
    events(ADD, ASK, tick, 49 if why == "not large" else 60)
    if why == "traded":
        events(TRADE, ASK, tick, 1)
    events(CANCEL, ASK, tick, 49, 61_000 * MS if why == "late" else MS)
    assert events.row()["spoof_ask"] == 0.0


def footprint(events, bought, sold):
    """Lots bought and sold at ticks 1000, 1001, …"""
    for k, (buys, sells) in enumerate(zip(bought, sold, strict=True)):
        if buys:
            events.order(ASK, buys, 1000 + k)
        if sells:
            events.order(BID, sells, 1000 + k)
    row = events.row()
    return row["stacked_buying"], row["stacked_selling"]


def test_three_buckets_in_a_row_where_one_side_outdid_the_other_are_one_stack(events):
    many, few = [9] * 8, [3] * 8
    assert footprint(events, many, few) == (1.0, 0.0)
    assert footprint(events, few, many) == (0.0, 1.0)
    assert footprint(events, [9, 9, 9, 9, 8, 9, 9, 9], few) == (2.0, 0.0)  # one gap, three on each side of it
    assert footprint(events, [9, 9, 9, 8, 9, 9, 8, 9], few) == (0.0, 0.0)
    assert footprint(events, many, [0] * 8) == (0.0, 0.0)  # against nothing, nothing stands out
    assert footprint(events, many * 8, few * 8) == (1.0, 0.0)  # 64 prices in 16 buckets


def test_stacking_is_what_was_added_less_what_was_withdrawn_near_the_best(events):
    events(ADD, BID, 91, 5)
    events(ADD, BID, 89, 50)  # eleven ticks away
    events(CANCEL, ASK, 101, 10)  # the best is now 102
    events(CANCEL, ASK, 112, 10)
    events(TRADE, BID, 100, 10)
    row = events.row()
    assert (row["stacking_bid"], row["stacking_ask"]) == (5.0, -20.0)


def orders(events, n, seed):
    """n orders of takers as (way, lots, lots times ticks), of sizes that drift, some in two fills."""
    rng, made = np.random.default_rng(seed), []
    for size in np.exp(rng.normal(3.0, 1.0, n) + np.linspace(0.0, 1.5, n)).astype(int) + 2:
        side = int(rng.random() < 0.5)
        tick = 100 if side == BID else 101
        events.order(side, int(size) - 1)
        if rng.random() < 0.3:
            tick += 2 * side - 1
            events.order(side, 1, tick, 0)
            made.append((2 * side - 1, int(size), (int(size) - 1) * (100 if side == BID else 101) + tick))
        else:
            made.append((2 * side - 1, int(size) - 1, (int(size) - 1) * tick))
    return np.array(made)


def test_large_orders_and_the_split_flow_follow_the_window_of_orders_before(events):
    rows, made = [], []
    for seed in range(12):
        made.append(orders(events, 400, seed))
        rows.append(events.row())
    way, lots, worth = np.concatenate(made).T
    n = reader.ORDERS
    for span, row in enumerate(rows):
        first, last = 400 * span, 400 * (span + 1)
        if first < n:
            assert np.isnan([row["large_buy"], row["large_sell"], row["cvd_large"], row["cvd_small"]]).all()
            continue
        large = np.array(
            [lots[i] > np.quantile(lots[i - n : i], 0.99, method="inverted_cdf") for i in range(first, last)]
        )
        above = worth[first:last] > np.sort(worth[first - n : first])[(n - 1) // 2]
        ways, sizes = way[first:last], lots[first:last]
        assert row["large_buy"] == sizes[large & (ways > 0)].sum()
        assert row["large_sell"] == sizes[large & (ways < 0)].sum()
        assert row["cvd_large"] == (ways * sizes)[above].sum()
        assert row["cvd_small"] == (ways * sizes)[~above].sum()
        if large.any():
            price = worth[first:last][large].sum() / sizes[large].sum()
            assert row["smart_price"] == pytest.approx(price, rel=1e-12)
        else:
            assert np.isnan(row["smart_price"])


def test_vpin_is_the_mean_imbalance_of_fifty_buckets_of_equal_volume(events):
    made = orders(events, 4500, 3)
    unsure = events.row()["vpin"]
    buckets, net, filled, size = [], 0, 0, 0
    for i, (way, lots, _) in enumerate(made):
        if i < reader.ORDERS:
            continue
        for _ in range(lots):  # lot by lot
            if size == 0:
                size = made[i - reader.ORDERS : i, 1].sum() // reader.PER_BUCKET
            net, filled = net + way, filled + 1
            if filled == size:
                buckets.append(abs(net) / size)
                net = filled = size = 0
    assert len(buckets) > 60
    assert unsure == pytest.approx(np.mean(buckets[-50:]), rel=1e-12)


def test_before_there_were_as_many_orders_and_buckets_their_columns_are_missing(events):
    orders(events, 1200, 3)
    assert np.isnan(events.row()["vpin"])


@pytest.fixture(scope="module")
def simulated():
    """Two days of the simulator's events, and the tape that its books brought."""
    spec = load_params().simulator.model_copy(update={"history_days": 2, "live_days": 0, "drift_after_live_days": None})
    path = MarketPath(spec, DESIGN)
    path.market["log_mode"] = 2
    drawn, log, out = path.latent(2880), np.empty((2_000_000, LOG_WIDTH), np.int64), path.allocate(2880)
    counts, _ = path.trade(drawn, log, out)
    opening = int((log[: counts[2], 0] == 0).sum())  # the opening quotes are no flow
    return log[opening : counts[2]], opening and log[:opening], path.books(out, int(counts[0]), 0), path.cents / 100.0


def whole_tape(simulated, parts):
    log, opening, books, price = simulated
    tapes = reader.fresh_tape(LOTS, price)
    tape, out = tapes[0], np.zeros((len(books.known), TAPE_WIDTH))
    reader.apply_events(tape, opening, 0, len(opening))
    tape["stacked"], tape["adds"], tape["usual"] = 0, 0, 0.0
    tape["next_sample"] = int(books.known[0] - 900.0) * 1_000_000 + reader.SAMPLE_US
    done = 0
    for at, row in zip((books.known * 1e6).astype(np.int64), out, strict=True):
        end = int(np.searchsorted(log[:, 0], at))
        for cut in sorted({*np.random.default_rng(done).integers(done, end + 1, parts).tolist(), end}):
            reader.apply_events(tape, log, done, cut)
            done = cut
        reader.write_row(tape, at, row)
    return out


def test_a_tape_read_in_parts_is_the_one_read_at_once_and_the_one_that_came_with_the_books(simulated):
    # the books' own tape skips the samples of the depth that no row would show
    once = whole_tape(simulated, 0)
    assert once.tobytes() == whole_tape(simulated, 7).tobytes()
    np.testing.assert_array_equal(once[:, 2:], simulated[2].tape[:, 2:])


def test_the_simulated_tape_partly_reveals_everything_but_walls(simulated):
    tape = simulated[2].tape[100:]  # a window of trades and one of snapshots have been filled
    for name, j in TAPE_INDEX.items():
        if name.startswith("wall"):
            continue  # no order of the simulated market stands for minutes as a wall must
        known = tape[:, j][np.isfinite(tape[:, j])]
        assert len(known) > 0.4 * len(tape), name
        assert known.std() > 0, name
