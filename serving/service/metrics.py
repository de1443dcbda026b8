"""Every metric of both services, defined once: histograms and counters of this process, gauges read at each scrape.

BentoML's `GET /metrics` shows what this process counted; the decision service adds its gauges to it (`Gauges`). Units
are in the names. No histogram has more than MOST_SERIES series, a symbol labels gauges alone, and of symbols the first
MOST_SYMBOLS by name are shown: `bellwether_symbols` says how many there are.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

import prometheus_client
from prometheus_client.core import GaugeMetricFamily

from pipelines.families import FAMILIES
from serving.inference.model_slots import ARMS
from serving.risk.breakers import BREAKER_NAMES
from serving.state.service_level import LIMIT_S, RESULTS

MOST_SERIES = 200  # of a histogram
MOST_SYMBOLS = 256  # with gauges of their own; as many as one batch may hold
OTHER = "OTHER"  # the reason of an abstention that has no code
STAGES = ("features", "family", "fusion", "risk", "ledger", "decision")
_CODE = re.compile(r"[A-Z][A-Z_]{1,39}")
_SHORT_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, LIMIT_S, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, eq=False)
class Metric:
    """Define a metric.

    text     of its HELP line
    labels   their names, in the order of their values
    buckets  upper ends, of a histogram, seconds
    known    every combination of label values that can be stated in advance; each is there from the start, as zero:
             a rate does not see the step from no series to one
    """

    kind: Literal["histogram", "counter", "gauge"]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()


STAGE = Metric(
    "histogram",
    "bellwether_stage_seconds",
    "Time of a stage for a whole batch. features: folding the bars that closed. family: all predictions. fusion: "
    "scores, thresholds and sizing. risk: what is open and its tail. ledger: until durable. decision: all of a call",
    ("stage",),
    (*_SHORT_S, LIMIT_S, 5.0),
    tuple((stage,) for stage in STAGES),
)
MODEL = Metric(
    "histogram",
    "bellwether_model_seconds",
    "Time of one model's answer for one row, in the process that runs the models",
    ("family", "arm"),
    _SHORT_S,
    tuple(product(FAMILIES, ARMS)),
)
CLOSE = Metric(
    "histogram",
    "bellwether_close_to_decision_seconds",
    "Wall time from the moment a close is due (docs/health.md) until its decision is durable",
    (),
    _LONG_S,
)
BATCH = Metric(
    "histogram",
    "bellwether_batch_decisions",
    "New decisions of one call",
    (),
    (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
)
CLOSES = Metric(
    "counter",
    "bellwether_closes_total",
    "(symbol, close) by what became of them: met, late or missed, see docs/health.md",
    ("result",),
    known=tuple((result,) for result in RESULTS),
)
DECISIONS = Metric("counter", "bellwether_decisions_total", "Durable decisions", ("tier", "arm", "action"))
ABSTENTIONS = Metric(
    "counter",
    "bellwether_abstentions_total",
    "Abstentions of models at durable decisions, by the code of their reason",
    ("family", "arm", "reason"),
)
SWAPS = Metric(
    "counter",
    "bellwether_swaps_total",
    "Models that took or left a slot",
    ("family", "arm"),
    known=tuple(product(FAMILIES, ARMS)),
)
TRIPS = Metric(
    "counter",
    "bellwether_breaker_trips_total",
    "Breakers that tripped, by any process",
    ("breaker",),
    known=tuple((name,) for name in BREAKER_NAMES),
)
ALARMS = Metric("counter", "bellwether_alarms_total", "Alarms this process raised", ("kind", "severity"))

READY = Metric("gauge", "bellwether_ready", "1 where every check of /ready holds, else 0")
SYMBOLS = Metric("gauge", "bellwether_symbols", "Symbols in live service")
DATA_AGE = Metric(
    "gauge", "bellwether_data_age_seconds", "Time since the newest close, by the clock of its market", ("symbol",)
)
DATA_AGE_BARS = Metric(
    "gauge", "bellwether_data_age_bars", "Decision bars since the newest close, by the clock of its market", ("symbol",)
)
DATA_AGE_LIMIT = Metric("gauge", "bellwether_data_age_limit_bars", "risk.max_data_age_bars: older data open nothing")
TIER = Metric("gauge", "bellwether_tier", "1 full AI, 2 simple AI, 3 traditional, 4 emergency", ("symbol",))
CHAMPION_AGE = Metric("gauge", "bellwether_champion_age_seconds", "Time of day since the promotion", ("family",))
DRIFT = Metric(
    "gauge", "bellwether_drift_score", "Score of the newest judged block of the champion's inputs", ("family",)
)
DRIFT_THRESHOLD = Metric(
    "gauge", "bellwether_drift_threshold", "What that block's score has to exceed to alarm", ("family",)
)
E_VALUE = Metric(
    "gauge", "bellwether_experiment_e_value", "Evidence for the challenger of the experiment that runs", ("family",)
)
E_VALUE_WINS = Metric(
    "gauge", "bellwether_experiment_e_value_wins", "E-value at which the challenger wins", ("family",)
)
EQUITY = Metric("gauge", "bellwether_equity_ratio", "Equity of the account; it starts at 1")
DRAWDOWN = Metric("gauge", "bellwether_drawdown_ratio", "Share of the highest equity that is lost")
OPEN_POSITIONS = Metric("gauge", "bellwether_open_positions", "Open positions of the account")
TRIPPED = Metric("gauge", "bellwether_breakers_tripped", "Breakers that are tripped now")
OPEN_ALARMS = Metric("gauge", "bellwether_alarms_open", "Open alarms of the store", ("severity",))
LEVEL = Metric(
    "gauge",
    "bellwether_service_level_ratio",
    "Share of (symbol, close) whose decision was durable in time; window: today (UTC), or 30 days with it",
    ("window",),
)
LEVEL_TARGET = Metric("gauge", "bellwether_service_level_target_ratio", "Share that is wanted")
LEVEL_DUE = Metric("gauge", "bellwether_service_level_closes", "(symbol, close) that this share is of", ("window",))
BUDGET = Metric(
    "gauge",
    "bellwether_service_level_budget_used_ratio",
    "Closes without a decision in time, of those the target allows; above 1 the budget is spent",
    ("window",),
)
METRICS = {one.name: one for one in list(globals().values()) if isinstance(one, Metric)}


class Sample(NamedTuple):
    """Hold the value of a gauge; None = it is not known, and the series is left out."""

    metric: Metric
    value: float | None
    labels: tuple[str, ...] = ()


@cache
def _instrument(metric: Metric) -> Any:
    """Return the instrument of a histogram or counter; its known series are made with it.

    Made at the first use, not at import: by then its file lies where `keep_in_memory` put it.
    """
    if metric.kind == "histogram":
        made = prometheus_client.Histogram(metric.name, metric.text, metric.labels, buckets=metric.buckets)
    else:
        made = prometheus_client.Counter(metric.name, metric.text, metric.labels)
    for labels in metric.known:
        made.labels(*labels)
    return made


@cache
def _series(metric: Metric, *labels: str) -> Any:
    """Return one series of a histogram or counter."""
    return _instrument(metric).labels(*labels) if labels else _instrument(metric)


def make_all() -> None:
    """Make every histogram and counter, so that a scrape finds those that nothing has happened to yet."""
    for metric in METRICS.values():
        if metric.kind != "gauge":
            _instrument(metric)


def count(metric: Metric, *labels: str, n: float = 1.0) -> None:
    """Add `n` to a counter."""
    _series(metric, *labels).inc(n)


def observe(metric: Metric, value: float, *labels: str) -> None:
    """Add an observation to a histogram; seconds, or what its name says."""
    _series(metric, *labels).observe(value)


def observe_model(family: str, arm: str, ms: float) -> None:
    """Add the time of a model's answer for one row."""
    observe(MODEL, ms / 1e3, family, arm)


@lru_cache(1024)
def code_of(reason: str | None) -> str:
    """Return the code that a reason begins with, up to its colon; OTHER where it has none.

    The rest of a reason names columns and symbols, of which there is no end.
    """
    code = (reason or "").partition(":")[0]
    return code if _CODE.fullmatch(code) else OTHER


def shown_symbols(names: Iterable[str]) -> list[str]:
    """Return the symbols that have gauges of their own: the first MOST_SYMBOLS by name."""
    return sorted(names)[:MOST_SYMBOLS]


class _Families:
    """Hold gauges as the Prometheus client collects them."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Group samples by metric; one without a value is left out."""
        self._families: dict[Metric, Any] = {}
        for metric, value, labels in samples:
            if value is not None:
                if metric not in self._families:
                    self._families[metric] = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
                self._families[metric].add_metric(labels, value)

    def collect(self) -> Iterator[Any]:
        """Yield each gauge with its samples."""
        yield from self._families.values()


def gauge_text(samples: Iterable[Sample]) -> str:
    """Return gauges in the text format of `GET /metrics`."""
    text: bytes = prometheus_client.generate_latest(_Families(samples))
    return text.decode()
