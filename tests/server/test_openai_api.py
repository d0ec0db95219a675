"""`/v1/videos`, asked by OpenAI's own client."""

import base64
import io

import openai
import pytest
from PIL import Image

from tests.live import finished

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Sora.*:DeprecationWarning", "ignore::DeprecationWarning:openai"
)


@pytest.fixture(scope="module")
def sdk(service):
    with openai.OpenAI(base_url=service.url + "/v1", api_key=service.key) as client:
        yield client


@pytest.fixture(scope="module")
def video(sdk):
    return sdk.videos.create_and_poll(
        prompt="a lake at sunset", model="tiny", size="1280x720", extra_body={"seed": 1}
    )


def png():
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 48)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_create_and_poll_ends_with_a_video(video):
    assert (video.status, video.progress, video.object) == ("completed", 100, "video")
    assert (video.model, video.prompt) == ("tiny", "a lake at sunset")
    assert video.size != "1280x720"
    assert video.expires_at > video.completed_at >= video.created_at


def test_every_variant_is_downloaded(sdk, video):
    assert sdk.videos.download_content(video.id).read()[4:8] == b"ftyp"
    for variant in ("thumbnail", "spritesheet"):
        assert sdk.videos.download_content(video.id, variant=variant).read()[8:12] == b"WEBP"


def test_it_is_found_in_the_list_page_by_page(sdk, video):
    other = sdk.videos.create(prompt="a sea", model="tiny")
    found = [item.id for item in sdk.videos.list(limit=1)]
    assert found[0] == other.id
    assert video.id in found
    assert sdk.videos.retrieve(video.id) == video


def test_a_remix_keeps_the_seed_and_says_where_it_comes_from(sdk, service, video):
    remixed = sdk.videos.remix(video.id, prompt="a lake at night")
    assert remixed.remixed_from_video_id == video.id
    with service.client() as client:
        assert finished(client, remixed.id)["seed"] == 1


def test_a_picture_is_taken_in_all_three_forms(sdk, service):
    with service.client() as client:
        upload = client.post("/v1/uploads", content=png()).json()["id"]
    link = "data:image/png;base64," + base64.b64encode(png()).decode()
    made = [
        sdk.videos.create(prompt="x", model="tiny-i2v", input_reference=("a.png", png(), "image/png")),
        sdk.videos.create(prompt="x", model="tiny-i2v", extra_body={"input_reference": {"image_url": link}}),
        sdk.videos.create(prompt="x", model="tiny-i2v", extra_body={"input_reference": {"file_id": upload}}),
    ]
    with service.client() as client:
        assert all(finished(client, one.id)["status"] == "completed" for one in made)


def test_errors_arrive_as_the_sdks_own(sdk):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.videos.create(prompt="x", model="tiny", seconds="8")
    assert refused.value.code == "bad_option"
    assert "at most" in refused.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.videos.retrieve("job_missing")
    assert missing.value.code == "not_found"
    assert missing.value.request_id


def test_what_the_engine_cannot_do_yet_is_501_with_a_clear_code(sdk, video):
    for call in (
        lambda: sdk.videos.edit(prompt="x", video=("a.mp4", b"x", "video/mp4")),
        lambda: sdk.videos.extend(prompt="x", seconds="4", video=("a.mp4", b"x", "video/mp4")),
    ):
        with pytest.raises(openai.InternalServerError) as refused:
            call()
        assert (refused.value.status_code, refused.value.code) == (501, "not_supported")


def test_delete_forgets_it(sdk, service):
    made = sdk.videos.create(prompt="x", model="tiny")
    with service.client() as client:
        finished(client, made.id)
    gone = sdk.videos.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        sdk.videos.retrieve(made.id)
