"""The same code by configuration alone: several API processes, PostgreSQL, S3, devices elsewhere; then Ray."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from broll.jobs.artifacts import Artifacts
from broll.jobs.states import State
from tests.faults.processes import KEY, until
from tests.faults.site import LONG, SHORT, site

pytestmark = pytest.mark.slow


@pytest.fixture
def on_postgresql(postgresql_url, fault_models, tmp_path):
    with site("postgresql", postgresql_url, fault_models, tmp_path) as made:
        yield made
        made.check_ledger()


@dataclass
class Bucket:
    server: Any
    settings: dict[str, str]

    @contextmanager
    def away(self):
        """Nobody listens at the endpoint; what was stored is kept."""
        address, port = self.server.get_host_and_port()
        self.server.stop()
        try:
            yield
        finally:
            self.server = type(self.server)(ip_address=address, port=port, verbose=False)
            self.server.start()


@pytest.fixture
def bucket(monkeypatch):
    """s3://clips on this machine, for every process that is started."""
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    ).create_bucket(Bucket="clips")
    made = Bucket(server, {"artifacts": "s3://clips/broll", "artifacts_endpoint": endpoint})
    yield made
    made.server.stop()


def client(serve):
    return httpx.Client(
        base_url=serve.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
    )


def test_two_api_processes_two_dispatchers_postgresql_and_s3_are_one_service(on_postgresql, bucket):
    crew = on_postgresql.crew
    apis = [crew.start("api", **bucket.settings) for _ in range(2)]
    for _ in range(2):
        crew.start("dispatcher", **bucket.settings)
    with client(apis[0]) as one, client(apis[1]) as other:
        headers = {"Idempotency-Key": "k"}
        ask = {"prompt": "a lake", "seed": 1, **SHORT}
        job = one.post("/v1/video/generate", json=ask, headers=headers).raise_for_status().json()["job_id"]
        assert other.post("/v1/video/generate", json=ask, headers=headers).json()["job_id"] == job
        more = [one.post("/v1/video/generate", json=ask | {"seed": 2}).json()["job_id"] for _ in range(5)]
        for each in (job, *more):
            done = until(
                lambda each=each: (
                    (found := other.get(f"/v1/jobs/{each}", headers={"Prefer": "wait=20"}).json())["status"]
                    == "completed"
                    and found
                ),
                each,
            )
        # a link that one process signed, served by the other, out of the bucket
        link = done["output_url"].replace(str(other.base_url).rstrip("/"), str(one.base_url).rstrip("/"))
        clip = httpx.get(link, trust_env=False)
        assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
        assert not list(crew.artifacts.glob("**/*.mp4"))
    devices = {on_postgresql.job(each).device for each in (job, *more)}
    assert all(on_postgresql.job(each).attempt == 1 for each in more)
    assert 1 <= len(devices) <= 2


def test_the_bucket_gone_in_the_middle_of_a_job_and_back(on_postgresql, bucket):
    site = on_postgresql
    endpoint = {"endpoint": bucket.settings["artifacts_endpoint"], "allow_http": "true"}
    site.artifacts = Artifacts.open(bucket.settings["artifacts"], options=endpoint)
    serve = site.crew.start("dispatcher", **bucket.settings)
    job_id = site.submit(**LONG)
    site.catch(job_id, "denoise")
    with bucket.away():
        until(lambda: site.job(job_id).failures >= 1, "a failed attempt")
        assert not site.job(job_id).done
    site.finished(job_id)
    assert set(site.outcomes(job_id)[:-1]) == {"storage_error"}
    site.check_completed_once(job_id)
    assert serve.alive


def test_a_node_of_a_ray_cluster_dies_and_its_job_ends_elsewhere_from_the_snapshot(
    on_postgresql, monkeypatch
):
    pytest.importorskip("ray")
    from tests.jobs import ray_nodes

    crew = on_postgresql.crew
    monkeypatch.setenv("BROLL_MODELS", str(crew.models))
    monkeypatch.setenv("BROLL_THREADS", "1")
    for name, value in ray_nodes.AUTH.items():
        monkeypatch.setenv(name, value)
    with ray_nodes.running() as nodes:
        for name in ("one", "two"):
            nodes.add(name, gpus=1)
        crew.start("dispatcher", executor="ray", ray_address=nodes.address)
        job_id = on_postgresql.submit(**LONG | {"steps": 40})
        on_postgresql.catch(job_id, "denoise")
        before = on_postgresql.job(job_id)
        hosts = [name for name in ("one", "two") if hosting(nodes, name)]
        assert len(hosts) == 1
        nodes.lose(hosts[0])
        job, snapshots = on_postgresql.finished(job_id)
        assert job.state is State.COMPLETED
        assert job.attempt == 2
        first_of_second = min(step for attempt, step in snapshots if attempt == 2)
        assert first_of_second > before.snapshot["step"]
        on_postgresql.check_completed_once(job_id)
        for serve in crew.started:
            serve.terminate()


def hosting(nodes, name):
    """Whether a node runs the actor: its worker process is named after it."""
    from tests.jobs.ray_nodes import family

    return any("Host" in " ".join(p.cmdline()) for p in family(nodes._running[name].pid))
