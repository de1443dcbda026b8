"""Networks on a card, through torch. The model service imports this module only where its device is a card.

A bundle's network takes the place of its ONNX session, on a stream of its own, so that champion and challenger run at
the same time; a single row is a CUDA graph, replayed. TF32 is off: float32 answers stay within 1e-5 of the CPU's.
Everything but streams, graphs and the measuring of memory also runs on torch's CPU device, as tests have it.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import nn

from pipelines.contracts import Floats, Model
from pipelines.errors import BundleError, NoDevice
from pipelines.models.ensemble import EnsembleModel, Member
from pipelines.models.network_arrays import arrays_of, network_of
from pipelines.models.networks import Singles
from serving.inference.device import Device

log = logging.getLogger("bellwether.models")
TRIAL_ROWS = 256  # whose memory is measured
SPARE = 0.8  # of the free share: torch's allocator leaves gaps
WARM_UPS = 3  # before a graph is captured: cuDNN chooses and allocates
_LOST = ("CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "device-side assert")

Lost = Callable[[str], NoReturn]  # ends the process: after a CUDA error nothing on the card can be trusted


class Card:
    """Hold one torch device as a process uses it: precision, memory, what happens when it is lost."""

    def __init__(self, device: Device, memory_share: float, lost: Lost) -> None:
        """Open the card, with TF32 off and at most `memory_share` of its memory. Raises NoDevice if torch cannot."""
        exact()
        self.name, self.precision, self.lost = device.name, device.name.split()[-1], lost
        self.device = torch.device("cpu" if device.index is None else f"cuda:{device.index}")
        if self.device.type == "cuda":
            if not torch.cuda.is_available() or torch.cuda.device_count() <= self.device.index:
                raise NoDevice(
                    f"torch {torch.__version__} cannot use {device.name}, which the driver shows; install "
                    "requirements-gpu.lock, or set BELLWETHER_DEVICE=cpu"
                )
            torch.cuda.set_per_process_memory_fraction(memory_share, self.device)
            total = torch.cuda.get_device_properties(self.device).total_memory
            self._limit_bytes = int(memory_share * total)

    def words(self) -> str:
        """Return the card's own name, of torch's CPU device its kind."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def place(self, model: Model, bundle: Path) -> Model:
        """Return the model with its networks on this card; models without one, such as trees, stay as they are.

        Raises BundleError where the memory is short.
        """
        if not isinstance(model, EnsembleModel):
            return model
        files = {member["name"]: bundle / str(member["file"]) for member in model.schema["members"]}
        try:
            with self.guarded():
                members = tuple(self._placed(member, files[member.name], model.steps) for member in model.members)
        except torch.OutOfMemoryError as error:
            raise BundleError(f"{self.name} has no memory for it; raise BELLWETHER_DEVICE_MEMORY: {error}") from error
        is_moved = any(isinstance(member.scorer, TorchSession) for member in members)
        return replace(model, members=members, device=self.name) if is_moved else model

    def _placed(self, member: Member, file: Path, steps: int) -> Member:
        """Return the member with a session on this card where its file is a network."""
        network = network_of(arrays_of(file)) if member.reads == "window" else None
        return (
            member
            if network is None
            else replace(member, scorer=TorchSession(network, steps, len(member.places), self))
        )

    def rows_that_fit(self, call: Callable[[int], object]) -> int | None:
        """Return how many rows at most go through `call` (number of rows) together; None = the memory has no limit."""
        if self.device.type != "cuda":
            return None
        call(TRIAL_ROWS)  # cuDNN's workspace, which does not grow with the rows, is there now
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call(TRIAL_ROWS)
        torch.cuda.synchronize(self.device)
        taken: int = torch.cuda.max_memory_allocated(self.device) - before
        return max(1, int(SPARE * (self._limit_bytes - before)) * TRIAL_ROWS // max(1, taken))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End the process on a CUDA error; other errors pass through."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and is_lost(error):
                self.lost(f"{self.name}: {str(error).splitlines()[0]}")
            raise


class TorchSession:
    """Predict with one network on a card, where its ONNX session stood.

    most_rows  that go through the network together, by the memory a row was measured to take; None = no limit
    """

    def __init__(self, network: nn.Module, steps: int, columns: int, card: Card) -> None:
        """Move the network of windows (n, steps, columns) to the card, measure a row, and capture a single one."""
        self._card, self._network = card, network.to(card.device).eval()
        self._cuda = card.device.type == "cuda"
        self._turn = threading.Lock()  # both arms may hold the same bundle
        self._stream = torch.cuda.Stream(card.device) if self._cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        with self._on_card():
            trial = torch.zeros(TRIAL_ROWS, steps, columns)
            self.most_rows = card.rows_that_fit(lambda rows: self._network(trial[:rows].to(card.device)))
            if self._cuda:
                self._capture(steps, columns)

    def probabilities(self, rows: Floats) -> Floats:
        """Return (n, outputs) probabilities of rows (n, steps, columns), float32 numbers as float64."""
        return np.asarray(self(rows.astype(np.float32)), dtype=np.float64)

    def __call__(self, rows: Singles) -> Singles:
        """Return (n, outputs) float32 probabilities of rows (n, steps, columns), in batches that fit the memory.

        A batch that finds no memory is halved and tried once more. Raises torch.OutOfMemoryError after that.
        """
        with self._turn, self._on_card(), self._card.guarded():
            if len(rows) == 1 and self._graph is not None:
                return self._replayed(rows)
            most = self.most_rows or max(1, len(rows))
            return np.concatenate([self._halved(rows[at : at + most]) for at in range(0, max(1, len(rows)), most)])

    def _halved(self, rows: Singles) -> Singles:
        """Return the probabilities of a batch, of its halves where the memory was short."""
        try:
            return self._run(rows)
        except torch.OutOfMemoryError as error:
            if len(rows) < 2:
                raise
            log.warning("%s: no memory for %d rows, halved: %s", self._card.name, len(rows), str(error).split(".")[0])
        if self._cuda:
            torch.cuda.empty_cache()
        half = len(rows) // 2
        return np.concatenate([self._run(rows[:half]), self._run(rows[half:])])

    def _run(self, rows: Singles) -> Singles:
        """Return the probabilities of a batch."""
        p = self._network(torch.from_numpy(np.ascontiguousarray(rows)).to(self._card.device))
        return np.asarray(p.cpu().numpy())

    def _capture(self, steps: int, columns: int) -> None:
        """Capture the network on a single row as a CUDA graph between two pages of pinned memory."""
        self._sent = torch.zeros(1, steps, columns, pin_memory=True)
        self._row = torch.zeros(1, steps, columns, device=self._card.device)
        for _ in range(WARM_UPS):
            p = self._network(self._row)
        torch.cuda.synchronize(self._card.device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another network may answer meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._p = self._network(self._row)
        self._received = torch.zeros(p.shape, pin_memory=True)
        self._graph = graph

    def _replayed(self, row: Singles) -> Singles:
        """Return the probabilities of a single row by the captured graph."""
        assert self._graph is not None
        assert self._stream is not None
        self._sent.numpy()[:] = row
        self._row.copy_(self._sent, non_blocking=True)
        self._graph.replay()
        self._received.copy_(self._p, non_blocking=True)
        self._stream.synchronize()
        return np.array(self._received.numpy())

    @contextmanager
    def _on_card(self) -> Iterator[None]:
        """Work without gradients, on the stream of this network and in the precision of the card."""
        bf16 = self._card.precision == "bf16"
        # no cache of weights cast to bfloat16: a graph would refer to memory that is given back
        kind = torch.autocast(self._card.device.type, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()
        with torch.inference_mode(), torch.cuda.stream(self._stream), kind:
            yield


def exact() -> None:
    """Turn TF32 off wherever torch would use it."""
    # the older of two ways to say so: the newer, `fp32_precision`, leaves a state that torch's own check refuses
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def is_lost(error: RuntimeError) -> bool:
    """Return whether an error is of CUDA itself, after which no call on the card can be trusted."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or any(words in str(error) for words in _LOST)
