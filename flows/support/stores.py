"""The PostgreSQL and the S3 store that a home of profile `cluster` runs itself: credentials, environment, first use.

Credentials are files under `<home>/stores`, open to their user only, and are made once. Programs find them by the
environment: libpq and asyncpg read PGPASSFILE, the clients of S3 read AWS_SHARED_CREDENTIALS_FILE. No URL, command line
or log holds one.
"""

import configparser
import io
import json
import secrets
import socket
import struct
from pathlib import Path

from pipelines.errors import ServiceDown
from pipelines.settings import BUCKET, POSTGRES_USER, Settings

PROTOCOL = 196608  # version 3.0 of PostgreSQL's protocol, as its start-up message states it
REGION = "us-east-1"  # the store has one; its clients need a name


def folder(settings: Settings) -> Path:
    """Return the folder of credentials and of what the S3 store keeps."""
    return settings.home.resolve() / "stores"


def password_file(settings: Settings) -> Path:
    """Return the path of the password file, in libpq's format."""
    return folder(settings) / "pgpass"


def credentials_file(settings: Settings) -> Path:
    """Return the path of the S3 credentials, in the format of AWS."""
    return folder(settings) / "s3_credentials"


def write_credentials(settings: Settings) -> None:
    """Make the credentials of the stores that this home runs, each once; what exists stays."""
    where = folder(settings)
    if settings.runs_postgres and not password_file(settings).exists():
        where.mkdir(parents=True, exist_ok=True)
        _write(password_file(settings), f"{settings.host}:*:*:{POSTGRES_USER}:{secrets.token_urlsafe(32)}\n")
    if settings.runs_s3 and not credentials_file(settings).exists():
        where.mkdir(parents=True, exist_ok=True)
        found = configparser.ConfigParser()
        found["default"] = {
            "aws_access_key_id": secrets.token_hex(10),
            "aws_secret_access_key": secrets.token_urlsafe(32),
        }
        text = io.StringIO()
        found.write(text)
        _write(credentials_file(settings), text.getvalue())


def password(settings: Settings) -> str:
    """Return the password of the database user. Raises ServiceDown without one."""
    try:
        return password_file(settings).read_text().strip().rsplit(":", 1)[1]
    except (OSError, IndexError) as error:
        raise ServiceDown(f"{password_file(settings)} has no password: {error}. Run `bellwether up`.") from error


def identities(settings: Settings) -> str:
    """Return the identities that the S3 store accepts, as its configuration: one, with every right. Nobody else.

    Raises  ServiceDown without credentials
    """
    found = configparser.ConfigParser()
    if not found.read(credentials_file(settings)) or "default" not in found:
        raise ServiceDown(f"{credentials_file(settings)} has no credentials. Run `bellwether up`.")
    one = found["default"]
    keys = {"accessKey": one["aws_access_key_id"], "secretKey": one["aws_secret_access_key"]}
    rights = ["Admin", "Read", "List", "Tagging", "Write"]
    return json.dumps({"identities": [{"name": "bellwether", "credentials": [keys], "actions": rights}]})


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which programs reach the stores that this home runs."""
    found = {}
    if settings.runs_postgres:
        found["PGPASSFILE"] = str(password_file(settings))
    if settings.runs_s3:
        found |= {
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials_file(settings)),
            "AWS_ENDPOINT_URL": f"http://{settings.host}:{settings.s3_port}",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_PROFILE": "default",
            # of another account: they would win over the file
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), ""),
        }
    return found


def accepts_connections(host: str, port: int, timeout_s: float) -> bool:
    """Return whether a PostgreSQL at this port takes connections: not while it starts, recovers or ends.

    Begins to connect and stops before the password, which the server does not log.
    """
    names = f"user\0{POSTGRES_USER}\0database\0postgres\0\0".encode()
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(struct.pack("!ii", 8 + len(names), PROTOCOL) + names)
            return connection.recv(1024)[:1] == b"R"  # the request for a password; E = refused, with the reason
    except OSError:
        return False


def make_bucket(settings: Settings) -> None:
    """Make the bucket of the home's S3 store, if it is not there. Raises ServiceDown if the store refuses it."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    found = configparser.ConfigParser()
    found.read(credentials_file(settings))
    client = boto3.client(
        "s3", endpoint_url=f"http://{settings.host}:{settings.s3_port}", region_name=REGION, **dict(found["default"])
    )
    try:
        if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError) as error:
        raise ServiceDown(f"the S3 store has no bucket {BUCKET!r} and makes none: {error}") from error


def _write(path: Path, text: str) -> None:
    """Write a file that only its user can open."""
    path.touch(0o600)
    path.write_text(text)
