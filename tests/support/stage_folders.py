"""The folders that the features and labels stages write, for tests that fill them by hand."""

import json

from pipelines.stage_outputs import features_of, labels_of

SYMBOL = "SIM/USDT"


def stage_folders(artifacts, symbol=SYMBOL, **facts):
    """Make both folders of one market and a meta.json of it alone, with these facts; return (features, labels)."""
    features, labels = features_of(artifacts, symbol), labels_of(artifacts, symbol)
    for folder in (features, labels):
        folder.mkdir(parents=True, exist_ok=True)
    shared = {name: facts.pop(name) for name in ("data_hash", "decision_timeframe", "catalogue_hash") if name in facts}
    meta = {"decision_timeframe": "15m", **shared, "symbols": [symbol], "markets": {symbol: facts}}
    (artifacts / "features" / "meta.json").write_text(json.dumps(meta))
    return features, labels
