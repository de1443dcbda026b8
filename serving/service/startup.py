"""End a service that cannot start where its supervisor, or the person who started it, sees it."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipelines.errors import NoDevice
from pipelines.settings import ROOT, Settings
from serving.inference.device import choose_device
from serving.service.connection_limits import in_worker

log = logging.getLogger("bellwether.startup")
CARD_LOST = 70  # exit status of a worker after a CUDA error
BENTO_FILE = ROOT.parent / "bento.yaml"  # next to the code of a bento, and nowhere else


def require_home(bento_file: Path = BENTO_FILE) -> None:
    """End this process, before anything is written, if it runs a bento and BELLWETHER_HOME names no folder.

    A bento holds no models, data or key, and its own folder is not the place for them.
    """
    if not bento_file.is_file():
        return
    where = Settings()
    home = where.home if "home" in where.model_fields_set else Path()
    if home == Path():
        why = "BELLWETHER_HOME is not set"
    elif not home.is_absolute():  # BentoML has changed into the bento's own folder
        why = f"BELLWETHER_HOME is {home}, which is not a whole path"
    elif not home.is_dir():
        why = f"BELLWETHER_HOME names {home}, and there is no such folder"
    else:
        return
    sys.exit(
        f"cannot start: {why}. A bento holds code and parameters, no models, data or key: set BELLWETHER_HOME to the "
        "home of an installation, such as the folder artifacts that `bellwether run` has filled"
    )


def require_device() -> None:
    """End this process with one sentence if the settings name a card that is not there."""
    try:
        choose_device(Settings())
    except NoDevice as error:
        sys.exit(f"cannot start: {error}")


def end_service(why: str) -> NoReturn:
    """End the worker and its parent at once, so that the supervisor starts both again; `why` is the last line logged.

    After a CUDA error the process can neither answer nor close what it holds on the card.
    """
    log.critical("ends: %s", why)
    if in_worker():
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(CARD_LOST)


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
