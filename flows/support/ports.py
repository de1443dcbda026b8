"""Check that our ports are free, and name the processes that use them."""

import socket
import time
from collections.abc import Collection, Mapping

import psutil

from pipelines.errors import BadValues, PortTaken

CLOSING_SECONDS = 3.0  # a process that was killed may need so long until its sockets are closed


def is_free(host: str, port: int) -> bool:
    """Return True if a server could listen on (host, port) now; closing connections of an earlier one do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def holder(port: int) -> str:
    """Return what listens on `port`, as "process 4711 (python -m http.server)"; another user's cannot be named."""
    for pid in holders(port):
        try:
            command = " ".join(psutil.Process(pid).cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            command = "command not readable"
        return f"process {pid} ({command[:100]})"
    return "a process of another user"


def holders(port: int) -> list[int]:
    """Return the pids that listen on `port`, as far as this user may see them."""
    return [
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    ]


def _becomes_free(host: str, port: int) -> bool:
    """Return True if a taken port without a visible process becomes free within CLOSING_SECONDS.

    Threads of a killed process may hold it a moment longer than the process can be seen.
    """
    deadline = time.monotonic() + CLOSING_SECONDS
    while time.monotonic() < deadline and not holders(port):
        if is_free(host, port):
            return True
        time.sleep(0.05)
    return is_free(host, port)


def variable(field: str) -> str:
    """Return the environment variable that sets a field of Settings."""
    return f"BELLWETHER_{field.upper()}"


def check(host: str, wanted: Mapping[str, tuple[str, int]], ours: Collection[int] = ()) -> None:
    """Raise if a port is used by another process or given to two services.

    wanted    service → (its field in Settings, its port)
    ours      pids that may use one: they are ended before the port is needed
    Raises    BadValues if two services were given one port; PortTaken naming port, service, holder and setting
    """
    owners: dict[int, str] = {}
    for service, (field, port) in wanted.items():
        if port in owners:
            raise BadValues(
                f"{service} and {owners[port]} were both given port {port}. Set {variable(field)} to another."
            )
        owners[port] = service
    for service, (field, port) in wanted.items():
        if is_free(host, port) or (ours and set(holders(port)) & set(ours)):
            continue
        if not _becomes_free(host, port):
            raise PortTaken(
                f"port {port} of {service} is used by {holder(port)}. "
                f"Stop it, or give {service} another port: {variable(field)}={_next_free(host, port, owners)}"
            )


def _next_free(host: str, port: int, owners: Mapping[int, str]) -> int | str:
    """Return the next higher port that is free and not ours; a placeholder if the next 100 are taken."""
    free = (other for other in range(port + 1, min(port + 100, 65536)) if other not in owners and is_free(host, other))
    return next(free, "<a free port>")
