"""The compose and Kubernetes files: valid by their schemas, and the same processes as Procfile and process table.

Nothing here is built or started: no container engine where tests run.
"""

import json
import os
import re
import stat
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from bellwether.operations.feed_report import FeedReport
from bellwether.operations.launch import alive, prepare, service
from bellwether.operations.launch.postgres import TUNING
from flows.support import stores
from flows.support.processes import parse_procfile
from flows.support.service_table import DASK, FRONT, POOL, POSTGRESQL, STORES, port_of
from flows.support.service_table import SERVICES as ON_EACH_PROFILE
from pipelines.settings import BUCKET, DATABASES, POSTGRES_USER, ROOT, Settings

DEPLOY = ROOT / "deploy"
COMPOSE_FILES = (DEPLOY / "compose" / "compose.yaml", DEPLOY / "gpu" / "compose.yaml", ROOT / "mlflow" / "compose.yaml")
KUBERNETES_FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
HELPERS = {"bellwether", "prepare", "s3-owner"}  # no process of the Procfile: a network, and two that end
LAUNCH = ["python", "-m", "bellwether.operations.launch.service"]
ALIVE = ["python", "-m", "bellwether.operations.launch.alive"]
KERNEL_CACHE = "BELLWETHER_KERNEL_CACHE"  # read by pipelines/compiled.py, which imports no settings
DEFAULTS = Settings(_env_file=None)
SERVICES = {**ON_EACH_PROFILE, **POOL}
COMPOSE = yaml.safe_load(COMPOSE_FILES[0].read_text())
CONTAINERS = COMPOSE["services"]
MANIFESTS = [found for file in KUBERNETES_FILES for found in yaml.safe_load_all(file.read_text())]


def manifest(kind, name):
    """The one manifest of a kind with a name."""
    (found,) = [m for m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods():
    """Name → pod specification of each workload."""
    return {
        m["metadata"]["name"]: m["spec"]["template"]["spec"]
        for m in MANIFESTS
        if m["kind"] in ("Deployment", "StatefulSet")
    }


def pod_containers(also_init=False):
    """Container → its specification, of every pod."""
    lists = [[*pod["containers"], *(pod.get("initContainers", []) if also_init else [])] for pod in pods().values()]
    return {one["name"]: one for containers in lists for one in containers}


def port(name):
    """The port of a service or store by the process table; None = it listens on none."""
    return port_of(DEFAULTS, {**SERVICES, **STORES}[name])


def texts():
    """Every file under deploy that sets up containers."""
    return [*KUBERNETES_FILES, *(DEPLOY / "compose").iterdir(), DEPLOY / "secrets.sh"]


# ---- schemas --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed: `make setup`")
def test_compose_files_are_valid_by_the_compose_specification():
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*words, *map(str, COMPOSE_FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed: `make setup`"
)
@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_manifests_are_valid_by_the_schemas_of_kubernetes(version):
    import kubernetes_validate

    assert MANIFESTS
    for found in MANIFESTS:
        assert kubernetes_validate.validate(found, version, strict=True) == version


# ---- the process table and the Procfile -----------------------------------------------------------------------------


def test_each_line_of_the_procfile_has_a_container_in_both_and_there_is_no_other():
    # TLS is what stands in front of a cluster's services; what BELLWETHER_DASK_URL=local leaves out
    wanted = set(parse_procfile(ROOT / "Procfile")) - set(FRONT) - set(DASK)
    assert set(CONTAINERS) - HELPERS == wanted
    assert set(pod_containers()) == wanted
    assert {one["name"] for one in pods()["bellwether"]["initContainers"]} == {"prepare"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_runs_its_line_of_the_procfile(name):
    assert CONTAINERS[name]["command"] == [*LAUNCH, name]
    assert pod_containers()[name]["command"] == [*LAUNCH, name]


def test_what_a_container_runs_is_the_line_with_the_variables_of_up(monkeypatch, tmp_path):
    called = {}
    monkeypatch.setattr(service.os, "execve", lambda path, words, env: called.update(words=words, env=env))
    monkeypatch.setattr(service.sys, "argv", ["service", "mlflow"])
    monkeypatch.setattr(service.os, "chdir", lambda folder: called.update(folder=folder))
    monkeypatch.setattr(service, "settings", lambda: Settings(home=tmp_path, host="0.0.0.0", _env_file=None))
    monkeypatch.setattr(service, "restrict", lambda: None)
    service.main()
    assert called["words"] == ["/bin/sh", "-c", parse_procfile(ROOT / "Procfile")["mlflow"]]
    assert called["folder"] == ROOT
    assert called["env"]["MLFLOW_TRACKING_URI"] == "http://0.0.0.0:5000"
    assert called["env"]["BELLWETHER_MLFLOW_PORT"] == "5000"


def test_a_name_that_is_no_service_ends_with_those_that_are(monkeypatch):
    monkeypatch.setattr(service.sys, "argv", ["service", "nothing"])
    with pytest.raises(SystemExit, match="mlflow, prefect"):
        service.main()


@pytest.mark.parametrize("name", SERVICES)
def test_health_checks_are_those_of_the_process_table(name):
    at, known = port(name), SERVICES[name]
    probes, test = pod_containers()[name], CONTAINERS[name]["healthcheck"]["test"]
    if at is None:
        assert test == ["CMD", *ALIVE, name]
        for kind in ("livenessProbe", "readinessProbe"):
            assert probes[kind]["exec"]["command"] == [*ALIVE, name]
        return
    assert test[:2] == ["CMD", "curl"]
    assert test[-1] == f"http://127.0.0.1:{at}{known.health}"
    for kind, path in (("livenessProbe", known.health), ("readinessProbe", known.ready or known.health)):
        found = probes[kind]["httpGet"]
        assert (found["path"], found["port"]) == (path, at)
        assert found["httpHeaders"] == [
            {"name": "Host", "value": f"localhost:{at}"}
        ]  # the guard refuses a pod's address


def test_a_service_without_a_port_shows_life_while_it_polls_or_writes(monkeypatch, tmp_path):
    where = Settings(home=tmp_path, prefect_port=1, _env_file=None)  # no server there: nothing polls it
    monkeypatch.setattr(alive, "settings", lambda: where)
    where.serving_dir.mkdir()
    for name, exit_code in (("feed", 1), ("flows", 1), ("feed", 0)):
        if exit_code == 0:
            FeedReport(where.serving_dir).write()
        monkeypatch.setattr(alive.sys, "argv", ["alive", name])
        with pytest.raises(SystemExit) as ended:
            alive.main()
        assert ended.value.code == exit_code


def test_the_stores_listen_where_the_table_has_them_and_show_it_as_it_says():
    assert STORES["postgres"].health == POSTGRESQL
    ready = ["pg_isready", "--host", "127.0.0.1", "--username", POSTGRES_USER, "--dbname", "ledger"]
    assert CONTAINERS["postgres"]["healthcheck"]["test"] == ["CMD", *ready]
    assert CONTAINERS["postgres"]["environment"]["PGPORT"] == str(port("postgres"))
    s3 = f"http://127.0.0.1:{port('s3')}{STORES['s3'].health}"
    assert CONTAINERS["s3"]["healthcheck"]["test"][-1] == s3
    assert f"-s3.port={port('s3')}" in CONTAINERS["s3"]["command"]
    for name, probed in {"postgres": {"exec": {"command": ready}}, "s3": None}.items():
        one = pod_containers()[name]
        wanted = probed or {"httpGet": {"path": STORES["s3"].health, "port": port("s3")}}
        for kind in ("livenessProbe", "readinessProbe"):
            assert wanted.items() <= one[kind].items()
        assert [entry["containerPort"] for entry in one["ports"]] == [port(name)]


def test_both_sets_start_the_stores_alike():
    for name in STORES:
        one, other = CONTAINERS[name], pod_containers()[name]
        assert one["image"] == other["image"]
        assert one["command"] == other["args"]
        assert one.get("entrypoint") == other.get("command")
    pod = {entry["name"]: entry["value"] for entry in pod_containers()["postgres"]["env"]}
    assert pod == CONTAINERS["postgres"]["environment"]
    for name, value in TUNING.items():
        assert f"{name}={value}" in CONTAINERS["postgres"]["command"]
    made = {CONTAINERS["postgres"]["environment"]["POSTGRES_DB"]}
    for text in (
        (DEPLOY / "compose" / "databases.sql").read_text(),
        *manifest("ConfigMap", "databases")["data"].values(),
    ):
        assert made | set(re.findall(r"^CREATE DATABASE (\w+);$", text, re.MULTILINE)) == set(DATABASES)


@pytest.mark.parametrize("name", [name for name, known in SERVICES.items() if known.port_field])
def test_a_server_is_published_on_its_port_on_loopback_alone(name):
    at = port(name)
    assert f"127.0.0.1:{at}:{at}" in CONTAINERS["bellwether"]["ports"]
    assert {"name": name, "port": at} in manifest("Service", "bellwether")["spec"]["ports"]
    assert [entry["containerPort"] for entry in pod_containers()[name]["ports"]] == [at]


def test_nothing_else_is_published():
    published = [text for one in CONTAINERS.values() for text in one.get("ports", [])]
    assert all(text.startswith("127.0.0.1:") for text in published)
    assert len(published) == len([name for name in SERVICES if port(name)])
    kinds = {m["spec"].get("type", "ClusterIP") for m in MANIFESTS if m["kind"] == "Service"}
    assert kinds == {"ClusterIP"}
    assert not [one for one in pod_containers(also_init=True).values() for p in one.get("ports", []) if "hostPort" in p]
    assert not [pod for pod in pods().values() if pod.get("hostNetwork")]


# ---- settings and secrets -------------------------------------------------------------------------------------------


def test_every_service_has_the_same_variables_in_both():
    wanted = manifest("ConfigMap", "settings")["data"]
    for name in (*SERVICES, "prepare"):
        assert CONTAINERS[name]["environment"] == wanted
        assert pod_containers(also_init=True)[name]["envFrom"] == [{"configMapRef": {"name": "settings"}}]
        assert "env" not in pod_containers(also_init=True)[name]


def test_every_variable_of_ours_is_a_setting_with_a_value_it_takes():
    named = {found for file in texts() for found in re.findall(r"BELLWETHER_[A-Z0-9_]+", file.read_text())}
    fields = {f"BELLWETHER_{field.upper()}" for field in Settings.model_fields}
    assert named - {KERNEL_CACHE} <= fields
    assert KERNEL_CACHE in (ROOT / "pipelines" / "compiled.py").read_text()


def test_the_settings_name_every_store_of_the_profile_and_both_names_of_a_server(monkeypatch):
    for name in [name for name in os.environ if name.startswith("BELLWETHER_")]:
        monkeypatch.delenv(name)
    for name, value in manifest("ConfigMap", "settings")["data"].items():
        monkeypatch.setenv(name, value)
    found = Settings(_env_file=None)
    assert found.profile == "cluster"
    assert not found.runs_postgres
    assert not found.runs_s3
    assert found.dask == "local"
    urls = {"ledger": found.store, "mlflow": found.mlflow_store, "prefect": found.prefect_store}
    for database in DATABASES:
        at = f"//{POSTGRES_USER}@postgres:{found.postgres_port}/{database}"
        assert urls[database].endswith(at)
    assert found.remote.startswith(f"s3://{BUCKET}/")
    assert found.mlflow_artifacts.startswith(f"s3://{BUCKET}/")
    servers = {f"bellwether:{port(name)}" for name in SERVICES if port(name)}
    assert set(found.proxy_hosts) == servers
    assert os.environ["AWS_ENDPOINT_URL"] == f"http://s3:{found.s3_port}"
    assert os.environ["PGPASSFILE"] == str(stores.password_file(found))


def test_no_secret_value_stands_in_a_file():
    assert [m for m in MANIFESTS if m["kind"] == "Secret"] == []
    variables = manifest("ConfigMap", "settings")["data"] | CONTAINERS["postgres"]["environment"]
    for name, value in variables.items():
        if re.search("PASS|SECRET|CREDENTIAL|TOKEN|WRITE_KEY", name):
            assert name.endswith("FILE"), f"{name} is no reference to a file"
            assert value.startswith(("/run/secrets/", "/home/bellwether/volume/home/stores/"))
    for file in texts():
        text = file.read_text()
        assert not re.search(r"://[^\s/@:]+:[^\s/@]+@", text), f"a password in a URL of {file.name}"
        assert not re.search(r"\b(?=\w*\d)(?=\w*[A-Za-z])\w{24,}\b", text), f"what looks like a key in {file.name}"
    for secret in COMPOSE["secrets"].values():
        assert secret.keys() == {"file"}
        assert secret["file"].startswith("../secrets/")
    for ignoring in (".gitignore", ".dockerignore"):
        assert "deploy/secrets" in (ROOT / ignoring).read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of secrets, made by the script."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run(["sh", DEPLOY / "secrets.sh", folder], check=True)
    return folder


def test_the_script_makes_every_secret_that_is_mounted_each_once(made):
    before = {file.name: file.read_text() for file in made.iterdir()}
    subprocess.run(["sh", DEPLOY / "secrets.sh", made], check=True)
    assert {file.name: file.read_text() for file in made.iterdir()} == before
    assert {secret["file"].rpartition("/")[2] for secret in COMPOSE["secrets"].values()} == set(before)
    items = [
        (volume["secret"]["secretName"], item["key"])
        for pod in pods().values()
        for volume in pod["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    ]
    assert sorted(items) == sorted(("stores", name) for name in before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_the_store_and_its_clients_have_one_password(made, tmp_path):
    where = Settings(home=tmp_path / "home", _env_file=None)
    prepare.prepare(where, made / "pgpass")
    assert stores.password(where) == (made / "postgres_password").read_text()
    assert stat.S_IMODE(stores.password_file(where).stat().st_mode) == 0o600
    stores.credentials_file(where).write_text((made / "s3_credentials").read_text())
    assert json.loads(stores.identities(where)) == json.loads((made / "s3_identities.json").read_text())


# ---- what a container may do ----------------------------------------------------------------------------------------


def test_containers_of_compose_are_confined():
    for name, one in CONTAINERS.items():
        assert one["read_only"], name
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert (one["user"].partition(":")[0] == "0") == (name == "s3-owner"), name
        assert "privileged" not in one
    assert CONTAINERS["s3-owner"]["cap_add"] == ["CHOWN"]
    assert CONTAINERS["s3-owner"]["network_mode"] == "none"


def test_pods_are_as_the_restricted_standard_has_them():
    assert (
        manifest("Namespace", "bellwether")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )
    for pod in pods().values():
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] != 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["fsGroupChangePolicy"] == "OnRootMismatch"
        assert pod["automountServiceAccountToken"] is False
    for one in pod_containers(also_init=True).values():
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["requests"].keys() == {"cpu", "memory"}


def test_one_home_has_one_network_one_process_table_and_one_volume():
    for name in SERVICES:
        assert CONTAINERS[name]["network_mode"] == CONTAINERS[name]["pid"] == "service:bellwether"
    pod, deployment = pods()["bellwether"], manifest("Deployment", "bellwether")["spec"]
    assert pod["shareProcessNamespace"] is True
    assert {one["name"] for one in pod["containers"]} == set(SERVICES)
    assert pod["hostname"] == CONTAINERS["bellwether"]["hostname"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert manifest("PersistentVolumeClaim", "home")["spec"]["accessModes"] == ["ReadWriteOnce"]
    for name in (*SERVICES, "prepare"):
        assert CONTAINERS[name]["volumes"] == ["home:/home/bellwether/volume"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod_containers(also_init=True)[name]["volumeMounts"]}
        assert mounts["home"] == "/home/bellwether/volume"


def test_the_network_is_closed_but_for_the_home_its_stores_and_the_clients_of_its_services():
    policies = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {
        name: sorted({p["port"] for rule in (*spec.get("ingress", ()), *spec.get("egress", ())) for p in rule["ports"]})
        for name, spec in policies.items()
        if name != "nothing"
    }
    assert opened == {
        "names": [53],
        "home-to-stores": sorted(map(port, STORES)),
        "postgres-from-home": [port("postgres")],
        "s3-from-home": [port("s3")],
        "home-from-clients": [port("decision"), port("models")],
    }


# ---- images ---------------------------------------------------------------------------------------------------------


def test_the_image_copies_the_lock_installs_from_it_and_runs_as_no_root():
    text = (DEPLOY / "compose" / "Containerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    steps = [tuple(line.split(None, 1)) for line in lines if line.strip()]
    copied = next(at for at, (word, rest) in enumerate(steps) if word == "COPY" and "requirements.lock" in rest)
    installed = next(at for at, (word, rest) in enumerate(steps) if word == "RUN" and "-r requirements.lock" in rest)
    user = steps.index(("USER", "1000"))
    assert user < copied < installed
    assert "-r requirements-cluster.txt -c requirements.lock" in steps[installed][1]
    assert re.fullmatch(r"python:3\.12-slim-bookworm", steps[0][1])
    exposed = next(rest for word, rest in steps if word == "EXPOSE")
    assert {int(number) for number in exposed.split()} == {port(name) for name in SERVICES if port(name)}
    volume = next(rest for word, rest in steps if word == "VOLUME")
    assert CONTAINERS["flows"]["volumes"] == [f"home:{volume}"]


def test_images_of_others_have_an_exact_tag_and_files_say_that_the_operator_pins_a_digest():
    images = {one["image"] for one in (*CONTAINERS.values(), *pod_containers(also_init=True).values())}
    assert "bellwether:local" in images
    for image in images - {"bellwether:local"}:
        assert re.fullmatch(r"(postgres|chrislusf/seaweedfs):\d[\w.-]+", image)
    for file in (COMPOSE_FILES[0], DEPLOY / "kubernetes" / "postgres.yaml", DEPLOY / "kubernetes" / "s3.yaml"):
        assert "by digest" in file.read_text()
