"""Networks and the trainer they share. Of libraries torch and numpy only, so a GPU machine needs no more to time them.

A network maps windows (n, steps, inputs), float32, oldest bar first, to logits (n, outputs). Probabilities are their
sigmoid, also of several outputs: classes may be true together.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.adam import adam

from pipelines.errors import NoDevice

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
BATCH_ROWS = 512  # windows predicted at a time: more no longer fit a CPU's caches and are slower

# The two networks of the documents: (inputs, widths of the LSTM layers, widths of the head before its output).
FOUR = (4, (128, 64, 32), ())
CORE = (25, (64, 64), (32,))


class RecurrentNetwork(nn.Module):
    """Map windows to logits: standardisation, LSTM layers with dropout between them, a head on the newest step.

    inputs   columns of a step
    layers   widths of the LSTM layers: (128, 64, 32) with four inputs has 130,849 parameters
    head     widths of hidden head layers, each with ReLU and dropout: (64, 64) with (32,) and 25 inputs has 58,689
    dropout  share dropped between layers, and in the head, while training
    The mean and scale of the columns are buffers, so they are saved and exported with the weights.
    """

    def __init__(
        self, inputs: int, layers: Sequence[int], head: Sequence[int] = (), dropout: float = 0.2, outputs: int = 1
    ) -> None:
        """Create the layers with torch's current random state."""
        super().__init__()
        before = (inputs, *layers[:-1])
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in zip(before, layers, strict=True))
        self.dropout = nn.Dropout(dropout)
        widths = (layers[-1], *head, outputs)
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def standardise(self, windows: Singles) -> None:
        """Set mean and scale from training windows (n, steps, inputs); a constant column has a scale of one."""
        flat = windows.reshape(-1, windows.shape[-1]).astype(np.float64)
        spread = flat.std(axis=0)
        self.mean.copy_(torch.from_numpy(flat.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits (n, outputs) of windows (n, steps, inputs)."""
        x = (windows - self.mean) / self.scale
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.dropout(x))[0]
        x = x[:, -1]
        for hidden in self.head[:-1]:
            x = self.dropout(torch.relu(hidden(x)))
        return self.head[-1](x)


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def training_device(wanted: str) -> str:
    """Return `training.device` of params.yaml. Raises NoDevice for "cuda" where torch has no card."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise NoDevice(
            f"training.device is cuda and torch {torch.__version__} has no card here; set it to cpu in params.yaml, or "
            "train on a machine with a card"
        )
    return wanted


def device_words(device: str) -> str:
    """Return a device with the name of its card, as a bundle records where it was trained."""
    return device if device == "cpu" else f"{device}: {torch.cuda.get_device_name()}"


def mixed_precision(device: str, bf16: bool = True) -> AbstractContextManager[object]:
    """Return a context of bfloat16 on a card (with float32's exponent: no loss scaling), of float32 on a CPU."""
    return torch.autocast(device, dtype=torch.bfloat16) if bf16 and device != "cpu" else nullcontext()


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Make weights and dropout depend on the seed alone on one CPU: one thread; torch's random state is restored."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the training settings.

    epochs    maximum: training stops after `patience` epochs in a row that did not lower the loss of the tail
    batch     rows per step; rate: of Adam; seed: of shuffles and dropout
    """

    epochs: int
    batch: int
    rate: float
    patience: int
    seed: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """Hold weighted mean log losses, nats per output: of the training rows (with dropout) and of the tail (without)."""

    number: int
    train_loss: float
    tail_loss: float


def train_network(
    model: nn.Module,
    windows: Singles,
    y: Doubles,
    weight: Doubles,
    tail: tuple[Singles, Doubles, Doubles],
    plan: Plan,
    device: str = "cpu",
    bf16: bool = True,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Fit any network of logits in place by weighted binary cross-entropy, ending with the weights of the best epoch.

    model     maps float32 windows (n, …) to logits (n, outputs); one output or many, recurrent or convolutional
    windows   (n, …); y (n,) or (n, outputs) in {0, 1}; weight (n,) not negative, of each row
    tail      the same three of later rows, purged by the caller: they decide when to stop and train nothing
    bf16      mixed precision on a card; a CPU always works in float32
    on_epoch  called after every epoch
    Returns   the epochs; the model is left on the CPU, in evaluation mode
    Raises    ValueError on NaN, on lengths that differ, and if the loss is no longer finite
    """
    for name, (x, labels, w) in {"training": (windows, y, weight), "tail": tail}.items():
        if len(x) == 0 or not len(x) == len(labels) == len(w):
            raise ValueError(
                f"{name}: {len(x)} windows, {len(labels)} labels, {len(w)} weights; pass the same number of each, not 0"
            )
        if not (np.isfinite(x).all() and np.isfinite(labels).all() and np.isfinite(w).all() and w.sum() > 0):
            raise ValueError(f"{name}: a window, label or weight is NaN, or all weights are 0; drop such rows first")
    with repeatable(plan.seed):
        return _train(model.to(device), (windows, y, weight), tail, plan, device, bf16, on_epoch)


def _train(
    model: nn.Module,
    rows: tuple[Singles, Doubles, Doubles],
    tail: tuple[Singles, Doubles, Doubles],
    plan: Plan,
    device: str,
    bf16: bool,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Run the epochs of `train_network` on checked input."""
    x, y, w = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).to(device) for a in rows)
    y = y.reshape(len(y), -1)
    w = (w / w.mean())[:, None]
    step = adam_of(model, plan.rate)
    epochs: list[Epoch] = []
    best, best_weights, since = math.inf, copy.deepcopy(model.state_dict()), 0
    for number in range(1, plan.epochs + 1):
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(x)).to(device).split(plan.batch):
            model.zero_grad(set_to_none=True)
            with mixed_precision(device, bf16):
                logits = model(x[chosen])
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), y[chosen], weight=w[chosen])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step()
            total += float(loss.detach()) * len(chosen)
        epochs.append(Epoch(number, total / len(x), _loss(logits_of(model, tail[0], device, bf16), tail[1], tail[2])))
        on_epoch(epochs[-1])
        if not math.isfinite(epochs[-1].train_loss + epochs[-1].tail_loss):
            raise ValueError(
                f"epoch {number}: the loss is not finite at a rate of {plan.rate:g}; lower the learning rate"
            )
        if epochs[-1].tail_loss < best:
            best, best_weights, since = epochs[-1].tail_loss, copy.deepcopy(model.state_dict()), 0
        else:
            since += 1
            if since >= plan.patience:
                break
    model.load_state_dict(best_weights)
    model.to("cpu").eval()
    return epochs


def adam_of(model: nn.Module, rate: float) -> Callable[[], None]:
    """Return a function that makes one Adam step over all parameters, each with a gradient.

    It gives torch.optim.Adam's bits. That class loads PyTorch's compiler, which takes half the time of a short
    training; torch's function does not.
    """
    weights = list(model.parameters())
    means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    counts = [torch.tensor(0.0) for _ in weights]

    def step() -> None:
        """Update the weights in place from their gradients."""
        with torch.no_grad():
            adam(
                weights, [w.grad for w in weights], means, squares, [], counts, amsgrad=False, beta1=0.9, beta2=0.999,
                lr=rate, weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip

    return step


def _loss(logits: Doubles, y: Doubles, weight: Doubles) -> float:
    """Return the weighted mean log loss of logits (n, outputs), nats per output."""
    each = np.logaddexp(0.0, logits) - y.reshape(len(y), -1) * logits
    return float(np.average(each.mean(axis=1), weights=weight))


def logits_of(model: nn.Module, windows: Singles, device: str = "cpu", bf16: bool = False) -> Doubles:
    """Return (n, outputs) logits of windows (n, …), dropout off, BATCH_ROWS at a time."""
    model.eval()
    logits = []
    with torch.inference_mode(), mixed_precision(device, bf16):
        for batch in torch.from_numpy(np.ascontiguousarray(windows, np.float32)).split(BATCH_ROWS):
            logits.append(model(batch.to(device)).float().cpu())
    return np.asarray(torch.cat(logits).numpy(), dtype=np.float64)


def probabilities_of(model: nn.Module, windows: Singles, device: str = "cpu", bf16: bool = False) -> Doubles:
    """Return (n, outputs) probabilities: the sigmoid of the logits."""
    return np.asarray(1.0 / (1.0 + np.exp(-logits_of(model, windows, device, bf16))))
