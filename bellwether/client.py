"""The Python client, as `from bellwether import Client` gives it.

    from bellwether import Client

    with Client() as client:
        decision = client.decide("SIM/USDT")
        print(decision["action"], decision["size"], decision["reasons"][0])

    with Client() as client:
        for seq, decision in client.stream(after=4711):    # each as it becomes durable, in the order of the ledger
            print(seq, decision["symbol"], decision["action"])

It talks to the installation of this folder, or to that of BELLWETHER_HOME, and reads the key there. With the key
of a client (`bellwether key add`) in BELLWETHER_WRITE_KEY it may do what the scopes of that key open.
"""

from serving.client import Client

__all__ = ["Client"]
