"""What happens when a service cannot start: it ends where its supervisor sees it."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from serving.service.connection_limits import in_worker

log = logging.getLogger("bellwether.startup")


@contextmanager
def starting() -> Iterator[None]:
    """Put this around what a service needs to start; where that fails, the worker's parent is told to end too.

    BentoML starts a worker that died again at once, for ever, and nobody else learns of it. A parent that has ended is
    seen by the supervisor: started again later and later, shown with the last line of its log, given up with an alarm.
    """
    try:
        yield
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        log.critical("cannot start: %s: %s; `bellwether doctor` says what to do", type(error).__name__, told)
        if in_worker():
            os.kill(os.getppid(), signal.SIGTERM)
        raise
