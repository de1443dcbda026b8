"""Two kinds of configuration. `Settings`: where we run and what is secret (environment, `.env`), read by flows and
services only. `Params`: everything that can change a metric (`params.yaml`), passed down as plain arguments."""

from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.errors import BadValues, UnreadableFile
from pipelines.params import Params

ROOT = Path(__file__).resolve().parent.parent
POSTGRES_USER, BUCKET = "bellwether", "bellwether"  # of the databases and the S3 store that a home runs itself
DATABASES = ("ledger", "mlflow", "prefect")  # one each: a backup, a fault or a move of one leaves the others alone
DEVICE = r"^(auto|cpu|cuda(:\d+|:MIG-[0-9A-Za-z/-]+)?)$"


class Settings(BaseSettings):
    """Define where one installation runs. Every field is an environment variable `BELLWETHER_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BELLWETHER_", env_file=".env", extra="ignore", frozen=True)

    home: Path = ROOT / "artifacts"  # everything a run writes
    host: str = "127.0.0.1"
    mlflow_port: int = 5000
    prefect_port: int = 4200
    decision_port: int = 3000
    model_port: int = 3001
    evidently_port: int = 8000
    # machine: databases are SQLite and files lie under `home`; cluster: PostgreSQL and an S3 store, started with the
    # services of this home unless a URL below names another
    profile: Literal["machine", "cluster"] = "machine"
    postgres_port: int = 5433
    s3_port: int = 8333
    worker: str = ""  # of the work pool, if this home is that of one: it runs flows and serves nothing
    dask_port: int = 8786  # of the scheduler; of the two workers of this home
    dask_worker_1_port: int = 8787
    dask_worker_2_port: int = 8788
    store_url: str = ""  # of the ledger; empty = as the profile has it, so for the five URLs below
    mlflow_store_url: str = ""  # of MLflow's runs and models
    prefect_store_url: str = ""  # of Prefect's runs and schedules
    remote_url: str = ""  # DVC remote
    mlflow_artifacts_url: str = ""  # where MLflow's server keeps artifacts
    # Dask scheduler whose workers compute the parts of a stage: local = none, in processes of this machine; empty =
    # as the profile has it (machine: local, cluster: the home's own); else tls://host:port
    dask_url: str = Field(default="", pattern=r"^(local|tls://[^\s/]+:\d+)?$")
    write_key: SecretStr | None = None  # the key of all servers; empty = generated once under `home`, mode 0600
    allowed_hosts: str = ""  # further Host values that a proxy in front passes on: "desk.example,desk:8443"
    # all three, and nginx speaks TLS for the servers: at the five ports after tls_port, as the name in the certificate
    tls_certificate: Path | None = None  # PEM, with the chain
    tls_key: Path | None = None
    tls_name: str = ""
    tls_listen: str = "127.0.0.1"  # the address it listens at; 0.0.0.0 = every one of this machine
    tls_port: int = 8440  # its own page on `host`, without TLS, which says that it lives
    durability: Literal["process", "power"] = "process"
    # who predicts for the decision service: itself, or the model service; auto = the model service where it has a card
    models: Literal["auto", "local", "remote"] = "auto"
    model_timeout_ms: int = Field(default=150, gt=0)  # remote: how long to wait for the model service
    model_retry_seconds: float = Field(default=2.0, gt=0)  # remote: between two checks whether it answers
    device: str = Field(default="auto", pattern=DEVICE)  # where networks of the model service run; cpu without a card
    device_precision: Literal["fp32", "bf16"] = "fp32"  # of networks on a card; bf16 moves a probability by up to .02
    device_memory: float = Field(default=0.5, gt=0, le=1)  # share of the card's memory that the model service may take
    # auto: rows a close from which the card of this machine is faster, as `python -m benchmarks.gpu` measures them;
    # empty = not measured, so the CPU
    device_break_even_rows: int | None = Field(default=None, ge=1)
    exchange_url: str = ""  # put before the URL of every exchange request (ccxt's proxyUrl); empty = straight there
    exchange_pause_ms: int = Field(default=0, ge=0)  # shortest pause between two requests; 0 = the venue's own limit
    fit_timeout_minutes: float = Field(default=30.0, gt=0)  # a family that takes longer is stopped; others go on
    job_niceness: int = Field(default=10, ge=0, le=19)  # of training and every other job: the services go first
    keep_days: int = Field(default=365, ge=30)  # `bellwether prune` deletes what is older, where it may
    disk_warn_mb: int = Field(default=2048, ge=0)  # less free space under `home` raises an alarm
    disk_stop_mb: int = Field(default=512, ge=0)  # less: no position is opened, nothing more is recorded
    hang_seconds: float = Field(default=60.0, ge=0)  # a service that stops answering for this long is restarted
    otlp_url: str = ""  # collector of OpenTelemetry traces over HTTP; empty = none are made
    params_file: Path = ROOT / "params.yaml"

    @model_validator(mode="after")
    def _check_disk_limits(self) -> "Settings":
        """Refuse a stop limit above the warning limit."""
        if self.disk_stop_mb > self.disk_warn_mb:
            raise ValueError(
                f"BELLWETHER_DISK_STOP_MB is {self.disk_stop_mb}, above BELLWETHER_DISK_WARN_MB {self.disk_warn_mb}; "
                "set the warning limit at or above the stop limit"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> "Settings":
        """Refuse one part of TLS without the others, and files that are not there."""
        files = {"BELLWETHER_TLS_CERTIFICATE": self.tls_certificate, "BELLWETHER_TLS_KEY": self.tls_key}
        parts = {**{name: str(path or "") for name, path in files.items()}, "BELLWETHER_TLS_NAME": self.tls_name}
        if any(parts.values()) and (lacking := [name for name, value in parts.items() if not value]):
            raise ValueError(f"{', '.join(lacking)} is not set; TLS needs {', '.join(parts)}")
        for name, path in files.items():
            if path is not None and not path.is_file():
                raise ValueError(f"{name} is {str(path)!r}, which is no file")
        return self

    @model_validator(mode="after")
    def _check_collector(self) -> "Settings":
        """Refuse a collector that is no URL, and one on another machine without TLS: traces name what is traded."""
        if self.otlp_url:
            url = urlsplit(self.otlp_url)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError(f"BELLWETHER_OTLP_URL is {self.otlp_url!r}; give a URL such as http://127.0.0.1:4318")
            if url.scheme == "http" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
                raise ValueError(
                    f"BELLWETHER_OTLP_URL is {self.otlp_url!r}: plain http to another machine. Use https, or a "
                    "collector on 127.0.0.1"
                )
        return self

    @property
    def mlflow_url(self) -> str:
        """Return the address of MLflow."""
        return f"http://{self.host}:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        """Return the address of the Prefect server."""
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def decision_url(self) -> str:
        """Return the address of the decision service."""
        return f"http://{self.host}:{self.decision_port}"

    @property
    def model_url(self) -> str:
        """Return the address of the model service."""
        return f"http://{self.host}:{self.model_port}"

    @property
    def evidently_url(self) -> str:
        """Return the address of Evidently."""
        return f"http://{self.host}:{self.evidently_port}"

    @property
    def proxy_hosts(self) -> tuple[str, ...]:
        """Return `allowed_hosts` as a tuple, in lower case, and the names under which nginx serves each tool."""
        own = (f"{self.tls_name}:{port}" for port in self.tls_ports) if self.runs_tls else ()
        return tuple(name.strip().lower() for name in (*self.allowed_hosts.split(","), *own) if name.strip())

    @property
    def runs_tls(self) -> bool:
        """Return whether nginx is started with the services."""
        return bool(self.tls_certificate)

    @property
    def tls_ports(self) -> dict[int, int]:
        """Return port with TLS → port of the server behind it."""
        behind = (self.decision_port, self.model_port, self.prefect_port, self.mlflow_port, self.evidently_port)
        return {self.tls_port + number: port for number, port in enumerate(behind, 1)}

    @property
    def store(self) -> str:
        """Return the URL of the store."""
        return self.store_url or self._database("ledger", self.home / "store.db")

    @property
    def mlflow_store(self) -> str:
        """Return the URL of MLflow's database."""
        return self.mlflow_store_url or self._database("mlflow", self.home.resolve() / "mlflow" / "mlflow.db")

    @property
    def prefect_store(self) -> str:
        """Return the URL of Prefect's database, with the driver that Prefect uses."""
        url = self.prefect_store_url or self._database("prefect", self.home.resolve() / "prefect" / "prefect.db")
        return url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("postgresql:", "postgresql+asyncpg:", 1)

    @property
    def remote(self) -> str:
        """Return the DVC remote."""
        return self.remote_url or self._files("dvc", self.home / "dvc-remote")

    @property
    def mlflow_artifacts(self) -> str:
        """Return where MLflow's server keeps artifacts."""
        return self.mlflow_artifacts_url or self._files("mlflow", self.home.resolve() / "mlflow" / "artifacts")

    @property
    def runs_postgres(self) -> bool:
        """Return whether a PostgreSQL of this home is started: the profile requires one, and no URL names another."""
        urls = (self.store_url, self.mlflow_store_url, self.prefect_store_url)
        return self.profile == "cluster" and not all(urls)

    @property
    def runs_workers(self) -> bool:
        """Return whether what trains runs on a work pool, two workers of which are started with the services."""
        return self.profile == "cluster"

    @property
    def runs_s3(self) -> bool:
        """Return whether an S3 store of this home is started, by the same rule."""
        return self.profile == "cluster" and not (self.remote_url and self.mlflow_artifacts_url)

    @property
    def dask(self) -> str:
        """Return the address of the Dask scheduler, or `local`."""
        own = f"tls://{self.host}:{self.dask_port}" if self.runs_dask else "local"
        return self.dask_url or own

    @property
    def runs_dask(self) -> bool:
        """Return whether a Dask scheduler and workers of this home are started, by the same rule."""
        return self.profile == "cluster" and not self.dask_url

    def _database(self, name: str, file: Path) -> str:
        """Return the URL of a database: one of the home's PostgreSQL, or a SQLite file. It never holds a password."""
        if self.profile == "cluster":
            return f"postgresql://{POSTGRES_USER}@{self.host}:{self.postgres_port}/{name}"
        return f"sqlite:///{file}"

    def _files(self, name: str, folder: Path) -> str:
        """Return where files are kept: below a name in the bucket of the home's S3 store, or in a folder."""
        return f"s3://{BUCKET}/{name}" if self.profile == "cluster" else str(folder)

    @property
    def workspace(self) -> Path:
        """Return the private working copy of the build graph: runs write here, never into the repository."""
        return self.home / "workspace"

    @property
    def exchange_pages(self) -> Path:
        """Return the folder of pages fetched from exchanges: an interrupted backfill continues from them."""
        return self.home / "exchange"

    @property
    def simulator_states(self) -> Path:
        """Return the folder from whose files the simulated markets go on without being made from their beginning."""
        return self.home / "simulator"

    @property
    def bundles(self) -> Path:
        """Return the folder of verified model bundles, one folder a digest."""
        return self.home / "bundles"

    @property
    def serving_dir(self) -> Path:
        """Return the folder of the generation file and warm starts, which serving watches."""
        return self.home / "serving"


@cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises UnreadableFile if it is damaged.

    Uses libyaml where PyYAML was built with it: 17 times faster, and every process reads params.yaml.
    """
    try:
        return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UnreadableFile(f"{path} is damaged: {why}. Restore it from git or a backup.") from error


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Read and validate `params.yaml`. Raises BadValues with the key and what it should be."""
    try:
        return Params.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadValues(
            f"{path.name}: {key}: {first['msg']} (got {first['input']!r}). Fix that key and rerun."
        ) from error
