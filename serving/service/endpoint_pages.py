"""The text of the API pages: for each call a summary, a description, a group, and a request and an answer to paste."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Tag = Literal["Market data", "Decisions", "Outcomes", "State", "Models"]
# In the order of the page.
TAGS: dict[Tag, str] = {
    "Market data": "What the market did: closed bars, order books, context.",
    "Decisions": "What to do now, and why.",
    "Outcomes": "What became of decisions and of their orders.",
    "State": "How the service is, and what is used of every limit.",
    "Models": "What is served, and raw predictions.",
}


@dataclass(frozen=True)
class Page:
    """Hold the page of one call. `request` and `answer` are JSON to paste; long answers are abridged."""

    tag: Tag
    summary: str
    description: str
    request: Mapping[str, object]
    answer: Mapping[str, object]


_DIGEST = "5f1c0a9d3b7e42681c9f0d2e8a4b6c7d5f1c0a9d3b7e42681c9f0d2e8a4b6c7d"
_ID = "9d5c1f0b7a3e4c2d8b6f5e4d3c2b1a09"
_F8_OF_ONE = "AAAAAAAA8D8="  # 1.0 as float64
_TIER = {"tier": 2, "tier_reason": "TIER_2: validator champion decides", "tier_multiplier": 1.0, "tier_floor": 1}
_HEALTH = {"ready": True, "health": "HEALTHY", "health_reason": _TIER["tier_reason"], "waiting_for_first_turn": False}
_CHECK = {"name": "store", "ok": True, "detail": "writable; whole"}
_CHAMPION = {
    "version": "3",
    "digest": _DIGEST,
    "run_id": "c0ffee",
    "data_hash": "a1b2c3",
    "git_commit": "6486b58",
    "verdict": "passed",
    "columns": ["atr_14", "volume_ratio"],
    "steps": 1,
    "classes": ["target"],
}

PAGES: dict[str, Page] = {
    "/observe": Page(
        "Market data",
        "Send closed bars, books and context of one symbol or many",
        "Stored durably, then folded into live features. Sending the same again changes nothing. What became known "
        "before a decision bar closed must come with or before the bar that closes it. Times are ISO 8601 with a zone; "
        "prices in quote currency, volumes in base asset; at most 2,000 bars a request. A bar whose price lies far "
        "outside the newest range is stored in quarantine, not folded, and named in `quarantined`, with an alarm. "
        "Of many symbols: `observations`, one entry a symbol, in one transaction, 8,192 records and 4 MiB at most; "
        "each is answered in its place, and one that is refused is refused alone.",
        {
            "symbol": "SIM/USDT",
            "bars": [
                {
                    "open_time": "2024-01-09T08:00:00Z",
                    "open": 40000.0,
                    "high": 40020.0,
                    "low": 39990.0,
                    "close": 40010.0,
                    "volume": 12.5,
                    "trades": 310,
                    "taker_buy_volume": 6.1,
                    "half_spread": 0.5,
                }
            ],
        },
        {
            "api": 1,
            "symbol": "SIM/USDT",
            "received": 1,
            "new": 1,
            "records": 0,
            "closed": [],
            "quarantined": [],
            "reason": None,
        },
    ),
    "/decide": Page(
        "Decisions",
        "Decide on the newest closed bar of one symbol or many",
        "Decided for now, by the clock of the symbol's market, and durable before the answer leaves. The same bar "
        "gives the same answer, with the same id. Of many `symbols`, each is answered in its place, and one that is "
        "refused is refused alone. `view` brief answers what a trader needs; full (the default) answers "
        "the whole record: every model's answer, the vote, every refusal with its numbers.",
        {"symbol": "SIM/USDT", "view": "brief"},
        {
            "api": 1,
            "id": _ID,
            "symbol": "SIM/USDT",
            "action": "BUY",
            "size": 0.012,
            "entry": 40010.0,
            "stop": 39890.0,
            "take_profits": [40190.0],
            "expiry": "2024-01-09T12:00:00Z",
            "p": 0.61,
            "arm": "champion",
            "tier": 2,
            "reason": "TIER_2: validator champion decides",
        },
    ),
    "/outcome": Page(
        "Outcomes",
        "Report what became of a decision, or of many",
        "Idempotent by the decision's id. `label` 1: the target came first. Results in basis points of the entry. Of "
        "many decisions: `outcomes`, 256 at most, in one transaction, booked in their order; each is answered in its "
        "place, and one that is refused is refused alone.",
        {
            "decision_id": _ID,
            "resolved_at": "2024-01-09T09:00:00Z",
            "label": 1,
            "barrier": "target",
            "gross_bps": 44.9,
            "net_bps": 34.9,
            "cost_bps": 10.0,
        },
        {"api": 1, "decision_id": _ID, "new": True},
    ),
    "/fill": Page(
        "Outcomes",
        "Report what a venue made of a decision's order",
        "Idempotent by the report's id. A filled order has a price, a rejected one a reason. Poor fills trip the "
        "breaker `execution`.",
        {
            "id": "venue-17",
            "decision_id": _ID,
            "at": "2024-01-09T08:15:02Z",
            "status": "filled",
            "price": 40012.0,
        },
        {"api": 1, "id": "venue-17", "new": True, "slippage_bps": 0.5, "breakers": []},
    ),
    "/predict": Page(
        "Models",
        "Predict rows with one family's champion or challenger",
        "Send one of `rows` (in the order of the model's columns, see /models), `features` by name, for a model "
        "that looks back, `windows`; or a `symbol`: its newest row is taken from /features of the decision service, "
        "and the answer has the close that it is of. null = missing, on both sides: a probability, or an abstention "
        "with its reason.",
        {"family": "validator", "arm": "champion", "features": [{"atr_14": 0.004, "volume_ratio": 1.2}]},
        {
            "api": 1,
            "family": "validator",
            "arm": "champion",
            "version": "3",
            "digest": _DIGEST,
            "device": "cpu",
            "generation": 7,
            "classes": ["target"],
            "p": [0.61],
            "p_low": [0.55],
            "status": ["OK"],
            "reason": [None],
            "novelty": [1.8],
            "label": None,
            "members": None,
        },
    ),
    "/predict_batch": Page(
        "Models",
        "Predict the rows of one decision request",
        "What the decision service sends where models run here (BELLWETHER_MODELS=remote): arrays as base64 of "
        "little-endian float64, so that answers are bit for bit those of the bundle whose digest is named. An empty "
        "list tests whether the service is up.",
        {
            "inference_requests": [
                {
                    "family": "validator",
                    "digests": {"champion": _DIGEST},
                    "columns": ["atr_14"],
                    "rows": {"shape": [1, 1], "f8": _F8_OF_ONE},
                }
            ]
        },
        {
            "api": 1,
            "generation": 7,
            "predictions": [{"champion": {"fault": "MODEL_SERVICE_BEHIND: its generation 7 holds no 5f1c0a9d3b7e"}}],
        },
    ),
    "/features": Page(
        "Models",
        "Show what the models see at the newest close of a symbol",
        "For each family the values of every column, null = missing: a number, or the newest `steps` numbers, oldest "
        "first, of a family that looks back. `close` is that of the decision bar, by the clock of its market; "
        "`columns` are those that a model reads; `reason` says why there is nothing to see, or why a model is not "
        "asked. `family` answers one family alone. GET has the fields in its query: /features?symbol=SIM/USDT.",
        {"symbol": "SIM/USDT", "family": "validator"},
        {
            "api": 1,
            "symbol": "SIM/USDT",
            "close": "2024-01-09T08:15:00+00:00",
            "generation": 7,
            "families": {
                "validator": {
                    "steps": 1,
                    "event": "fvg",
                    "direction": 1,
                    "reason": None,
                    "values": {"atr_14": 0.004, "volume_ratio": None},
                    "champion": {
                        "version": "3",
                        "digest": _DIGEST,
                        "columns": ["atr_14", "volume_ratio"],
                        "reason": None,
                    },
                    "challenger": None,
                }
            },
        },
    ),
    "/models": Page(
        "Models",
        "Show what is served",
        "Champion and challenger of every family with lineage and input columns, and what was refused. The model "
        "service adds the device of its networks, and why it is that one.",
        {},
        {
            "api": 1,
            "generation": 7,
            "families": {"validator": {"champion": _CHAMPION, "challenger": None}},
            "refused": [],
        },
    ),
    "/status": Page(
        "State",
        "Show health, tier, models, symbols, breakers and account",
        "The tier at the top is that of the worst symbol. docs/health.md says what each word of health means, and what "
        "the service level counts.",
        {},
        {
            "api": 1,
            "generation": 7,
            **_HEALTH,
            **_TIER,
            "breakers": [],
            "breaker_reasons": {},
            "account": {
                "source": "ledger",
                "day": "2024-01-09",
                "open": 0,
                "gross": 0.0,
                "trades": 1,
                "equity": 1.0,
                "peak": 1.0,
            },
        },
    ),
    "/risk": Page(
        "State",
        "Show what is used of every limit",
        "Limits, open positions, tail losses, breakers, the stage of the drawdown, and what would be refused now, at "
        "the newest close of all symbols.",
        {},
        {"api": 1, "as_of": "2024-01-09T08:15:00+00:00", "equity": 1.0, "breakers": [], "positions": []},
    ),
    "/account": Page(
        "State",
        "Show equity, profit, drawdown and open positions",
        "At the newest close of all symbols. source: ledger, every emitted decision counts as filled at the next bar's "
        "open with costs; reported, what came by /fill. mismatch says in what both differ: nothing new is opened until "
        "a person resets the breaker account_mismatch.",
        {},
        {
            "api": 1,
            "source": "ledger",
            "as_of": "2024-01-09T08:15:00+00:00",
            "equity": 1.0012,
            "peak": 1.0012,
            "drawdown": 0.0,
            "daily_pnl": 0.0012,
            "unrealised": 0.0004,
            "mismatch": None,
            "positions": [
                {
                    "symbol": "SIM/USDT",
                    "side": "BUY",
                    "size": 0.04,
                    "entry": 42290.1,
                    "filled_at": "2024-01-09T08:00:00+00:00",
                    "unrealised": 0.0004,
                }
            ],
        },
    ),
    "/ready": Page(
        "State",
        "Show every check behind readiness",
        "200 where all checks hold, 503 otherwise: then bars and decisions cannot be taken now. /readyz answers the "
        "same.",
        {},
        {"api": 1, **_HEALTH, **_TIER, "checks": [_CHECK]},
    ),
}

# Probes and metrics that BentoML adds, GET without a key: path → (summary, description, answer: JSON or text).
PROBE_PAGES: dict[str, tuple[str, str, Mapping[str, object] | str]] = {
    "/livez": ("Show that the process runs", "200 while the process runs, whatever its state.", ""),
    "/healthz": ("Show that the process runs", "The same as /livez, under the name some tools expect.", ""),
    "/readyz": (
        "Show every check behind readiness",
        "The same as /ready: 200 where all checks hold, 503 otherwise.",
        PAGES["/ready"].answer,
    ),
    "/metrics": (
        "Show the metrics in Prometheus' text format",
        "Requests by path and status; time of every stage of a decision and of every model; decisions, abstentions, "
        "swaps, breaker trips, alarms; of the decision service also its gauges and its service level.",
        'bentoml_service_request_total{endpoint="/decide",http_response_code="200"} 17.0',
    ),
}
