"""Which device the networks of the model service run on, and why. Knows no torch: a machine without a card loads none.

`BELLWETHER_DEVICE`: cpu; cuda, cuda:n or cuda:MIG-…, a card that has to be there; auto, the card where it is faster at
as many rows a close as there are symbols, the CPU elsewhere.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import NoDevice, StateError
from pipelines.settings import Settings
from serving.inference.generation import read_generation

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Device:
    """Hold the device of a process.

    name     "cpu", or card and precision as in "cuda:0 fp32": the `device` of every answer
    why      what decided it
    index    of the card among those that the process sees; None of the CPU
    """

    name: str
    why: str
    index: int | None = None


def count_cards() -> int:
    """Return how many cards the driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def rows_a_close(where: Settings) -> int:
    """Return how many rows each model gets when all symbols close together; 0 before the first turn."""
    try:
        generation = read_generation(where.serving_dir)
    except StateError:  # the slots refuse that file and say why
        return 0
    return 0 if generation is None else len(generation["warm_starts"])


def wants_card(where: Settings) -> tuple[bool, str]:
    """Return whether this installation's networks belong on a card, if there is one, and why."""
    if where.device != "auto":
        return where.device != "cpu", f"BELLWETHER_DEVICE={where.device}"
    least = where.device_break_even_rows
    if least is None:
        return False, "auto: no break-even is measured here (BELLWETHER_DEVICE_BREAK_EVEN_ROWS)"
    rows = rows_a_close(where)
    return rows >= least, f"auto: {rows} row(s) a close, a card is faster from {least}"


def choose_device(where: Settings, cards: Callable[[], int] = count_cards) -> Device:
    """Return the device of the model service. A MIG instance is made the only card that this process sees.

    cards   counts those that the driver shows
    Raises  NoDevice where a card that was named is not there
    """
    wanted, why = wants_card(where)
    if not wanted:
        return Device("cpu", why)
    which = where.device.partition(":")[2]
    if which.startswith("MIG-"):
        os.environ[VISIBLE] = which  # read by the driver at the first call
    index, found = int(which) if which.isdigit() else 0, cards()
    if index < found:
        return Device(f"cuda:{which or index} {where.device_precision}", why, index)
    if where.device == "auto":
        return Device("cpu", f"{why}, and there is no card")
    raise NoDevice(
        f"BELLWETHER_DEVICE is {where.device} and the driver shows {found} card(s) (`nvidia-smi -L` names them); set "
        "BELLWETHER_DEVICE=cpu, or auto, to run without one"
    )


def predicts_remotely(where: Settings) -> bool:
    """Return whether the decision service takes predictions from the model service."""
    return where.models == "remote" or (where.models == "auto" and wants_card(where)[0])
