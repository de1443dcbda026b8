"""Measure the model service on a card, over HTTP and in process: in under eight minutes, or in seconds with --tiny.

Run: python -m benchmarks.gpu [--write] [--commit SHA] [--tiny]. Without a card it does the same on the CPU and says so;
docs/results/gpu.md says what each figure is. It needs what `serving` needs and no training library:
`python -m benchmarks.gpu_wheels` collects that for a machine which has torch. Ends with 1 where an answer was wrong.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import torch

from benchmarks.gpu_home import FAMILIES, SEED, TINY, Home, Size, make_home, model_service, places_of, windows_of
from pipelines.contracts import Floats
from pipelines.models.networks import CORE, Plan, RecurrentNetwork, Singles, logits_of, train_network
from pipelines.models.runtime import CARD_TOLERANCES, tolerance_of
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT
from serving.inference.cuda import SPARE, Card, TorchSession
from serving.inference.device import Device, count_cards
from serving.inference.model_client import packed, unpacked
from serving.service.schemas import Packed

PAGE = ROOT / "docs" / "results" / "gpu.md"
FIGURES = "## Figures\n"
CALL_ROWS = 1024  # of one HTTP call: a body holds 32 MiB
SINGLES = 3  # rows that are also sent alone, which a card answers by a CUDA graph
TARGET_P99_US, TARGET_WINDOWS_S = 300.0, 1e6  # of a single row; of 4,096 rows that lie on the device

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Figures:
    """Hold lines of the page, and what was wrong."""

    lines: list[str]
    faults: list[str]


# ---- the model service over HTTP ----------------------------------------------------------------------------------


def predict_over_http(client: httpx.Client, home: Home, families: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """Return the answers of both arms to windows by family, in one call of at most CALL_ROWS rows after the other."""
    answers: list[dict[str, Any]] = []
    for at in range(0, max(map(len, families.values())), CALL_ROWS):
        requests = [
            {
                "family": family,
                "digests": dict(zip(("champion", "challenger"), home.digests[family], strict=True)),
                "columns": list(VIEWS[family].columns),
                "rows": packed(rows[at : at + CALL_ROWS]),
            }
            for family, rows in families.items()
        ]
        response = client.post("/predict_batch", json={"inference_requests": requests})
        response.raise_for_status()
        answers += response.json()["predictions"]
    return answers


def parity(client: httpx.Client, home: Home, size: Size) -> Figures:
    """Compare what both arms answer over HTTP, to rows together and to single ones, with these bundles on this CPU."""
    found, n = Figures([], []), max(size.rows[:2])
    for family in FAMILIES:
        rows = windows_of(family, n)
        (answer,) = predict_over_http(client, home, {family: rows})
        singles = [predict_over_http(client, home, {family: rows[i : i + 1]})[0] for i in range(SINGLES)]
        for arm, name in enumerate(("champion", "challenger")):
            together, alone = (
                np.concatenate([unpacked(Packed(**one[name]["p"])) for one in some]) for some in ([answer], singles)
            )
            expected = home.model(family, arm).predict(rows).p
            gaps = np.abs(together - expected), np.abs(alone - expected[:SINGLES])
            device, gap = answer[name]["device"], max(float(np.nanmax(each)) for each in gaps)
            limit = tolerance_of(device)
            found.lines.append(f"| {family} {name} | {device} | {gap:.1e} | {limit:g} | {n} |")
            if gap > limit:
                found.faults.append(f"{family} {name} on {device} differs by {gap:.1e}, limit {limit:g}")
    return found


def http_lines(client: httpx.Client, home: Home, precision: str, size: Size) -> list[str]:
    """Return the cost of calls of both families and arms, by rows."""
    lines = []
    for n in size.rows:
        rows = {family: windows_of(family, n) for family in FAMILIES}
        took = timed_us(lambda rows=rows: predict_over_http(client, home, rows), size)
        lines.append(
            f"| both, two arms | {precision} | {n:,} | {quantiles(took)} | {4 * n / np.median(took) * 1e6:,.0f} |"
        )
    return lines


def break_even(client: httpx.Client, home: Home, size: Size) -> tuple[list[str], int | None]:
    """Return the comparison of one call over HTTP with the models in process on this CPU, and the first row count from
    which the call is faster, at it and at every larger one; None where it never is."""
    models = [home.model(family, arm) for family in FAMILIES for arm in (0, 1)]
    lines, faster = [], []
    for n in size.batches:
        rows = {family: windows_of(family, n) for family in FAMILIES}
        here = timed_us(lambda rows=rows: [m.predict(rows[m.family]) for m in models], size)
        there = timed_us(lambda rows=rows: predict_over_http(client, home, rows), size)
        faster.append(bool(np.median(there) < np.median(here)))
        lines.append(f"| {n} | {quantiles(here)} | {quantiles(there)} |")
    least = next((n for i, n in enumerate(size.batches) if all(faster[i:])), None)
    return lines, least


def swap(client: httpx.Client, home: Home, size: Size) -> Figures:
    """Swap champion and challenger while four threads predict; every call must be answered by one of the two."""
    body = {"family": "predictor", "windows": windows_of("predictor", 2).tolist()}
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        """Predict until told to stop."""
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as own:
            while not stop.is_set():
                answer = own.post("/predict", json=body)
                seen.append((answer.status_code, answer.json().get("digest", "")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(size.load_s)
    began, wanted = time.perf_counter(), home.digests["predictor"][1]
    home.serve(1)
    while wanted not in {digest for _, digest in seen[-8:]} and time.perf_counter() - began < 30:
        time.sleep(0.01)
    took = time.perf_counter() - began
    time.sleep(size.load_s)
    stop.set()
    for thread in threads:
        thread.join()
    home.serve(0)
    failed = sum(status != 200 for status, _ in seen)
    faults = [] if failed == 0 and took < 30 else [f"swap: {failed} of {len(seen)} calls failed, {took:.1f} s"]
    return Figures(
        [f"Swap under load: {len(seen):,} calls, {failed} failed, the new champion answers after {took:.2f} s."], faults
    )


# ---- in process -----------------------------------------------------------------------------------------------------


def timed_us(call: Call, size: Size) -> Floats:
    """Return microseconds of single calls after three that are not counted."""
    for _ in range(min(3, size.calls)):
        call()
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < 3 or (len(took) < size.calls and time.perf_counter() - began < size.seconds):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1e6)
    return np.array(took)


def quantiles(took_us: Floats) -> str:
    """Return "p50 | p99 | n" of microseconds."""
    return f"{np.median(took_us):,.0f} | {np.quantile(took_us, 0.99):,.0f} | {len(took_us)}"


def in_process(home: Home, card: Card, size: Size) -> Figures:
    """Time the sessions of both networks from numpy to numpy, and the network alone with windows on the device."""
    found = Figures([], [])
    for family in FAMILIES:
        session, rows = session_of(home, family, card), windows_of(family, max(size.rows))[:, :, places_of(family)]
        singles: Singles = rows.astype(np.float32)
        for n in size.rows:
            took = timed_us(functools.partial(session, singles[:n]), size)
            there = on_device(session, card, singles[:n], size)
            per_s = [n / np.median(each) * 1e6 for each in (took, there)]
            met = _target(n, float(np.quantile(took, 0.99)), per_s[1], card)
            found.lines.append(
                f"| {family} | {card.precision} | {n:,} | {quantiles(took)} | {per_s[0]:,.0f} | "
                f"{per_s[1]:,.0f} | {met} |"
            )
    return found


def _target(n: int, p99_us: float, windows_s: float, card: Card) -> str:
    """Return whether the target of this number of rows is met; empty where there is none, as on a CPU."""
    if card.device.type != "cuda" or n not in (1, 4096):
        return ""
    met = p99_us <= TARGET_P99_US if n == 1 else windows_s >= TARGET_WINDOWS_S
    return "met" if met else "missed"


def session_of(home: Home, family: str, card: Card) -> TorchSession:
    """Return the session of a champion's network on the card."""
    model: Any = card.place(home.model(family), home.where.bundles / home.digests[family][0])
    session = model.members[0].scorer
    assert isinstance(session, TorchSession)
    return session


def on_device(session: TorchSession, card: Card, rows: Singles, size: Size) -> Floats:
    """Return microseconds of the network alone, with windows and answers on the device."""
    windows = torch.from_numpy(rows).to(card.device)
    wait: Call = torch.cuda.synchronize if card.device.type == "cuda" else lambda: None

    def call() -> None:
        """Run the network and wait for it."""
        with session._on_card():
            session._network(windows)
        wait()

    return timed_us(call, size)


def out_of_memory(home: Home, device: Device) -> Figures:
    """Give a card a small share and a batch that does not fit; its halves must answer, and a single row afterwards."""
    card = Card(device, 0.02, _lost)
    session = session_of(home, "predictor", card)
    if session.most_rows is None:
        return Figures(["Out of memory: a CPU has no limit; injected in the tests."], [])
    n = int(session.most_rows / SPARE * 1.3)
    rows = np.resize(windows_of("predictor", 256).astype(np.float32), (n, *windows_of("predictor", 1).shape[1:]))
    split = session(rows)  # within the measured limit: no error, in several batches
    limit, session.most_rows = session.most_rows, None
    halved = session(rows)
    gap = float(np.abs(split - halved).max())
    single = float(np.abs(session(rows[:1]) - split[:1]).max())
    torch.cuda.set_per_process_memory_fraction(1.0, card.device)
    line = (
        f"Out of memory: {n:,} rows in 2 % of the card, measured limit {limit:,} rows; split and halved answers differ "
        f"by {gap:.1e} and a single row afterwards by {single:.1e}."
    )
    wrong = max(gap, single) > CARD_TOLERANCES["fp32"]
    return Figures([line], [f"out of memory: {gap:.1e}, {single:.1e}"] if wrong else [])


def training(device: str, size: Size) -> list[str]:
    """Return the seconds of a fit of the predictor's network by device, and whether it repeats to the last bit."""
    x = windows_of("predictor", size.windows).astype(np.float32)
    y = (x[:, -1, 0] > 0).astype(np.float64)
    half, plan = len(x) * 3 // 4, Plan(size.epochs, 64, 3e-3, size.epochs, SEED)
    tail = (x[half:], y[half:], np.ones(len(x) - half))
    lines = []
    for where, bf16 in (("cpu", False), *(((device, False), (device, True)) if device != "cpu" else ())):
        seconds, logits = [], []
        for _ in range(2):
            torch.manual_seed(SEED)
            network = RecurrentNetwork(x.shape[2], *CORE[1:])
            began = time.perf_counter()
            train_network(network, x[:half], y[:half], np.ones(half), tail, plan, where, bf16)
            seconds.append(time.perf_counter() - began)
            logits.append(logits_of(network, x[:64]).tobytes())
        repeats = "to the last bit" if logits[0] == logits[1] else "no"
        lines.append(
            f"| {where} | {'bf16' if bf16 else 'fp32'} | {half:,} × {size.epochs} | {min(seconds):.1f} | {repeats} |"
        )
    return lines


def _lost(why: str) -> NoReturn:
    """End the benchmark on a CUDA error."""
    raise SystemExit(f"the card is lost: {why}")


# ---- the page ------------------------------------------------------------------------------------------------------


def status_line(device: str, commit: str) -> str:
    """Return what the page begins with: measured on which card, driver and commit, or not measured."""
    words = f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    if device == "cpu":
        cores = f"{os.cpu_count()} {platform.machine()} cores, load {os.getloadavg()[0]:.0f}"
        return f"Not measured on a card. These figures are a CPU's: {cores}, {words}, commit {commit}."
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
    return f"Measured on {torch.cuda.get_device_name()}, driver {driver}, {words}, commit {commit}."


def measure(folder: Path, commit: str, size: Size) -> Figures:
    """Return everything, as lines of the page; `folder` becomes a home."""
    device = "cuda" if count_cards() and torch.cuda.is_available() else "cpu"
    home, faults = make_home(folder, size), []
    precisions = ("fp32", "bf16") if device == "cuda" else ("fp32",)
    parts: dict[str, list[str]] = {"parity": [], "http": [], "process": [], "even": []}
    extra: list[str] = []
    for precision in precisions:
        with model_service(home, device, precision) as client:
            same = parity(client, home, size)
            parts["parity"] += same.lines
            parts["http"] += http_lines(client, home, precision, size)
            faults += same.faults
            if precision == "fp32":
                parts["even"], least = break_even(client, home, size)
                swapped = swap(client, home, size)
                faults += swapped.faults
                found = f"from {least} row(s) a close on" if least else "at no number of rows"
                setting = f"; set BELLWETHER_DEVICE_BREAK_EVEN_ROWS={least}" if least and device == "cuda" else ""
                extra += [
                    f"Break-even: a call of the service on {device} is faster than the models in process on this CPU "
                    f"{found}{setting}.",
                    "",
                    *swapped.lines,
                ]
        index = 0 if device == "cuda" else None
        name = f"{'cuda:0' if device == 'cuda' else 'cpu'} {precision}"
        card = Card(Device(name, "measured", index), 0.9, _lost)
        parts["process"] += in_process(home, card, size).lines
        if precision == "fp32":
            short = out_of_memory(home, replace(Device(name, "measured", index)))
            extra += ["", *short.lines]
            faults += short.faults
    return Figures(
        [
            status_line(device, commit), "", "| model | device | largest difference of p | limit | rows |",
            "| --- | --- | ---: | ---: | ---: |", *parts["parity"], "",
            "| over HTTP | precision | rows | p50 µs | p99 µs | n | answers/s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |", *parts["http"], "",
            "| in process | precision | rows | p50 µs | p99 µs | n | windows/s | on the device, windows/s | target |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |", *parts["process"], "",
            "| rows | this CPU, p50 µs | p99 µs | n | over HTTP, p50 µs | p99 µs | n |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *parts["even"], "", *extra, "",
            "| training | precision | windows × epochs | seconds | repeats |", "| --- | --- | ---: | ---: | --- |",
            *training(device, size),
        ],
        faults,
    )  # fmt: skip


def commit_here() -> str:
    """Return the commit of the working tree; "unknown" where it is no repository."""
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Print the figures, with --write also into the page; return 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the figures of docs/results/gpu.md")
    parser.add_argument("--commit", default="", help="of this code, where the folder is no repository")
    parser.add_argument("--tiny", action="store_true", help="a few calls only: does it run?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.commit or commit_here(), TINY if options.tiny else Size())
    text = "\n".join(found.lines) + "\n"
    print(text)
    if options.write:
        PAGE.write_text(PAGE.read_text().partition(FIGURES)[0] + FIGURES + "\n" + text)
    for fault in found.faults:
        print(f"wrong: {fault}", file=sys.stderr)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
