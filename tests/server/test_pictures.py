"""A first picture over HTTP, for a model that also makes clips from text: both APIs, estimates, refusals."""

import base64
import io

import pytest
from PIL import Image

from tests import checkpoints
from tests.live import finished, live


def link(width=80, height=80):
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starting")
    checkpoints.diffusers_folder(folder / "starts", "ti2v")
    with live(folder, tmp_path_factory.mktemp("service"), offer=["starts"]) as service, service.client() as c:
        yield c


def test_a_picture_is_given_to_the_model_that_is_here_and_sets_the_size(client):
    asked = {"prompt": "a lake", "seed": 1, "image": link()}
    made = client.post("/v1/video/generate", json=asked).raise_for_status().json()
    done = finished(client, made["job_id"])
    assert (done["status"], done["model"], done["size"]) == ("completed", "starts", "32x32")
    again = client.post("/v1/video/generate", json=asked | {"image": link(120, 60)}).raise_for_status().json()
    assert again["size"] == "64x32"
    assert finished(client, again["job_id"])["status"] == "completed"


def test_without_a_picture_the_same_model_makes_the_clip_from_text(client):
    made = client.post("/v1/video/generate", json={"prompt": "a lake"}).raise_for_status().json()
    assert finished(client, made["job_id"])["status"] == "completed"
    assert (made["model"], made["size"]) == ("starts", "64x32")


def test_openais_api_starts_from_a_picture_too(client):
    asked = {"prompt": "a lake", "model": "sora-2", "input_reference": {"image_url": link()}}
    made = client.post("/v1/videos", json=asked).raise_for_status().json()
    assert (made["model"], made["size"]) == ("sora-2", "32x32")
    assert finished(client, made["id"])["spec"]["image"]


def test_an_estimate_tells_a_clip_from_a_picture_from_one_of_text(client):
    ask = {"prompt": "a lake", "model": "starts", "size": "64x32"}
    for fields in ({}, {"image": link()}):
        told = client.post("/v1/video/estimate", json=ask | fields).raise_for_status().json()
        assert (told["model"], told["size"], told["credits"]) == ("starts", "64x32", 1)


def test_the_list_of_models_says_what_it_starts_from(client):
    assert [model["task"] for model in client.get("/v1/models").raise_for_status().json()["data"]] == ["ti2v"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"model": "starts"}, 422, "wrong_task", "wan2.1-flf2v-14b"),
        ({}, 422, "model_missing", "flf2v"),
    ],
)
def test_a_last_picture_is_refused(client, fields, status, code, words):
    asked = {"prompt": "a lake", "image": link(), "last_image": link()}
    answer = client.post("/v1/video/generate", json=asked | fields)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["detail"]
