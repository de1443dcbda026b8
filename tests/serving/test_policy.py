"""U6: one decision against hand arithmetic, and the live path equal to the backtest's core on 10,000 rows."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.contracts import REGIMES, SCORE_NAMES, Decision, ModelAnswer
from pipelines.data.embargo import Window
from pipelines.errors import BadShape, BadTimes, BadValues, UnknownName
from pipelines.params import FusionParams
from pipelines.settings import load_params
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import (
    NOTHING_OPEN,
    ONES,
    DecisionInputs,
    ExposureSnapshot,
    decide,
    flatten,
    policy_digest,
    policy_of,
    policy_of_content,
    to_row,
    to_rows,
)
from serving.policy.fusion import N_SCORES
from serving.policy.thresholds import THRESHOLDS
from serving.risk.codes import REFUSALS, bits_of, name_of, trail
from serving.risk.limits import BUDGETS

PARAMS = load_params()
FLAT = flatten(PARAMS)
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
FACTS = {
    "id": "d1", "symbol": "SIM/USDT", "as_of": NOON, "known_at": NOON, "ingested_at": NOON, "arm": "champion",
    "expiry": NOON + timedelta(hours=4), "generation": 3,
    "models": {"validator": {"champion": ModelAnswer("validator", version="1")}}, "lineage": {"data_hash": "abc"},
}  # fmt: skip
NAN = float("nan")
INPUTS = DecisionInputs(
    direction=np.array([NAN, 1.0, 1.0, NAN, NAN, -1.0]),
    confidence=np.array([NAN, 0.8, 0.9, NAN, NAN, 0.9]),
    factor=ONES,
    independence=ONES,
    regime="TRENDING",
    trend=1.0,
    unicorn=NAN,
    confluence=NAN,
    phase=NAN,
    event="fvg",
    event_direction=1.0,
    volatility=0.003,
    atr=0.004,
    price=100.0,
    cost_bps=5.0,
    stop_cost_bps=5.0,
    p=0.6,
    p_low=0.4505,
    miss_bps=-30.0,
    abstained=None,
    tier=1,
    age_bars=0.0,
    breakers=(),
    portfolio=ExposureSnapshot(**NOTHING_OPEN, es_unit=0.03),
)


def test_one_decision_by_hand():
    d = decide(INPUTS, PARAMS, FLAT, **FACTS)
    confidence = (0.25 * 0.9 * 0.8 + 0.20 * 1.1 * 0.9) / (0.225 + 0.22)
    assert (d.action, d.direction, d.reasons) == ("BUY", 1, ())
    assert d.confidence == pytest.approx(confidence)
    assert d.edge_bps == pytest.approx(0.6 * 60 - 0.4 * 30 - 5)  # 40 would count every miss as the whole stop
    # 55 to win against 45 to lose at .4505: 1/1100 of equity at risk, a quarter of it, over a loss of .45 %
    assert d.size == pytest.approx(0.25 / 1100 * confidence**2 / 0.0045)
    assert (d.entry, d.stop, d.take_profits) == (100.0, pytest.approx(99.6), (pytest.approx(100.6),))
    assert d.expiry == NOON + timedelta(hours=4)
    assert d.weights == {"ict": pytest.approx(0.225 / 0.445), "order_flow": pytest.approx(0.22 / 0.445)}
    assert sum(d.contributions.values()) == pytest.approx(1.0)
    assert d.coverage == pytest.approx(0.445 / 1.065)
    assert d.category_scores == {"ict": 0.8, "order_flow": 0.9, "traditional": -0.9}
    assert (set(d.trail.values()), d.stage, d.capped_by) == ({"passed"}, "normal", None)
    assert d.validation["traditional"] == pytest.approx(0.05)
    assert (d.id, d.event, d.tier, d.generation, d.lineage) == ("d1", "fvg", 1, 3, {"data_hash": "abc"})


def test_an_event_has_the_expiry_of_its_label_and_a_bar_without_one_has_none():
    facts = FACTS | {"expiry": NOON + timedelta(days=3)}
    assert decide(INPUTS, PARAMS, FLAT, **facts).expiry == NOON + timedelta(days=3)
    assert decide(replace(INPUTS, event=None, event_direction=0.0), PARAMS, FLAT, **facts).expiry is None


def test_a_refused_event_keeps_its_levels_so_that_its_outcome_can_be_scored():
    d = decide(replace(INPUTS, p=0.38, p_low=0.32), PARAMS, FLAT, **FACTS)
    assert (d.action, d.size, d.entry) == ("NO_TRADE", 0.0, 100.0)
    assert d.reasons == (
        "NO_EDGE_AFTER_COST: edge_bps=-0.8, p=0.380, break_even_p=0.389, miss_bps=-30.0",
        "NOT_VALIDATED: validation=0.374, above=0.60 (traditional 0.05, ai 0.39, correlation 1.00)",
        "KELLY_ZERO: kelly=0.0000, p_low=0.320, net_break_even_p=0.450, cap=0.1000",
    )


def test_an_abstention_carries_the_models_own_reason_and_no_number():
    d = decide(replace(INPUTS, p=NAN, p_low=NAN, abstained="MISSING_FEATURE:volume_ratio"), PARAMS, FLAT, **FACTS)
    assert d.reasons == ("MODEL_ABSTAINED:MISSING_FEATURE:volume_ratio",)
    assert (d.p, d.edge_bps, d.size) == (None, None, 0.0)


def test_an_event_has_its_five_thresholds_on_record_with_value_and_minimum_and_those_required_refuse():
    known = replace(INPUTS, unicorn=14.0, confluence=-0.2, phase=1.0)
    recorded = {
        "strength": {"value": pytest.approx(80.0), "minimum": pytest.approx(63.0), "reached": True},
        "confidence": {"value": pytest.approx(0.849438), "minimum": pytest.approx(0.665), "reached": True},
        "confluence": {"value": -0.2, "minimum": 0.6, "reached": False},
        "unicorn": {"value": 14.0, "minimum": 15.0, "reached": False},
        "phase": {"value": "ACCUMULATION", "minimum": "DISTRIBUTION", "reached": False},
    }
    d = decide(known, PARAMS, FLAT, **FACTS)
    assert d.action == "BUY"
    assert d.to_dict()["thresholds"] == {n: r | {"refuses": n == "confidence"} for n, r in recorded.items()}
    strict = requiring("unicorn", "phase", "confluence")
    d = decide(known, strict, flatten(strict), **FACTS)
    assert d.to_dict()["thresholds"] == {
        name: record | {"refuses": name in strict.thresholds.require} for name, record in recorded.items()
    }
    assert d.reasons == (
        "CONFLUENCE_BELOW: confluence=-0.20, minimum=0.60",
        "UNICORN_BELOW: stars=14, minimum=15.0 of 21",
        "PHASE_DIFFERS: phase=ACCUMULATION, wanted=DISTRIBUTION",
    )


def test_a_threshold_whose_value_is_not_known_is_not_reached_and_refuses_where_it_is_required():
    strict = requiring("confluence", "unicorn", "phase")
    d = decide(INPUTS, strict, flatten(strict), **FACTS)
    assert d.reasons == (
        "CONFLUENCE_BELOW: confluence=unknown, minimum=0.60",
        "UNICORN_BELOW: stars=unknown, minimum=15.0 of 21",
        "PHASE_DIFFERS: phase=unknown, wanted=DISTRIBUTION",
    )
    assert [(c.value, c.reached) for name, c in d.thresholds.items() if name in strict.thresholds.require] == [
        (None, False)
    ] * 3


def test_costs_and_required_thresholds_are_part_of_the_policys_digest():
    dearer = PARAMS.model_copy(update={"costs": PARAMS.costs.model_copy(update={"order": "maker"})})
    digests = {policy_digest(p, flatten(p)) for p in (PARAMS, dearer, requiring("phase"), requiring())}
    assert len(digests) == 4


def test_without_an_event_there_is_nothing_to_trade_and_nothing_to_expire():
    d = decide(replace(INPUTS, event=None, event_direction=0.0, p=NAN, p_low=NAN), PARAMS, FLAT, **FACTS)
    assert d.reasons == ("NO_EVENT",)
    assert (d.action, d.direction, d.event, d.expiry, d.stop, d.take_profits) == ("NO_TRADE", 1, None, None, None, ())
    assert d.thresholds == {}


def test_deciding_changes_nothing_it_was_given_and_is_the_same_twice():
    before = INPUTS.direction.tobytes(), FLAT.tobytes()
    assert decide(INPUTS, PARAMS, FLAT, **FACTS) == decide(INPUTS, PARAMS, FLAT, **FACTS)
    assert (INPUTS.direction.tobytes(), FLAT.tobytes()) == before


def random_rows(n):
    """Rows that meet every refusal: values drawn around each limit, with holes and impossible ones among them."""
    rng = np.random.default_rng(3)
    p = rng.uniform(0.3, 0.95, n)
    pick = lambda values, odds: rng.choice(values, n, p=odds)  # noqa: E731
    near_its_limit = lambda name: rng.uniform(0, 1.05, n) * getattr(PARAMS.risk.budgets, f"max_{name}")  # noqa: E731
    side = pick([-1.0, 1.0], [0.5, 0.5])
    direction = rng.choice([-1.0, 0.0, 1.0, 2.0, NAN], (n, N_SCORES), p=[0.2, 0.2, 0.39, 0.01, 0.2]) * side[:, None]
    rows = to_rows(
        direction,
        rng.uniform(0.4, 1.0, (n, N_SCORES)),
        regime=pick([0.0, 1.0, 2.0, 3.0, NAN], [0.3, 0.2, 0.2, 0.2, 0.1]),
        trend=pick([-1.0, 0.0, 1.0, NAN], [0.4, 0.1, 0.4, 0.1]),
        unicorn=np.where(rng.random(n) < 0.1, NAN, rng.integers(-21, 23, n)),
        confluence=pick([-1.0, 0.5, 1.0, 1.1, NAN], [0.2, 0.3, 0.4, 0.01, 0.09]),
        phase=pick([0.0, 1.0, 2.0, 3.0, 4.0, NAN], [0.2, 0.2, 0.2, 0.3, 0.01, 0.09]),
        event=np.where(rng.random(n) < 0.2, 0.0, side),
        tier=pick([1.0, 2.0, 3.0, 4.0], [0.5, 0.2, 0.2, 0.1]),
        age_bars=pick([0.0, 1.0, 3.0], [0.6, 0.3, 0.1]),
        breakers=pick([0.0, 3.0], [0.95, 0.05]),
        embargoed=pick([0.0, 1.0], [0.97, 0.03]),
        disabled=pick([0.0, 1.0], [0.97, 0.03]),
        **{name: near_its_limit(name) for name in BUDGETS},
        es_unit=rng.uniform(0.005, 0.05, n),
        volatility=rng.uniform(0.001, 0.02, n),
        open_count=pick([0.0, 2.0, 5.0], [0.6, 0.3, 0.1]),
        trades_today=pick([0.0, 39.0, 40.0], [0.6, 0.3, 0.1]),
        daily_pnl=pick([0.01, 0.0, -0.03, NAN], [0.5, 0.4, 0.08, 0.02]),
        drawdown=pick([0.0, 0.05, 0.065, 0.09], [0.6, 0.2, 0.1, 0.1]),
        factor=rng.uniform(0.5, 2.0, (n, N_SCORES)),
        independence=rng.uniform(0.3, 1.0, (n, N_SCORES)),
        atr=(atr := np.exp(rng.uniform(np.log(0.0003), np.log(0.04), n))),
        cost_bps=(cost := pick([5.0, 22.0], [0.7, 0.3])),
        stop_cost_bps=cost + pick([0.0, 0.4], [0.5, 0.5]),
        miss_bps=-1e4 * atr * rng.uniform(0.5, 1.2, n),
        price=rng.uniform(10, 60_000, n),
        p=p,
        p_low=p - rng.uniform(0, 0.15, n),
    )
    rows[rng.random(n) < 0.1, decision_kernel.P : decision_kernel.EMBARGOED] = NAN
    for field in (
        decision_kernel.DAILY_PNL, decision_kernel.ES, decision_kernel.ES_UNIT, decision_kernel.VOLATILITY,
        decision_kernel.COST_BPS, decision_kernel.STOP_COST_BPS, decision_kernel.MISS_BPS,
    ):  # fmt: skip
        rows[rng.random(n) < 0.005, field] = NAN
    return rows


def inputs_of(row):
    at = dict(zip(decision_kernel.ROW_FIELDS, row.tolist(), strict=True))
    return DecisionInputs(
        direction=np.array([at[f"{v}.direction"] for v in SCORE_NAMES]),
        confidence=np.array([at[f"{v}.confidence"] for v in SCORE_NAMES]),
        factor=np.array([at[f"{v}.factor"] for v in SCORE_NAMES]),
        independence=np.array([at[f"{v}.independence"] for v in SCORE_NAMES]),
        regime=None if np.isnan(at["regime"]) else REGIMES[int(at["regime"])],
        event="fvg" if at["event"] else None,
        event_direction=at["event"],
        abstained="NOVEL",
        tier=int(at["tier"]),
        breakers=("daily_loss", "drawdown") if at["breakers"] else (),
        embargo=Window(0.0, 3600.0, "CPI") if at["embargoed"] else None,
        is_disabled=bool(at["disabled"]),
        portfolio=ExposureSnapshot(*(at[name] for name in ExposureSnapshot.__slots__)),
        **{
            name: at[name]
            for name in (
                "trend",
                "unicorn",
                "confluence",
                "phase",
                "volatility",
                "atr",
                "price",
                "cost_bps",
                "stop_cost_bps",
                "p",
                "p_low",
                "miss_bps",
                "age_bars",
            )
        },
    )


def requiring(*names):
    """The parameters with these thresholds refusing."""
    return PARAMS.model_copy(update={"thresholds": PARAMS.thresholds.model_copy(update={"require": names})})


def test_live_and_batch_agree_on_ten_thousand_rows_refusals_included():
    rows, params = random_rows(10_000), requiring(*THRESHOLDS)
    flat = flatten(params)
    outs, codes = np.empty((len(rows), decision_kernel.OUT_WIDTH)), np.empty(len(rows), dtype=np.int64)
    decision_kernel.decide_rows(rows, flat, outs, codes)
    for row, out, code in zip(rows, outs, codes.tolist(), strict=True):
        inputs = inputs_of(row)
        assert to_row(inputs).tobytes() == row.tobytes()
        d = decide(inputs, params, flat, **FACTS)
        assert [words.split(":")[0] for words in d.reasons] == [name_of(bit) for bit in bits_of(code)]
        assert (d.size, {"BUY": 1, "SELL": -1, "NO_TRADE": 0}[d.action]) == (
            out[decision_kernel.SIZE],
            out[decision_kernel.ACTION],
        )
        assert d.trail == trail(code)
        assert (d.edge_bps is None, d.edge_bps or 0.0) == (
            np.isnan(out[decision_kernel.EDGE_BPS]),
            np.nan_to_num(out[decision_kernel.EDGE_BPS]),
        )
    assert {bit for bit in REFUSALS if (codes & bit).any()} == set(REFUSALS)
    decision_kernel.decide_rows(rows, FLAT, outs, codes)
    assert (codes == 0).sum() > 100


def test_the_mask_of_unusable_inputs_is_exact_in_a_float():
    assert decision_kernel.EMBARGOED == decision_kernel.ROW_WIDTH - 2 <= 53  # it refuses itself, and so does the last


def test_layout_names_and_constants_agree():
    for at, name in enumerate(decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :], decision_kernel.STATE_AT):
        assert getattr(decision_kernel, name.upper()) == at
    weights = slice(decision_kernel.W_LAYERS, decision_kernel.W_LAYERS + decision_kernel.N_LAYERS)
    assert decision_kernel.PARAM_FIELDS[weights] == decision_kernel.VALIDATION_LAYERS
    assert decision_kernel.PARAM_FIELDS[decision_kernel.REQUIRE_STRENGTH : decision_kernel.BUDGETS_AT] == tuple(
        f"require_{name}" for name in THRESHOLDS
    )
    for at, name in enumerate(decision_kernel.PARAM_FIELDS[: decision_kernel.BUDGETS_AT]):
        assert name in decision_kernel.VALIDATION_LAYERS or getattr(decision_kernel, name.upper()) == at
    assert [f"max_{name}" for name in BUDGETS] == list(decision_kernel.PARAM_FIELDS[decision_kernel.BUDGETS_AT :])
    assert [getattr(decision_kernel, name.upper()) for name in decision_kernel.OUT_FIELDS] == list(
        range(len(decision_kernel.OUT_FIELDS))
    )


def test_bad_inputs_are_refused_with_what_to_fix():
    with pytest.raises(BadTimes, match="timezone"):
        decide(INPUTS, PARAMS, FLAT, **{**FACTS, "as_of": NOON.replace(tzinfo=None)})
    with pytest.raises(UnknownName, match="SIDEWAYS"):
        decide(replace(INPUTS, regime="SIDEWAYS"), PARAMS, FLAT, **FACTS)
    with pytest.raises(UnknownName, match="moon"):
        to_rows(np.zeros((2, N_SCORES)), np.zeros((2, N_SCORES)), moon=1.0)
    with pytest.raises(BadShape, match="expected"):
        to_rows(np.zeros((2, 3)), np.zeros((2, 3)))


def test_an_exit_plan_that_no_venue_follows_is_refused_and_not_ignored():
    exits = PARAMS.exits.model_copy(update={"plan": "ladder"})
    with pytest.raises(BadValues, match=r"exits\.plan ladder.*set it to plain"):
        flatten(PARAMS.model_copy(update={"exits": exits}))


def test_params_without_a_limit_are_refused_and_none_is_guessed():
    risk = PARAMS.risk
    budgets = risk.budgets.model_copy(update={"max_gross": NAN})
    with pytest.raises(BadValues, match="max_gross"):
        flatten(PARAMS.model_copy(update={"risk": risk.model_copy(update={"budgets": budgets})}))
    limits = {name: limit for name, limit in risk.regime_limits.items() if name != "bear"}
    with pytest.raises(UnknownName, match="bear"):
        flatten(PARAMS.model_copy(update={"risk": risk.model_copy(update={"regime_limits": limits})}))


ANSWER = {
    "family": "predictor", "version": "2", "digest": "d" * 64, "verdict": "passed", "role": "active", "event": None,
    "direction": 0, "p": 0.6, "p_low": 0.5, "label": None, "status": "OK", "reason": None, "novelty": 1.5,
    "device": "cpu",
}  # fmt: skip
VOTE = {"p": 0.55, "phase": "QUIET", "weights": {"lstm": 1.0, "gru": 0.0}, "missing": ["gru"]}


@pytest.mark.parametrize(
    "record",
    [
        ANSWER,
        ANSWER | {"members": {"lstm": 0.55, "gru": None}, "ensemble": VOTE},
        ANSWER | {"p": {"QUIET": 0.7, "RANGING": 0.3}, "p_low": {"QUIET": None, "RANGING": None}, "label": "QUIET"},
        ANSWER | {"p": None, "p_low": None, "novelty": None, "status": "ABSTAIN", "reason": "NO_EVENT"},
    ],
)
def test_a_stored_model_answer_is_read_and_written_with_the_same_keys(record):
    answer = ModelAnswer.from_dict(json.loads(json.dumps(record)))
    assert json.loads(json.dumps(answer.to_dict())) == record
    assert answer.chance[0] == (record["p"] if isinstance(record["p"], float) else None)


def test_a_decision_is_read_back_as_it_was():
    facts = {**FACTS, "models": {"predictor": {"champion": ModelAnswer.from_dict(ANSWER | {"ensemble": VOTE})}}}
    decision = decide(INPUTS, PARAMS, FLAT, **facts)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def test_a_decision_of_release_0_1_names_the_one_family_there_was():
    record = decide(INPUTS, PARAMS, FLAT, **FACTS).to_dict() | {"models": {"champion": {"p": 0.6, "digest": "a"}}}
    assert Decision.from_dict(record).models == {"validator": {"champion": ModelAnswer("validator", digest="a", p=0.6)}}


def test_inside_a_window_of_the_calendar_nothing_is_opened_and_the_refusal_names_it():
    d = decide(replace(INPUTS, embargo=Window(1704114000.0, 1704117600.0, "CPI")), PARAMS, FLAT, **FACTS)
    assert (d.action, d.size, d.entry) == ("NO_TRADE", 0.0, 100.0)
    assert d.reasons == ("EMBARGO: CPI, 2024-01-01 13:00 to 2024-01-01 14:00 UTC, nothing new is opened",)
    assert d.trail["data"] == "refused: EMBARGO"


# ---- flags of a person


def with_flags(**flags):
    """Return the parameters with names disabled: `signals`, `fusion`."""
    changed = {part: getattr(PARAMS, part).model_copy(update={"disabled": names}) for part, names in flags.items()}
    return PARAMS.model_copy(update=changed)


def test_an_event_of_a_disabled_signal_opens_nothing_and_the_refusal_names_it():
    d = decide(replace(INPUTS, event="fvg", is_disabled=True), PARAMS, FLAT, **FACTS)
    assert (d.action, d.size, d.event, d.entry) == ("NO_TRADE", 0.0, "fvg", 100.0)
    assert d.reasons == ("SIGNAL_DISABLED: fvg is in params.yaml signals.disabled, its events open nothing",)
    assert d.trail["signal"] == "refused: SIGNAL_DISABLED"


def test_a_disabled_category_has_no_vote_and_the_others_share_its_weight():
    flat = flatten(with_flags(fusion=("ict",)))
    before, after = (decide(INPUTS, PARAMS, each, **FACTS).weights for each in (FLAT, flat))
    assert "ict" in before
    assert "ict" not in after
    assert sum(after.values()) == pytest.approx(1.0)
    assert after == pytest.approx({name: w / (1.0 - before["ict"]) for name, w in before.items() if name != "ict"})


def test_flags_are_part_of_the_policys_digest_and_none_leaves_that_of_earlier_releases():
    digests = {policy_of(PARAMS).rules}
    digests |= {policy_of(with_flags(**flags)).rules for flags in ({"signals": ("fvg",)}, {"fusion": ("ict",)})}
    reported = PARAMS.model_copy(update={"account": PARAMS.account.model_copy(update={"source": "reported"})})
    assert len(digests | {policy_of(reported).rules}) == 4


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"signals.disabled: moon raises no event; known: .*fvg.*consensus"):
        policy_of(with_flags(signals=("moon", "fvg")))
    with pytest.raises(ValidationError, match=r"disabled: no category moon; known: .*ict"):
        FusionParams(**{**PARAMS.fusion.model_dump(), "disabled": ("moon",)})
    with pytest.raises(ValidationError, match="nobody votes"):
        FusionParams(**{**PARAMS.fusion.model_dump(), "disabled": tuple(PARAMS.fusion.weights)})


def test_stored_parameters_keep_their_digest_where_this_release_has_more_of_them():
    params = load_params().model_dump(mode="json")
    del params["training"]
    content = json.dumps(params)
    read = policy_of_content(content)
    assert (read.content, read.digest) == (content, hashlib.sha256(content.encode()).hexdigest())
    assert read.rules == policy_of(load_params()).rules
