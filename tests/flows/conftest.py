"""What flows print, whatever the logging of an earlier test of this process was set to."""

import logging

import pytest


@pytest.fixture
def progress_lines(caplog, monkeypatch):
    """Return a function that gives the lines of progress so far, as one text."""
    from flows.support.progress import report_progress

    report_progress("before")  # Prefect sets its loggers up at first use
    for name in ("prefect", "prefect.bellwether"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    caplog.set_level(logging.INFO, "prefect.bellwether")
    return lambda: caplog.text
