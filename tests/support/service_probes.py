"""Probe a running decision service: its next decision, its status, its alarms."""

import time


def next_decision(client):
    """Send the next decision bar; return the decision on it."""
    client.observe(15)
    return client.decide()


def bar_with_event(client, limit=60):
    """Decide bar by bar until the validator has an event; return that decision."""
    for _ in range(limit):
        decision = next_decision(client)
        if decision["models"]["validator"]["champion"]["event"] is not None:
            return decision
    raise AssertionError(f"no event in {limit} bars")


def status(client):
    """Return the answer of /status."""
    return client.http.get("/status").json()


def eventually(condition, seconds=15):
    """Call `condition` until it is true; return its last result."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def alarms(client, kind):
    """Return the alarms of a kind, open or cleared."""
    return [alarm for alarm in client.store().alarms(open_only=False) if alarm.kind == kind]
