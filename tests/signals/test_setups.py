"""The nine setups: worked by hand where a few candles show them, against a plain retelling where they do not."""

import numpy as np
import pytest

from pipelines.data.timeframes import resample
from pipelines.errors import BadShape
from pipelines.models.views import KEPT_BARS
from pipelines.signals.setups import COINCIDENCE, MEMORY, PATTERNS, RECENT, setups

AT = {name: i for i, name in enumerate(PATTERNS)}
QUIET = ((100.0, 100.6, 99.4, 100.1), (100.1, 100.6, 99.4, 100.0))  # no swing, no gap, ATR 1.2
HIGH_OF = (100.0, 101.2, 99.4, 100.0)  # a swing high among them


def market(*tail):
    """Quiet 15-minute candles, then `tail`, whose last one stands in the middle of a 4 h candle."""
    n = 16 * 17 + 8
    candles = [QUIET[i % 2] for i in range(n - len(tail))] + list(tail)
    rows = np.ones((n, 8))
    rows[:, 0] = 900.0 * np.arange(n)
    rows[:, 1:5] = candles
    return rows


def upside_down(bars):
    """The same market with prices below nought: an exact mirror image."""
    out = bars.copy()
    out[:, [1, 2, 3, 4]] = -bars[:, [1, 3, 2, 4]]
    return out


EXAMPLES = {
    "order_block": (1, [HIGH_OF, *QUIET * 4, (100.0, 100.2, 99.0, 99.2), (99.2, 100.2, 99.1, 100.1),
                        (100.1, 101.9, 100.0, 101.8)]),
    "liquidity_sweep": (-1, [HIGH_OF, *QUIET * 6, (100.0, 101.6, 99.5, 100.5)]),
    "fvg": (1, [(100.1, 102.5, 100.0, 102.4), (102.4, 103.5, 101.5, 103.0)]),
    "cisd": (1, [(100.0, 100.1, 99.0, 99.1), (99.1, 99.2, 98.4, 98.5), (98.5, 99.5, 98.4, 99.4),
                 (99.4, 100.5, 99.3, 100.3)]),
    "amt_accumulation": (1, [(100.0, 100.1, 98.5, 98.6), (98.6, 100.2, 98.5, 100.0)]),
    "amt_distribution": (1, [(100.0, 101.2, 100.0, 101.0), (101.0, 101.5, 100.9, 101.3),
                             (101.3, 101.8, 101.1, 101.6)]),
    "flowstate_crt_setup": (-1, [(100.0, 101.0, 99.5, 100.2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_setup_worked_by_hand_is_seen_on_its_last_candle_only_and_mirrored_in_a_falling_market(name):
    way, tail = EXAMPLES[name]
    bars = market(*tail)
    last = len(bars) - 1
    found = setups(bars, np.array([last - 1, last])).direction[:, AT[name]]
    assert found.tolist() == [0.0, way]
    assert setups(upside_down(bars), np.array([last])).direction[0, AT[name]] == -way


def test_a_quiet_market_completes_nothing():
    bars = market()
    assert not setups(bars, np.arange(MEMORY, len(bars))).direction.any()


def test_a_wick_that_came_back_four_bars_ago_is_no_sweep_of_today():
    late = market(HIGH_OF, *QUIET * 4, (100.0, 101.6, 99.5, 101.5), *[(101.5, 101.6, 101.3, 101.5)] * 3,
                  (101.5, 101.5, 100.0, 100.5))  # fmt: skip
    assert setups(late, np.array([len(late) - 1])).direction[0, AT["liquidity_sweep"]] == 0.0


def test_the_last_bars_that_serving_keeps_give_the_bytes_of_the_whole_history(bars):
    whole = setups(bars, np.arange(len(bars)))
    assert MEMORY <= KEPT_BARS
    for kept in (MEMORY, KEPT_BARS):
        for end in range(kept, 1200, 37):
            alone = setups(bars[end - kept : end], np.array([kept - 1]))
            assert alone.direction.tobytes() == whole.direction[end - 1 : end].tobytes()
            assert alone.reach.tobytes() == whole.reach[end - 1 : end].tobytes()
    assert np.isnan(whole.direction[: MEMORY - 1]).all()
    assert np.isfinite(whole.direction[MEMORY - 1 :]).all()


@pytest.mark.parametrize("blind", [lambda bars, t: bars[:t], lambda bars, t: np.concatenate([bars[:t], bars[t:] * 3])])
def test_no_setup_sees_the_future(bars, blind):
    whole = setups(bars, np.arange(700))
    blinded = setups(blind(bars, 700), np.arange(700))
    assert whole.direction.tobytes() == blinded.direction.tobytes()
    assert whole.reach.tobytes() == blinded.reach.tobytes()


def test_asking_for_some_bars_in_any_order_gives_what_asking_for_all_gives(bars):
    whole = setups(bars, np.arange(len(bars))).direction
    at = np.random.default_rng(0).permutation(len(bars))[:50]
    np.testing.assert_array_equal(setups(bars, at).direction, whole[at])


def test_every_setup_occurs_both_ways_and_none_on_every_fifth_bar(bars):
    found = setups(bars, np.arange(MEMORY, len(bars))).direction
    for c, name in enumerate(PATTERNS):
        assert (found[:, c] == 1).any(), name
        assert (found[:, c] == -1).any(), name
        assert (found[:, c] != 0).mean() < 0.2, name


def test_a_mirrored_market_has_mirrored_setups(bars):
    at = np.arange(MEMORY, len(bars))
    here, there = setups(bars, at).direction, setups(upside_down(bars), at).direction
    exact = [AT[name] for name in ("order_block", "liquidity_sweep", "fvg", "cisd", "cmt_confluence")]
    np.testing.assert_array_equal(here[:, exact], -there[:, exact])
    assert (here == -there).mean() > 0.995  # a price profile breaks its ties upwards


def test_confluence_is_what_closed_candles_of_each_timeframe_say(bars):
    def agreed(t):
        signs = []
        for seconds in (900, 3600, 14400):
            closes = resample(bars[: t + 1], 900, seconds)[-6:, 4]
            signs.append(np.sign(closes[-1] - closes.mean()))
        return signs[0] if len(set(signs)) == 1 else 0.0

    at = np.arange(MEMORY, MEMORY + 400)
    said = {t: agreed(t) for t in range(at[0] - 1, at[-1] + 1)}
    expected = [said[t] if said[t] != said[t - 1] else 0.0 for t in at]
    np.testing.assert_array_equal(setups(bars, at).direction[:, AT["cmt_confluence"]], expected)
    assert np.count_nonzero(expected) > 10


def test_the_unicorn_rating_counts_who_spoke_lately_and_triggers_once(bars):
    found = setups(bars, np.arange(len(bars))).direction
    others = np.nan_to_num(found[:, :-1])

    def rated(t, way):
        return int((others[t - RECENT + 1 : t + 1] == way).any(axis=0).sum())

    for t in range(MEMORY + RECENT, len(bars)):
        ways = [w for w in (1, -1) if rated(t, w) >= COINCIDENCE > rated(t - 1, w) and rated(t, w) > rated(t, -w)]
        assert found[t, -1] == (ways[0] if ways else 0.0)


def test_without_volume_the_value_area_counts_time(bars):
    mute = bars.copy()
    mute[:, 5:] = np.nan
    at = np.arange(MEMORY, len(bars))
    found = setups(mute, at).direction
    amt = [AT["amt_accumulation"], AT["amt_distribution"]]
    assert np.isfinite(found).all()
    assert (found[:, amt] != 0).any(axis=0).all()
    others = [c for c in range(len(PATTERNS) - 1) if c not in amt]
    np.testing.assert_array_equal(found[:, others], setups(bars, at).direction[:, others])


def test_bars_of_another_shape_are_refused():
    with pytest.raises(BadShape, match="wanted"):
        setups(np.zeros((300, 5)), np.array([299]))
