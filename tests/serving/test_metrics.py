"""The metrics: defined once, bounded, named right in rules and dashboard, counted of durable decisions alone."""

import asyncio
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from prometheus_client import generate_latest

from pipelines.experiments.verdict import win_evidence
from pipelines.settings import ROOT
from pipelines.store import BlockScore, Experiment, Promotion, Store
from serving.service import metrics
from serving.service.gauges import StoredGauges, drift_samples
from serving.service.metrics import METRICS, MOST_SERIES, MOST_SYMBOLS, Sample, code_of, gauge_text
from serving.service.store_executor import StoreExecutor

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "bellwether.json").read_text())
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
COMMANDS = ("check config prometheus.yml", "test rules rules_test.yml")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def exported():
    """Every name a scrape may show."""
    parts = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    return {one.name + part for one in METRICS.values() for part in parts[one.kind]}


def expressions():
    """Every expression of the rules and the dashboard, by where it stands."""
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    found = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules}
    panels = {f"panel {p['title']}": p.get("targets", []) for p in DASHBOARD["panels"]}
    return found | {f"{title} {t['refId']}": t["expr"] for title, targets in panels.items() for t in targets}


def test_every_metric_that_rules_and_dashboard_name_exists_and_every_metric_is_shown():
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    named = {}
    for where, text in expressions().items():
        for name in re.findall(r"bellwether[_:][a-z0-9_:]+", text):
            named[name] = where
    assert {name: where for name, where in named.items() if name not in exported() | recorded} == {}
    shown = {name for p in DASHBOARD["panels"] for t in p.get("targets", []) for name in re.findall(r"\w+", t["expr"])}
    fed = " ".join(expressions()[name] for name in recorded)
    unread = [n for n in METRICS if not any(re.fullmatch(n + r"(_bucket|_sum|_count)?", s) for s in shown)]
    assert [name for name in unread if name not in fed] == []


def test_the_labels_that_an_expression_selects_or_groups_by_are_those_of_its_metrics():
    labels = {name: set(one.labels) | {"le"} for name, one in METRICS.items()}

    def of(text):
        """The labels of the metrics that a text names, recorded ones with them."""
        found = set().union(*(labels.get(SUFFIX.sub("", name), set()) for name in re.findall(r"bellwether_\w+", text)))
        return found.union(*(of(expressions()[name]) for name in re.findall(r"bellwether:[\w:]+", text)))

    for where, text in expressions().items():
        allowed = of(text)
        used = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', text))
        used |= {w for g in re.findall(r"by \(([^)]*)\)", text) for w in re.findall(r"\w+", g)}
        assert used <= allowed | {"job"}, where


def test_names_carry_their_unit_and_no_histogram_or_counter_has_a_symbol():
    for name, one in METRICS.items():
        assert re.fullmatch(r"bellwether_[a-z0-9_]+", name)
        assert name.endswith("_total") == (one.kind == "counter")
        assert one.kind == "gauge" or "symbol" not in one.labels
        assert (one.buckets == ()) == (one.kind != "histogram")
        if one.kind == "histogram":
            series = max(len(one.known), 1) * (len(one.buckets) + 3)  # +Inf, sum and count
            assert series <= MOST_SERIES, (name, series)
            assert one.known or not one.labels, f"{name}: its series cannot be counted in advance"
    assert 2.0 in metrics.CLOSE.buckets  # the limit of the service level is a bucket's end


def test_symbols_over_the_most_have_no_gauges_and_the_number_of_all_is_shown():
    names = [f"S{i:03}/USDT" for i in range(MOST_SYMBOLS + 44)]
    shown = metrics.shown_symbols(reversed(names))
    assert shown == names[:MOST_SYMBOLS]
    text = gauge_text([Sample(metrics.TIER, 1, (name,)) for name in shown] + [Sample(metrics.SYMBOLS, len(names))])
    assert text.count("bellwether_tier{") == MOST_SYMBOLS
    assert "bellwether_symbols 300.0" in text


def test_a_gauge_that_is_not_known_has_no_series():
    assert gauge_text([Sample(metrics.DRIFT, None, ("regime",))]) == ""


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("UNSEEN_SYMBOL:BTC/USDT, ETH/USDT", "UNSEEN_SYMBOL"),
        ("NO_EVENT", "NO_EVENT"),
        ("MODEL_FAULT:RuntimeError: x", "MODEL_FAULT"),
        ("failed at 12:00", "OTHER"),
        ("A" * 60, "OTHER"),
        (None, "OTHER"),
    ],
)
def test_a_reason_is_counted_by_its_code_alone(reason, code):
    assert code_of(reason) == code


def test_the_drift_gauge_is_of_the_newest_block_that_has_a_score(tmp_path):
    for day, content in (("2024-01-01", '{"score": 1.5, "threshold": 3.0}'), ("2024-01-02", None)):
        (tmp_path / day).mkdir()
        if content:
            (tmp_path / day / "score.json").write_text(content)
    assert [sample.value for sample in drift_samples(tmp_path, "regime")] == [1.5, 3.0]
    (tmp_path / "2024-01-02" / "score.json").write_text('{"score": null, "threshold": 3.0}')
    assert [sample.value for sample in drift_samples(tmp_path, "regime")] == [None, 3.0]
    assert list(drift_samples(tmp_path / "none", "regime")) == []


def test_the_store_gives_open_alarms_the_age_of_champions_and_the_evidence_of_the_experiment_that_runs(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    promoted = datetime(2024, 1, 1, tzinfo=UTC)
    line = Promotion(promoted, "flow", "promote", "regime", "champion", None, "1", "a" * 64, None, None, None, True, "")
    store.add_promotion(line)
    store.raise_alarm("drift", "high", "regime: drift", promoted)
    begun = store.begin_experiment(
        Experiment(
            promoted, "regime", "1", "a" * 64, "2", "b" * 64, "nat", 0.0, 900.0, 5, 0.02, 1.0, 0.002, 0.05, 120
        ),
        "flow", "it passed",
    )  # fmt: skip
    store.add_block_scores([BlockScore(begun.number, i, 900.0 * i, 50, 0.5, "", promoted) for i in range(8)])

    class Served:
        generation, snapshot = 3, None

        def slot(self, family, arm):
            return SimpleNamespace(version="1") if family == "regime" else None

    served = Served()
    served.snapshot = served

    async def read():
        executor = StoreExecutor()
        stored = StoredGauges(store, executor, served, tmp_path)
        await stored.follow()
        executor.close()
        return {(s.metric.name, *s.labels): s.value for s in stored.samples(promoted + timedelta(hours=2))}

    found = asyncio.run(read())
    store.close()
    e_value = found.pop(("bellwether_experiment_e_value", "regime"))
    assert e_value == win_evidence(np.full(8, 0.5), 1.0)[-1] > 1.0
    assert found == {
        ("bellwether_alarms_open", "critical"): 0,
        ("bellwether_alarms_open", "high"): 1,
        ("bellwether_alarms_open", "info"): 0,
        ("bellwether_champion_age_seconds", "regime"): 7200.0,
        ("bellwether_experiment_e_value_wins", "regime"): 50.0,
    }


@needs_promtool
def test_promtool_finds_no_fault_in_names_and_help_of_the_metrics():
    metrics.make_all()
    counted = generate_latest().decode().splitlines()
    text = "\n".join(line for line in counted if "bellwether_" in line and "_created" not in line) + "\n"
    gauges = [one for one in METRICS.values() if one.kind == "gauge"]
    text += gauge_text([Sample(one, 1.0, tuple("x" for _ in one.labels)) for one in gauges])
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_promtool
@pytest.mark.parametrize("command", COMMANDS)
def test_promtool_finds_no_fault_in_the_files_of_prometheus(command):
    done = subprocess.run(["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_names_its_section_of_the_runbook():
    headings = {re.sub(r"\W", "", h).lower() for h in re.findall(r"^### (.+)$", RUNBOOK, re.MULTILINE)}
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (page, anchor) == ("docs/runbook.md", alert["alert"].lower())
        assert anchor in headings, anchor


RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def test_grafana_can_import_the_dashboard():
    assert DASHBOARD["schemaVersion"] >= 36
    assert [v["name"] for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"] == ["datasource"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(t["datasource"]["uid"] == "${datasource}" for panel in panels for t in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x, y in product(
            range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"]),
            range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"]),
        )
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
