"""The client that stands in the article this project began with, word for word but for the address.

The article itself is not ours to ship: where it is not at hand, the test says so and is skipped; the same calls
are made by examples/video_job.py in tests/test_examples.py.
"""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.live import live

ARTICLE = Path(__file__).parents[3] / "shared" / "article.txt"


@pytest.mark.skipif(not ARTICLE.exists(), reason="the article is not here")
def test_the_articles_client_works_with_another_base_url(tiny_models, tmp_path):
    code = re.search(r"^import requests, time.*?(?=^# Usage)", ARTICLE.read_text(), re.MULTILINE | re.DOTALL)[
        0
    ]
    with live(tiny_models, tmp_path / "data") as service:
        names: dict = {}
        exec(code.replace("https://api.pixelapi.dev/v1", f"{service.url}/v1"), names)
        names["time"] = SimpleNamespace(time=time.time, sleep=lambda _seconds: time.sleep(0.5))
        client = names["VideoJob"](service.key)
        url = client.generate(
            "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour"
        )
        got = httpx.get(url, trust_env=False)
        assert got.headers["content-type"] == "video/mp4"
        assert len(got.content) > 10_000
        with pytest.raises(Exception, match="Generation failed: cancelled"):
            fail(service, client, names)


def fail(service, client, names):
    """Cancel what it has just submitted, as an operator would."""
    submit = client.submit

    def submit_and_cancel(prompt, duration=5):
        job = submit(prompt, duration)
        with service.client() as c:
            c.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        return job

    client.submit = submit_and_cancel
    client.generate("a lake")
