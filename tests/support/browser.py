"""A headless Chromium that a test drives over its debugging socket: open a page, run JavaScript in it, wait."""

import base64
import itertools
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

SECONDS = 30.0


class Navigated(Exception):
    """Signal that the page was left while an expression ran in it."""


class Page:
    """Drive one page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)

    def send(self, method: str, **params: Any) -> Any:
        """Send a command of the debugging protocol and return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:  # the browser sends events in between
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise Navigated(message)
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go to a URL."""
        self.send("Page.navigate", url=url)

    def run(self, code: str) -> Any:
        """Return the value of a JavaScript expression in the page, awaited if a promise. Fails if it throws."""
        answer = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code: str) -> Any:
        """Return the first true value of an expression, True for an element; wait for a page that is not there yet."""
        deadline = time.monotonic() + SECONDS
        guarded = (
            f"(() => {{ try {{ const v = {code}; return v instanceof Node || v }} catch (e) {{ return null }} }})()"
        )
        while not (found := self._run_unless_left(guarded)):
            if time.monotonic() > deadline:
                pytest.fail(f"waited for {code} at {self.run('document.URL')}: {self.run('document.body.innerText')}")
            time.sleep(0.1)
        return found

    def _run_unless_left(self, code: str) -> Any:
        """Return what `run` does; None where the page was left meanwhile."""
        try:
            return self.run(code)
        except Navigated:
            return None

    def fill(self, selector: str, text: str) -> None:
        """Type a text into a field once it is there, in a way that React notices."""
        self.until(f"document.querySelector({json.dumps(selector)})")
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), 'value').set.call(e, "
            f"{json.dumps(text)}); e.dispatchEvent(new Event('input', {{bubbles: true}})); return 1 }})()"
        )

    def click(self, selector: str) -> None:
        """Click an element once it is there; after the answer, as a click may leave the page."""
        self.until(f"(e => e && (setTimeout(() => e.click()), true))(document.querySelector({json.dumps(selector)}))")

    def picture(self, file: Path) -> None:
        """Save a screenshot."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Yield an empty page of a browser of its own. Skip the test where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    browser = subprocess.Popen(
        [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--window-size=1280,900", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port_file = folder / "DevToolsActivePort"
        deadline = time.monotonic() + SECONDS
        while not port_file.exists() or len(port_file.read_text().split()) < 2:
            assert browser.poll() is None, "Chromium ended"
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        port, path = port_file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as whole:
            targets = Page(whole).send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{page}", proxy=None, max_size=None) as socket:
            yield Page(socket)
    finally:
        browser.send_signal(signal.SIGTERM)
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
