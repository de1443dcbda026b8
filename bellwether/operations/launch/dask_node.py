"""Run the Dask scheduler or a worker of one home: `python -m bellwether.operations.launch.dask_node worker 1`.

Until SIGTERM. On another machine a worker is started the same way, with BELLWETHER_DASK_URL and the home's certificate.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from flows.support import dask_workers, stores
from pipelines.bootstrap import of_a_job, step_back
from pipelines.cpu import numeric_cpu
from pipelines.errors import MissingPackage
from pipelines.permissions import restrict
from pipelines.settings import Settings, settings

MEMORY_SHARE = 0.25  # of the machine's memory: what a worker holds beyond that goes to disk
# no pages, and no route in the server that Dask starts for them on loopback: it finds nothing
QUIET = {
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    "DASK_LOGGING": "{'distributed': 'info', 'distributed.comm.tcp': 'warning'}",  # else it logs every probe
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
    "DASK_DISTRIBUTED__ADMIN__LARGE_GRAPH_WARNING_THRESHOLD": "1GB",  # the files of a market travel with its part
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{dask_workers.WORKER_TTL_S}s",
}


def words(where: Settings, role: str, number: str, folder: Path) -> list[str]:
    """Return the command line of the scheduler, or of the worker of a number. Raises SystemExit for another role."""
    certificate, key = stores.dask_files(where)
    tls = [f"--tls-ca-file={certificate}", f"--tls-cert={certificate}", f"--tls-key={key}", "--protocol=tls"]
    common = [f"--host={where.host}", *tls, "--no-dashboard", "--dashboard-address=127.0.0.1:0"]
    if role == "scheduler":
        return ["distributed.cli.dask_scheduler", f"--port={where.dask_port}", *common]
    if role == "worker":
        port = getattr(where, f"dask_worker_{number}_port", 0)  # of another number: any free one
        own = f"tls://{where.host}:{where.dask_port}" if where.dask == "local" else where.dask
        return [
            "distributed.cli.dask_worker", own, f"--worker-port={port}", *common, "--no-nanny", "--nthreads=1",
            f"--name={folder.name}", f"--memory-limit={MEMORY_SHARE}", f"--local-directory={folder}",
            f"--resources={' '.join(f'{name}=1' for name in dask_workers.resources(numeric_cpu()))}",
        ]  # fmt: skip
    sys.exit("name `scheduler` or `worker NUMBER`")


def main() -> None:
    """Become the process. Exits with 1 and one sentence if Dask is not installed."""
    restrict()
    where, (role, number) = settings(), (*sys.argv[1:], "", "")[:2]
    if importlib.util.find_spec("distributed") is None:
        print(MissingPackage("no Dask here: install requirements-cluster.txt, or set BELLWETHER_DASK_URL=local"))
        sys.exit(1)
    folder = where.home.resolve() / "dask" / f"{role}{number and f'-{number}'}"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed one left
    folder.mkdir(parents=True)
    called = words(where, role, number, folder)
    if role == "worker":
        step_back(where.job_niceness)
    # DASK_CONFIG: no file of this user or machine changes what is set here
    given = of_a_job(os.environ) | QUIET | {"TMPDIR": str(folder), "DASK_CONFIG": str(folder)}
    os.execve(sys.executable, [sys.executable, "-m", *called], given)


if __name__ == "__main__":
    main()
