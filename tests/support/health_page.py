"""What /ready, /readyz and /status say now, against the table of docs/health.md."""

from flows.support import processes
from pipelines.settings import ROOT, Settings
from support.service_probes import eventually, status

TABLE = (ROOT / "docs" / "health.md").read_text()


def said(client):
    """(status of /readyz, health, reason, whether `up` is done): /ready, /readyz and /status say the same."""
    for _ in range(3):  # a look may come between two of them
        answers = [client.http.get(path) for path in ("/ready", "/readyz")]
        words = {(a["health"], a["ready"]) for a in [*(answer.json() for answer in answers), status(client)]}
        if len(words) == 1:
            break
    assert len(words) == 1, words
    assert answers[0].status_code == answers[1].status_code == (200 if answers[0].json()["ready"] else 503)
    told_now = answers[0].json()
    waits_for = processes.failing_checks(Settings(home=client.home), answers[1].status_code, answers[1].content)
    return answers[0].status_code, told_now["health"], told_now["health_reason"], waits_for is None


def row_of(fault):
    """The cells of a fault in the table of docs/health.md: /livez, /readyz, health, status line, `up`."""
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| {fault} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def documented(fault):
    """(/readyz, health, whether `up` is done) of a fault."""
    livez, readyz, word, _, up = row_of(fault)
    assert livez == "200"
    assert up.startswith(("is done", "restarts it once, then says why"))
    return int(readyz), word, up.startswith("is done")


def holds(client, fault, reason):
    """Wait until what is said is what the table says of this fault."""
    wanted = documented(fault)

    def now():
        code, word, _, done = said(client)
        return code, word, done

    assert eventually(lambda: now() == wanted), (fault, wanted, said(client))
    assert eventually(lambda: reason in said(client)[2]), said(client)
    assert client.http.get("/livez").status_code == 200
