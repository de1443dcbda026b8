"""Time one `observe` while many clients call `decide`: the real service, one event loop, clients that never pause.

Run: python -m benchmarks.fairness [--deciders N] [--seconds S]
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.hardship import serving_fixture
from pipelines.contracts import JsonObject
from serving.client import bars_json
from serving.service.keys import write_key

OBSERVE_EVERY_S = 0.01  # a feed pauses; clients that decide here do not


class Connection:
    """Send requests over one keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        """Hold the streams and the head sent with each request."""
        self._reader, self._writer, self._head = reader, writer, head

    @classmethod
    async def to(cls, url: str, key: str) -> "Connection":
        """Open a connection to `url` with `key`."""
        at = urlsplit(url)
        head = f"Host: {at.netloc}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        return cls(*await asyncio.open_connection(at.hostname, at.port), head)

    async def request(self, path: str, body: Any) -> tuple[int, float, bytes, bytes]:
        """Send one POST; return status, milliseconds, and the answer's head and body."""
        sent, started = json.dumps(body).encode(), time.perf_counter()
        self._writer.write(f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        answer = await self._reader.readexactly(int(length.partition(b":")[2]))
        return int(head[9:12]), (time.perf_counter() - started) * 1e3, head, answer

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def observe_among_deciders(
    url: str, key: str, symbol: str, bars: Iterator[Any], deciders: int, seconds: float
) -> JsonObject:
    """Run one observer and `deciders` clients for `seconds`.

    Returns milliseconds of each kind at p50 and p99, how many were answered with which status, and one 429 as it came.
    """
    took: dict[str, list[float]] = {"observe": [], "decide": []}
    statuses: Counter[str] = Counter()
    refused: list[tuple[bytes, bytes]] = []
    until = time.monotonic() + seconds

    async def run_client(kind: str, bodies: Iterator[Any]) -> None:
        """Send bodies until the time is over; wait a second after a 429."""
        connection = await Connection.to(url, key)
        while time.monotonic() < until and (body := next(bodies, None)) is not None:
            status, ms, head, answer = await connection.request(f"/{kind}", body)
            statuses[f"{kind} {status}"] += 1
            if status == 200:
                took[kind].append(ms)
            elif status == 429:
                refused[:] = [(head, answer)]
                await asyncio.sleep(1.0)  # as Retry-After says
            if kind == "observe":
                await asyncio.sleep(OBSERVE_EVERY_S)
        connection.close()

    observed = ({"symbol": symbol, "bars": [bar]} for bar in bars)
    same = iter(lambda: {"symbol": symbol}, None)
    await asyncio.gather(run_client("observe", observed), *(run_client("decide", same) for _ in range(deciders)))
    figures = {
        f"{kind}_p{q}_ms": round(float(np.percentile(ms, q)), 1) if ms else None
        for kind, ms in took.items()
        for q in (50, 99)
    }
    return {**figures, "answers": dict(statuses), "refused": refused[0] if refused else None}


def main() -> None:
    """Print the figures with no decider, one, and many."""
    parser = argparse.ArgumentParser(description="Time observe among many decide clients.")
    parser.add_argument("--deciders", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    with serving_fixture(tiny=True) as (at, settings):
        bars = iter(bars_json(at.live))
        symbol, key = at.params.simulator.symbol, write_key(settings)
        for deciders in (0, 1, options.deciders):
            figures = asyncio.run(
                observe_among_deciders(settings.decision_url, key, symbol, bars, deciders, options.seconds)
            )
            print(json.dumps({"deciders": deciders} | {k: v for k, v in figures.items() if k != "refused"}))


if __name__ == "__main__":
    main()
