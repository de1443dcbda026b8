"""Seal a folder with a manifest of its files' sha256, and verify it byte by byte.

The sha256 of the manifest is the folder's digest. Bundles of models and warm starts are stored under it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.contracts import JsonObject
from pipelines.errors import DigestMismatch

MANIFEST = "manifest.json"


def sha256(data: bytes) -> str:
    """Return the sha256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def files_in(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, relative to it, without the manifest."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {MANIFEST}


def seal(folder: Path, header: Mapping[str, object]) -> str:
    """Write the manifest of every file in a folder, with `header` next to it, and return the digest."""
    files = {name: sha256((folder / name).read_bytes()) for name in files_in(folder)}
    manifest = json.dumps({**header, "files": files}, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(manifest)
    return sha256(manifest)


def read_manifest(folder: Path, expected_digest: str | None, fix: str) -> tuple[JsonObject, str]:
    """Return the manifest and the digest of a folder.

    fix     last sentence of an error: what to do
    Raises  FileNotFoundError without a manifest, DigestMismatch where the digest is not `expected_digest`
    """
    raw = (folder / MANIFEST).read_bytes()
    digest = sha256(raw)
    if expected_digest is not None and digest != expected_digest:
        raise DigestMismatch(f"{folder}: digest {digest[:12]}, expected {expected_digest[:12]}. {fix}")
    manifest: JsonObject = json.loads(raw)
    return manifest, digest


def read_files(folder: Path, manifest: JsonObject, fix: str) -> dict[str, bytes]:
    """Return the content of every file that the manifest lists.

    fix     as in `read_manifest`
    Raises  DigestMismatch for a file that is missing or differs from the manifest
    """
    content = {}
    for name, expected in manifest["files"].items():
        content[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if (actual := sha256(content[name])) != expected:
            raise DigestMismatch(f"{folder / name}: sha256 {actual[:12]}, the manifest has {expected[:12]}. {fix}")
    return content
