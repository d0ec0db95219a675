"""Examples that need a server: video_job.py, also as the class that a program already uses; serve_and_generate.py."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.client.small_server import VIDEO

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "video_job.py"


@pytest.fixture
def video_job(small, monkeypatch):
    monkeypatch.setenv("BROLL_SERVER", small.url)
    made = runpy.run_path(str(SCRIPT))["VideoJob"](small.key)
    yield made
    made.broll.close()


def test_the_script_prints_a_url_that_works_without_a_key(small):
    env = os.environ | {"BROLL_SERVER": small.url, "BROLL_KEY": small.key}
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "a", "lake"], env=env, capture_output=True, text=True, check=True
    )
    assert httpx.get(ran.stdout.strip()).content == VIDEO
    assert small.jobs["job_0001"]["prompt"] == "a lake"


def test_submit_and_poll_answer_as_they_did(video_job, small):
    job_id = video_job.submit("a lake", duration=3)
    assert small.jobs[job_id]["fields"]["duration"] == 3
    assert video_job.poll(job_id)["status"] == "completed"


def test_a_failure_says_why(video_job):
    with pytest.raises(RuntimeError, match="it does not fit"):
        video_job.generate("fail")


def test_a_job_that_takes_too_long_is_a_timeout(video_job):
    with pytest.raises(TimeoutError, match="it goes on"):
        video_job.poll(video_job.submit("forever"), max_wait=0)


def test_a_clip_is_followed_and_fetched(small, tmp_path):
    env = os.environ | {"BROLL_SERVER": small.url, "BROLL_KEY": small.key}
    command = [sys.executable, str(EXAMPLES / "serve_and_generate.py"), "a", "lake"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    told = ran.stdout.splitlines()
    assert told[0] == "nano, 4 credits"
    assert "denoise 50 %" in told
    assert (tmp_path / told[-1]).read_bytes() == VIDEO
