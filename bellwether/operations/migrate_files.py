"""Files of one home, copied between a folder and a bucket of an S3 store: MLflow's artifacts and DVC's remote."""

import hashlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import MissingPackage, ServiceDown, StateError

DRAFT = ".migrating"  # end of the name of a file that is not complete
AT_ONCE = 4  # files in transfer: most are small, and the time goes into waiting
ONE_PART_BYTES = 1 << 30  # up to here an object is one part, and S3 states its MD5
CHUNK = 1 << 20


class Folder:
    """Files under a folder, by their path in it."""

    def __init__(self, root: str) -> None:
        """Name the folder; it need not exist."""
        self.root, self.shown = Path(root), root

    def sizes(self) -> dict[str, int]:
        """Return path → bytes of every complete file."""
        files = (file for file in self.root.rglob("*") if file.is_file() and not file.name.endswith(DRAFT))
        return {file.relative_to(self.root).as_posix(): file.stat().st_size for file in files}

    def md5(self, name: str) -> str:
        """Return the MD5 of a file."""
        with (self.root / name).open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class Bucket:
    """Objects of a bucket below a prefix, by the rest of their key."""

    def __init__(self, url: str, client: Any) -> None:
        """Name the place, such as s3://bucket/folder, and the client that reaches it."""
        parts = urlsplit(url)
        self.shown, self.client, self.name = url, client, parts.netloc
        self.prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""

    def sizes(self) -> dict[str, int]:
        """Return rest of the key → bytes of every object. Raises ServiceDown if the store does not list them."""
        from botocore.exceptions import BotoCoreError, ClientError

        found = {}
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix):
                for one in page.get("Contents", []):
                    if not one["Key"].endswith("/"):  # a folder, as some stores list it
                        found[str(one["Key"])[len(self.prefix) :]] = int(one["Size"])
        except (BotoCoreError, ClientError) as error:
            raise ServiceDown(
                f"{self.shown} cannot be read: {error}. Check its address, and that the bucket and the credentials "
                "are there (AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE)."
            ) from error
        return found

    def md5(self, name: str) -> str:
        """Return the MD5 of an object: of its bytes, as they are now in the store."""
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in self.client.get_object(Bucket=self.name, Key=self.prefix + name)["Body"].iter_chunks(CHUNK):
            digest.update(chunk)
        return digest.hexdigest()

    def stated_md5(self, name: str) -> str:
        """Return what the store states as an object's tag: its MD5, if it is one part and not encrypted by a key."""
        return str(self.client.head_object(Bucket=self.name, Key=self.prefix + name)["ETag"]).strip('"')


Place = Folder | Bucket


def require_boto3() -> None:
    """Raise MissingPackage without boto3."""
    if importlib.util.find_spec("boto3") is None:
        raise MissingPackage(
            "boto3 is not installed, so no bucket can be read. `.venv/bin/uv pip install -r requirements-cluster.txt "
            "-c requirements.lock` installs it."
        )


def client() -> Any:
    """Return a client of S3 as the environment configures it now. Raises MissingPackage without boto3."""
    require_boto3()
    import boto3

    return boto3.session.Session().client("s3")


def place(url: str) -> Place:
    """Return the place that a URL or path names. Raises MissingPackage without boto3."""
    return Bucket(url, client()) if url.startswith("s3://") else Folder(url)


def is_equal(source: Place, target: Place, name: str) -> bool:
    """Return whether a file of the same size has the same bytes at both places."""
    return (
        _has_md5(source, name, target.md5(name))
        if isinstance(target, Folder)
        else _has_md5(target, name, source.md5(name))
    )


def _has_md5(place_: Place, name: str, expected: str) -> bool:
    """Return whether a file has this MD5: by what the store states, else by its bytes."""
    return (isinstance(place_, Bucket) and place_.stated_md5(name) == expected) or place_.md5(name) == expected


def other_data(source: Place, target: Place) -> list[str]:
    """Return the files of the target that are not those of the source: further ones, or with other bytes."""
    wanted, found = source.sizes(), target.sizes()
    return sorted(name for name in found if found[name] != wanted.get(name) or not is_equal(source, target, name))


def copy(source: Place, target: Place, show: Callable[[int, int], None]) -> dict[str, int]:
    """Copy the files that the target lacks, then compare all; return how many and how large they are, and the copied.

    show    receives how many files of how many are copied
    Raises  StateError if the target does not hold the same files afterwards, ServiceDown if the store refuses one
    """
    wanted, found = source.sizes(), target.sizes()
    missing = sorted(name for name in wanted if name not in found)
    if isinstance(target, Folder):
        for left in list(target.root.rglob(f"*{DRAFT}")):
            left.unlink()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, _ in enumerate(pool.map(lambda name: _copy_one(source, target, name), missing), 1):
            show(number, len(missing))
    after = target.sizes()
    if after != wanted:
        odd = sorted(name for name in wanted.keys() | after.keys() if wanted.get(name) != after.get(name))
        raise StateError(
            f"{target.shown} does not hold the same files as {source.shown}: {odd[0]}. Repeat the command."
        )
    return {"files": len(wanted), "bytes": sum(wanted.values()), "copied": len(missing)}


def _copy_one(source: Place, target: Place, name: str) -> None:
    """Copy one file and compare its bytes. Raises StateError if they differ, ServiceDown if the store refuses it."""
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError

    config = TransferConfig(multipart_threshold=ONE_PART_BYTES, use_threads=False)
    try:
        if isinstance(source, Folder) and isinstance(target, Bucket):
            target.client.upload_file(str(source.root / name), target.name, target.prefix + name, Config=config)
            same = is_equal(source, target, name)
            if not same:
                target.client.delete_object(Bucket=target.name, Key=target.prefix + name)
        elif isinstance(source, Bucket) and isinstance(target, Folder):
            file, draft = target.root / name, target.root / f"{name}{DRAFT}"
            draft.parent.mkdir(parents=True, exist_ok=True)
            source.client.download_file(source.name, source.prefix + name, str(draft), Config=config)
            same = _has_md5(source, name, target.md5(f"{name}{DRAFT}"))
            if same:
                draft.replace(file)
        else:
            raise StateError(f"{source.shown} and {target.shown} are of the same kind: one has to be a bucket.")
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise ServiceDown(f"{name} was not copied from {source.shown} to {target.shown}: {error}") from error
    if not same:
        raise StateError(f"{name} came to {target.shown} with other bytes than in {source.shown}. Repeat the command.")
