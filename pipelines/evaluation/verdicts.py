"""The three states of a check and of a verdict, by name: passed, refused, or too few rows to decide."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

from pipelines.contracts import JsonObject, Verdict

State = Literal["passed", "refused", "too few"]
LEAK = "LEAK_SUSPECTED"  # in the reason of a check
MARKS: dict[State, str] = {"passed": "✓", "refused": "✗", "too few": "?"}  # on pages


def state_of(passed: bool | None) -> State:
    """Return the state of a check by name."""
    return "too few" if passed is None else "passed" if passed else "refused"


def verdict_state(verdict: Verdict) -> State:
    """Return the state of a verdict: too few where no check refused and some could not decide."""
    if verdict.passed:
        return "passed"
    return "refused" if any(check.passed is False for check in verdict.checks) else "too few"


def verdict_record(verdict: Verdict) -> JsonObject:
    """Return the verdict JSON-ready, with its state and that of every check."""
    checks = [asdict(check) | {"state": state_of(check.passed)} for check in verdict.checks]
    return asdict(verdict) | {"state": verdict_state(verdict), "checks": checks}


def is_leak_suspected(reasons: Iterable[str]) -> bool:
    """Return whether the reasons of a verdict suspect a leak."""
    return any(LEAK in reason for reason in reasons)
