"""The Python client, as `from bellwether import Client` gives it.

    from bellwether import Client

    with Client() as client:
        decision = client.decide("SIM/USDT")
        print(decision["action"], decision["size"], decision["reasons"][0])

It talks to the installation of this folder, or to that of BELLWETHER_HOME, and reads the key there.
"""

from serving.client import Client

__all__ = ["Client"]
