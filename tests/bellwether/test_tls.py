"""TLS by nginx in front of the servers, and the alarm before its certificate ends."""

import shutil
import ssl
import sys
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bellwether.operations import start_stop
from bellwether.operations.alarm_outbox import AlarmOutbox
from bellwether.operations.launch import nginx
from bellwether.operations.supervisor_watch import CertificateWatch
from benchmarks.ports import free_ports
from flows.support import processes
from flows.support.service_table import FRONT, SERVICES, Service, services_of
from pipelines.settings import ROOT, Settings
from pipelines.store import Store

ECHO = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Echo(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def write_certificate(folder, days: float):
    """Write a certificate of `localhost` that ends in so many days, and its key; return both paths."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    certificate, secret = folder / "desk.pem", folder / "desk.key"
    certificate.write_bytes(made.public_bytes(pem))
    secret.touch(0o600)
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, secret


def settings(tmp_path, days=90.0, **changes):
    """Return settings of a home with TLS."""
    certificate, key = write_certificate(tmp_path, days)
    own = {"home": tmp_path / "home", "tls_certificate": certificate, "tls_key": key, "tls_name": "localhost"}
    return Settings(_env_file=None, **(own | changes))


def test_without_a_certificate_nothing_listens_with_tls(tmp_path):
    assert services_of(Settings(_env_file=None, home=tmp_path)) == SERVICES
    assert list(services_of(settings(tmp_path)))[-1] == "tls"


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key", "tls_name"])
def test_a_part_of_tls_that_is_missing_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"BELLWETHER_{name.upper()} is not set"):
        settings(tmp_path, **{name: "" if name == "tls_name" else None})


def test_a_certificate_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"BELLWETHER_TLS_KEY is '/nowhere\.key', which is no file"):
        settings(tmp_path, tls_key="/nowhere.key")


def test_the_guard_accepts_the_name_and_port_of_each_server_and_no_other(tmp_path):
    found = settings(tmp_path, tls_name="Desk.example", allowed_hosts="other.example")
    assert set(found.proxy_hosts) == {"other.example", *(f"desk.example:{port}" for port in range(8441, 8446))}


@pytest.mark.skipif(NGINX is None, reason="no nginx here; apt install nginx")
def test_nginx_ends_tls_and_passes_the_host_on(tmp_path, monkeypatch):
    tls_port, decision, *others = free_ports(6)
    ports = dict(zip(("model_port", "prefect_port", "mlflow_port", "evidently_port"), others, strict=True))
    at = settings(tmp_path, tls_port=tls_port, decision_port=decision, **ports)
    for name in ("tls_certificate", "tls_key", "tls_name"):  # services read their settings from the environment
        monkeypatch.setenv(f"BELLWETHER_{name.upper()}", str(getattr(at, name)))
    (tmp_path / "echo.py").write_text(ECHO)
    line = next(one for one in (ROOT / "Procfile").read_text().splitlines() if one.startswith("tls:"))
    (tmp_path / "Procfile").write_text(
        f'{line}\ndecision: exec {sys.executable} {tmp_path}/echo.py "$BELLWETHER_DECISION_PORT"\n'
    )
    known = {"decision": Service("decision_port"), **FRONT}
    try:
        start_stop.up(at, procfile=tmp_path / "Procfile", known=known)
        trusting = ssl.create_default_context(cafile=at.tls_certificate)
        url = f"localhost:{tls_port + 1}"
        answer = httpx.get(f"https://{url}/", verify=trusting)
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"]
        seen = answer.json()
        assert (seen["host"], seen["x-forwarded-proto"]) == (url, "https")
        assert seen["host"] in at.proxy_hosts
        assert httpx.get(f"http://{url}/").status_code == 400
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://{url}/")  # nobody else signed it
        assert httpx.get(f"https://localhost:{tls_port + 2}/", verify=trusting).status_code == 502  # nothing behind
        assert httpx.get(f"http://127.0.0.1:{tls_port}/else").status_code == 404
    finally:
        start_stop.down(at)
    assert processes.home_processes(at) == []


def test_each_server_has_a_port_of_its_own_and_only_the_page_of_life_has_no_tls(tmp_path):
    text = nginx.configuration(settings(tmp_path, tls_listen="0.0.0.0"), tmp_path)
    assert [f"listen 0.0.0.0:{port} ssl;" in text for port in range(8441, 8446)] == [True] * 5
    assert [line.strip() for line in text.splitlines() if "listen" in line and "ssl" not in line] == [
        "listen 127.0.0.1:8440;"
    ]


def test_an_alarm_before_the_certificate_ends_and_none_once_there_is_a_newer_one(tmp_path):
    at, lines = settings(tmp_path, days=5.0), []
    store, outbox = Store.open(at.store), AlarmOutbox(at, lines.append)
    watch = CertificateWatch(at, outbox, every_s=0.0, log=lines.append)

    def raised(severities):
        """Return the open alarms after a check, once there are those of these severities."""
        watch.check()
        deadline = time.monotonic() + 30.0
        while True:
            found = [alarm for alarm in store.alarms() if alarm.kind == "certificate_ends"]
            if [alarm.severity for alarm in found] == severities:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    try:
        (alarm,) = raised(["high"])
        assert "bellwether restart tls" in alarm.detail
        assert str(at.tls_certificate) in alarm.detail
        assert [one.id for one in raised(["high"])] == [alarm.id]
        write_certificate(tmp_path, days=-1.0)
        assert "ended at" in raised(["critical"])[0].detail
        write_certificate(tmp_path, days=90.0)
        raised([])
        at.tls_certificate.write_text("no certificate")
        raised([])
        assert "cannot be read as a certificate" in lines[-1]
    finally:
        outbox.close(5.0)
        store.close()
