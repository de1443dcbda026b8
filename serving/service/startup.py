"""End a service that cannot start where its supervisor sees it."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from serving.service.connection_limits import in_worker

log = logging.getLogger("bellwether.startup")


@contextmanager
def starting() -> Iterator[None]:
    """Wrap what a service needs to start; where that fails, end the worker's parent too and raise the error.

    BentoML restarts a dead worker at once, for ever, and reports it nowhere. The supervisor sees a parent that ended:
    it restarts it with growing pauses, shows the last line of its log, and gives up with an alarm.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log.critical("cannot start: %s: %s; `bellwether doctor` says what to do", type(error).__name__, reason)
        if in_worker():
            os.kill(os.getppid(), signal.SIGTERM)
        raise
