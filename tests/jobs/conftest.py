"""Places for artifacts: a folder, and a bucket of moto, which speaks S3 on this machine."""

import os
import uuid

import pytest

from broll.jobs.artifacts import Artifacts
from tests.jobs.buckets import s3


@pytest.fixture(autouse=True)
def no_cloud_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def s3_server():
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def client(s3_server):
    boto3 = pytest.importorskip("boto3")
    made = boto3.client(
        "s3",
        endpoint_url=s3_server,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    yield made
    made.close()


@pytest.fixture
def bucket(client):
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def folder(tmp_path):
    return Artifacts.open(str(tmp_path / "kept"))


@pytest.fixture(params=["folder", "s3"])
def artifacts(request):
    if request.param == "folder":
        return request.getfixturevalue("folder")
    return s3(request.getfixturevalue("s3_server"), f"s3://{request.getfixturevalue('bucket')}/some/prefix")
