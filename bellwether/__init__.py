"""What a person types or imports: commands, operations, reports, and the Python client.

from bellwether import Client

with Client() as client:
    print(client.decide("SIM/USDT")["action"])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bellwether.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """Return `Client`, imported at its first use: the command line needs neither it nor httpx."""
    if name == "Client":
        from bellwether.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
