"""Run one worker of the Prefect work pool: `python -m bellwether.operations.launch.worker NAME`, until SIGTERM.

Each run it takes is a process of its own, one at a time, in a home of the worker's own: `<home>/workers/NAME`. That
holds the keys of the home, and what runs bring: data versions by DVC, bundles by digest, small files from the store.
On another machine BELLWETHER_HOME names a folder with the two key files, BELLWETHER_HOST the machine with the servers.
"""

import os
import re
import sys
from pathlib import Path

from flows.support import stores, work_pool
from flows.support.processes import HOME_MARK, environment, write_atomic
from pipelines.bootstrap import step_back
from pipelines.errors import StateError
from pipelines.permissions import restrict
from pipelines.settings import Settings, settings
from serving.service import keys


def home_of(where: Settings, name: str) -> Path:
    """Make the worker's home and give it the keys of the home, and its certificate for Dask; return it.

    The keys are those of the home: one made here would sign lines of the ledger that nobody else can verify.
    Raises  StateError where the home's folder lacks one
    """
    own = work_pool.folder(where.home.resolve(), name)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    needed = [keys.chain_key_file(where), *([] if keys.configured_key(where) else [keys.key_file(where)])]
    if lacking := [str(file) for file in needed if not file.is_file()]:
        raise StateError(f"{', '.join(lacking)} is not here: copy it from the home that this worker works for")
    if keys.configured_key(where) is None:
        _write_secret(own / keys.key_file(where).name, keys.write_key(where))
    _write_secret(own / keys.chain_key_file(where).name, keys.chain_key(where).decode())
    for file in stores.dask_files(where):
        if file.is_file():
            (own / file.parent.name).mkdir(mode=0o700, exist_ok=True)
            _write_secret(own / file.parent.name / file.name, file.read_text())
    return own


def _write_secret(file: Path, text: str) -> None:
    """Write a file that only its user can open, unless it has this text."""
    if not file.is_file() or file.read_text() != text:
        write_atomic(file, text)
        file.chmod(0o600)


def main() -> None:
    """Become the worker. Exits with 1 and one sentence for a name that is none, and without the keys of the home."""
    if len(sys.argv) != 2 or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", sys.argv[1]):
        sys.exit("name the worker: small letters, digits and dashes, such as worker-1")
    restrict()
    where, (_, name) = settings(), sys.argv
    try:
        own = home_of(where, name)
    except StateError as error:
        sys.exit(str(error))
    step_back(where.job_niceness)
    inherited = {**os.environ, **environment(where)}
    variables = {
        "BELLWETHER_HOME": str(own),
        "BELLWETHER_WORKER": name,
        HOME_MARK: str(where.home.resolve()),
        "PREFECT_HOME": str(own / "prefect"),
        "DVC_GLOBAL_CONFIG_DIR": str(own / "dvc" / "config"),
        "DVC_SITE_CACHE_DIR": str(own / "dvc" / "site"),
    }
    words = [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", work_pool.POOL, "--type", "process",
        "--name", name, "--limit", "1", "--install-policy", "never",
    ]  # fmt: skip
    os.chdir(own)
    os.execve(sys.executable, words, {**inherited, **variables})


if __name__ == "__main__":
    main()
