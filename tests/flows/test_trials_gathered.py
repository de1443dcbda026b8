"""The gate of a candidate knows how many were tried before it, and how they did."""

import json
from types import SimpleNamespace

import numpy as np

from flows.evaluate import gather
from flows.support.installation import Installation, now
from pipelines.settings import Settings, load_params
from pipelines.store import Store

META = {"symbol": "SIM/USDT", "decision_timeframe": "15m"}


def test_a_first_candidate_is_judged_by_all_that_were_tried_and_the_ratios_that_are_known(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    installation = Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    ratios = [{"lift_sharpe.value": 0.1}, {}, {"lift_sharpe.value": 0.3}]
    versions = [SimpleNamespace(run_id=run, tags=META) for run in range(3)]
    installation.__dict__["tracking"] = SimpleNamespace(
        versions=lambda family: versions, metrics=lambda run: ratios[run]
    )
    for number in range(4):
        store.add_trial("validator", "r", f"s{number}", now())
    folder = installation.workspace / "artifacts"
    (folder / "validator").mkdir(parents=True)
    (folder / "features").mkdir()
    (folder / "features" / "meta.json").write_text(json.dumps(META))
    fit = {
        "family": "validator", "loss_name": "log loss", "classes": ["target_first"], "parity_gap": 0.0,
        "latency_ms": 0.1, "schema_coverage": 1.0, "novel_share": 0.0, "digest": "a" * 64,
    }  # fmt: skip
    (folder / "validator" / "fit.json").write_text(json.dumps(fit))
    np.savez(folder / "validator" / "oof.npz", loss=np.zeros(3), p=np.full(3, 0.5), y=np.ones(3))
    found = gather(installation, "validator")
    assert (found.trials, list(found.trial_sharpes)) == (4, [0.1, 0.3])
    assert found.champion_loss is None
    store.close()
