"""The coach over HTTP, and in jobs: what was asked beside what was measured."""

import pytest

from tests.live import finished

WEAK = "mountain lake at sunset"


@pytest.fixture(scope="module")
def client(service):
    with service.client() as c:
        yield c


def test_check_points_into_the_text(client):
    prompt = WEAK + ', a sign that says "OPEN"'
    report = client.post("/v1/prompts/check", json={"prompt": prompt}).raise_for_status().json()
    found = {finding["rule"]: finding for finding in report["findings"]}
    assert found.keys() >= {"CAM-1", "TEXT-1"}
    text = found["TEXT-1"]
    assert "OPEN" in prompt[text["start"] : text["end"]]


def test_offsets_can_be_what_a_browser_counts(client):
    prompt = 'a lake \N{WAVING HAND SIGN}\N{WAVING HAND SIGN}, a sign that says "OPEN"'
    body = {"prompt": prompt, "offsets": "utf16"}
    report = client.post("/v1/prompts/check", json=body).raise_for_status().json()
    found = next(finding for finding in report["findings"] if finding["rule"] == "TEXT-1")
    units = prompt.encode("utf-16-le")
    assert "OPEN" in units[2 * found["start"] : 2 * found["end"]].decode("utf-16-le")


def test_an_edit_of_a_fix_can_be_applied(client):
    report = client.post("/v1/prompts/check", json={"prompt": WEAK}).json()
    found = next(finding for finding in report["findings"] if finding["rule"] == "CAM-1")
    text = WEAK
    for edit in reversed(found["fix"]["edits"]):
        text = text[: edit["start"]] + edit["text"] + text[edit["end"] :]
    again = client.post("/v1/prompts/check", json={"prompt": text}).json()
    assert "CAM-1" not in [finding["rule"] for finding in again["findings"]]


def test_rewrite_lists_additions_that_can_be_left_out(client):
    body = {"prompt": WEAK, "model": "wan2.1-t2v-14b", "preset": "ambient-loop"}
    made = client.post("/v1/prompts/rewrite", json=body).raise_for_status().json()
    assert made["given"] == WEAK
    assert "".join(step["text"] for step in made["diff"] if step["op"] != "insert") == WEAK
    assert "".join(step["text"] for step in made["diff"] if step["op"] != "delete") == made["prompt"]
    without = body | {"without": [made["additions"][0]["id"]]}
    less = client.post("/v1/prompts/rewrite", json=without).raise_for_status().json()
    assert made["additions"][0]["id"] not in [addition["id"] for addition in less["additions"]]
    assert made["negative_prompt"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""}, {"prompt": "a lake", "preset": "nonsense"}, {"prompt": "a lake", "size": "1x"},
        {"prompt": "a lake", "model": "nonsense"}, {"prompt": "a lake", "surprise": 1}, {"prompt": "x" * 10_001},
        {"prompt": "a lake", "without": ["x"] * 101},
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_a_code(client, body):
    for path in ("check", "rewrite"):
        answer = client.post(f"/v1/prompts/{path}", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["code"]


def test_a_job_tells_what_was_asked_and_what_was_measured(client):
    ask = {"prompt": "a lake, camera pans left", "model": "tiny", "seed": 1, "takes": 2, "pick": "sharp"}
    single = client.post("/v1/video/estimate", json=ask | {"takes": None, "pick": None}).json()["credits"]
    assert client.post("/v1/video/estimate", json=ask).json()["credits"] == 2 * single
    made = client.post("/v1/video/generate", json=ask).raise_for_status().json()
    assert made["coach"]["camera"]["move"] == "pan left"
    assert (made["checks"], made["camera"], made["takes"]) == (None, None, [])
    done = finished(client, made["job_id"])
    assert done["camera"]["asked"]["move"] == "pan left"
    assert done["camera"]["measured"] == done["checks"]["camera"]["move"]
    assert done["camera"]["as_asked"] == (done["camera"]["measured"] in done["camera"]["asked"]["accepts"])
    assert [take["seed"] for take in done["takes"]] == [1, 2]
    assert done["seed"] in (1, 2)


def test_fix_rewrites_and_a_retry_or_remix_of_it_starts_from_the_right_words(client):
    ask = {"prompt": WEAK, "model": "tiny", "seed": 1, "coach": "fix"}
    done = finished(client, client.post("/v1/video/generate", json=ask).json()["job_id"])
    assert done["coach"]["given"] == WEAK
    assert done["prompt"] == done["coach"]["prompt"] != WEAK
    remix = client.post(f"/v1/videos/{done['job_id']}/remix", json={"prompt": "a wood, no people"})
    again = client.get(f"/v1/jobs/{remix.raise_for_status().json()['id']}").json()
    assert again["prompt"] == "a wood, no people"
    assert again["spec"]["negative_prompt"] != done["spec"]["negative_prompt"]


def test_the_coach_can_be_sent_away(client):
    made = client.post("/v1/video/generate", json={"prompt": WEAK, "model": "tiny", "coach": "off"}).json()
    assert made["coach"] is None
    assert made["prompt"] == WEAK
