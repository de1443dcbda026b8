"""The key of an installation, browser sessions and one-time links.

The key is a bearer token. A session token is signed with it, so a new key ends every session. A one-time link is a file
under `<home>/run/tickets`, named by the hash of its secret and deleted when it is used.
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

SESSION_PATH = "/session"
CLIENT_PREFIX = "bwc_"  # every key of a client begins so: searches for secrets in files find it, and we know it
SESSION_SECONDS = 12 * 3600
TICKET_SECONDS = 60


# ---- the key ------------------------------------------------------------------------------------------------------


def key_file(where: Settings) -> Path:
    """Return the path of the key file."""
    return where.home / "write_key"


def configured_key(where: Settings) -> str | None:
    """Return `BELLWETHER_WRITE_KEY`, None if unset or empty. Raises BadValues if a header cannot carry it."""
    key = "" if where.write_key is None else where.write_key.get_secret_value().strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise BadValues("BELLWETHER_WRITE_KEY has a space or a character outside ASCII; use letters and digits")
    return key or None


def read_key(where: Settings) -> str | None:
    """Return the current key, None if there is none yet; writes nothing.

    Raises StateError if the file is empty, not a regular file, of another user, or accessible to others.
    """
    return configured_key(where) or _read(key_file(where))


def write_key(where: Settings) -> str:
    """Return the key: `BELLWETHER_WRITE_KEY`, else the file `<home>/write_key`, created once with mode 0600.

    Called when a process starts; writes nothing if there is a key. Raises as `read_key` does.
    """
    return configured_key(where) or _read_or_create(key_file(where))


def home_key(where: Settings) -> str:
    """Return the key as `write_key`, for a process that serves. Raises BadValues too if it is the key of a client.

    A program of a client has it in BELLWETHER_WRITE_KEY. A server that took it from there would give it every right.
    """
    key = write_key(where)
    if key.startswith(CLIENT_PREFIX):
        raise BadValues(
            "BELLWETHER_WRITE_KEY holds the key of a client, which cannot be the key of this home. Fix: "
            "`unset BELLWETHER_WRITE_KEY`, then start again."
        )
    return key


def chain_key_file(where: Settings) -> Path:
    """Return the path of the file with the key of the ledger's chain."""
    return where.home / "chain_key"


def chain_key(where: Settings) -> bytes:
    """Return the key of the ledger's chain, the file `<home>/chain_key`, created once with mode 0600.

    It is never rotated: each line of the chain was made under it. Raises as `read_key` does.
    """
    return _read_or_create(chain_key_file(where)).encode()


def _read(file: Path) -> str | None:
    """Return the key in a file, None if there is no file. Raises as `read_key`."""
    key = read_private(file, "Remove it; `bellwether up` creates a key.", 4096)
    if key is not None and (not key or not all("!" <= letter <= "~" for letter in key)):
        raise StateError(f"{file} holds no valid key. Remove it; `bellwether up` creates one.")
    return key


def read_private(file: Path, remedy: str, limit: int) -> str | None:
    """Return the text of a file that only its user may access, stripped; None if there is no file.

    remedy  what to do about a file that is none, in a sentence
    limit   characters that are read
    Raises StateError if it is not a regular file, not text, of another user, accessible to others, or longer.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):  # a home that is a file is reported by those who need the home
        return None
    except OSError as error:
        raise StateError(f"cannot read the key {file}: {error.strerror}. Run as the user that owns it.") from error
    with os.fdopen(handle, encoding="utf-8") as opened:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StateError(f"{file} is not a regular file. {remedy}")
        if found.st_uid not in (os.geteuid(), 0):
            raise StateError(
                f"{file} belongs to user {found.st_uid}, we run as {os.geteuid()}: `chown {os.geteuid()} {file}`"
            )
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise StateError(f"other users can access the key {file} (mode {mode:04o}). Fix: `chmod 600 {file}`")
        try:
            text = opened.read(limit + 1)
        except UnicodeDecodeError as error:
            raise StateError(f"{file} is not text. {remedy}") from error
    if len(text) > limit:
        raise StateError(f"{file} is longer than {limit} characters. {remedy}")
    return text.strip()


def _read_or_create(file: Path) -> str:
    """Return the key in a file; create it with mode 0600 if there is none. Raises as `read_key`."""
    if (existing := _read(file)) is not None:
        return existing
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = write_draft(file, _new_key())
    try:
        os.link(draft, file)  # fails if another process was first; then its key counts
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    created = _read(file)
    if created is None:
        raise StateError(f"{file} was removed while it was created. Try again.")
    return created


def rotate_key(where: Settings) -> None:
    """Replace the key file by a new key. Running servers use the old key until they restart.

    Raises BadValues if `BELLWETHER_WRITE_KEY` is set: only its owner can change it.
    """
    if configured_key(where) is not None:
        raise BadValues(
            "the key comes from BELLWETHER_WRITE_KEY. Set another there, then `bellwether down` and `bellwether up`."
        )
    where.home.mkdir(parents=True, exist_ok=True)
    write_draft(key_file(where), _new_key()).replace(key_file(where))


def _new_key() -> str:
    """Return a random key, 48 hex digits."""
    return secrets.token_hex(24)


def write_draft(file: Path, text: str) -> Path:
    """Write `text` to a new file next to `file`, mode 0600, and return its path."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    return draft


def is_equal(first: str | bytes, second: str | bytes) -> bool:
    """Return whether two secrets are equal, in constant time."""
    left, right = (text.encode() if isinstance(text, str) else text for text in (first, second))
    return hmac.compare_digest(left, right)


# ---- sessions -----------------------------------------------------------------------------------------------------


def create_session(key: str, tool: str, holder: str = "", digest: str = "") -> str:
    """Return a token for `tool`, valid for SESSION_SECONDS: `expiry.nonce.signature`, expiry in Unix seconds.

    holder, digest  name and SHA-256 of the client whose key opened it: `expiry.nonce.holder.signature`, which ends
                    with that key. Empty = the key of the home opened it.
    """
    payload = f"{int(time.time()) + SESSION_SECONDS}.{secrets.token_hex(16)}" + (f".{holder}" if holder else "")
    return f"{payload}.{_signature(key, tool, payload, digest)}"


def session_holder(token: str) -> str:
    """Return the name of the client that a token says it is of; empty = the home's own. Proves nothing."""
    parts = token.split(".")
    return parts[2] if len(parts) == 4 else ""


def is_session(token: str, key: str, tool: str, digest: str = "") -> bool:
    """Return whether the token was signed with this key for this tool, and for the client of this digest, if any, and
    has not expired."""
    payload, _, signature = token.rpartition(".")
    if not is_equal(signature, _signature(key, tool, payload, digest)):
        return False
    expiry = payload.partition(".")[0]
    return expiry.isdecimal() and time.time() < int(expiry)


def _signature(key: str, tool: str, payload: str, digest: str) -> str:
    """Return the HMAC-SHA256 of a session's payload, hex."""
    signed = f"session|{tool}|{payload}" + (f"|{digest}" if digest else "")
    return hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()


# ---- one-time links -----------------------------------------------------------------------------------------------


def create_ticket(where: Settings, tool: str) -> str:
    """Return a secret that opens one session of `tool` within TICKET_SECONDS. Deletes expired tickets."""
    folder = _tickets(where)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for old in folder.iterdir():
        with suppress(FileNotFoundError):  # redeemed just now
            if time.time() - old.stat().st_mtime > TICKET_SECONDS:
                old.unlink()
    ticket = secrets.token_urlsafe(32)
    file = _ticket_file(where, ticket)
    draft = file.with_suffix(".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        json.dump({"tool": tool, "expires": time.time() + TICKET_SECONDS}, opened)
    draft.replace(file)
    return ticket


def redeem_ticket(where: Settings, tool: str, ticket: str) -> bool:
    """Return whether the ticket is valid for `tool`, and invalidate it: of concurrent calls only one returns True."""
    file = _ticket_file(where, ticket)
    try:
        ticket_data = json.loads(file.read_text())
        if ticket_data["tool"] != tool:
            return False
        file.unlink()
    except FileNotFoundError:  # unknown or redeemed
        return False
    return bool(time.time() < ticket_data["expires"])


def _tickets(where: Settings) -> Path:
    """Return the folder of the tickets."""
    return where.home / "run" / "tickets"


def _ticket_file(where: Settings, ticket: str) -> Path:
    """Return the path of a ticket's file, which does not show its secret."""
    return _tickets(where) / hashlib.sha256(ticket.encode(errors="surrogatepass")).hexdigest()
