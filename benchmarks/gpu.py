"""Time the networks: forward and training step, batch 1, 64 and 1024, float32 and bfloat16.

Run: python -m benchmarks.gpu [--out FILE]. Needs torch and numpy and nothing else of this project's environment; uses a
CUDA card if there is one, and reports that it measures the CPU if there is none. See docs/results/gpu.md.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipelines.models.networks import (
    CORE,
    FOUR,
    Doubles,
    Plan,
    RecurrentNetwork,
    Singles,
    adam_of,
    best_device,
    mixed_precision,
    parameter_count,
    probabilities_of,
    train_network,
)

STEPS = 60
PATTERN = {"inputs": 7, "steps": 32, "classes": 9, "channels": 24}  # columns of a window, then one a class
BATCHES = (1, 64, 1024)
WARM_UP = 3
LEAST, MOST, BUDGET_S = 5, 300, 3.0  # calls a figure: as many as fit the budget, within these bounds
TOLERANCE = 0.02  # largest |p(bfloat16) - p(float32)| that is accepted; docs/results/gpu.md says where it comes from
SEED = 7


@dataclass(frozen=True, slots=True)
class Case:
    """Hold a briefly trained network, so that its probabilities spread, and windows it can read."""

    name: str
    network: nn.Module
    windows: Singles


@dataclass(frozen=True, slots=True)
class Cost:
    """Hold the milliseconds of a call: median and 5 to 95 % of n calls."""

    name: str
    what: str
    batch: int
    precision: str
    median: float
    low: float
    high: float
    n: int


def trained(name: str, network: nn.Module, steps: int, inputs: int, outputs: int, rows: int) -> Case:
    """Train briefly on a visible rule: is the newest value of a column above zero? float32, on the CPU."""
    rng = np.random.default_rng(SEED)
    windows = rng.normal(size=(rows, steps, inputs)).astype(np.float32)
    y = (windows[:, -1, np.arange(outputs) % inputs] > 0).astype(np.float64)
    half = rows // 2
    tail = (windows[half:], y[half:], np.ones(rows - half))
    train_network(network, windows[:half], y[:half], np.ones(half), tail, Plan(6, 32, 5e-3, 6, SEED), bf16=False)
    return Case(name, network, windows)


def pattern_case(rows: int) -> Case | str:
    """Return the pattern recogniser's network at its default size, or why it cannot be measured."""
    try:
        module = import_module("pipelines.models.pattern_network")
        network = module.PatternNetwork(
            source=range(PATTERN["inputs"]), sign=[1.0] * PATTERN["inputs"], classes=PATTERN["classes"],
            channels=PATTERN["channels"], dropout=0.2,
        )  # fmt: skip
    except (ModuleNotFoundError, AttributeError, TypeError) as error:  # not there yet, or built otherwise by now
        return f"pattern network: {error}"
    inputs, classes, steps = PATTERN["inputs"], PATTERN["classes"], PATTERN["steps"]
    name = f"convolutions of {PATTERN['channels']}, {inputs} inputs × {steps} steps, {classes} classes"
    return trained(name, network, steps, inputs + classes, classes, rows)


def cases(rows: int) -> tuple[list[Case], list[str]]:
    """Return what can be measured, and the reasons of what cannot."""
    torch.manual_seed(SEED)
    built = [
        trained(f"LSTM {'/'.join(map(str, layers))}, {inputs} inputs × {STEPS} steps",
               RecurrentNetwork(inputs, layers, head), STEPS, inputs, 1, rows)
        for inputs, layers, head in (FOUR, CORE)
    ]  # fmt: skip
    pattern = pattern_case(rows)
    return (built, [pattern]) if isinstance(pattern, str) else ([*built, pattern], [])


def timed(call: Callable[[], None], device: str, most: int) -> Doubles:
    """Return milliseconds of single calls, each synchronised with the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(min(WARM_UP, most)):
        call()
    wait()
    took: list[float] = []
    started = time.perf_counter()
    while len(took) < min(LEAST, most) or (len(took) < most and time.perf_counter() - started < BUDGET_S):
        start = time.perf_counter()
        call()
        wait()
        took.append((time.perf_counter() - start) * 1e3)
    return np.array(took)


def costs(case: Case, device: str, batches: tuple[int, ...], most: int = MOST) -> list[Cost]:
    """Return the costs of the forward and the training step of one network; windows are on the device already."""
    network = case.network.to(device)
    descend = adam_of(network, 0.0)  # a whole step that leaves the weights unchanged
    found = []
    for batch in batches:
        x = torch.from_numpy(np.resize(case.windows, (batch, *case.windows.shape[1:]))).to(device)
        with torch.inference_mode():
            y = torch.zeros(network(x).shape, device=device)
        y = y.clone()
        for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):

            def forward(x: torch.Tensor = x, bf16: bool = precision == "bf16") -> None:
                """Run the network without gradients."""
                with torch.inference_mode(), mixed_precision(device, bf16):
                    network(x)

            def step(x: torch.Tensor = x, y: torch.Tensor = y, bf16: bool = precision == "bf16") -> None:
                """Run one training step."""
                network.zero_grad(set_to_none=True)
                with mixed_precision(device, bf16):
                    logits = network(x)
                nn.functional.binary_cross_entropy_with_logits(logits.float(), y).backward()
                descend()

            for what, call in (("forward", forward), ("training step", step)):
                network.train(what != "forward")
                took = timed(call, device, most)
                low, median, high = np.quantile(took, [0.05, 0.5, 0.95])
                found.append(Cost(case.name, what, batch, precision, median, low, high, len(took)))
    network.to("cpu").eval()
    return found


def bf16_gap(case: Case, device: str) -> float:
    """Return the largest difference of a probability between bfloat16 and float32 on the card."""
    network = case.network.to(device)
    exact, mixed = (probabilities_of(network, case.windows, device, bf16) for bf16 in (False, True))
    network.to("cpu")
    return float(np.abs(mixed - exact).max())


def ms(value: float) -> str:
    """Format milliseconds with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def device_words(device: str) -> str:
    """Return the device and the versions in words."""
    what = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    )
    return f"{what}, torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def report(device: str, tiny: bool = False) -> tuple[str, float | None]:
    """Return the page's table, and the largest bfloat16 gap; None without a card."""
    measured, reasons = cases(rows=64 if tiny else 1024)
    lines = [f"Measured on {device_words(device)}."]
    if device == "cpu":
        lines += [
            "",
            "No CUDA card here: float32 on the CPU only. bfloat16 is a card's; a CPU always works in float32.",
        ]
    lines += ["", "| network | parameters | what | batch | precision | median ms | 5–95 % ms | windows/s | n |"]
    lines += ["| --- | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: |"]
    for case in measured:
        for c in costs(case, device, BATCHES[:1] if tiny else BATCHES, 2 if tiny else MOST):
            lines.append(
                f"| {c.name} | {parameter_count(case.network):,} | {c.what} | {c.batch} | {c.precision} |"
                f" {ms(c.median)} | {ms(c.low)}–{ms(c.high)} | {c.batch / c.median * 1e3:,.0f} | {c.n} |"
            )
    lines += ["", *(f"Not measured: {reason}" for reason in reasons)]
    if device == "cpu":
        return "\n".join(lines).rstrip() + "\n", None
    gaps = {case.name: bf16_gap(case, device) for case in measured}
    lines += [
        "",
        f"| network | largest difference of p, bf16 against fp32 (tolerance {TOLERANCE}) | n |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {case.name} | {gaps[case.name]:.2e} | {len(case.windows):,} |" for case in measured]
    return "\n".join(lines) + "\n", max(gaps.values())


def main() -> int:
    """Print the table; return 1 if bfloat16 differs by more than TOLERANCE."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the table into this file")
    parser.add_argument("--tiny", action="store_true", help="a few calls only: does it run?")
    options = parser.parse_args()
    device = best_device()
    if device == "cpu":
        print("no CUDA card: measuring the CPU", file=sys.stderr)
    text, gap = report(device, options.tiny)
    print(text)
    if options.out:
        options.out.write_text(text)
    if gap is not None and gap > TOLERANCE:
        print(f"bfloat16 differs by {gap:.2e}, tolerance {TOLERANCE}: serve float32 on this card", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
