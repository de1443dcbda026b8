"""The Python client of a running installation.

from bellwether import Client

with Client() as client:
    print(client.decide("SIM/USDT"))
"""

from serving.client import Client

__all__ = ["Client"]
