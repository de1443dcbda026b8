"""The middlewares of both services, in one order, and what a worker of BentoML needs before it starts."""

from collections.abc import Mapping
from typing import Any

from serving.service import json_logs
from serving.service.connection_limits import guard_worker
from serving.service.decision_stream import OPERATION, DecisionStream, StreamRoute
from serving.service.decision_stream import PATH as STREAM_PATH
from serving.service.fair_queue import FairQueue, Lane
from serving.service.http_guard import Guard
from serving.service.http_rules import NO_LARGER, PROBES, BufferedJsonBody, HttpRules
from serving.service.json_logs import RequestLog
from serving.service.schemas import MAX_BODY


def add_http_stack(
    service: Any,
    *,
    tool: str,
    title: str,
    text: str,
    protected_paths: tuple[str, ...],
    reads: tuple[str, ...],
    max_body: int = MAX_BODY,
    larger_bodies: Mapping[str, int] = NO_LARGER,
    queries: tuple[str, ...] = (),
    lanes: Mapping[str, Lane] | None = None,
    stream: DecisionStream | None = None,
) -> None:
    """Wrap a BentoML service: log, guard, HTTP rules, whole bodies, and fair queues where `lanes` are given.

    service          the class that `bentoml.service` made; Any, as BentoML ships no types
    tool             name of the server in `bellwether open`, and the audience of its sessions
    protected_paths  calls that need the key
    reads            paths that also take GET and need no key
    max_body         bytes
    larger_bodies    path → bytes, where a call takes more
    queries          reads whose fields a GET has in its query
    lanes            path → its queue
    stream           decisions that a reader follows; a stream takes no lane
    """
    service.add_asgi_middleware(RequestLog)
    service.add_asgi_middleware(Guard, tool=tool, open_paths=(*PROBES, *reads), open_folders=("/static_content/",))
    service.add_asgi_middleware(
        HttpRules,
        title=title,
        text=text,
        protected_paths=protected_paths,
        reads=reads,
        max_body=max_body,
        larger_bodies=larger_bodies,
        queries=queries,
        added={} if stream is None else {STREAM_PATH: {"get": OPERATION}},
    )
    if stream is not None:
        service.add_asgi_middleware(StreamRoute, stream=stream)
    service.add_asgi_middleware(BufferedJsonBody)
    if lanes is not None:
        service.add_asgi_middleware(FairQueue, lanes=lanes)
    guard_worker()
    json_logs.configure()
