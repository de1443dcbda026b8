"""Run Evidently UI as `evidently ui` does, behind our guard: `python -m bellwether.operations.launch.evidently_app`."""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import sys

import uvicorn
from evidently.ui.service.app import create_app, get_config

from pipelines.monitoring.report import set_aside_unreadable
from pipelines.settings import settings
from serving.service.http_guard import Guard

HEALTH = "/api/version"


def main() -> None:
    """Serve the reports under `<home>/evidently` on the host and port of our settings, until SIGTERM."""
    where = settings()
    for file in set_aside_unreadable(where.home / "evidently"):
        print(f"{file} holds half of a report: set aside as {file.name}.unreadable", file=sys.stderr)
    config = get_config(where.host, where.evidently_port, str(where.home / "evidently"))
    uvicorn.run(
        Guard(create_app(config), tool="evidently", probes=dict.fromkeys(("/livez", "/healthz", "/readyz"), HEALTH)),
        host=where.host,
        port=where.evidently_port,
        access_log=False,  # it would record the tickets of one-time links
    )


if __name__ == "__main__":
    main()
