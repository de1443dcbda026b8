"""Keys of clients: each has a name, the scopes of one client, and an end if it is given one.

They are in `<home>/client_keys.json`, mode 0600, which holds no key, only the SHA-256 of each. A fast hash without salt
is right here, and would be wrong for a password: a key is 256 random bits, so no list of guesses contains it and no
table can be made of them. A server reads the file again, at most once a second, when a request comes with such a key.
"""

import contextvars
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.errors import BadValues, LeaseHeld, StateError, UnknownName, WouldOverwrite
from pipelines.settings import Settings
from serving.service import keys
from serving.service.scopes import SCOPES

FORMAT = 1
KEY = re.compile(rf"{keys.CLIENT_PREFIX}[0-9a-f]{{64}}")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_CLIENTS = 100  # a key that is shown is compared with each of them: 9 µs
MOST_DAYS = 3650
MAX_FILE = 1 << 20  # bytes
LOOK_S = 1.0  # between two looks at the file; a new or revoked key counts from the next one
LOCK_S = 10.0
DAMAGED = "Client keys are refused. Fix: put the file back, or remove it and add the keys again (`bellwether key add`)"

log = logging.getLogger("bellwether.keys")
key_name: contextvars.ContextVar[str | None] = contextvars.ContextVar("key_name", default=None)  # of this request


@dataclass(frozen=True)
class ClientKey:
    """Hold what is stored of a key. digest: SHA-256 of the key, hex; times in UTC; `ends` None = never."""

    name: str
    digest: str
    scopes: tuple[str, ...]
    created: datetime
    ends: datetime | None = None

    def has_ended(self, now: datetime) -> bool:
        """Return whether its time is over."""
        return self.ends is not None and now >= self.ends


def registry_file(where: Settings) -> Path:
    """Return the path of the file of client keys."""
    return where.home / "client_keys.json"


def now_utc() -> datetime:
    """Return the time of day, UTC."""
    return datetime.now(UTC)


def digest_of(key: bytes) -> str:
    """Return the SHA-256 of a key, hex."""
    return hashlib.sha256(key).hexdigest()


# ---- the file -----------------------------------------------------------------------------------------------------


def client_keys(where: Settings) -> tuple[ClientKey, ...]:
    """Return the keys of all clients by name, also those that ended; none without a file.

    Raises StateError if the file is damaged, of another user, or accessible to others.
    """
    file = registry_file(where)
    text = keys.read_private(file, DAMAGED, MAX_FILE)
    if text is None:
        return ()
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this release reads {FORMAT}")
        found = sorted((_client(row) for row in content["clients"]), key=lambda client: client.name)
        for values in ([client.name for client in found], [client.digest for client in found]):
            if len(set(values)) < len(values):
                raise ValueError("an entry is there twice")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{file} is damaged ({type(error).__name__}: {str(error)[:100]}). {DAMAGED}") from error
    return tuple(found)


def _client(row: dict[str, object]) -> ClientKey:
    """Return an entry of the file. Raises ValueError, KeyError or TypeError for what is none."""
    name, digest, scopes = str(row["name"]), str(row["sha256"]), row["scopes"]
    if not (NAME.fullmatch(name) and DIGEST.fullmatch(digest)):
        raise ValueError("a name or sha256 is none")
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise ValueError(f"{name}: unknown scope")
    ends = row["ends"]
    return ClientKey(name, digest, tuple(scopes), _moment(row["created"]), None if ends is None else _moment(ends))


def _moment(text: object) -> datetime:
    """Return an ISO 8601 moment with its zone. Raises ValueError or TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError("a time is no text")
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time has no zone")
    return found.astimezone(UTC)


def add_client(
    where: Settings, name: str, scopes: Collection[str], now: datetime, days: int | None = None
) -> tuple[ClientKey, str]:
    """Store a new client; return it and its key, which is stored nowhere.

    days    until the key ends; None = it does not end
    Raises  BadValues or UnknownName for what is refused, WouldOverwrite if there is a client of this name, LeaseHeld
            while another process writes, StateError as `client_keys`
    """
    if not NAME.fullmatch(name):
        raise BadValues(
            f"NAME {name[:60]!r}: 1 to 40 characters of a-z, 0-9, _ and -, the first a letter or a digit; try desk-1"
        )
    if not scopes:
        raise BadValues(f"--scope: name at least one of {', '.join(SCOPES)}")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise UnknownName(f"--scope {unknown[0][:60]}: no such scope; there are {', '.join(SCOPES)}")
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise BadValues(f"--days {days}: 1 to {MOST_DAYS}, or leave it out for a key that does not end")
    key = keys.CLIENT_PREFIX + secrets.token_hex(32)
    now = now.astimezone(UTC).replace(microsecond=0)
    ends = None if days is None else now + timedelta(days=days)
    granted = tuple(scope for scope in SCOPES if scope in scopes)
    client = ClientKey(name, digest_of(key.encode()), granted, now, ends)
    with _locked(where):
        known = client_keys(where)
        if any(other.name == name for other in known):
            raise WouldOverwrite(f"NAME {name}: has a key. `bellwether key revoke {name}` first, or take another name")
        if len(known) >= MOST_CLIENTS:
            raise BadValues(f"NAME {name}: {MOST_CLIENTS} clients have keys, which is the limit; revoke one")
        _write(where, (*known, client))
    return client, key


def revoke_client(where: Settings, name: str) -> None:
    """Remove a client. Raises UnknownName if there is none of this name, LeaseHeld and StateError as `add_client`."""
    with _locked(where):
        known = client_keys(where)
        left = tuple(client for client in known if client.name != name)
        if len(left) == len(known):
            names = ", ".join(client.name for client in known) or "nobody"
            raise UnknownName(f"NAME {name[:60]}: no client of this name has a key; those who have: {names}")
        _write(where, left)


def _write(where: Settings, clients: Collection[ClientKey]) -> None:
    """Replace the file, durably; the caller holds the lock."""
    rows = [
        {"name": c.name, "sha256": c.digest, "scopes": c.scopes, "created": c.created.isoformat(),
         "ends": c.ends and c.ends.isoformat()} for c in clients
    ]  # fmt: skip
    file = registry_file(where)
    keys.write_draft(file, json.dumps({"format": FORMAT, "clients": rows}, indent=1)).replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a revoked key stays revoked after a power cut
    finally:
        os.close(folder)


@contextmanager
def _locked(where: Settings) -> Iterator[None]:
    """Hold the writers' lock. Raises LeaseHeld if another process holds it for LOCK_S."""
    where.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(where.home / ".client_keys.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LeaseHeld(
                        f"another process has been changing client keys for {LOCK_S:.0f} s. Try again."
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # releases the lock


# ---- in a server --------------------------------------------------------------------------------------------------


class ClientKeys:
    """Know the client keys of a home in a server, as they are now. A file that cannot be trusted opens nothing."""

    def __init__(self, where: Settings, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet. monotonic: seconds, of the time between two looks at the file."""
        self._where, self._monotonic = where, monotonic
        self._file = registry_file(where)
        self._looked_at: float | None = None
        self._version: tuple[int, ...] | None = None  # of the file that was read; None = there was none
        self._clients: tuple[ClientKey, ...] = ()
        self.fault: str | None = None  # why the file opens nothing, with what to do

    def find(self, key: bytes) -> ClientKey | None:
        """Return the client whose key this is, also one that has ended; None if there is none."""
        if not KEY.fullmatch(key.decode("latin-1")):
            return None
        self._look()
        digest, found = digest_of(key), None
        for client in self._clients:  # all of them, each in constant time: the time says nothing about which
            if hmac.compare_digest(client.digest, digest):
                found = client
        return found

    def named(self, name: str) -> ClientKey | None:
        """Return the client of this name; None if there is none."""
        self._look()
        return next((client for client in self._clients if client.name == name), None)

    def is_valid(self, client: ClientKey, now: datetime) -> bool:
        """Return whether this key, found earlier, still opens what it did."""
        return not client.has_ended(now) and self.named(client.name) == client

    def _look(self) -> None:
        """Read the file again if it changed; look at it at most once every LOOK_S."""
        now = self._monotonic()
        if self._looked_at is not None and now - self._looked_at < LOOK_S:
            return
        first, self._looked_at = self._looked_at is None, now
        try:
            version = _version(self._file)
            if version == self._version and not first:
                return
            self._clients, fault = client_keys(self._where), None
            self._version = version
        except (StateError, OSError) as error:
            self._clients, fault = (), str(error)
            self._version = ()  # no file has it: it is read again at the next look
        if fault is not None and fault != self.fault:
            log.error("client keys are refused: %s", fault)
        elif fault is None and self.fault is not None:
            log.warning("client keys are taken again: %s is in order", self._file.name)
        self.fault = fault


def _version(file: Path) -> tuple[int, ...] | None:
    """Return what differs between two versions of a file, its mode and owner included; None without a file."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode, found.st_uid
