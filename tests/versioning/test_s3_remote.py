"""Data versions in S3: pushed to and pulled from a bucket of a real server, with credentials from the environment."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.ports import free_ports
from pipelines import versioning
from pipelines.settings import ROOT

BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
WEED = shutil.which("weed", path=BIN)
LACKING = [name for name in ("dvc_s3", "boto3") if importlib.util.find_spec(name) is None] + ["weed"] * (WEED is None)
pytestmark = pytest.mark.skipif(
    bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (requirements-cluster.txt installs them)"
)
BUCKET, KEY, SECRET = "bellwether", "a-key-of-the-test", "a-secret-of-the-test"
PARTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
         "s3.port", "s3.port.grpc")  # fmt: skip


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Yield a client of a SeaweedFS server with one bucket, and its address in the environment."""
    ports = dict(zip(PARTS, free_ports(len(PARTS)), strict=True))
    folder = tmp_path / "seaweed"
    folder.mkdir()
    words = [WEED, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
             "-master.telemetry=false",
             "-master.volumeSizeLimitMB=64", "-volume.max=8", "-volume.minFreeSpace=1MiB",
             *(f"-{name}={port}" for name, port in ports.items())]  # fmt: skip
    url = f"http://127.0.0.1:{ports['s3.port']}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    with (tmp_path / "seaweed.log").open("w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        client = boto3.client("s3")
        while True:
            assert server.poll() is None, (tmp_path / "seaweed.log").read_text()[-3000:]
            try:
                client.create_bucket(Bucket=BUCKET)
                break
            except (BotoCoreError, ClientError):
                assert time.monotonic() < deadline, (tmp_path / "seaweed.log").read_text()[-3000:]
                time.sleep(0.2)
        yield client
    finally:
        server.kill()  # its own way to stop takes half a minute, and nothing of it is kept
        server.wait(20)


def test_a_data_version_is_pushed_to_a_bucket_and_pulled_into_an_empty_home(bucket, tmp_path):
    url = f"s3://{BUCKET}/versions"
    first, second = tmp_path / "first" / "workspace", tmp_path / "second" / "workspace"
    versioning.prepare(first, ROOT, ROOT / "params.yaml", url)
    (first / "data").mkdir()
    (first / "data" / "bars.csv").write_text("a\n1\n")
    pushed = versioning.snapshot(first)
    assert bucket.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 2  # the folder's list and its file

    versioning.prepare(second, ROOT, ROOT / "params.yaml", url)
    assert versioning.restore(second, first / "data.dvc") == pushed
    assert (second / "data" / "bars.csv").read_text() == "a\n1\n"
    for config in tmp_path.glob("*/workspace/.dvc/config*"):
        assert not {KEY, SECRET} & set(config.read_text().split()), config
