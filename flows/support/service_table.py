"""The services of a home: which there are, where they listen, how each shows that it works, in which order they end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipelines.settings import Settings

POSTGRESQL = "postgresql"  # in place of a health path: the server speaks PostgreSQL, not HTTP
TLS = "tls"  # likewise: it speaks TLS with those who have a certificate of the home


@dataclass(frozen=True)
class Service:
    """Describe how one line of the Procfile is probed.

    port_field   the field of Settings with its port; None = it listens on none, and `sign` says how it shows life
    health       the path that answers 200 once the service works, or POSTGRESQL, or TLS
    sign         polls: it requests work from the Prefect server; writes: it writes `serving/feed.json`
    ready        the path that answers 200 once it does its job, 503 with its failing checks before; None = it has none
    worker       of a worker of the pool: its name, by which the Prefect server knows its heartbeat
    guarded      it takes the key of the installation; a store has keys of its own
    """

    port_field: str | None
    health: str = "/"
    ready: str | None = None
    sign: Literal["polls", "writes"] = "polls"
    worker: str = ""
    guarded: bool = True


SERVICES: dict[str, Service] = {
    "mlflow": Service("mlflow_port", "/livez"),
    "prefect": Service("prefect_port", "/readyz"),
    "decision": Service("decision_port", "/livez", "/readyz"),
    "flows": Service(None),
    "feed": Service(None, sign="writes"),
    "models": Service("model_port", "/livez", "/readyz"),
    "evidently": Service("evidently_port", "/livez"),
}
# what the others keep their state in, where the profile is `cluster`
STORES: dict[str, Service] = {
    "postgres": Service("postgres_port", POSTGRESQL, guarded=False),
    "s3": Service("s3_port", "/healthz", guarded=False),
}
# what trains, where the profile is `cluster`: each with a folder of its own
POOL: dict[str, Service] = {name: Service(None, worker=name) for name in ("worker-1", "worker-2")}
# what computes the parts of stages, where the profile is `cluster` and no URL names another scheduler. In no container
# of deploy/ (BELLWETHER_DASK_URL=local): those share one machine, whose cores the stages use by themselves
DASK: dict[str, Service] = {
    "dask-scheduler": Service("dask_port", TLS, guarded=False),
    "dask-worker-1": Service("dask_worker_1_port", TLS, guarded=False),
    "dask-worker-2": Service("dask_worker_2_port", TLS, guarded=False),
}
# in front of the servers, where there is a certificate
FRONT: dict[str, Service] = {"tls": Service("tls_port", "/livez", guarded=False)}
DASK_WORKERS = tuple(name for name in DASK if name.startswith("dask-worker"))
# stopped before the servers they talk to: without them they try again for minutes
WORKERS = ("feed", "flows", *POOL, *DASK_WORKERS)


def services_of(settings: Settings) -> dict[str, Service]:
    """Return the services that this home starts: the stores it runs itself first, as all others need them."""
    needed = {"postgres": settings.runs_postgres, "s3": settings.runs_s3, "tls": settings.runs_tls}
    needed |= dict.fromkeys(POOL, settings.runs_workers) | dict.fromkeys(DASK, settings.runs_dask)
    every = {**STORES, **SERVICES, **POOL, **DASK, **FRONT}
    return {name: one for name, one in every.items() if needed.get(name, True)}


def all_ports(settings: Settings) -> Mapping[str, int]:
    """Return field of Settings → port, of every service that there can be."""
    every = (*STORES.values(), *SERVICES.values(), *DASK.values(), *FRONT.values())
    fields = [service.port_field for service in every if service.port_field]
    return {field: int(getattr(settings, field)) for field in fields}


def port_of(settings: Settings, service: Service) -> int | None:
    """Return the port a service is configured to listen on; None for one that listens on none."""
    return int(getattr(settings, service.port_field)) if service.port_field else None


def stop_rank(name: str) -> int:
    """Return when a service stops, where several do: 0 first. Each uses those with a higher number until its end."""
    return 0 if name in (*WORKERS, *FRONT) else 2 if name in STORES else 1
