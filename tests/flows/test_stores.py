"""The stores that a home runs itself: when, with which credentials, and which server counts as one that serves."""

import http.server
import threading

import pytest
from sqlalchemy.engine import make_url

from bellwether.operations import doctor
from flows.support import processes, service_table, stores
from pipelines.errors import ServiceDown
from pipelines.settings import Settings

ELSEWHERE = {
    "store_url": "postgresql://db/ledger", "mlflow_store_url": "postgresql://db/mlflow",
    "prefect_store_url": "postgresql://db/prefect", "remote_url": "s3://theirs/dvc",
    "mlflow_artifacts_url": "s3://theirs/mlflow", "dask_url": "tls://theirs:8786",
}  # fmt: skip


def settings(tmp_path, **changes):
    """Return settings of profile `cluster`."""
    return Settings(_env_file=None, home=tmp_path / "home", **({"profile": "cluster"} | changes))


def test_one_word_moves_everything_and_without_it_nothing_changes(tmp_path):
    ours, home = settings(tmp_path, profile="machine"), (tmp_path / "home").resolve()
    assert ours.mlflow_store == f"sqlite:///{home}/mlflow/mlflow.db"
    assert ours.prefect_store == f"sqlite+aiosqlite:///{home}/prefect/prefect.db"
    assert (ours.mlflow_artifacts, ours.remote) == (f"{home}/mlflow/artifacts", str(tmp_path / "home" / "dvc-remote"))
    assert not ours.runs_postgres
    assert not ours.runs_s3
    assert ours.dask == "local"
    assert service_table.services_of(ours) == service_table.SERVICES
    moved = settings(tmp_path)
    assert moved.dask == "tls://127.0.0.1:8786"
    assert set(service_table.DASK) < set(service_table.services_of(moved))
    assert not settings(tmp_path, dask_url="local").runs_dask
    with pytest.raises(ValueError, match="dask_url"):
        settings(tmp_path, dask_url="tcp://127.0.0.1:8786")  # without TLS anyone who reaches it runs code
    for url, name in ((moved.store, "ledger"), (moved.mlflow_store, "mlflow"), (moved.prefect_store, "prefect")):
        assert (make_url(url).get_backend_name(), make_url(url).database) == ("postgresql", name)
        assert make_url(url).password is None
    assert make_url(moved.prefect_store).drivername == "postgresql+asyncpg"
    assert moved.remote.startswith("s3://")
    assert moved.mlflow_artifacts.startswith("s3://")
    assert list(service_table.services_of(moved))[:2] == ["postgres", "s3"]


def test_a_url_wins_over_the_profile_and_a_store_that_nothing_needs_is_not_started(tmp_path):
    theirs = settings(tmp_path, **ELSEWHERE)
    assert (theirs.store, theirs.remote) == (ELSEWHERE["store_url"], ELSEWHERE["remote_url"])
    assert service_table.services_of(theirs) == {**service_table.SERVICES, **service_table.POOL}
    assert stores.environment(theirs) == {"BELLWETHER_DASK_URL": "tls://theirs:8786"}
    assert theirs.dask == "tls://theirs:8786"
    some = settings(tmp_path, store_url=ELSEWHERE["store_url"], remote_url=ELSEWHERE["remote_url"])
    assert {"postgres", "s3"} <= set(service_table.services_of(some))


def test_credentials_are_made_once_for_our_own_stores_alone_and_only_we_can_read_them(tmp_path):
    stores.write_credentials(settings(tmp_path, **ELSEWHERE))
    assert not stores.folder(settings(tmp_path)).exists()
    ours = settings(tmp_path)
    stores.write_credentials(ours)
    made = [file.read_bytes() for file in stores.dask_files(ours)]
    first = stores.password(ours), stores.identities(ours)
    stores.write_credentials(ours)
    assert (stores.password(ours), stores.identities(ours)) == first
    assert [file.read_bytes() for file in stores.dask_files(ours)] == made
    assert len(first[0]) >= 32
    for file in stores.folder(ours).iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    shown = " ".join(f"{name}={value}" for name, value in processes.environment(ours).items())
    assert first[0] not in shown


def test_without_credentials_a_store_names_the_file_and_the_command(tmp_path):
    for read in (stores.password, stores.identities):
        with pytest.raises(ServiceDown, match=r"stores.*bellwether up"):
            read(settings(tmp_path))


def test_keys_of_another_account_do_not_reach_our_own_store(tmp_path):
    found = stores.environment(settings(tmp_path))
    assert found["AWS_ACCESS_KEY_ID"] == found["AWS_SECRET_ACCESS_KEY"] == ""
    assert found["AWS_ENDPOINT_URL"].endswith(":8333")


def test_only_a_postgresql_that_serves_accepts_connections(postgres_server):
    at = make_url(postgres_server)
    assert stores.accepts_connections(at.host, at.port, 2.0)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        port = other.server_port
        threading.Thread(target=other.handle_request, daemon=True).start()
        assert not stores.accepts_connections("127.0.0.1", port, 2.0)
    assert not stores.accepts_connections("127.0.0.1", port, 2.0)


def test_services_stop_before_what_they_use():
    names = [*service_table.STORES, *service_table.SERVICES, *service_table.POOL, *service_table.DASK]
    order = sorted(names, key=service_table.stop_rank)
    assert set(order[: len(service_table.WORKERS)]) == set(service_table.WORKERS)
    assert set(order[-2:]) == set(service_table.STORES)


def test_doctor_names_what_the_stores_lack_and_is_silent_in_profile_machine(tmp_path, monkeypatch):
    assert list(doctor.own_stores(settings(tmp_path, profile="machine"))) == []
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda *words, **more: None)
    found = {one.name: one for one in doctor.own_stores(settings(tmp_path))}
    assert found["S3"].state == "fail"
    assert "requirements-cluster.txt" in found["S3"].remedy
    assert {"boto3", "dvc_s3", "weed"} <= set(found["S3"].detail.replace(",", "").split())
