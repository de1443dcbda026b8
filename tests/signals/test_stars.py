"""S14: the 21 stars against definitions written over whole arrays, and when the unicorn begins."""

import numpy as np
import pandas as pd
import pytest
from support.context_factory import make_context

from pipelines.context_layout import NO_CONTEXT
from pipelines.contracts import BAR_WIDTH, CLOSE, HALF_SPREAD, NO_BOOK, OPEN, OPEN_TIME, VOLUME
from pipelines.data.bar_clock import clocked
from pipelines.errors import UnknownName
from pipelines.features.fold import Column, FeatureGroup
from pipelines.signals import stars
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.stars import MIN_KNOWN, STARS, N

READ = sorted({name for star in STARS for name in star.reads} - {stars.OWN_VOLUME, stars.OWN_CLOCK})
LEVELS = [f"{name}.{part}" for name in stars.STRUCTURE for part in ("low", "high")]
COLUMNS = [*READ, *LEVELS]
AT = {name: i for i, name in enumerate(COLUMNS)}
NAMES = [star.name for star in STARS]
WRITTEN = FeatureGroup(
    "written", None, tuple(Column(name, "x", "x", -1.0, 1.0, 1, "given", "given") for name in COLUMNS), np.zeros(0)
)
GROUP = stars.feature_group([WRITTEN])
LONG = dict.fromkeys(READ, 1.0) | {"crt_level_score": -1.0}  # every column is long


def candles(n, side=1.0):
    bars = np.full((n, BAR_WIDTH), 100.0)
    bars[:, HALF_SPREAD] = np.nan
    bars[:, OPEN_TIME] = 8 * 3600.0  # London is open
    bars[:, CLOSE] += side
    return bars


def rows_of(n, values):
    rows = np.zeros((n, len(COLUMNS)))
    for name, value in values.items():
        rows[:, AT[name]] = value
    return rows


def mirrored(values):
    return {name: -value for name, value in values.items()}


def fold(bars, rows, state=None):
    """The group's own columns (n, 8), live: row by row."""
    state = GROUP.initial.copy() if state is None else state
    out = np.hstack([rows, np.zeros((len(rows), stars.WIDTH))])
    for bar, row in zip(clocked(bars), out, strict=True):
        stars.step(state, bar, NO_BOOK, NO_CONTEXT, row)
    return out[:, len(COLUMNS) :]


def random_market(n=3000, seed=5):
    """Columns with a side now and then, with holes and infinities."""
    rng = np.random.default_rng(seed)
    bars = 100.0 + rng.normal(0, 1, (n, BAR_WIDTH))
    bars[:, OPEN_TIME] = 1.7040672e9 + 900.0 * np.arange(n)
    bars[:, VOLUME] = rng.lognormal(0, 1, n)
    rows = np.empty((n, len(COLUMNS)))
    for name, i in AT.items():
        if name.endswith(".direction"):
            rows[:, i] = rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1])
        else:
            rows[:, i] = rng.normal(0, 0.6, n)
    for i in range(len(COLUMNS)):
        for start in rng.integers(0, n, 6):
            rows[start : start + 40, i] = rng.choice([np.nan, np.inf])
    rows[1500:1530] = np.nan
    bars[700:740, [OPEN_TIME, OPEN, VOLUME]] = np.nan
    return bars, rows


def by_definition(bars, rows, at=AT):
    """(n, 21, 2) written with whole arrays."""
    n, out = len(bars), np.empty((len(bars), N, 2))
    given = np.where(np.isfinite(rows), rows, np.nan)
    candle = bars[:, CLOSE] - bars[:, OPEN]
    volume = pd.Series(bars[:, VOLUME])
    ratio = (volume / volume.shift(1).rolling(20).mean()).to_numpy()
    for i, star in enumerate(STARS):
        if star.reads == (stars.OWN_VOLUME,):
            value = ratio
        elif star.reads == (stars.OWN_CLOCK,):
            opens = pd.to_datetime(bars[:, OPEN_TIME], unit="s", utc=True)
            cities = [opens.tz_convert(zone).hour.isin([7, 8, 9]) for zone in ("Europe/London", "America/New_York")]
            value = np.where(opens.isna(), np.nan, cities[0] | cities[1])
        else:
            parts = given[:, [at[name] for name in star.reads]]
            value = np.where(np.isnan(parts).all(axis=1), np.nan, np.nansum(parts, axis=1))
        for s, side in enumerate((1.0, -1.0)):
            known = ~np.isnan(value)
            match star.rule:
                case stars.RECENT:
                    known = pd.Series(known.astype(float)).rolling(8).sum().to_numpy() == 8
                    true = pd.Series((side * value > 0).astype(float)).rolling(8, min_periods=1).max().to_numpy() > 0
                case stars.AGREES:
                    true = side * value > 0
                case stars.BEYOND:
                    true = side * value < 0
                case stars.STRONG:
                    true = side * value >= 0.6
                case stars.UNOPPOSED:
                    true = side * value >= 0
                case stars.CANDLE:
                    true, known = (value >= 1) & (side * candle > 0), known & ~np.isnan(candle)
            out[:, i, s] = np.where(known, true, np.nan)
    assert len(out) == n
    return out


def test_there_are_twenty_one_stars_each_with_its_own_name_and_words():
    assert N == 21
    assert len({star.name for star in STARS}) == len({star.definition for star in STARS}) == 21


def test_every_star_is_what_its_definition_says_over_whole_arrays():
    bars, rows = random_market()
    found, wanted = stars.history(bars, rows, COLUMNS), by_definition(bars, rows)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(found[:, i], wanted[:, i], err_msg=name)
        assert np.nanmin(found[:, i]) == 0.0, name
        assert np.nanmax(found[:, i]) == 1.0, name
        assert np.isnan(found[:, i]).any(), name


def test_the_columns_are_counted_from_those_stars():
    bars, rows = random_market()
    long, short = (np.nansum(by_definition(bars, rows)[..., s], axis=1) for s in (0, 1))
    known = (~np.isnan(by_definition(bars, rows)[..., 0])).sum(axis=1)
    out = fold(bars, rows)
    enough = known >= MIN_KNOWN
    assert 0 < enough.sum() < len(bars)
    np.testing.assert_array_equal(out[:, 7], known / 21)
    np.testing.assert_array_equal(out[:, 5], np.where(enough, long, np.nan))
    np.testing.assert_array_equal(out[:, 6], np.where(enough, short, np.nan))
    signed = np.sign(long - short) * np.maximum(long, short)
    np.testing.assert_array_equal(out[:, 4], np.where(enough, signed, np.nan))


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_unicorn_signals_once_when_a_side_first_has_fifteen(side):
    values = LONG if side > 0 else mirrored(LONG)
    values |= {"order_block.low": 98.0, "order_block.high": 99.0, "fvg.low": 90.0, "fvg.high": 91.0}
    quiet = rows_of(30, {"crt_level_score": -side})
    out = fold(np.vstack([candles(30, side), candles(10, side)]), np.vstack([quiet, rows_of(10, values)]))
    begins = np.flatnonzero(out[:, 0] != 0.0)
    assert begins[np.isfinite(out[begins, 0])].tolist() == [30]
    assert out[30, 0] == side
    assert out[30, 1:5].tolist() == [21.0, 98.0, 99.0, side * 21.0]
    assert np.isnan(out[31:, 1:4]).all()  # it goes on, and is not signalled again
    assert (out[31:, 4] == side * 21.0).all()


def test_fourteen_stars_are_no_unicorn():
    silent = [star.reads[0] for star in STARS if star.rule == stars.RECENT and len(star.reads) == 1][:7]
    rows = np.vstack([rows_of(30, {"crt_level_score": -1.0}), rows_of(10, LONG | dict.fromkeys(silent, 0.0))])
    out = fold(candles(40), rows)
    assert out[-1, 5] == 14
    assert not out[8:, 0].any()


def test_the_rating_counts_only_stars_whose_inputs_are_there():
    absent = ["ofi", "footprint", "heatmap", "smart_money", "institutional", "hawkes", "smt"]
    missing = {f"{name}.direction": np.nan for name in absent}
    few = {"cisd.direction": 0.0, "crt.direction": 0.0}
    out = fold(candles(60), np.vstack([rows_of(30, missing), rows_of(30, LONG | few | missing)]))
    assert out[30, 7] == pytest.approx(16 / 21)
    assert out[30, 5] == 14
    assert out[30, :2].tolist() == [1.0, pytest.approx(14 / 16 * 21)]


def test_with_fewer_than_twelve_known_stars_it_gives_no_signal_and_not_zero():
    missing = dict.fromkeys([name for name in READ if name.endswith(".direction")], np.nan)
    out = fold(candles(60), rows_of(60, LONG | missing))
    assert out[-1, 7] < MIN_KNOWN / 21
    assert np.isnan(out[:, :7]).all()


def test_a_rating_that_was_there_when_it_came_into_sight_is_not_new():
    out = fold(candles(40), rows_of(40, LONG))
    assert (out[8:, 5] >= 19).all()
    assert not np.nan_to_num(out[:, 0]).any()


def test_the_mirror_image_of_a_market_has_the_mirror_images_stars():
    bars, rows = random_market()
    other = -rows
    flipped = bars.copy()
    flipped[:, [OPEN, CLOSE]] *= -1
    np.testing.assert_array_equal(stars.history(bars, rows, COLUMNS)[..., ::-1], stars.history(flipped, other, COLUMNS))
    np.testing.assert_array_equal(fold(bars, rows)[:, 4], -fold(flipped, other)[:, 4])


def test_it_goes_on_from_its_state_to_the_same_bytes():
    bars, rows = random_market()
    state = GROUP.initial.copy()
    halves = [fold(bars[:1111], rows[:1111], state), fold(bars[1111:], rows[1111:], state.copy())]
    assert np.vstack(halves).tobytes() == fold(bars, rows).tobytes()


@pytest.mark.parametrize(("recorded", "known"), [("everything", 21), ("candles", 15), ("prices alone", 12)])
def test_the_records_determine_how_many_stars_can_be_judged(bars, recorded, known):
    seen, context = bars.copy(), make_context(bars) if recorded == "everything" else None
    if recorded == "prices alone":
        seen[:, VOLUME:] = np.nan
    out = SIGNALS.run(seen, None, context)
    coverage = out[:, SIGNALS.index["stars.coverage"]]
    assert (coverage[int(SIGNALS.warmup.max()) + 8 :] == known / 21).all()


def test_in_the_catalogue_the_stars_are_those_of_the_stored_columns_and_some_become_unicorns(year):
    signals = SIGNALS.run(year)
    truth = stars.history(year, signals, SIGNALS.columns)
    np.testing.assert_array_equal(truth, by_definition(year, signals, SIGNALS.index))
    scored = signals[:, SIGNALS.index["unicorn_rating_score"]]
    long, short = np.nansum(truth, axis=1).T
    rated = ~np.isnan(scored)
    np.testing.assert_array_equal(np.sign(scored[rated]), np.sign(long - short)[rated])
    side = signals[:, SIGNALS.index["unicorn.direction"]]
    assert (side == 1).sum() > 3
    assert (side == -1).sum() > 3
    assert (signals[np.abs(side) == 1, SIGNALS.index["unicorn.strength"]] >= 15).all()


def test_a_column_that_no_group_writes_is_refused_by_its_name():
    lacking = FeatureGroup("written", None, WRITTEN.columns[1:], np.zeros(0))
    with pytest.raises(UnknownName, match=READ[0].replace(".", r"\.")):
        stars.feature_group([lacking])
