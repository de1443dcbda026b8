"""Decisions, and what they rest on: decide, risk, limits, weights, replay, lineage."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bellwether.cli.options import AsJson, AsOf, NewestMarket, canonical, day_or_moment, new_group, past_moment
from bellwether.cli.output import as_known, emit, err, number, paragraph, table
from pipelines.errors import BadValues
from pipelines.settings import load_params, settings

app = new_group()
FULL_FIELDS = (
    "id", "as_of", "action", "direction", "confidence", "p", "edge_bps", "size", "entry", "stop", "take_profits",
    "expiry", "regime", "tier", "arm", "event", "coverage", "generation",
)  # fmt: skip


@app.command()
def decide(
    symbol: NewestMarket = None,
    full: Annotated[bool, typer.Option("--full", help="Every field and every reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Request a decision now and show it.

    Calls the decision service over HTTP. --json prints its whole answer; `bellwether replay` recomputes old decisions.
    """
    from flows.support.installation import open_installation
    from serving.client import Client

    installation = open_installation()
    name = symbol or installation.symbols[0]
    with Client(installation.settings) as client:
        answer = client.decide(name)
    if as_json:
        emit(answer)
        return
    table(name, ["field", "value"], list((full_fields(answer) if full else brief(answer)).items()))
    if full:
        for reason in answer["reasons"] or ["emitted: nothing stood against it"]:
            paragraph(f"· {reason}")


def brief(answer: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields that a trader acts on, from a full answer of /decide."""
    return {
        **{name: answer.get(name) for name in ("action", "size", "entry", "stop")},
        "targets": _joined(answer.get("take_profits")),
        **{name: answer.get(name) for name in ("expiry", "p", "arm", "tier")},
        "first reason": next(iter(answer["reasons"]), "emitted"),
        "id": answer.get("id"),
    }


def full_fields(answer: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields of an answer of /decide that fit on a line."""
    return {name: _joined(answer.get(name)) for name in FULL_FIELDS}


def _joined(value: object) -> object:
    """Return a list as one line of text, None if it is empty; anything else as it is."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    return value


@app.command()
def features(
    symbol: NewestMarket = None,
    family: Annotated[str | None, typer.Option(help="Of one model family, with every value.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the models see at the newest close; --family shows every value.

    By column name, from the live state of the decision service; – is missing. Who looks back on more bars than one sees
    the newest value last: --json prints its whole window.
    """
    from flows.support.installation import open_installation
    from serving.client import Client

    installation = open_installation()
    with Client(installation.settings) as client:
        found = client.features(symbol or installation.symbols[0], family)
    if as_json:
        emit(found)
    elif family is None:
        show_families(found)
    else:
        show_values(found, family)


def show_families(found: Mapping[str, Any]) -> None:
    """Print an answer of /features: a line a family."""
    rows = []
    for family, seen in found["families"].items():
        values = list(map(newest, (seen["values"] or {}).values()))
        rows.append([
            family, seen["steps"], len(values), values.count(None), seen["event"],
            *(arm and f"{len(arm['columns'])} columns, version {arm['version']}"
              for arm in (seen["champion"], seen["challenger"])),
            "; ".join(dict.fromkeys(reasons(seen))) or None,
        ])  # fmt: skip
    table(
        f"what the models see of {found['symbol']} at its close of {found['close']}",
        ["family", "bars", "columns", "missing", "event", "champion reads", "challenger reads", "reason"],
        rows,
    )


def show_values(found: Mapping[str, Any], family: str) -> None:
    """Print an answer of /features about one family: a line a column."""
    seen = found["families"][family]
    read_by = {arm: set(seen[arm]["columns"]) if seen[arm] else set() for arm in ("champion", "challenger")}
    table(
        f"what {family} sees of {found['symbol']} at its close of {found['close']}",
        ["column", "value", "read by"],
        [[column, None if (value := newest(values)) is None else f"{value:.6g}",
          ", ".join(arm for arm, columns in read_by.items() if column in columns) or None]
         for column, values in (seen["values"] or {}).items()],
    )  # fmt: skip
    for reason in dict.fromkeys(reasons(seen)):
        paragraph(reason)


def newest(values: float | list[float | None] | None) -> float | None:
    """Return the newest value of a column; None where it is missing."""
    return values[-1] if isinstance(values, list) else values


def reasons(seen: Mapping[str, Any]) -> list[str]:
    """Return why a family has no row at a close, and why an arm of it is not asked."""
    found = [seen["reason"], *(seen[arm] and seen[arm]["reason"] for arm in ("champion", "challenger"))]
    return [reason for reason in found if reason is not None]


@app.command()
def risk(as_json: AsJson = False) -> None:
    """Show what is used of every risk limit.

    Also the expected shortfall by asset, open positions, the largest new position of each side, tripped breakers and
    the drawdown stage.
    """
    from serving.client import Client

    with Client(settings()) as client:
        found = client.risk()
    if as_json:
        emit(found)
    else:
        show_risk(found)


def show_risk(found: Mapping[str, Any]) -> None:
    """Print an answer of /risk."""
    table(
        f"limits at {found['as_of']}, account by {found['account']}",
        ["limit", "of", "used", "at most", "left", "share"],
        [[row["limit"], row["of"], number(row["used"], 4), number(row["at_most"], 4), number(row["left"], 4),
          None if row["share"] is None else f"{row['share']:.0%}"] for row in found["limits"]],
    )  # fmt: skip
    tail = found["tail"]
    if tail["by_asset"]:
        table(
            f"expected shortfall at {tail['level']:g} over {tail['hours']:g} h by "
            f"{', '.join(sorted(set(tail['methods'].values())))}, {tail['scenarios']:,} scenarios, "
            f"concentration {tail['concentration']:.2f}",
            ["asset", "net", "contribution"],
            [[name, number(part["net"], 4), number(part["es"], 5)] for name, part in tail["by_asset"].items()],
        )
    if found["positions"]:
        table(
            "open positions", ["symbol", "side", "size", "strategy", "entry", "stop", "until (UTC)"],
            [[p["symbol"], p["side"], number(p["size"], 4), p["strategy"], p["entry"], p["stop"], p["expiry"]]
             for p in found["positions"]],
        )  # fmt: skip
    table(
        "a new position with the strongest signal", ["symbol", "side", "largest", "capped by", "refused"],
        [[n["symbol"], n["side"], number(n["max_size"], 4), n["capped_by"], "; ".join(n["refused"]) or None]
         for n in found["next"]],
    )  # fmt: skip
    paragraph(f"drawdown stage {found['stage']}: leaves {found['stage_size_multiplier']:g} of a size; "
         f"breakers: {', '.join(found['breakers']) or 'none tripped'}")  # fmt: skip


@app.command()
def account(as_json: AsJson = False) -> None:
    """Show equity, drawdown and open positions.

    Every figure rests on `account.source` of params.yaml: the ledger's own fills, or what a venue reported at /fill.
    """
    from serving.client import Client

    with Client(settings()) as client:
        found = client.account()
    if as_json:
        emit(found)
    else:
        show_account(found)


def show_account(found: Mapping[str, Any]) -> None:
    """Print an answer of /account."""
    table(
        f"account by {found['source']}, at {found['as_of']}", ["figure", "value"],
        [["equity", number(found["equity"], 5)], ["highest equity", number(found["peak"], 5)],
         ["drawdown", f"{found['drawdown']:.2%}"], [f"profit of {found['day']}", f"{found['daily_pnl']:+.2%}"],
         ["not realised", number(found["unrealised"], 5)], ["gross", number(found["gross"], 4)]],
    )  # fmt: skip
    if found["positions"]:
        table(
            f"open positions by {found['source']}",
            ["symbol", "side", "size", "entry", "filled at (UTC)", "not realised", "until (UTC)"],
            [[p["symbol"], p["side"], number(p["size"], 4), p["entry"], p["filled_at"] or "waits for its fill",
              number(p["unrealised"], 5), p["expiry"]] for p in found["positions"]],
        )  # fmt: skip
    if found["mismatch"] is not None:
        paragraph(f"account_mismatch: {found['mismatch']}; nothing new is opened until a person resets it")


@app.command()
def limits(as_json: AsJson = False) -> None:
    """List every limit of params.yaml.

    Sorted by the layer that checks it.
    """
    from serving.risk.utilisation import limits_of

    found = limits_of(load_params(settings().params_file))
    if as_json:
        emit(found)
    else:
        table("limits", ["layer", "limit", "value", "of"], [list(row.values()) for row in found])


@app.command()
def weights(as_json: AsJson = False) -> None:
    """Show stated and learned weights of the categories.

    Also how often the target of each pattern came before its stop, from the outcomes so far.
    """
    from flows.support.installation import open_installation
    from pipelines.contracts import REGIMES
    from serving.policy.fusion import regime_weights
    from serving.state.online_weights_store import ONLINE_WEIGHTS_FILE, OnlineWeightsStore

    installation = open_installation()
    online = OnlineWeightsStore(installation.settings.serving_dir / ONLINE_WEIGHTS_FILE, installation.params)
    stated = {regime: regime_weights(installation.params.fusion, regime) for regime in (None, *REGIMES)}
    patterns = [
        {"pattern": kind, "regime": regime, "n": hits.n, "mean": hits.mean, "low": hits.low, "high": hits.high}
        for kind, regime, hits in online.patterns()
    ]
    if as_json:
        emit({
            "use": installation.params.learning.use, "outcomes": online.count, "learned": online.weights,
            "stated": {regime or "base": by_category for regime, by_category in stated.items()}, "patterns": patterns,
        })  # fmt: skip
        return
    table(
        f"weights learned from {online.count:,} outcomes (learning.use: {installation.params.learning.use})",
        ["category", "stated", "learned"],
        [[name, number(stated[None][name], 4), number(weight, 4)] for name, weight in online.weights.items()],
    )
    table(
        "stated weights by regime",
        ["category", *REGIMES],
        [[name, *(number(stated[regime][name], 4) for regime in REGIMES)] for name in online.weights],
    )
    table(
        "patterns: chance that the target comes first", ["pattern", "regime", "chance", "95 %", "n, discounted"],
        [[kind, regime, number(hits.mean, 3), f"{hits.low:.3f} to {hits.high:.3f}", number(hits.n, 1)]
         for kind, regime, hits in online.patterns()],
    )  # fmt: skip


@app.command()
def replay(
    decision_id: Annotated[str | None, typer.Argument(help="One decision's id; all of them by default.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Only decisions on this market.", callback=canonical)] = None,
    since: Annotated[str | None, typer.Option(help="Only decisions from this day or moment on, UTC.")] = None,
    last: Annotated[int | None, typer.Option(help="Only the newest so many.")] = None,
    reading: Annotated[
        str, typer.Option(help="then: bars as each decision read them; now: with every correction since.")
    ] = "then",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run models again whose answers came from a card, and compare.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute stored decisions and compare every bit.

    Uses stored bars and bundles alone. Exit code 1 unless every decision is the same: to
    the last bit, or to 1e-12 if it was made on another CPU type. Answers of a card are taken
    from the record; --recompute compares them as well, within 1e-5 (bf16: .02).
    """
    if reading not in ("then", "now"):
        raise BadValues(f"--reading {reading!r} is neither then nor now")
    from bellwether.operations.replay_decisions import replay_decisions
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display

    installation = open_installation()
    if decision_id is not None:
        records = [installation.store.decision(decision_id)]
    else:
        records = installation.store.decisions(symbol, since=day_or_moment(since), last=last)
    with progress_display(err):
        found = replay_decisions(installation, records, "now" if reading == "now" else "then", recompute).to_dict()
    if as_json:
        emit(found)
    else:
        rows = [[name.replace("_", " "), str(value)] for name, value in found.items() if value not in ({}, [])]
        table("replay", ["what", "found"], rows)
    if not found["same"]:
        raise typer.Exit(1)


@app.command()
def lineage(
    decision_id: Annotated[str | None, typer.Argument(help="A decision's id; the newest decision by default.")] = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Trace a decision to its models, code and data.

    From its feature bytes over models, run, commit and data to the promotion record, with its outcome and the
    corrections made since. --as-of shows what was known of it by a moment.
    """
    from bellwether.operations.lineage import trace
    from flows.support.installation import open_installation

    chain = trace(open_installation(), decision_id, past_moment(as_of))
    if as_json:
        emit(chain)
        return
    table(
        f"lineage of {chain['decision']['id']}{as_known(chain['known_by'])}",
        ["link", "value"],
        list(chain["links"].items()),
    )
    for gap in chain["broken"]:
        paragraph(gap, lead="broken")
