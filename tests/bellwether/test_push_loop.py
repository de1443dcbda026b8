"""The loop of the tutorial on pushed bars, run with bash and curl against the real service."""

import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.decision_service import running_service
from support.serving_fixture import SYMBOL, stand

from pipelines.contracts import OPEN_TIME, utc
from pipelines.settings import ROOT

__all__ = ["stand"]
TEXT = (ROOT / "docs" / "tutorials" / "push-your-bars.md").read_text()
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def loop(tmp_path):
    """Return the script of the tutorial."""
    script = tmp_path / "push.sh"
    script.write_text(re.search(r'^```bash title="push.sh"\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)[1])
    return script


def bridge(service, faults):
    """Return a server that hands requests to the service in this process; `faults` are statuses it answers first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if faults:
                self.send_response(faults.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            passed = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            answer = service.http.post(self.path, content=body, headers=passed)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def pushed(loop, server, file):
    """Run the script on a file; return the finished process."""
    env = os.environ | {
        "PUSH_URL": f"http://127.0.0.1:{server.server_address[1]}", "BELLWETHER_WRITE_KEY": "test-key",
        "NO_PROXY": "*", "no_proxy": "*",
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(loop), SYMBOL, str(file)], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_loop_sends_every_line_once_and_ends_with_the_reason_where_one_is_refused(loop, stand, tmp_path):
    (tmp_path / "home" / "bundles").mkdir(parents=True)
    file = tmp_path / "minutes.csv"
    lines = [
        f"{utc(bar[OPEN_TIME]):%Y-%m-%dT%H:%M:%SZ}," + ",".join(map(repr, bar[1:6].tolist())) for bar in stand.live
    ]
    file.write_text("\n".join(["time,open,high,low,close,volume", *lines[:10], ""]))
    with running_service(stand, tmp_path / "home") as service:
        service.serve(None, None)
        server = bridge(service, [503])
        try:
            done = pushed(loop, server, file)
            assert done.returncode == 0, done.stdout[-900:] + done.stderr
            assert len(service.store().bars(SYMBOL)) == 10
            assert '"closed"' in done.stdout
            file.write_text("\n".join(["time,open,high,low,close,volume", lines[9].rpartition(",")[0] + ",1.0", ""]))
            done = pushed(loop, server, file)
            assert done.returncode != 0
            assert "is stored" in done.stdout or "differs" in done.stdout
            assert len(service.store().bars(SYMBOL)) == 10
        finally:
            server.shutdown()
            server.server_close()
