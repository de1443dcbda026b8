"""Laws L2 and L3 for the catalogues that are not folds: every view and every label, bit for bit; none is left out.

Each feature and signal column is tested in tests/features/test_fold_contract.py, each detector in tests/models/regime.
"""

import re
from dataclasses import fields, replace

import numpy as np
import pytest

from pipelines.contracts import OPEN_TIME, RETAINED_BARS, History
from pipelines.data.alignment import align
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.evaluation.gates import CHECKS
from pipelines.families import FAMILIES
from pipelines.family_labels import LABELS, Sources
from pipelines.features.catalog import FEATURES
from pipelines.models.catalog import MODEL_FAMILIES
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import event_rows, events
from serving.state.recent_bars import RecentBars

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS, STEP_S = load_params(), 900
HORIZON_S = max(
    PARAMS.labels.horizon_bars * STEP_S, PARAMS.pattern.horizon_bars * STEP_S,
    PARAMS.predictor.horizon_bars * STEP_S, PARAMS.regime.horizon_minutes * 60,
)  # fmt: skip
NOW = 2200  # the decision bar after which everything is cut off or ruined
RESTART = int(np.random.default_rng(3).integers(700, NOW - RETAINED_BARS))


def folded(bars, levels, contexts):
    """Return the history of these bars, features and signals computed in one batch."""
    return History(bars, FEATURES.run(bars, levels, contexts), SIGNALS.run(bars, levels, contexts), levels, contexts)


@pytest.fixture(scope="module")
def market():
    """Return (base bars, decision bars, levels, context) of thirty simulated days with books and funding."""
    spec = PARAMS.simulator.model_copy(update={"history_days": 30, "live_days": 0, "drift_after_live_days": None})
    made = simulate(spec)
    bars = resample(made.bars, MINUTES, QUARTERS)
    return made.bars, bars, *align(bars[:, OPEN_TIME], QUARTERS, made.books, made.feed)


def ruined(rows, first):
    """Return `rows` with noise for values from row `first` on; times stay."""
    out = rows.copy()
    noise = np.random.default_rng(5).uniform(0.2, 5.0, out[first:].shape)
    out[first:, ..., 1:] *= noise[..., 1:]
    return out


@pytest.fixture(scope="module")
def histories(market):
    """Return way → history; up to NOW each has the bars of the whole one."""
    _, bars, levels, contexts = market
    whole = folded(bars, levels, contexts)
    cut = folded(bars[: NOW + 1], levels[: NOW + 1], contexts[: NOW + 1])
    other = folded(ruined(bars, NOW + 1), ruined(levels, NOW + 1), ruined(contexts, NOW + 1))
    states = FEATURES.fresh(), SIGNALS.fresh()
    first = [fold.run(bars[:RESTART], levels[:RESTART], contexts[:RESTART], state=state)
             for fold, state in zip((FEATURES, SIGNALS), states, strict=True)]  # fmt: skip
    saved = [state.copy() for state in states]
    recent = RecentBars(History(bars[:RESTART], *first, levels[:RESTART], contexts[:RESTART]))
    for i in range(RESTART, NOW + 1):  # from saved state, bar by bar, with no more bars than serving retains
        rows = [fold.step(state, bars[i], levels[i], contexts[i])
                for fold, state in zip((FEATURES, SIGNALS), saved, strict=True)]  # fmt: skip
        live = recent.with_bar(bars[i], *rows, levels[i], contexts[i])
    return {"whole": whole, "cut": cut, "ruined": other, "restarted and live": live}


@pytest.mark.parametrize("way", ["cut", "ruined", "restarted and live"])
@pytest.mark.parametrize("family", VIEWS)
def test_what_a_family_reads_at_a_bar_is_the_same_bytes_however_it_came_about(histories, family, way):
    view, back = VIEWS[family], np.arange(5)
    whole = view.build(histories["whole"], NOW - back)
    other = view.build(histories[way], len(histories[way]) - 1 - back if way != "ruined" else NOW - back)
    assert np.isfinite(whole).any()
    assert other.tobytes() == whole.tobytes()


@pytest.mark.parametrize("way", ["cut", "ruined", "restarted and live"])
def test_what_the_validator_reads_of_an_event_is_the_same_bytes(histories, way):
    whole, other = histories["whole"], histories[way]
    end = NOW + 1 if way == "ruined" else len(other)
    rows = slice(end - RETAINED_BARS, end)
    same = slice(NOW + 1 - RETAINED_BARS, NOW + 1)
    found, again = events(whole.features[same], whole.signals[same]), events(other.features[rows], other.signals[rows])
    assert len(found.index) > 5
    for part in fields(found):
        assert np.asarray(getattr(found, part.name)).tobytes() == np.asarray(getattr(again, part.name)).tobytes()
    one = event_rows(whole.features[same], whole.signals[same], found)
    assert one.tobytes() == event_rows(other.features[rows], other.signals[rows], again).tobytes()


@pytest.mark.parametrize("way", ["cut", "ruined"])
@pytest.mark.parametrize("name", LABELS)
def test_a_label_does_not_change_when_everything_after_its_horizon_does(market, histories, name, way):
    base, bars = market[0], market[1]
    seen = float(bars[NOW, OPEN_TIME] + STEP_S)
    known = int((base[:, OPEN_TIME] + 60 <= seen).sum())
    other = histories[way]
    whole = Sources(base, *parts(histories["whole"]), QUARTERS, MINUTES)
    names = ("decision", "features", "signals", "context")
    after = base[:known] if way == "cut" else ruined(base, known)
    changed = replace(whole, base=after, **dict(zip(names, parts(other), strict=True)))
    one, two = LABELS[name](whole, PARAMS), LABELS[name](changed, PARAMS)
    last = seen - HORIZON_S - STEP_S
    early = [labels["known"] <= last for labels in (one, two)]
    assert early[0].sum() > 20
    for part in sorted(set(one) - {"weight", "uniqueness", "columns"}):  # how many labels share a time is known later
        assert one[part][early[0]].tobytes() == two[part][early[1]].tobytes(), part


def parts(history):
    return history.bars, history.features, history.signals, history.context


def test_every_family_is_in_every_catalogue():
    assert set(FAMILIES) == set(MODEL_FAMILIES) == set(CHECKS) == set(VIEWS) | {"validator"}
    assert all(MODEL_FAMILIES[name].family == name for name in FAMILIES)


def test_every_law_names_tests_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("## Laws and the tests that hold them")[1].split("\n## ")[0]
    laws = re.findall(r"^\| (L\d+) ", table, re.M)
    assert laws == [f"L{i}" for i in range(1, 13)]
    for path in re.findall(r"`(tests[^`]*)`", table):
        assert (ROOT / path).exists(), path
