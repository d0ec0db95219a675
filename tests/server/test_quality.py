"""`quality` over HTTP: planned, said in the notes, kept in the job, refused where it cannot be had."""

import pytest

from broll.engine import magnitudes
from broll.engine.config import Ratios
from tests import checkpoints
from tests.live import finished, live

ASK = {"prompt": "a lake", "model": "tiny", "seed": 1, "steps": 14}
RATIOS = Ratios((1.0, *[0.99] * 13), (1.0, *[0.98] * 13), "made up")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of a service with a model that has been measured and one that has not."""
    folder = tmp_path_factory.mktemp("measured")
    for name in ("tiny", "other"):
        checkpoints.diffusers_folder(folder / name)
    (folder / "tiny" / magnitudes.NAME).write_text(magnitudes.written(RATIOS))
    with live(folder, tmp_path_factory.mktemp("service")) as service, service.client() as c:
        yield c


def test_an_estimate_counts_only_the_steps_that_are_computed(client):
    best, draft = (
        client.post("/v1/video/estimate", json=ASK | {"quality": quality}).raise_for_status().json()
        for quality in ("best", "draft")
    )
    assert draft["seconds_s"] < best["seconds_s"]
    assert draft["credits"] == best["credits"]
    said = "quality draft: 5 of 14 steps are computed, the others made from those before"
    assert said in draft["notes"]
    assert not any("quality" in note for note in best["notes"])


def test_a_job_keeps_the_quality_it_was_asked_for(client):
    made = client.post("/v1/video/generate", json=ASK | {"quality": "standard"}).raise_for_status().json()
    done = finished(client, made["job_id"])
    assert done["status"] == "completed"
    assert done["spec"]["quality"] == "standard"


@pytest.mark.parametrize(
    "fields", [{"quality": "good"}, {"quality": 1}, {"quality": "draft", "model": "other"}]
)
def test_a_quality_that_cannot_be_had_is_refused(client, fields):
    answer = client.post("/v1/video/generate", json=ASK | fields)
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_option"
