"""A bucket on this machine, opened."""

from broll.jobs.artifacts import Artifacts

KEYS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}


def s3(endpoint: str, where: str, **options: str) -> Artifacts:
    return Artifacts.open(where, options={"endpoint": endpoint, "allow_http": "true", **KEYS, **options})
