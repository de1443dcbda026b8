"""Wait for a BentoML service that a test has started."""

import time

import httpx
import pytest


def wait_until_ready(url, process, log, seconds=90):
    """Wait until /readyz answers 200; fail with the end of the log if the process ends or never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the model service did not come up:\n{log.read_text()[-2000:]}")
