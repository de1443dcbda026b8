"""`python -m flows.launch.prefect_app`: the Prefect server as `prefect server start` runs it, behind our guard."""

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings

from pipelines.settings import settings
from serving.guard import Guard

HEALTH = "/api/ready"


def main() -> None:
    """Serve the API, the UI and the background services on the host and port of our settings, until SIGTERM."""
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
