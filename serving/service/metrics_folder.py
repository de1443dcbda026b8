"""Where the metrics' files of a serving process lie: in memory, not on the disk of the installation.

The Prometheus client writes its counters through mapped files with holes in them. On a full disk the first write into a
hole is no error but SIGBUS, which ends the process. And BentoML gives our two services one folder, which each of them
empties when it starts.
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

    Does nothing outside a worker of BentoML, which alone sets the variable, and where there is no /dev/shm to write to.
    What a process that was killed left there is removed.
    """
    if VARIABLE not in os.environ or not os.access(MEMORY, os.W_OK):
        return
    for left in MEMORY.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)  # that of another user stays
    with suppress(OSError):  # as full as the disk is: then the folder stays where it was
        folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)
        os.environ[VARIABLE] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
