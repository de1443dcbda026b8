"""PostgreSQL, S3 store and Dask that a home of profile `cluster` runs itself: credentials, environment, first use.

Credentials are files under `<home>/stores`, open to their user only, and are made once. Programs find them by the
environment: libpq and asyncpg read PGPASSFILE, the clients of S3 read AWS_SHARED_CREDENTIALS_FILE. No URL, command line
or log holds one. Dask's scheduler, workers and clients show each other one certificate, of an authority of this home.
"""

import configparser
import io
import json
import secrets
import socket
import ssl
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.support.service_table import TLS
from pipelines.errors import ServiceDown
from pipelines.settings import BUCKET, POSTGRES_USER, Settings

PROTOCOL = 196608  # version 3.0 of PostgreSQL's protocol, as its start-up message states it
REGION = "us-east-1"  # the store has one; its clients need a name
CERTIFICATE_DAYS = 3650  # this home alone trusts it; delete both files and restart for another


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
    if settings.runs_dask and not all(file.exists() for file in dask_files(settings)):
        where.mkdir(parents=True, exist_ok=True)
        write_certificate(*dask_files(settings))


def dask_files(settings: Settings) -> tuple[Path, Path]:
    """Return the certificate with its authority's, and its key, both PEM: a process with both may run code here."""
    return folder(settings) / "dask.pem", folder(settings) / "dask_key.pem"


def write_certificate(certificate: Path, key: Path) -> None:
    """Make an authority, keep a certificate that it signed, and forget the authority's key: it signs no other."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, authority_key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    own_key = ec.generate_private_key(ec.SECP256R1())
    issuer, subject = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"bellwether dask {name} {secrets.token_hex(4)}")])
        for name in ("authority", "home")
    )

    def signed(name: x509.Name, public: ec.EllipticCurvePublicKey, authority: bool) -> bytes:
        """Return a certificate of this name and key, PEM."""
        made = x509.CertificateBuilder(issuer, name, public, x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        return bytes(made.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    text = own_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = signed(subject, own_key.public_key(), False) + signed(issuer, authority_key.public_key(), True)
    _write(certificate, chain.decode())
    _write(key, text.decode())


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
    """Return the variables by which programs reach the stores and the Dask that this home runs or names."""
    found = {"BELLWETHER_DASK_URL": settings.dask_url} if settings.dask_url else {}
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


def accepts(settings: Settings, protocol: str, port: int, timeout_s: float) -> bool:
    """Return whether the server at a port of this home's host speaks its protocol: POSTGRESQL, or TLS."""
    if protocol == TLS:
        return shakes_hands(settings, port, timeout_s)
    return accepts_connections(settings.host, port, timeout_s)


def shakes_hands(settings: Settings, port: int, timeout_s: float) -> bool:
    """Return whether the server at this port shows the home's certificate: a process that is stopped does not."""
    certificate, key = dask_files(settings)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(certificate)
        context.load_cert_chain(certificate, key)
        with (
            socket.create_connection((settings.host, port), timeout_s) as connection,
            context.wrap_socket(connection) as secured,
        ):
            return secured.version() is not None
    except OSError:  # also of ssl; and no certificate yet
        return False


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
