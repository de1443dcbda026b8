"""Models that answer in the model service (`BELLWETHER_MODELS=remote`): one batched call for everything a request asks.

Arrays travel as the bytes of float64, and each row is answered by itself, so the answers are those of the same bundle
in this process, bit for bit. The service is asked by digest: another generation's model never answers for ours. When it
is slow or down the arms abstain, and while it is out nobody waits for it: a look every few seconds finds it back.
"""

import asyncio
import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from pipelines.contracts import Floats, Model, Predictions
from pipelines.errors import BadShape, BadValues
from pipelines.models.views import select
from serving.inference.model_slots import Snapshot
from serving.inference.predictions import InferenceRequest, PredictionOrFault, predict
from serving.service.schemas import Packed, PackedInferenceRequest, PredictBatchRequest


def packed(values: Floats) -> dict[str, Any]:
    content = np.ascontiguousarray(values, dtype="<f8").tobytes()
    return {"shape": list(values.shape), "f8": base64.b64encode(content).decode()}


def unpacked(told: Packed) -> Floats:
    """Raises BadValues for what is not base64 of float64, BadShape where the shape is another."""
    try:
        values = np.frombuffer(base64.b64decode(told.f8, validate=True), dtype="<f8").astype(np.float64)
    except (binascii.Error, ValueError) as error:
        raise BadValues(f"rows.f8: not base64 of little-endian float64: {error}") from error
    if values.size != math.prod(told.shape):  # of Python's integers: numpy's would wrap around
        raise BadShape(f"rows: {values.size} values do not fill shape {told.shape}")
    return values.reshape(told.shape)


# ---- the model service's side -----------------------------------------------------------------------------------


def run_inference(snapshot: Snapshot, request: PredictBatchRequest) -> dict[str, Any]:
    """Return {"generation", "predictions": [arm → predictions or {"fault"}]}, in the order of the requests."""
    by_digest = {(slot.family, slot.digest): slot.model for slot in snapshot.slots.values()}
    answers = []
    for asked in request.inference_requests:
        rows, columns = unpacked(asked.rows), tuple(asked.columns)
        if rows.shape[-1] != len(columns):
            raise BadShape(f"{asked.family}: rows {rows.shape} for {len(columns)} columns")
        told = {}
        for arm, digest in asked.digests.items():
            model = by_digest.get((asked.family, digest))
            told[arm] = (
                {"fault": f"MODEL_SERVICE_BEHIND: its generation {snapshot.generation} holds no {digest[:12]}"}
                if model is None
                else _packed_answer(predict(model, _fitting(rows, columns, model), f"{asked.family} {arm}"))
            )
        answers.append(told)
    return {"generation": snapshot.generation, "predictions": answers}


def _fitting(rows: Floats, columns: tuple[str, ...], model: Model) -> Floats:
    wanted = 3 if model.steps > 1 else 2
    if rows.ndim != wanted or (wanted == 3 and rows.shape[1] != model.steps):
        raise BadShape(f"{model.family}: rows {rows.shape}, it looks back on {model.steps}")
    return select(rows, columns, model.columns)


def _packed_answer(said: PredictionOrFault) -> dict[str, Any]:
    if not isinstance(said, Predictions):
        return {"fault": said}
    return {
        "p": packed(said.p),
        "p_low": packed(said.p_low),
        "novelty": packed(said.novelty),
        "status": said.status,
        "reason": said.reason,
        "digest": said.digest,
        "label": said.label,
        "members": None if said.members is None else {name: packed(p) for name, p in said.members.items()},
    }


# ---- the decision service's side ----------------------------------------------------------------------------------


class ModelClient:
    """Keep-alive connections to one model service. `outage` says why it is not asked now; None = it is."""

    def __init__(self, url: str, key: str, timeout_s: float, retry_s: float, slow_in_row: int) -> None:
        self._client = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=None)
        self._timeout_s, self._retry_s, self._slow_in_row = timeout_s, retry_s, slow_in_row
        self._slow, self._next_look = 0, 0.0
        self.outage: str | None = None

    async def close(self) -> None:
        await self._client.aclose()

    async def probe(self, now_s: float) -> None:
        """Ask nothing, every `retry_s` of the monotonic clock: finds it out, or back, and no request waits for that."""
        if now_s >= self._next_look:
            self._next_look = now_s + self._retry_s
            await self._post([])

    async def predict(
        self, snapshot: Snapshot, asked: Sequence[InferenceRequest]
    ) -> list[dict[tuple[str, str], PredictionOrFault]]:
        """Each ask's answers by (family, arm), from the very bundles of `snapshot`; a fault where there is none."""
        if not asked:
            return []
        body = [
            PackedInferenceRequest.model_construct(
                family=ask.family,
                digests={arm: snapshot.slots[ask.family, arm].digest for arm in ask.arms},
                columns=list(ask.columns),
                rows=Packed.model_construct(**packed(ask.rows)),
            ).model_dump()
            for ask in asked
        ]
        told = self.outage if self.outage is not None else await self._post(body)
        if isinstance(told, str):
            return [{(ask.family, arm): told for arm in ask.arms} for ask in asked]
        return [
            {(ask.family, arm): _answer_of(said.get(arm), snapshot.slots[ask.family, arm].digest) for arm in ask.arms}
            for ask, said in zip(asked, told, strict=True)
        ]

    async def _post(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]] | str:
        """The service's answers, or the fault in words."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post("/predict_batch", json={"inference_requests": asks})
        except TimeoutError:
            self._slow += 1
            fault = f"MODEL_SERVICE_SLOW: no answer within {self._timeout_s * 1e3:.0f} ms"
            if self._slow >= self._slow_in_row:
                self.outage = fault
            return fault
        except httpx.TransportError as error:
            return self._down(f"{type(error).__name__}: {error}")
        if response.status_code != 200:
            return self._down(f"HTTP {response.status_code}: {response.text[:100]}")
        try:
            answers = response.json()["predictions"]
        except (ValueError, KeyError, TypeError) as error:
            return self._down(f"no answer of a model service: {type(error).__name__}")
        if not isinstance(answers, list) or len(answers) != len(asks):
            return self._down(f"{len(asks)} asked, another number answered")
        self._slow, self.outage = 0, None
        return answers

    def _down(self, why: str) -> str:
        self.outage = f"MODEL_SERVICE_DOWN: {why}"
        return self.outage


def _answer_of(told: dict[str, Any] | None, digest: str) -> PredictionOrFault:
    if told is None or "fault" in told:
        return str(told["fault"]) if told else "MODEL_SERVICE_DOWN: it left this arm out"
    if told["digest"] != digest:
        return f"MODEL_SERVICE_BEHIND: {told['digest'][:12]} answered for {digest[:12]}"
    p, p_low, novelty = (unpacked(Packed(**told[name])) for name in ("p", "p_low", "novelty"))
    members = told["members"]
    return Predictions(
        p,
        p_low,
        told["status"],
        told["reason"],
        novelty,
        digest,
        told["label"],
        None if members is None else {name: unpacked(Packed(**said)) for name, said in members.items()},
    )
