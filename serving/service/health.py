"""One word for how the decision service is, and why: the table in docs/health.md, in code. Pure.

ready      it takes bars and answers durable decisions now
HEALTHY    ready, the validator champion decides, and nothing is reduced
DEGRADED   ready, and something is reduced: who decides, a symbol that warms up, a model or a file that was refused
UNHEALTHY  not ready, or nothing can be opened on some symbol: tier 4, or a tripped breaker
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.inference.generation_watcher import Check
from serving.state.tiers import EMERGENCY, FULL, SIMPLE, State

Word = Literal["HEALTHY", "DEGRADED", "UNHEALTHY"]


@dataclass(frozen=True, slots=True)
class Health:
    """Report health in one word; `reason` is the first thing to look at."""

    status: Word
    reason: str


def health(
    checks: Sequence[Check],
    state: State,
    breakers: Mapping[str, str],
    warming: Mapping[str, str],
    refused: Collection[str],
) -> Health:
    """Return health from everything it depends on, the gravest first.

    checks    of readiness
    state     tier of the worst symbol
    breakers  name → why, of the tripped ones
    warming   symbol → why it warms up
    refused   what was refused, one sentence each
    """
    if red := failing(checks):
        return Health("UNHEALTHY", "; ".join(f"{check['name']}: {check['detail']}" for check in red))
    if state.tier == EMERGENCY:
        return Health("UNHEALTHY", state.current_tier().reason)
    if breakers:
        return Health("UNHEALTHY", "; ".join(f"breaker {name} tripped: {why}" for name, why in breakers.items()))
    if state.tier > SIMPLE or state.tier_floor > FULL:
        return Health("DEGRADED", state.current_tier().reason)
    if warming:
        return Health("DEGRADED", "; ".join(f"{name}: {why}" for name, why in warming.items()))
    if refused:
        return Health("DEGRADED", "; ".join(refused))
    return Health("HEALTHY", state.current_tier().reason)


def failing(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that do not hold."""
    return [check for check in checks if not check["ok"]]


def waits_for_first_run(checks: Sequence[Check], generation: int, refused: Collection[str]) -> bool:
    """Return whether all that is missing is the first `bellwether run`."""
    red = {check["name"] for check in failing(checks)}
    return red == {"warm start"} and generation == 0 and not refused
