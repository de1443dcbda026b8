"""The key of one home, and what is derived from it: sessions of a browser, and links that work once.

The key is a bearer token. A session is signed with it, so a new key ends every session; a one-time link is a file under
`<home>/run/tickets`, named by the hash of its secret and gone once used.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from pipelines.errors import BadValues, StateError
from pipelines.settings import Settings

SESSION_SECONDS = 12 * 3600
TICKET_SECONDS = 60


# ---- the key ------------------------------------------------------------------------------------------------------


def key_file(where: Settings) -> Path:
    return where.home / "write_key"


def given_key(where: Settings) -> str | None:
    """`BELLWETHER_WRITE_KEY`, None where that is unset or empty. Raises BadValues if no header can carry it."""
    key = "" if where.write_key is None else where.write_key.get_secret_value().strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise BadValues("BELLWETHER_WRITE_KEY has a space or a letter no header carries; use ASCII letters and digits")
    return key or None


def known_key(where: Settings) -> str | None:
    """The key as it stands, None before one was made; writes nothing.

    Raises StateError if the file is empty, not a file, another user's, or open to others: such a key is no secret.
    """
    if (given := given_key(where)) is not None:
        return given
    file = key_file(where)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            f"cannot read the key {file}: {error.strerror}. It belongs to the user who runs us."
        ) from error
    with os.fdopen(handle) as opened:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StateError(f"{file} is no file. Remove it; `bellwether up` makes a key.")
        if found.st_uid not in (os.geteuid(), 0):
            raise StateError(f"{file} belongs to user {found.st_uid}, not to us: `chown {os.geteuid()} {file}`")
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise StateError(f"others may read the key {file} (mode {mode:04o}): `chmod 600 {file}`")
        key = opened.read(4096).strip()
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise StateError(f"{file} holds no key. Remove it, then `bellwether up` makes one.")
    return key


def write_key(where: Settings) -> str:
    """The bearer key: `BELLWETHER_WRITE_KEY`, else the file `<home>/write_key`, made once, mode 0600.

    Asked for when a process starts; where there is a key nothing is written. Raises as `known_key` does.
    """
    known = known_key(where)
    if known is not None:
        return known
    where.home.mkdir(parents=True, exist_ok=True)
    draft = _drafted(where, _new_key())
    try:
        os.link(draft, key_file(where))  # fails if another process was first; its key stands
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    made = known_key(where)
    if made is None:
        raise StateError(f"{key_file(where)} vanished while it was made; try again")
    return made


def rotate(where: Settings) -> None:
    """Put a new key in the place of the old one. What has read the old one keeps it until it starts again.

    Raises BadValues where the environment gives the key: only whoever set it can change it.
    """
    if given_key(where) is not None:
        raise BadValues("the key is that of BELLWETHER_WRITE_KEY: set another there, then `bellwether down` and `up`")
    where.home.mkdir(parents=True, exist_ok=True)
    _drafted(where, _new_key()).replace(key_file(where))


def _new_key() -> str:
    return secrets.token_hex(24)


def _drafted(where: Settings, key: str) -> Path:
    """A file of its own beside the key's, mode 0600, with this key in it."""
    draft = where.home / f".write_key.{secrets.token_hex(8)}"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(key)
        opened.flush()
        os.fsync(opened.fileno())
    return draft


def same(given: str | bytes, wanted: str | bytes) -> bool:
    """Whether two secrets are one, in a time that tells nothing of where they differ."""
    mine, theirs = (text.encode() if isinstance(text, str) else text for text in (given, wanted))
    return hmac.compare_digest(mine, theirs)


# ---- sessions -----------------------------------------------------------------------------------------------------


def session(key: str, tool: str) -> str:
    """A token that lets a browser use `tool` for SESSION_SECONDS: expiry (Unix seconds), nonce and signature."""
    said = f"{int(time.time()) + SESSION_SECONDS}.{secrets.token_hex(16)}"
    return f"{said}.{_signature(key, tool, said)}"


def is_session(token: str, key: str, tool: str) -> bool:
    """Whether this key made the token, for this tool, and it has not expired."""
    said, _, signature = token.rpartition(".")
    if not same(signature, _signature(key, tool, said)):
        return False
    expiry = said.partition(".")[0]
    return expiry.isdecimal() and time.time() < int(expiry)


def _signature(key: str, tool: str, said: str) -> str:
    return hmac.new(key.encode(), f"session|{tool}|{said}".encode(), hashlib.sha256).hexdigest()


# ---- links that work once -----------------------------------------------------------------------------------------


def make_ticket(where: Settings, tool: str) -> str:
    """A secret that opens one session of `tool`, once and within TICKET_SECONDS. Those that expired are cleared."""
    folder = _tickets(where)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for old in folder.iterdir():
        with suppress(FileNotFoundError):  # it was used just now
            if time.time() - old.stat().st_mtime > TICKET_SECONDS:
                old.unlink()
    ticket = secrets.token_urlsafe(32)
    file = _ticket_file(where, ticket)
    draft = file.with_suffix(".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        json.dump({"tool": tool, "expires": time.time() + TICKET_SECONDS}, opened)
    draft.replace(file)
    return ticket


def use_ticket(where: Settings, tool: str, ticket: str) -> bool:
    """Whether this ticket is good for `tool` now. True once: whoever removes its file has used it, and it is gone."""
    file = _ticket_file(where, ticket)
    try:
        told = json.loads(file.read_text())
        if told["tool"] != tool:
            return False
        file.unlink()
    except FileNotFoundError:  # unknown, or another request was first
        return False
    return bool(time.time() < told["expires"])


def _tickets(where: Settings) -> Path:
    return where.home / "run" / "tickets"


def _ticket_file(where: Settings, ticket: str) -> Path:
    return _tickets(where) / hashlib.sha256(ticket.encode(errors="surrogatepass")).hexdigest()
