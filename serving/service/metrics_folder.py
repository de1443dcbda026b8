"""Put the metrics files of a serving process into memory, not on the disk of the installation.

The Prometheus client writes its counters through mapped files with holes in them. On a full disk the first write into a
hole raises no error but SIGBUS, which ends the process. BentoML also gives our two services one folder, which each of
them empties when it starts.
"""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read when the first counter is made
PREFIX = "bellwether-metrics-"


def keep_in_memory() -> None:
    """Give this process a folder of its own for its metrics. Call it when the service is imported: BentoML
    makes its first counter before it makes the service.

    Do nothing outside a worker of BentoML, which alone sets the variable, or without a /dev/shm to write to. Folders
    of killed processes are removed.
    """
    if VARIABLE not in os.environ or not os.access(MEMORY, os.W_OK):
        return
    for folder in MEMORY.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)  # another user's folder stays
    with suppress(OSError):  # memory is full: the folder stays where it was
        own = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)
        os.environ[VARIABLE] = own
        atexit.register(shutil.rmtree, own, ignore_errors=True)
