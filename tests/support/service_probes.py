"""Ask a running decision service: its next decision, its status, its alarms."""

import time


def next_decision(client):
    client.observe(15)
    return client.decide()


def bar_with_event(client, limit=60):
    """Decide bar by bar until the validator is asked."""
    for _ in range(limit):
        decision = next_decision(client)
        if decision["models"]["validator"]["champion"]["event"] is not None:
            return decision
    raise AssertionError(f"no event in {limit} bars")


def status(client):
    return client.http.get("/status").json()


def eventually(told, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := told()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def alarms(client, kind):
    return [alarm for alarm in client.store().alarms(open_only=False) if alarm.kind == kind]
