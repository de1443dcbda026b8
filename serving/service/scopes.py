"""Scopes of client keys: what each one opens, on every server. The guard obeys ROWS, docs/security.md shows it.

A path without a row is closed to client keys; the key of the home opens all of them. Paths that need no key are not
here: `http_rules.PROBES` and the `reads` of a service.
"""

from collections.abc import Collection
from dataclasses import dataclass

SCOPES = {  # scope → what its holder may do
    "read": "follow the stream of decisions",
    "bars": "send bars, books and context",
    "decide": "request decisions and predictions",
    "fills": "report outcomes and fills",
    "mlflow": "use all of MLflow",
    "prefect": "use all of Prefect; a flow runs code as the user of the home",
    "evidently": "use all of Evidently",
}
EVERY_PATH = "*"


@dataclass(frozen=True)
class Row:
    """Hold the scope that a path needs.

    server   name of the server in `bellwether open`
    path     exactly as the server reads it, decoded; EVERY_PATH = all of this server
    lasting  a response that has no end of its own, so it ends with the key
    """

    server: str
    path: str
    scope: str
    lasting: bool = False


ROWS = (
    Row("decision", "/observe", "bars"),
    Row("decision", "/decide", "decide"),
    Row("decision", "/outcome", "fills"),
    Row("decision", "/fill", "fills"),
    Row("decision", "/decisions/stream", "read", lasting=True),
    Row("models", "/predict", "decide"),
    Row("models", "/predict_batch", "decide"),
    Row("mlflow", EVERY_PATH, "mlflow"),
    Row("prefect", EVERY_PATH, "prefect"),
    Row("evidently", EVERY_PATH, "evidently"),
)
_BY_PLACE = {(row.server, row.path): row for row in ROWS}


def row_of(server: str, path: str) -> Row | None:
    """Return the row of a path; None = closed to every client key. No spelling but the row's own is found."""
    return _BY_PLACE.get((server, path)) or _BY_PLACE.get((server, EVERY_PATH))


def opens(server: str, scopes: Collection[str]) -> bool:
    """Return whether any path of a server is open to a key of these scopes."""
    return any(row.server == server and row.scope in scopes for row in ROWS)


def scopes_of(server: str) -> list[str]:
    """Return the scopes that open something of a server, in the order of ROWS."""
    return list(dict.fromkeys(row.scope for row in ROWS if row.server == server))
