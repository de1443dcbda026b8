"""`bellwether heatmap` on a recorded session."""

import json

import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from pipelines.data.readers.recordings import replay_recording
from pipelines.settings import ROOT

SESSION = ROOT.parent / "shared" / "data" / "orderbook" / "binance_usdm_btcusdt_20240718"


@pytest.mark.skipif(not SESSION.is_dir(), reason=f"no recorded order book in {SESSION.parent}")
def test_a_recorded_session_is_drawn_and_described(tmp_path):
    page = tmp_path / "heat.html"
    done = CliRunner().invoke(app, ["heatmap", str(SESSION), "--to", str(page), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["snapshots"] == 50
    last = replay_recording(SESSION, 60.0).books
    assert figures["to"] <= "2024-07-19T00:05:00+00:00"
    assert figures["imbalance"] == pytest.approx(last.tape[-1, 9], abs=0.2)
    assert page.stat().st_size > 1_000_000  # it needs no network


def test_a_folder_that_is_no_recording_is_refused_with_what_one_is(tmp_path):
    done = CliRunner().invoke(app, ["heatmap", str(tmp_path)])
    assert done.exit_code != 0
