"""Predict in the model service (`BELLWETHER_MODELS`): one batched call for everything a decision needs.

Arrays travel as the bytes of float64 and no row's answer depends on another row, so the predictions of a CPU equal
those of the same bundle in this process, bit for bit; those of a card lie within its tolerance, and name it. Models are
addressed by digest: a model of another generation never predicts for ours. While the service is slow or down an arm
is a fault, and `models.fallback` says who answers; a probe every few seconds finds it back, so no request waits.
"""

import asyncio
import base64
import binascii
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import httpx
import numpy as np

from pipelines.contracts import Floats, JsonObject, Model, Predictions
from pipelines.errors import BadShape, BadValues
from pipelines.models.views import select
from serving.inference.model_slots import Snapshot
from serving.inference.predictions import (
    MODEL_FAULT,
    InferenceRequest,
    PredictionsOrFault,
    RowOrFault,
    Timed,
    not_timed,
    predict,
    rows_of,
)
from serving.service.schemas import Packed, PackedInferenceRequest, PredictBatchRequest

Each = Callable[[Callable[[tuple[str, str]], JsonObject], Iterable[tuple[str, str]]], Iterable[JsonObject]]


def packed(values: Floats) -> JsonObject:
    """Return an array as JSON: its shape, and base64 of little-endian float64."""
    content = np.ascontiguousarray(values, dtype="<f8").tobytes()
    return {"shape": list(values.shape), "f8": base64.b64encode(content).decode()}


def unpacked(array: Packed) -> Floats:
    """Return the array that `packed` wrote.

    Raises BadValues for content that is not base64 of float64, BadShape where it does not fill the shape.
    """
    try:
        values = np.frombuffer(base64.b64decode(array.f8, validate=True), dtype="<f8").astype(np.float64)
    except (binascii.Error, ValueError) as error:
        raise BadValues(f"rows.f8: not base64 of little-endian float64: {error}") from error
    if values.size != math.prod(array.shape):  # of Python's integers: numpy's would wrap around
        raise BadShape(f"rows: {values.size} values do not fill shape {array.shape}")
    return values.reshape(array.shape)


# ---- the model service's side -----------------------------------------------------------------------------------


def run_inference(
    snapshot: Snapshot, request: PredictBatchRequest, timed: Timed = not_timed, each: Each = map
) -> JsonObject:
    """Return {"generation", "predictions": [arm → predictions or {"fault"}]}, in the order of the requests.

    timed  receives how long a row took
    each   maps the arms of a request: `map` one after the other, that of a pool at the same time
    """
    by_digest = {(slot.family, slot.digest): slot.model for slot in snapshot.slots.values()}
    answers = []
    for one in request.inference_requests:
        rows, columns = unpacked(one.rows), tuple(one.columns)
        if rows.shape[-1] != len(columns):
            raise BadShape(f"{one.family}: rows {rows.shape} for {len(columns)} columns")
        found = each(
            functools.partial(_arm_answer, snapshot, by_digest, one.family, rows, columns, timed), one.digests.items()
        )
        answers.append(dict(zip(one.digests, found, strict=True)))
    return {"generation": snapshot.generation, "predictions": answers}


def _arm_answer(
    snapshot: Snapshot,
    models: Mapping[tuple[str, str], Model],
    family: str,
    rows: Floats,
    columns: tuple[str, ...],
    timed: Timed,
    arm: tuple[str, str],
) -> JsonObject:
    """Return the packed predictions of one arm (its name, its digest), or {"fault"}."""
    name, digest = arm
    model = models.get((family, digest))
    if model is None:
        return {"fault": f"MODEL_SERVICE_BEHIND: its generation {snapshot.generation} holds no {digest[:12]}"}
    begin = perf_counter()
    answer = _packed_predictions(predict(model, _rows_for(model, rows, columns), f"{family} {name}"))
    timed(family, name, 1e3 * (perf_counter() - begin) / max(len(rows), 1))
    return answer


def _rows_for(model: Model, rows: Floats, columns: tuple[str, ...]) -> Floats:
    """Return the model's own columns of the rows; raise BadShape where they are not of its number of bars."""
    expected = 3 if model.steps > 1 else 2
    if rows.ndim != expected or (expected == 3 and rows.shape[1] != model.steps):
        raise BadShape(f"{model.family}: rows {rows.shape}, expected {model.steps} bar(s) in each row")
    return select(rows, columns, model.columns)


def _packed_predictions(answer: PredictionsOrFault) -> JsonObject:
    """Return predictions as JSON, or {"fault"}."""
    if not isinstance(answer, Predictions):
        return {"fault": answer}
    return {
        "p": packed(answer.p),
        "p_low": packed(answer.p_low),
        "novelty": packed(answer.novelty),
        "status": answer.status,
        "reason": answer.reason,
        "digest": answer.digest,
        "device": answer.device,
        "label": answer.label,
        "members": None if answer.members is None else {name: packed(p) for name, p in answer.members.items()},
    }


# ---- the decision service's side ----------------------------------------------------------------------------------


class ModelClient:
    """Call one model service over keep-alive connections; `outage` = why it is out of use now, None = in use."""

    def __init__(
        self,
        url: str,
        key: str,
        timeout_s: float,
        retry_s: float,
        slow_in_row: int,
        headers: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """Open no connection yet.

        slow_in_row  requests over `timeout_s` in a row before an outage is declared
        headers      of each request, besides the key: what its trace is
        """
        self._headers = headers
        self._client = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=None)
        self._timeout_s, self._retry_s, self._slow_in_row = timeout_s, retry_s, slow_in_row
        self._slow, self._next_probe = 0, 0.0
        self.outage: str | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def probe(self, now_s: float) -> None:
        """Send an empty request every `retry_s` of the monotonic clock, which updates `outage` outside of requests."""
        if now_s >= self._next_probe:
            self._next_probe = now_s + self._retry_s
            await self._post([])

    async def predict(
        self, snapshot: Snapshot, requests: Sequence[InferenceRequest]
    ) -> list[dict[tuple[str, str], RowOrFault]]:
        """Return each request's predictions by (family, arm), from the bundles of `snapshot` only; or their fault.

        Requests of one family and the same arms travel together, a row each, and its model is called once for all.
        Where that call fails, each of its rows is sent alone, in one request more.
        """
        found: list[dict[tuple[str, str], RowOrFault]] = [{} for _ in requests]
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((request.family, request.arms), []).append(i)
        again = await self._predict_groups(snapshot, requests, list(groups.values()), found)
        await self._predict_groups(snapshot, requests, [[i] for i in again], found)
        return found

    async def _predict_groups(
        self,
        snapshot: Snapshot,
        requests: Sequence[InferenceRequest],
        groups: Sequence[Sequence[int]],
        found: list[dict[tuple[str, str], RowOrFault]],
    ) -> list[int]:
        """Put the predictions of each group, positions in `requests`, into `found`; return where to try rows alone."""
        if not groups:
            return []
        together = [_together([requests[i] for i in group]) for group in groups]
        body = [
            PackedInferenceRequest.model_construct(
                family=request.family,
                digests={arm: snapshot.slots[request.family, arm].digest for arm in request.arms},
                columns=list(request.columns),
                rows=Packed.model_construct(**packed(request.rows)),
            ).model_dump()
            for request in together
        ]
        answers = self.outage if self.outage is not None else await self._post(body)
        failed: list[int] = []
        for k, (request, group) in enumerate(zip(together, groups, strict=True)):
            for arm in request.arms:
                digest = snapshot.slots[request.family, arm].digest
                answer = answers if isinstance(answers, str) else _unpacked_predictions(answers[k].get(arm), digest)
                rows = _by_row(answer, len(group), snapshot.slots[request.family, arm].model.classes)
                for i, one in zip(group, rows, strict=True):
                    found[i][request.family, arm] = one
                if len(group) > 1 and isinstance(rows[0], str) and rows[0].startswith(MODEL_FAULT):
                    failed += group
        return sorted(set(failed))

    async def _post(self, body: list[JsonObject]) -> list[JsonObject] | str:
        """Return the service's answers, or the fault as text, which also sets `outage`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post(
                    "/predict_batch", json={"inference_requests": body}, headers=self._headers()
                )
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
            return self._down(f"not an answer of a model service: {type(error).__name__}")
        if not isinstance(answers, list) or len(answers) != len(body):
            return self._down(f"{len(body)} requests sent, another number of answers received")
        self._slow, self.outage = 0, None
        return answers

    def _down(self, why: str) -> str:
        """Set and return the outage."""
        self.outage = f"MODEL_SERVICE_DOWN: {why}"
        return self.outage


def _together(requests: Sequence[InferenceRequest]) -> InferenceRequest:
    """Return one request with the rows of all these, which are of one family and the same arms."""
    return requests[0] if len(requests) == 1 else replace(requests[0], rows=np.concatenate([r.rows for r in requests]))


def _by_row(answer: PredictionsOrFault, n: int, classes: tuple[str, ...]) -> list[RowOrFault]:
    """Return the predictions of each of n rows; the fault n times where there are none, or not as many."""
    if isinstance(answer, str):
        return [answer] * n
    if len(answer.status) != n:
        return [f"MODEL_SERVICE_DOWN: {len(answer.status)} answers for {n} rows"] * n
    return list(rows_of(answer, classes))


def _unpacked_predictions(answer: JsonObject | None, digest: str) -> PredictionsOrFault:
    """Return the predictions of one arm; its fault where there are none, or where another bundle predicted."""
    if answer is None or "fault" in answer:
        return str(answer["fault"]) if answer else "MODEL_SERVICE_DOWN: it left this arm out"
    if answer["digest"] != digest:
        return f"MODEL_SERVICE_BEHIND: {answer['digest'][:12]} answered for {digest[:12]}"
    p, p_low, novelty = (unpacked(Packed(**answer[name])) for name in ("p", "p_low", "novelty"))
    members = answer["members"]
    return Predictions(
        p,
        p_low,
        answer["status"],
        answer["reason"],
        novelty,
        digest,
        answer["label"],
        None if members is None else {name: unpacked(Packed(**p)) for name, p in members.items()},
        answer["device"],
    )
