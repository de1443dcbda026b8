"""Find free ports for servers that a test or a benchmark starts."""

import random
import socket

# Below the ports that Linux gives to outgoing connections (32768 and up): while a server is down after a kill, no
# client of another is on its port when it comes back.
LOWEST, HIGHEST = 15_000, 32_000


def free_ports(n: int) -> list[int]:
    """Return n different free ports of loopback. Another process may take one before it is used."""
    found: list[int] = []
    while len(found) < n:
        port = random.randint(LOWEST, HIGHEST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
