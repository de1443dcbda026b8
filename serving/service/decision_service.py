"""The decision service: observe, decide, outcome, fill, features, models, status, risk, account, ready. Routes only."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer

from pipelines.bootstrap import bootstrap
from pipelines.contracts import Outcome
from pipelines.errors import ClockJumped, ServiceDown
from pipelines.permissions import restrict
from pipelines.settings import load_params, settings
from pipelines.store import StoreFault
from serving.service.answers import (
    DecideResponse,
    FeaturesResponse,
    FillResponse,
    ObserveCallResponse,
    OutcomeCallResponse,
    answer,
    batch_answer,
    decisions_response,
    json_endpoint,
)
from serving.service.connection_limits import GuardedProtocol
from serving.service.decision_engine import DecisionEngine
from serving.service.decision_stream import PATH as STREAM_PATH
from serving.service.decision_stream import DecisionStream
from serving.service.fair_queue import decision_lanes
from serving.service.http_guard import json_response
from serving.service.http_stack import add_http_stack
from serving.service.metrics_folder import keep_in_memory
from serving.service.observe_call import ObserveCall
from serving.service.openapi import QUERIES
from serving.service.schemas import (
    MAX_OBSERVE_BODY,
    DecideRequest,
    EmptyRequest,
    FeaturesRequest,
    FillRequest,
    ObserveBatchRequest,
    ObserveRequest,
    OutcomeBatchRequest,
    OutcomeCall,
    OutcomeRequest,
)
from serving.service.startup import require_home, starting
from serving.service.system_clock import utc_now
from serving.service.tracing import trace_worker

bootstrap()  # the number of BLAS threads is in the environment that `up` passes: BentoML has imported numpy
keep_in_memory()  # before BentoML makes its first counter
require_home()  # before anything of a home is made
trace_worker(BentoMLContainer, "bellwether-decision")  # before BentoML builds its server

P = ParamSpec("P")
PROTECTED = ("/observe", "/decide", "/outcome", "/fill")
STREAM = DecisionStream()  # of this process; its middleware is there before the service is
READS = ("/features", "/models", "/status", "/risk", "/account", "/ready")


def durable(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
    """Answer 503 with the reason when the store, the disk or the clock is in the way of a call.

    Either nothing happened, or what happened is found when the same request comes again.
    """

    @functools.wraps(endpoint)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the endpoint; report a fault of the store, and update the tiers at once."""
        service: Any = args[0]
        engine: DecisionEngine = service._engine
        try:
            return await endpoint(*args, **kwargs)
        except (StoreFault, ServiceDown, ClockJumped, OSError) as error:
            if not isinstance(error, ClockJumped):
                engine.store_monitor.report(error)
            engine.tiers.poll(utc_now())
            reason = (
                f"not done: {str(error).rstrip('.')}. Sending it again is safe; what was stored all the same is found"
            )
            content = {"error": reason, "kind": type(error).__name__, "fields": [], **engine.readiness.worst_tier()}
            return json_response(content, 503)

    return checked


@bentoml.service(
    name="DecisionService",
    workers=1,
    http={"host": "127.0.0.1", "port": 3000},
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    metrics={"enabled": True},
)
class DecisionService:
    """Live decisions on closed bars, each durable before its answer leaves. One process owns its symbols."""

    def __init__(self) -> None:
        """Open the installation; a fault ends the service where its supervisor sees it."""
        restrict()
        with starting():
            where = settings()
            self._engine = DecisionEngine(where, load_params(where.params_file), STREAM)

    @bentoml.on_startup
    async def start(self) -> None:
        """Follow the installation from here on."""
        await self._engine.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Write what is queued and close."""
        await self._engine.stop()

    async def __metrics__(self, counted: str) -> str:
        """Return what BentoML answers at `/metrics`, `counted`, with the gauges."""
        return counted + self._engine.gauges.text()

    @bentoml.api(route="/observe", input_spec=ObserveCall, output_spec=ObserveCallResponse)
    @json_endpoint(ObserveCall)
    @durable
    async def observe(self, request: ObserveCall) -> Any:
        """Take closed base bars, books and context of one symbol, or of a batch of symbols."""
        if not isinstance(request, ObserveBatchRequest):
            return await self._engine.intake.observe(request)
        readable = [one for one in request.observations if isinstance(one, ObserveRequest)]
        found = await self._engine.intake.observe_all(readable)
        return batch_answer("observations", "symbol", request.observations, found)

    @bentoml.api(route="/decide", input_spec=DecideRequest, output_spec=DecideResponse)
    @json_endpoint(DecideRequest)
    @durable
    async def decide(self, request: DecideRequest) -> Any:
        """Decide on the newest closed bar of one symbol or many; the same bar gives the same answer."""
        names = request.symbols or [str(request.symbol)]
        return decisions_response(request, await self._engine.decider.decide_all(names))

    @bentoml.api(route="/outcome", input_spec=OutcomeCall, output_spec=OutcomeCallResponse)
    @json_endpoint(OutcomeCall)
    @durable
    async def outcome(self, request: OutcomeCall) -> Any:
        """Take what became of a decision, or of a batch of them; idempotent by its id."""
        if not isinstance(request, OutcomeBatchRequest):
            return await self._engine.intake.outcome(Outcome(**request.model_dump()))
        readable = [Outcome(**one.model_dump()) for one in request.outcomes if isinstance(one, OutcomeRequest)]
        found = await self._engine.intake.outcome_all(readable)
        return batch_answer("outcomes", "decision_id", request.outcomes, found)

    @bentoml.api(route="/fill", input_spec=FillRequest, output_spec=FillResponse)
    @json_endpoint(FillRequest)
    @durable
    async def fill(self, request: FillRequest) -> Any:
        """Take what a venue reported of a decision's order; idempotent by the report's id."""
        return await self._engine.intake.fill(request)

    @bentoml.api(route="/features", input_spec=FeaturesRequest, output_spec=FeaturesResponse)
    @json_endpoint(FeaturesRequest)
    async def features(self, request: FeaturesRequest) -> Any:
        """Return what the models see at the newest close of a symbol, by column name; null = missing."""
        return self._engine.features(request.symbol, request.family)

    @bentoml.api(route="/models", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def models(self, request: EmptyRequest) -> Any:
        """Return champion and challenger of every family, and what was refused."""
        return self._engine.readiness.models()

    @bentoml.api(route="/status", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def status(self, request: EmptyRequest) -> Any:
        """Return tier and why, models, symbols, breakers, account."""
        return self._engine.readiness.status()

    @bentoml.api(route="/risk", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def risk(self, request: EmptyRequest) -> Any:
        """Return every limit with what is used of it, and what would be refused now."""
        return self._engine.risk()

    @bentoml.api(route="/account", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def account(self, request: EmptyRequest) -> Any:
        """Return equity, profit, drawdown and open positions, and what they rest on."""
        return self._engine.account()

    @bentoml.api(route="/ready", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def ready(self, request: EmptyRequest) -> Any:
        """Return every check behind readiness; 503 until all of them hold."""
        found = self._engine.readiness.ready()
        return answer(found, 200 if found["ready"] else 503)

    async def __is_ready__(self) -> bool:
        """Return whether every check holds; BentoML's own probe."""
        return self._engine.readiness.is_ready


add_http_stack(
    DecisionService,
    tool="decision",
    title="Bellwether decisions",
    text="Send closed bars, books and context; request a decision. Every answer gives its reasons and is durable "
    "before it leaves. observe, decide, outcome, fill and the stream of decisions need the key (artifacts/write_key): "
    "press Authorize, or open this page with `bellwether open decision`.",
    protected_paths=(*PROTECTED, STREAM_PATH),
    reads=READS,
    queries=tuple(QUERIES),
    lanes=decision_lanes(),
    stream=STREAM,
    larger_bodies={"/observe": MAX_OBSERVE_BODY},
)
GuardedProtocol.on_shutdown.append(STREAM.end)  # the server waits for every response before the service stops
