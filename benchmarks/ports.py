"""Ports for servers of one's own."""

import socket
from contextlib import ExitStack


def free_ports(n: int) -> list[int]:
    """n different ports of 127.0.0.1 nobody listens on."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
