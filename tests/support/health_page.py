"""What /ready, /readyz and /status report now, compared with the table of docs/health.md."""

from flows.support import processes
from pipelines.settings import ROOT, Settings
from support.service_probes import eventually, status

TABLE = (ROOT / "docs" / "health.md").read_text()


def reported(client):
    """Return (status of /readyz, health, reason, whether `up` is done); /ready, /readyz and /status agree."""
    for _ in range(3):  # a poll may come between two of them
        answers = [client.http.get(path) for path in ("/ready", "/readyz")]
        words = {(a["health"], a["ready"]) for a in [*(answer.json() for answer in answers), status(client)]}
        if len(words) == 1:
            break
    assert len(words) == 1, words
    assert answers[0].status_code == answers[1].status_code == (200 if answers[0].json()["ready"] else 503)
    content = answers[0].json()
    waits_for = processes.failing_checks(Settings(home=client.home), answers[1].status_code, answers[1].content)
    return answers[0].status_code, content["health"], content["health_reason"], waits_for is None


def row_of(fault):
    """Return the cells of a fault in the table of docs/health.md: /livez, /readyz, health, status line, `up`."""
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| {fault} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def documented(fault):
    """Return (/readyz, health, whether `up` is done) of a fault."""
    livez, readyz, word, _, up = row_of(fault)
    assert livez == "200"
    assert up.startswith(("is done", "restarts it once, then reports why"))
    return int(readyz), word, up.startswith("is done")


def holds(client, fault, reason):
    """Wait until the service reports what the table documents for this fault."""
    wanted = documented(fault)

    def now():
        code, word, _, done = reported(client)
        return code, word, done

    assert eventually(lambda: now() == wanted), (fault, wanted, reported(client))
    assert eventually(lambda: reason in reported(client)[2]), reported(client)
    assert client.http.get("/livez").status_code == 200
