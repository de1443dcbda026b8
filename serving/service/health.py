"""One word for how the decision service is, and why: the table in docs/health.md, in code. Pure.

ready      it takes bars and answers durable decisions now
HEALTHY    ready, the validator champion acts, and nothing holds anything back
DEGRADED   ready, and something is reduced: who decides, a symbol that warms up, a model or a file that was refused
UNHEALTHY  not ready, or nothing can be opened on some symbol: tier 4, or a latched breaker
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.state.tiers import EMERGENCY, FULL, SIMPLE, State

Word = Literal["HEALTHY", "DEGRADED", "UNHEALTHY"]


@dataclass(frozen=True, slots=True)
class Health:
    status: Word
    reason: str  # the first thing to look at


def health(
    checks: Sequence[Mapping[str, Any]],
    state: State,
    breakers: Mapping[str, str],
    warming: Mapping[str, str],
    refused: Collection[str],
) -> Health:
    """checks: of readiness, {name, ok, detail}; state: of the worst symbol; breakers: name → why of those latched;
    warming: symbol → why it warms up; refused: what was refused, in words."""
    if red := [f"{check['name']}: {check['detail']}" for check in checks if not check["ok"]]:
        return Health("UNHEALTHY", "; ".join(red))
    if state.tier == EMERGENCY:
        return Health("UNHEALTHY", state.current_tier().reason)
    if breakers:
        return Health("UNHEALTHY", "; ".join(f"breaker {name} is latched: {why}" for name, why in breakers.items()))
    if state.tier > SIMPLE or state.tier_floor > FULL:
        return Health("DEGRADED", state.current_tier().reason)
    if warming:
        return Health("DEGRADED", "; ".join(f"{name}: {why}" for name, why in warming.items()))
    if refused:
        return Health("DEGRADED", "; ".join(refused))
    return Health("HEALTHY", state.current_tier().reason)


def waits_for_first_run(checks: Sequence[Mapping[str, Any]], generation: int, refused: Collection[str]) -> bool:
    """Whether all that is missing is the first `bellwether run`."""
    red = {check["name"] for check in checks if not check["ok"]}
    return red == {"warm start"} and generation == 0 and not refused
