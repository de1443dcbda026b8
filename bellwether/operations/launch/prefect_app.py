"""Run the Prefect server as `prefect server start` does, behind our guard.

`python -m bellwether.operations.launch.prefect_app`
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import os
import zoneinfo
from functools import cache

import uvicorn

from pipelines.settings import settings
from serving.service.http_guard import Guard

HEALTH = "/api/ready"


def main() -> None:
    """Serve the API, the UI and the background services on the host and port of our settings, until SIGTERM."""
    # for clients; the server lists its settings at /api/admin/settings, where a browser session could read the key
    os.environ.pop("PREFECT_CLIENT_CUSTOM_HEADERS", None)
    # Prefect goes through the files of all time zones for each schedule that it reads or returns: hundreds a start
    zoneinfo.available_timezones = cache(zoneinfo.available_timezones)
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    where, prefect = settings(), get_current_settings()
    uvicorn.run(
        Guard(
            create_app(final=True),
            tool="prefect",
            probes={"/livez": "/api/health", "/healthz": "/api/health", "/readyz": HEALTH},
        ),
        host=where.host,
        port=where.prefect_port,
        timeout_keep_alive=prefect.server.api.keepalive_timeout,
        ws_ping_interval=prefect.server.api.websocket_ping_interval,
        ws_ping_timeout=prefect.server.api.websocket_ping_timeout,
        log_level=prefect.server.logging_level.lower(),
        access_log=False,  # it would record the tickets of one-time links
    )


if __name__ == "__main__":
    main()
