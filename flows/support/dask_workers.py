"""The only doorway to Dask: the parts of a stage on its workers, and who may connect to them.

Dask's packages are optional (requirements-cluster.txt) and imported by what uses them. Dask sends code: scheduler,
workers and clients speak TLS alone, and each shows the certificate of the home (flows/support/stores.py).
"""

import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from flows.support import stores
from pipelines.cpu import code_digest, numeric_cpu
from pipelines.errors import BellwetherError, MissingPackage, ServiceDown
from pipelines.settings import Settings
from pipelines.training.elsewhere import Done, check_cpu, pack_work, packed, unpack
from pipelines.training.side_by_side import Each, Job

WAIT_S = 60.0  # for a scheduler, and for a worker of the coordinator's type
LOOK_S = 1.0  # between two looks at parts that run
SCATTERS = 5  # of what the parts share, before its loss is an error: each needs the end of all workers that have it
WORKER_TTL_S = 20  # a worker that is silent for this long has lost its parts


class SchedulerLost(ServiceDown):
    """Signal that the scheduler ended, and with it the parts that it had."""


def resources(cpu: str) -> dict[str, float]:
    """Return what a worker on this type of CPU announces to Dask, and a part demands: its CPU, and its code."""
    return {f"cpu-{cpu}": 1.0, f"code-{code_digest()}": 1.0}


def runner(settings: Settings) -> Any:
    """Return Prefect's task runner on the scheduler of a home. Raises MissingPackage, ServiceDown."""
    if lacking := [name for name in ("distributed", "prefect_dask") if importlib.util.find_spec(name) is None]:
        raise MissingPackage(
            f"no {', '.join(lacking)} here, which {settings.dask} needs. Install requirements-cluster.txt, or set "
            "BELLWETHER_DASK_URL=local"
        )
    from prefect_dask import DaskTaskRunner

    await_scheduler(settings)
    return DaskTaskRunner(address=settings.dask, client_kwargs={"security": security(settings), "timeout": WAIT_S})


def security(settings: Settings) -> Any:
    """Return the TLS of one side of a connection. Raises ServiceDown without the home's certificate."""
    from distributed.security import Security

    certificate, key = stores.dask_files(settings)
    if not (certificate.is_file() and key.is_file()):
        raise ServiceDown(
            f"{certificate} or {key.name} is not there, without which no Dask scheduler talks to us. `bellwether up` "
            "makes them for its own; for another one copy both from its home"
        )
    sides = {f"tls_{side}_{part}": str(file) for side in ("scheduler", "worker", "client")
             for part, file in (("cert", certificate), ("key", key))}  # fmt: skip
    return Security(tls_ca_file=str(certificate), require_encryption=True, **sides)


def await_scheduler(settings: Settings) -> None:
    """Wait until the scheduler answers. Raises ServiceDown after WAIT_S."""
    host, _, port = settings.dask.removeprefix("tls://").rpartition(":")
    there, deadline = settings.model_copy(update={"host": host}), time.monotonic() + WAIT_S
    while not stores.shakes_hands(there, int(port), 2.0):
        if time.monotonic() > deadline:
            raise ServiceDown(
                f"no Dask scheduler at {settings.dask}, or it has another certificate. `bellwether up` starts that of "
                "a home; BELLWETHER_DASK_URL=local computes here"
            )
        time.sleep(LOOK_S)


def _nobody_waits(number: int, value: Any) -> None:
    """Ignore that a part ended."""


def each_on(client: Any, part: Any, ended: Callable[[int, Any], None] = _nobody_waits) -> Each:
    """Return an `Each` whose parts are tasks of Prefect on the workers of a client.

    part   the task: (name, work, job, files) → Done
    ended  called with (position, result or error) of each part as it ends
    """

    def each(act: Callable[[Path, Any, Any], Any], jobs: Sequence[Job], shared: Any) -> list[Any]:
        """Compute every part on workers of this process's type of CPU."""
        with client.as_current():  # `distributed.wait` needs one
            return _Parts(client, part, act, jobs, shared, ended).run()

    return each


class _Parts:
    """Compute the parts of one call, and write what they wrote.

    A part is submitted when a worker is free for it. One that waited at a worker could not go to the first that is, and
    its files would wait in memory.
    """

    def __init__(
        self,
        client: Any,
        part: Any,
        act: Callable[[Path, Any, Any], Any],
        jobs: Sequence[Job],
        shared: Any,
        ended: Callable[[int, Any], None],
    ) -> None:
        """Start with nothing submitted."""
        self.client, self.part, self.jobs, self.own, self.ended = client, part, jobs, numeric_cpu(), ended
        self.packed, self.work, self.scatters = pack_work(act, shared), None, 0
        self.scheduler = client.scheduler_info()["id"]
        self.waiting = list(range(len(jobs)))  # taken from the end: the last parts of a walk are its largest
        self.running: dict[int, Any] = {}
        self.files: dict[int, Any] = {}  # what each of these reads
        self.results: dict[int, Any] = {}
        self.faults: dict[int, BaseException] = {}

    def run(self) -> list[Any]:
        """Return the results in order. Raises as `Each`, SchedulerLost, ServiceDown without a worker, MixedCpu."""
        from distributed.comm import CommClosedError

        seen = time.monotonic()
        try:
            while self.waiting or self.running:
                if workers := self._able():
                    seen = time.monotonic()
                elif time.monotonic() - seen > WAIT_S:
                    raise ServiceDown(self._nobody())
                while workers and self.waiting and len(self.running) < workers:
                    self._submit(self.waiting.pop())
                self._take_finished()
        except (CommClosedError, CancelledError, OSError) as error:
            raise SchedulerLost(_lost(self.client)) from error
        finally:
            for future in self.running.values():
                future.release()
        if self.faults:
            raise self.faults[min(self.faults)]
        return [self.results[number] for number in range(len(self.jobs))]

    def _able(self) -> int:
        """Return how many workers have the coordinator's type of CPU."""
        found = self.client.scheduler_info()
        if found.get("id") != self.scheduler:
            raise SchedulerLost(_lost(self.client))
        wanted = resources(self.own).keys()
        return sum(wanted <= worker["resources"].keys() for worker in found["workers"].values())

    def _nobody(self) -> str:
        """Return why nothing can be computed."""
        wanted = resources(self.own).keys()
        found = {" ".join(sorted(worker["resources"])) for worker in self.client.scheduler_info()["workers"].values()}
        return (
            f"no Dask worker with {' '.join(sorted(wanted))} for {WAIT_S:.0f} s, and one candidate is computed by one "
            f"release on one type of CPU; there are workers with {'; '.join(sorted(found)) or 'none'}. Install this "
            "release on such a machine and start one there, or set BELLWETHER_DASK_URL=local"
        )

    def _submit(self, number: int) -> None:
        """Submit one part; what all share goes to every worker before the first."""
        job = self.jobs[number]
        if self.work is None:
            self.scatters += 1
            key = f"work-{self.packed[0]}-{self.scatters}"  # Dask's own would be the digest of a text of all the bytes
            self.work = self.client.scatter({key: self.packed}, broadcast=True)[key]
        (self.files[number],) = self.client.scatter([packed(Path(), job.reads)], hash=False)  # past the scheduler
        parameters = {"name": job.name, "work": self.work, "job": job, "files": self.files[number]}
        self.running[number] = self.client.submit(
            self.part, parameters=parameters, resources=resources(self.own), pure=False
        )

    def _take_finished(self) -> None:
        """Wait a moment, and take what has finished."""
        import distributed

        if not self.running:
            time.sleep(LOOK_S)
            return
        try:
            distributed.wait(list(self.running.values()), timeout=LOOK_S, return_when="FIRST_COMPLETED")
        except distributed.TimeoutError:
            return
        except CancelledError:
            pass  # the status of some says so as well
        for number, future in [(n, f) for n, f in self.running.items() if f.status not in ("pending", "lost")]:
            try:
                if future.status == "error":
                    self.faults[number] = self._fault(number, future.exception())
                    self.ended(number, self.faults[number])
                else:
                    self._take(number, future.result())
            except CancelledError:
                self._lost_work(number)
            del self.running[number], self.files[number]

    def _take(self, number: int, done: Done) -> None:
        """Keep a result, and write its files: the coordinator alone writes, and only whole parts."""
        check_cpu([self.jobs[number]], [done], self.own)
        unpack(done.files, Path())
        self.results[number], name = done.value, self.jobs[number].name
        for line in done.lines:  # a position in one process is none here
            print(re.sub(r"^\[\d+/\d+\]", f"{name}:", line), flush=True)
        print(f"[{len(self.results)}/{len(self.jobs)}] {name}", flush=True)
        self.ended(number, done.value)

    def _fault(self, number: int, error: BaseException) -> BaseException:
        """Return what a failed part raises here."""
        from distributed.scheduler import KilledWorker

        if isinstance(error, KilledWorker):
            name = self.jobs[number].name
            return BellwetherError(f"{name}: every worker that computed it died, as for lack of memory: {error}")
        return error

    def _lost_work(self, number: int) -> None:
        """Have a part computed again whose inputs were lost with all workers that had them."""
        self._able()
        if self.scatters >= SCATTERS:
            raise ServiceDown(f"all Dask workers ended {SCATTERS} times while they computed {self.jobs[number].name}")
        self.work = None
        self.waiting.append(number)


def _lost(client: Any) -> str:
    """Return what happened to the scheduler."""
    at = f" at {client.scheduler.address}" if client.scheduler else ""
    return f"the Dask scheduler{at} ended or was restarted"
