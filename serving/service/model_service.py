"""The model service: predictions of any family and arm, from the same slots that the decision service follows."""

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import numpy as np
from bentoml._internal.configuration.containers import BentoMLContainer

from pipelines.bootstrap import bootstrap, serve_from_now_on
from pipelines.contracts import Floats, JsonObject, Model, Predictions
from pipelines.errors import BadColumns, BadShape, ServiceDown, UnknownName
from pipelines.families import FAMILIES
from pipelines.permissions import restrict
from pipelines.settings import Settings, settings
from pipelines.store import SERVICE_WAIT_MS, StoreFault
from serving.inference.caller_batches import CallerBatches
from serving.inference.device import choose_device
from serving.inference.feature_client import FeatureClient
from serving.inference.feature_rows import predict_on_features
from serving.inference.generation_watcher import Check, GenerationWatcher, families, refusals, slot_checks
from serving.inference.model_client import run_inference
from serving.inference.model_slots import ARMS, ModelSlots, Place, Slot, Snapshot, on_cpu
from serving.service.alarm_queue import AlarmQueue, report_poll
from serving.service.answers import PredictBatchResponse, SymbolPredictResponse, answer, json_endpoint
from serving.service.home_store import open_store
from serving.service.http_stack import add_http_stack
from serving.service.ledger_check import disagreement
from serving.service.metrics import observe_model
from serving.service.metrics_folder import keep_in_memory
from serving.service.schemas import EmptyRequest, PredictBatchRequest, PredictRequest
from serving.service.startup import end_service, require_device, require_home, starting
from serving.service.store_executor import StoreExecutor
from serving.service.tracing import trace_worker

bootstrap()  # the number of BLAS threads is in the environment that `up` passes: BentoML has imported numpy
keep_in_memory()  # before BentoML makes its first counter
require_home()  # before anything of a home is made
require_device()  # before the worker starts
trace_worker(BentoMLContainer, "bellwether-models")  # before BentoML builds its server
log = logging.getLogger("bellwether.models")
MAX_BATCH_BODY = 1 << 25  # bytes; all families of 256 symbols take about 12 MB
PROTECTED = ("/predict", "/predict_batch")
READS = ("/models", "/ready")


@bentoml.service(
    name="ModelService",
    workers=1,
    http={"host": "127.0.0.1", "port": 3001},
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    metrics={"enabled": True},
)
class ModelService:
    """Champion and challenger of every family, resident."""

    def __init__(self) -> None:
        """Open the store and the slots; a fault ends the service where its supervisor sees it."""
        restrict()
        with starting():
            where = settings()
            self._device = choose_device(where)
            place = on_cpu if self._device.index is None else self._open_card(where)
            self._store = open_store(where, SERVICE_WAIT_MS)
        self._alarms, self._executor = AlarmQueue(), StoreExecutor()
        self._batches = CallerBatches()
        self._features = FeatureClient(where.decision_url)
        check = functools.partial(disagreement, self._store, where.home)
        self._slots = ModelSlots(
            where.serving_dir, where.bundles, self._alarms.raise_alarm, disagreement=check, place=place
        )
        # on a card both arms of a family run at the same time, each on its network's stream
        self._arms = None if self._device.index is None else ThreadPoolExecutor(len(ARMS), "arms")
        self._watcher = GenerationWatcher(self._poll, functools.partial(report_poll, self._alarms, "model service"))

    def _open_card(self, where: Settings) -> Place:
        """Return what puts networks on the card. Raises NoDevice if torch cannot use it."""
        from serving.inference.cuda import Card  # torch takes a second and 300 MB, and only a card needs it

        return Card(self._device, where.device_memory, end_service).place

    async def _poll(self) -> None:
        """Follow the generation file once, and write the alarms that wait."""
        try:
            await asyncio.to_thread(self._slots.refresh)
        finally:
            try:
                if self._alarms.waiting:
                    await self._executor.run(self._alarms.flush, self._store)
            except (StoreFault, ServiceDown, OSError) as error:  # predictions need no store; alarms wait for it
                log.warning("alarms wait for the store: %s", error)

    @bentoml.on_startup
    async def start(self) -> None:
        """Poll once, then go on polling in the background."""
        await self._watcher.poll()
        serve_from_now_on()
        self._watcher.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop polling and close everything."""
        await self._watcher.stop()
        await self._features.close()
        self._slots.close()
        if self._arms is not None:
            self._arms.shutdown()
        self._executor.close()
        self._store.close()

    @bentoml.api(route="/predict", input_spec=PredictRequest, output_spec=SymbolPredictResponse)
    @json_endpoint(PredictRequest)
    async def predict(self, request: PredictRequest) -> Any:
        """Return a calibrated probability a row, or an abstention with its reason; null = missing, on both sides."""
        snapshot = self._slots.snapshot
        if request.family not in FAMILIES:
            raise UnknownName(f"family: no model family {request.family!r}; known: {', '.join(FAMILIES)}")
        slot = snapshot.slot(request.family, request.arm)
        if slot is None:
            served = ", ".join(f"{family} {arm}" for family, arm in snapshot.slots) or "nothing yet"
            raise UnknownName(
                f"arm: no {request.family} {request.arm} is served; served: {served}. `bellwether retrain "
                f"{request.family}` trains one, `bellwether promote {request.family} VERSION` makes it champion"
            )
        if request.symbol is not None:
            return await self._predict_newest(request.symbol, slot, snapshot)
        rows = requested_rows(request, slot.model)  # checked before they join those of other callers
        return _prediction_answer(snapshot, slot, await self._batches.predict(slot.model, rows))

    async def _predict_newest(self, symbol: str, slot: Slot, snapshot: Snapshot) -> JsonObject:
        """Return the answer on the newest row of a symbol, or the abstention of a decision at the same close.

        Raises what refuses the symbol; StateError where the decision service holds another model in this arm.
        """
        found = await self._features.features(symbol, slot.family)
        seen = found["families"][slot.family]
        about = {name: found[name] for name in ("symbol", "close")} | {n: seen[n] for n in ("event", "direction")}
        return _prediction_answer(snapshot, slot, predict_on_features(slot, seen)) | about

    @bentoml.api(route="/predict_batch", input_spec=PredictBatchRequest, output_spec=PredictBatchResponse)
    @json_endpoint(PredictBatchRequest)
    async def predict_batch(self, request: PredictBatchRequest) -> Any:
        """Return predictions for all rows of one decision request, each by the bundle whose digest is named."""
        each = map if self._arms is None else self._arms.map
        return run_inference(self._slots.snapshot, request, observe_model, each)

    @bentoml.api(route="/models", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def models(self, request: EmptyRequest) -> Any:
        """Return champion and challenger of every family with their columns, and what was refused."""
        snapshot = self._slots.snapshot
        return {
            "generation": snapshot.generation,
            "device": self._device.name,
            "device_reason": self._device.why,
            "families": families(snapshot),
            "refused": refusals(snapshot),
        }

    @bentoml.api(route="/ready", input_spec=EmptyRequest)
    @json_endpoint(EmptyRequest)
    async def ready(self, request: EmptyRequest) -> Any:
        """Return every check behind readiness; 503 until all of them hold."""
        checks = self._checks()
        ready = all(check["ok"] for check in checks)
        return answer({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def __is_ready__(self) -> bool:
        """Return whether every check holds; BentoML's own probe."""
        return all(check["ok"] for check in self._checks())

    def _checks(self) -> list[Check]:
        """Return what readiness rests on: the generation file is followed, and the golden rows hold."""
        snapshot, fault = self._slots.snapshot, self._watcher.fault()
        follows = fault is None and snapshot.generation > 0
        nothing = self._slots.refusal or "no generation file yet: run `bellwether run`"
        detail = fault or (str(snapshot.generation) if follows else nothing)
        device = f"{self._device.name}: {self._device.why}"
        return [
            {"name": "generation watcher", "ok": follows, "detail": detail},
            {"name": "device", "ok": True, "detail": device},  # it was there at the start; losing it ends the process
            *slot_checks(snapshot),
        ]


def _prediction_answer(snapshot: Snapshot, slot: Slot, predictions: Predictions) -> JsonObject:
    """Return the content of `/predict`: the model of a slot and its predictions, one entry a row."""
    classes, members = slot.model.classes, predictions.members
    return {
        "family": slot.family,
        "arm": slot.arm,
        "version": slot.version,
        "digest": slot.digest,
        "device": predictions.device,
        "generation": snapshot.generation,
        "classes": list(classes),
        "p": _by_class(predictions.p, classes),
        "p_low": _by_class(predictions.p_low, classes),
        "status": predictions.status,
        "reason": predictions.reason,
        "novelty": _by_class(predictions.novelty, classes),
        "label": predictions.label,
        "members": None if members is None else {name: _by_class(p, classes) for name, p in members.items()},
    }


def requested_rows(request: PredictRequest, model: Model) -> Floats:
    """Return the rows as the model reads them: (n, columns), or (n, steps, columns) where it looks back; NaN = missing.

    Raises BadShape or BadColumns naming what does not fit.
    """
    if request.windows is not None:
        for i, window in enumerate(request.windows):
            if len(window) != model.steps:
                raise BadShape(f"windows.{i}: {len(window)} rows, {model.family} looks back on {model.steps}")
            by_order(window, model.columns)
        whole = np.array(request.windows, dtype=np.float64)
        return whole if model.steps > 1 else whole[:, 0]
    if model.steps > 1:
        raise BadShape(f"windows: {model.family} looks back on {model.steps} rows; send windows, not single rows")
    if request.features is not None:
        return by_name(request.features, model.columns)
    return by_order(request.rows, model.columns)


def by_order(rows: list[list[float | None]] | None, columns: tuple[str, ...]) -> Floats:
    """Return (n, k) rows in the order of `columns`. Raises BadShape naming the row."""
    for i, row in enumerate(rows or ()):
        if len(row) != len(columns):
            raise BadShape(f"rows.{i}: {len(row)} values, want {len(columns)}: {', '.join(columns)}")
    return np.array(rows, dtype=np.float64)


def by_name(features: list[dict[str, float | None]], columns: tuple[str, ...]) -> Floats:
    """Return (n, k) rows from named values; a column left out is NaN. Raises BadColumns naming the unknown ones."""
    for i, row in enumerate(features):
        if unknown := [name for name in row if name not in columns]:
            raise BadColumns(f"features.{i}: unknown {', '.join(unknown)}; this model reads {', '.join(columns)}")
    return np.array([[row.get(name) for name in columns] for row in features], dtype=np.float64)


def _by_class(values: Floats, classes: tuple[str, ...]) -> list[Any]:
    """Return n numbers for (n,), n objects class → number for (n, classes); None where a number or row is NaN."""
    if values.ndim == 1:
        return [value if np.isfinite(value) else None for value in values.tolist()]
    # a member may have classes of its own (a hidden state, a change): those go by their number
    names = classes if values.shape[1] == len(classes) else tuple(str(j) for j in range(values.shape[1]))
    return [
        dict(zip(names, _by_class(row, classes), strict=True)) if np.isfinite(row).any() else None for row in values
    ]


add_http_stack(
    ModelService,
    tool="models",
    title="Bellwether models",
    text="Predictions of what is served, champion and challenger, from the same verified bundles that decide. "
    "predict and predict_batch need the key (artifacts/write_key): press Authorize, or open this page with "
    "`bellwether open models`.",
    protected_paths=PROTECTED,
    reads=READS,
    max_body=MAX_BATCH_BODY,
)
