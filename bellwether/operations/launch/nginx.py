"""Run nginx in front of the servers of one home: `python -m bellwether.operations.launch.nginx`, until SIGTERM.

It ends TLS and passes everything on as it came, Host included: the guard in each server decides what may come in.
"""

import os
import shutil
import sys
from pathlib import Path

from pipelines.permissions import restrict
from pipelines.settings import Settings, settings

PAGE = """\
daemon off;
worker_processes 1;
pid {run}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  server_tokens off;
  client_body_temp_path {run}/body;
  proxy_temp_path {run}/proxy;
  fastcgi_temp_path {run}/fastcgi;
  uwsgi_temp_path {run}/uwsgi;
  scgi_temp_path {run}/scgi;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_tickets off;
  map $http_upgrade $upgrades {{ default upgrade; '' ''; }}
  server {{
    listen {host}:{port};
    location = /livez {{ return 200; }}
    location / {{ return 404; }}
  }}
{servers}}}
"""
# bodies and long answers pass through without being stored: the limits are those of the server, which states them
SERVER = """\
  server {{
    listen {listen}:{port} ssl;
    client_max_body_size 0;
    add_header Strict-Transport-Security "max-age=31536000" always;
    location / {{
      proxy_pass http://{host}:{behind};
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 1h;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $upgrades;
    }}
  }}
"""


def configuration(where: Settings, run: Path) -> str:
    """Return nginx's configuration; `run` is the folder of its own files."""
    assert where.tls_certificate is not None
    assert where.tls_key is not None
    servers = [
        SERVER.format(listen=where.tls_listen, port=port, host=where.host, behind=behind)
        for port, behind in where.tls_ports.items()
    ]
    return PAGE.format(
        run=run, certificate=where.tls_certificate.resolve(), key=where.tls_key.resolve(), host=where.host,
        port=where.tls_port, servers="".join(servers),
    )  # fmt: skip


def main() -> None:
    """Become nginx. Exits with 1 and one sentence if it is not installed."""
    restrict()
    where = settings()
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if program is None:
        print("no nginx here. Install it (Debian: `apt install nginx`), or unset BELLWETHER_TLS_CERTIFICATE, "
              "BELLWETHER_TLS_KEY and BELLWETHER_TLS_NAME", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    run = where.home.resolve() / "run" / "nginx"
    run.mkdir(parents=True, exist_ok=True)
    file = run / "nginx.conf"
    file.write_text(configuration(where, run))
    os.execv(program, [program, "-e", "stderr", "-p", str(run), "-c", str(file)])


if __name__ == "__main__":
    main()
