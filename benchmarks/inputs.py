"""Odd input to the two services as they are really started: nothing that arrives may be answered with a 5xx.

Half of it is made by Schemathesis from what `docs.json` says is taken, right and wrong; half is our own: bodies that
would be right but for one or two odd values, and requests that are odd as HTTP. Both come from one seed. A 5xx, a
connection that ends without an answer where one is due, and a worker that had to be started again are counted.

`python -m benchmarks.inputs [--count N] [--seed N] [--store URL]` prints the counts as JSON; exit 1 if any is not 0.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import base64
import copy
import gzip
import json
import random
import socket
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.fixture import FAMILY
from benchmarks.hardship import house
from benchmarks.services import service_processes
from pipelines.settings import Settings
from serving.client import Client
from serving.inference.model_client import packed
from serving.service.keys import write_key
from serving.service.openapi import complete_spec

NAMES = ("decision", "models")
PATIENCE_S = 20.0
SHOWN = 20  # answers nobody may get, kept as examples


@dataclass
class Tally:
    """answers: (service, source, status) → how many; taken: path → how many of ours were right and did their work;
    `wrong` are the first of those nobody may get."""

    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, str]] = field(default_factory=list)

    def take(self, service: str, source: str, status: str, asked: bytes, answer: bytes) -> None:
        self.answers[service, source, status] += 1
        if (status.startswith("5") or status == "none") and len(self.wrong) < SHOWN:
            self.wrong.append(
                {"service": service, "status": status, "asked": repr(asked[:600]), "answer": repr(answer[-300:])}
            )


# ---- made from docs.json --------------------------------------------------------------------------------------------


def from_schema(service: str, url: str, key: str, seed: int, count: int, tally: Tally) -> None:
    """`count` cases, as many of each call; where the calls' schemas allow fewer, fewer."""
    import hypothesis
    import requests
    import schemathesis
    from schemathesis import GenerationMode

    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {key}"
        spec = complete_spec(session.get(f"{url}/docs.json", timeout=PATIENCE_S).json(), needs_key=())
        calls = [found.ok() for found in schemathesis.openapi.from_dict(spec).get_all_operations()]
        bodies = [call for call in calls if call.body]  # the others have one case

        def ask(case: Any) -> None:
            kwargs = case.as_transport_kwargs(base_url=url)
            answer = session.request(**{**kwargs, "timeout": PATIENCE_S})
            asked = f"{case.method} {case.formatted_path} {kwargs.get('json', kwargs.get('data'))}".encode(
                errors="replace"
            )
            tally.take(service, "schema", str(answer.status_code), asked, answer.content)

        for i, call in enumerate(calls):
            for mode in GenerationMode if call in bodies else (GenerationMode.POSITIVE,):
                n = max(1, count // (2 * len(bodies)))
                strategy = call.as_strategy(generation_mode=mode)
                hypothesis.seed(seed * 1000 + i)(
                    hypothesis.settings(
                        max_examples=n, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                        suppress_health_check=list(hypothesis.HealthCheck),
                    )(hypothesis.given(strategy)(ask))
                )()  # fmt: skip


# ---- made by us -----------------------------------------------------------------------------------------------------


class Raw(str):
    """Text that goes into JSON as it is."""


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{dumped(k)}:{dumped(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value)


MOMENTS = (
    "9999-12-31T23:59-23:59", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00+23:59", "0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "2262-04-11T23:47:16Z", "2024-02-30T00:00:00Z",
    "2024-01-09T08:00:00",
    "2024-01-09", "2024-01-09T08:00:00+25:00", "2024-01-09T24:00:00Z", "2024-01-09T23:59:60Z", "-0001-01-01T00:00:00Z",
    "2024-01-09T08:00:00.123456789123Z", "1704787200", "soon", "",
)  # fmt: skip
VALUES = (
    *map(Raw, (
        "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "-1e308", "5e-324", "1e18", "1e19", "-0.0",
        "1" + "0" * 400,
        "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
        "4611686018427387904",
        "0x10", "01", "+1", "1.", ".5", "1e", "'a'", "undefined", "True",
        r'"\ud800"', r'"\udfff\ud800"', r'"\u0000"', r'"a\u0000b"', r'"\u001b[2J"', r'"a\nb"', r'"\u2028"', r'"\u202e"',
    )),
    True, False, None, 0, 1, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 0.1, -1.5, "", "1.5", "NaN", "null", " ",
    "é", "💥", "\x7f",
    "'; drop table decisions; --", "../../etc/passwd", "%00", "{{7*7}}", "${jndi:ldap://x}", [], {}, [[]],
    [None], {"": {}},
    *MOMENTS,
)  # fmt: skip
KEYS = (
    "",
    "__class__",
    "__proto__",
    "model_config",
    "model_fields",
    "symbol",
    "self",
    "a\nb",
    "\x1b[2J",
    "\x00",
    "é",
    "k" * 5000,
)
DEEP = 50_000
MAX_BODY = 3 << 20  # bytes; more than the decision service takes


def templates(settings: Settings, key: str) -> dict[str, Callable[[random.Random], dict[str, Any]]]:
    """Path → a body that the service would take."""
    headers = {"Authorization": f"Bearer {key}"}
    with Client(settings) as client:
        symbol = next(iter(client.status()["symbols"]))
        decision = client.decide(symbol)["id"]
    champion = httpx.get(f"{settings.model_url}/models").json()["families"][FAMILY]["champion"]
    columns = champion["columns"]

    def observe(rng: random.Random) -> dict[str, Any]:
        told = httpx.post(f"{settings.decision_url}/status", json={}, headers=headers).json()["symbols"][symbol]
        at = datetime.fromisoformat(told["last_bar"])  # the bar after it is one that fits
        bars = []
        for _ in range(rng.choice((1, 1, 2, 15))):
            low = 10.0 ** rng.choice((-15, -9, 0, 4, 4, 4, 9, 17))
            at += timedelta(minutes=1)
            bars.append(
                {"open_time": at.isoformat(), "open": low, "high": low * rng.choice((1.0, 1.001, 9.0)), "low": low,
                 "close": low, "volume": rng.choice((0.0, 1e-15, 3.0, 1e18)), "trades": 3.0, "taker_buy_volume": 0.0}
            )  # fmt: skip
        book = {
            "known_at": at.isoformat(),
            "bids": [[low, 1.0, 2]],
            "asks": [[low * 1.001, 1.0]],
            "tape": {"vpin": 0.5},
        }
        value = {"field": "open_interest", "known_at": at.isoformat(), "value": rng.choice((7.0, -1e18, 1e18))}
        return {"symbol": symbol, "bars": bars} | rng.choice(({}, {"books": [book]}, {"context": [value]}))

    def outcome(rng: random.Random) -> dict[str, Any]:
        figures = {name: rng.choice((0.0, 5.0, -1e18, 1e18)) for name in ("gross_bps", "net_bps", "cost_bps")}
        at = rng.choice(("2024-01-09T08:00:00Z", "1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z"))
        return {"decision_id": decision, "resolved_at": at, "label": 1, "barrier": "target"} | figures

    def fill(rng: random.Random) -> dict[str, Any]:
        price = rng.choice((1e-15, 1.0, 1e18))
        told = {"id": f"fill-{rng.random()}", "decision_id": decision, "at": "2024-01-09T08:00:00Z"}
        return told | rng.choice(({"status": "filled", "price": price}, {"status": "rejected", "reason": "no"}))

    def predict(rng: random.Random) -> dict[str, Any]:
        row = [rng.choice((0.5, 0.0, -1e18, 1e18, 1e-300, None)) for _ in columns]
        return {"family": FAMILY} | rng.choice(({"rows": [row]}, {"features": [dict(zip(columns, row, strict=True))]}))

    def answer(rng: random.Random) -> dict[str, Any]:
        values = np.array([[rng.choice((0.5, np.nan, np.inf, -np.inf, 1e308, 5e-324)) for _ in columns]])
        rows = packed(values)
        wrapping = rng.choice(
            (None, None, [2**32, 2**32], [2**62, 4], [2**62], [1, 2**64 + 1], [0, 5], [-1, -1], [], [1] * 9)
        )
        if wrapping is not None:
            rows = {"shape": wrapping, "f8": rng.choice((rows["f8"], "", base64.b64encode(b"\0" * 8).decode()))}
        digest = rng.choice((champion["digest"], "0" * 64))
        asked = {"family": FAMILY, "digests": {"champion": digest}, "columns": columns, "rows": rows}
        return {"asks": [asked] * rng.choice((0, 1, 2))}

    nothing: Callable[[random.Random], dict[str, Any]] = lambda rng: {}  # noqa: E731
    decide: Callable[[random.Random], dict[str, Any]] = lambda rng: rng.choice(  # noqa: E731
        ({"symbol": symbol}, {"symbols": [symbol] * rng.choice((1, 3, 256, 257))})
    )
    return {
        "/observe": observe, "/decide": decide, "/outcome": outcome, "/fill": fill, "/predict": predict,
        "/answer": answer, "/models": nothing, "/status": nothing, "/risk": nothing, "/ready": nothing,
    }  # fmt: skip


def spoilt(rng: random.Random, value: Any) -> Any:
    """The same with one value, key or part of it odd."""
    value = copy.deepcopy(value)
    holders: list[Any] = []

    def walk(at: Any) -> None:
        if isinstance(at, dict | list) and at:
            holders.append(at)
            for child in at.values() if isinstance(at, dict) else at:
                walk(child)

    walk(value)
    if not holders or rng.random() < 0.1:
        return rng.choice((rng.choice(VALUES), [value], {rng.choice(KEYS): value}))
    at = rng.choice(holders)
    where = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    match rng.randrange(6):
        case 0:
            del at[where]
        case 1 if isinstance(at, dict):
            at[rng.choice(KEYS)] = rng.choice(VALUES)
        case 2 if isinstance(at, list):
            at *= rng.choice((0, 2, 3000 if len(dumped(at)) < 10_000 else 3))
        case 3:
            at[where] = rng.choice(("x" * 1_000_000, "x" * 65, [1.5] * 10_000, {str(i): i for i in range(3000)}))
        case _:
            at[where] = rng.choice(VALUES)
    return value


def body_of(rng: random.Random, right: dict[str, Any]) -> bytes:
    value: Any = right
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
        value = spoilt(rng, value)
    body = dumped(value).encode("utf-8", "surrogatepass")[:MAX_BODY]
    match rng.randrange(40):
        case 0:
            return body[: rng.randrange(len(body) + 1)]
        case 1:
            return b"\xef\xbb\xbf" + body
        case 2:
            return body.decode("utf-8", "replace").encode("utf-16")
        case 3:
            return gzip.compress(body)
        case 4:
            return rng.randbytes(rng.choice((1, 10, 1000)))
        case 5:
            return body.replace(b'"', b"\xff", 1)
        case 6:
            return rng.choice((b"[", b'{"a":', b'{"symbol":[')) * DEEP
        case 7:
            return b"[" * DEEP + b"]" * DEEP
        case 8:
            return b'{"symbol":"a","symbol":' + body + b"}"
        case 9:
            return rng.choice((b"", b" ", b"null", b"\x00", b"\n\n", b"true", b"[]", b'""'))
        case 10:
            part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
            return part * rng.choice((1, 1001, 5000)) + b"--b--\r\n"
        case 11:
            return rng.choice(
                (b"--b\r\nbad header\r\n\r\nx\r\n--b--", b"--b\r\n: \r\n\r\n", b"--b", b"a=1&b=%ff&c[]=%")
            )
        case 12:
            return body + body
        case _:
            return body


METHODS = (
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"TRACE",
    b"POST",
    b"CONNECT",
    b"PROPFIND",
    b"post",
    b"FOO",
)
TYPES = (
    b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=b", b"multipart/mixed",
    b'multipart/form-data; boundary="b', b"application/x-www-form-urlencoded", b"application/vnd.bentoml+pickle",
    b"text/plain", b"application/xml", b"application/json; charset=utf-16", b"application/json;charset=nonsense", b"",
    b"application/JSON", b"application/json, text/plain", b";", b"\xff\xfe", b"a/b;" * 500, b"image/png",
    b"application/json",
)  # fmt: skip
HEADERS = (
    (b"content-encoding", b"gzip"), (b"content-encoding", b"br, gzip"), (b"accept", b"text/html"), (b"accept", b"\xff"),
    (b"accept-encoding", b"gzip;q=nan"), (b"expect", b"100-continue"), (b"expect", b"magic"), (b"range",
    b"bytes=0-0,-1"),
    (b"range", b"bytes=99-1"), (b"if-modified-since", b"soon"), (b"if-none-match", b"*"), (b"if-range", b"x"),
    (b"cookie", b"=;=;\xff;a=" + b"b" * 4000), (b"x-request-id", b"a b\x80"), (b"x-request-id", b"x" * 65),
    (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"0" * 16 + b"-01"), (b"traceparent", b"\xff"), (b"baggage",
    b"a=b;c,=%ff" * 200),
    (b"tracestate", b"=,=,=" * 100), (b"x-forwarded-for", b"999.1.1.1, \xff"), (b"x-forwarded-proto", b"ws"),
    (b"x-forwarded-host", b"evil.example"), (b"origin", b"null"), (b"origin", b"http://evil.example"),
    (b"authorization", b"Basic \xff"), (b"authorization", b"Bearer"), (b"connection", b"close, upgrade"),
    (b"upgrade", b"h2c"), (b"x-long", b"y" * 30_000), (b"x-many", b"z"), (b"transfer-encoding", b"chunked"),
    (b"transfer-encoding", b"gzip, chunked"), (b"te", b"trailers"), (b"args", b"{}"), (b"buffer-lengths", b"1,2,x"),
    (b"bentoml-payload-meta", b"{"), (b"sec-websocket-key", b"x"),
)  # fmt: skip


def path_of(rng: random.Random, path: str) -> bytes:
    plain = path.encode()
    if rng.random() < 0.75:
        return plain
    return rng.choice(
        (
            b"/" + plain, plain + b"/", b"/%6f" + plain[2:], plain + b"%00", plain + b"?a=%ff&b=" + b"c" * 3000,
            plain + b"?", plain + b"/submit",
            b"/.." + plain, b"/static_content/../../../etc/passwd", b"/static_content/%2e%2e/%2e%2e/x",
            b"/static_content/\x80",
            b"/static_content/a%00b", b"/static_content/" + b"a" * 300, b"/static_content",
            b"/static_content/swagger-ui.css",
            b"/" + b"a" * 9000, b"*", b"http://127.0.0.1" + plain, b"/\xc3\xa9", b"/%", b"/%zz", b"/%ff%fe",
            b"", b"/#", b"/docs.json", b"/schema.json",
            b"/livez", b"/healthz", b"/metrics", b"/readyz", b"/", b"/a b", b"/%0d%0aX: y", plain + b";x=1",
            plain.upper(), b"/" + b"%41" * 3000,
        )
    )  # fmt: skip


def request_of(rng: random.Random, path: str, right: dict[str, Any], host: bytes, key: str) -> tuple[bytes, bool]:
    """The bytes of a request, and whether the connection may end without an answer: it lies about its length, waits for
    what never comes, or asks to be closed while it may still be sending."""
    method = b"POST" if rng.random() < 0.75 else rng.choice(METHODS)
    body = body_of(rng, right)
    headers = (
        [(b"host", host)]
        if rng.random() < 0.97
        else rng.choice(([], [(b"host", b"evil.example")], [(b"host", host)] * 2))
    )
    if rng.random() < 0.97:
        headers.append((b"authorization", b"Bearer " + key.encode()))
    headers.append((b"content-type", b"application/json" if rng.random() < 0.8 else rng.choice(TYPES)))
    length = len(body)
    lies = False
    if rng.random() < 0.01:
        lies, length = True, length + rng.choice((1, 10**6, 10**12, 10**30))
    if (method == b"POST" or rng.random() < 0.3) and rng.random() < 0.99:
        headers.append((b"content-length", str(length).encode()))
    else:
        body, lies = b"", False
    if rng.random() < 0.15:
        headers += rng.sample(HEADERS, rng.randint(1, 3))
    if any(name == b"x-many" for name, _ in headers):
        headers += [(b"x-many", b"z")] * 500
    rng.shuffle(headers)
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    whole = method + b" " + path_of(rng, path) + b" HTTP/1.1\r\n" + lines + b"\r\n" + body
    waits = any(name in (b"transfer-encoding", b"upgrade", b"expect", b"connection") for name, _ in headers)
    return whole, lies or waits


def answer_to(port: int, asked: bytes, ends: bool) -> tuple[str, bytes]:
    """Status and bytes of the answer; "none" where the connection ends without one. `ends`: say that no more comes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave no port behind
        try:
            connection.sendall(asked)
            if ends:
                connection.settimeout(0.5)  # what is due comes at once; for the rest we do not wait
            while not _whole(answer, asked.startswith(b"HEAD")) and (piece := connection.recv(1 << 16)):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass  # it is told by what had come
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed" if ends else "none"
    return status, answer


def _whole(answer: bytes, bare: bool) -> bool:
    head, split, body = answer.partition(b"\r\n\r\n")
    if not split:
        return False
    if head.startswith((b"HTTP/1.1 100", b"HTTP/1.1 101")):
        return True
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bare or len(body) >= int(line.partition(b":")[2])
    return bare or body.endswith(b"0\r\n\r\n")


def ours(settings: Settings, key: str, seed: int, count: int, tally: Tally) -> None:
    rng, right = random.Random(seed), templates(settings, key)
    by_service = {"decision": settings.decision_url, "models": settings.model_url}
    paths = {
        "decision": ["/observe", "/observe", "/decide", "/outcome", "/fill", "/models", "/status", "/risk", "/ready"],
        "models": ["/predict", "/predict", "/answer", "/answer", "/models", "/ready"],
    }
    for _ in range(count):
        service = rng.choice(("decision", "models"))
        path, port = rng.choice(paths[service]), urlsplit(by_service[service]).port or 0
        asked, ends = request_of(rng, path, right[path](rng), f"127.0.0.1:{port}".encode(), key)
        status, answer = answer_to(port, asked, ends)
        tally.take(service, "ours", status, asked, answer)
        tally.taken[path] += status == "200" and asked.startswith(b"POST " + path.encode() + b" ")


# ---- together --------------------------------------------------------------------------------------------------------


def run(seed: int, count: int, store_url: str = "") -> dict[str, Any]:
    """About `count` inputs to both services, started for it.

    Returns inputs (how many), answers (service, source and status → how many), taken (path → how many of our own bodies
    were taken), and what must be 0: server_faults (5xx),
    unanswered, restarts (of a worker); wrong are examples of those; seconds.
    """
    warnings.simplefilter("ignore")  # of Schemathesis, about what our schemas leave open
    tally, began = Tally(), time.monotonic()
    with house(tiny=True, store_url=store_url, names=NAMES) as (_, settings):
        key = write_key(settings)
        before = {name: process.pid for name, process in service_processes(settings, NAMES).items()}
        ours(settings, key, seed, count // 2, tally)
        for service, url in (("decision", settings.decision_url), ("models", settings.model_url)):
            from_schema(service, url, key, seed, count // 4, tally)
        ours(settings, key, seed + 1, max(0, count - tally.answers.total()), tally)
        after = {name: process.pid for name, process in service_processes(settings, NAMES).items()}
    by_status: Counter[str] = Counter()
    for (_, _, status), n in tally.answers.items():
        by_status[status] += n
    return {
        "seed": seed,
        "inputs": by_status.total(),
        "answers": {" ".join(told): n for told, n in sorted(tally.answers.items())},
        "taken": dict(tally.taken),
        "server_faults": sum(n for status, n in by_status.items() if status.startswith("5")),
        "unanswered": by_status["none"],
        "restarts": sum(after.get(name) != pid for name, pid in before.items()),
        "wrong": tally.wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Odd input to the two services.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--store", default="", help="URL of the store; a SQLite file of its own if left out")
    asked = parser.parse_args()
    found = run(asked.seed, asked.count, asked.store)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["server_faults"] or found["unanswered"] or found["restarts"]))


if __name__ == "__main__":
    main()
