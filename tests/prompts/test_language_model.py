"""A language model behind a real HTTP endpoint: what it may say, and what happens when it misbehaves."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broll.prompts import coach, rewriter, slots
from broll.prompts.findings import Context
from broll.prompts.language_model import Endpoint, objection, offer

LAKE = "mountain lake at sunset"
GOOD = {
    "motion": "water rippling gently against the shore", "camera": "camera pans slowly to the left",
    "light": "golden light over the peaks", "physics": "", "shot": "wide shot",
}  # fmt: skip


class Model(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, content, delay_s = self.server.say
        time.sleep(delay_s)
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that gives up is what is tested."""


@contextmanager
def model(content, *, status=200, delay_s=0.0):
    server = Quiet(("127.0.0.1", 0), Model)
    server.asked = []
    server.say = (status, content if isinstance(content, str) else json.dumps(content), delay_s)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server, Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "small", "secret", 2.0)
    finally:
        server.shutdown()
        server.server_close()


def test_its_phrases_take_the_place_of_the_rules_own():
    with model(GOOD) as (server, endpoint):
        offered = offer(endpoint, LAKE, Context())
    path, headers, body = server.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert LAKE in body["messages"][1]["content"]
    assert dict(offered.phrases).keys() == {"motion", "camera", "light", "shot"}
    made = coach.rewrite(LAKE, Context(offers=offered.phrases))
    assert "against the shore" in made.prompt
    assert "pans slowly to the left" in made.prompt
    assert "golden light" not in made.prompt, "sunset is light enough"
    assert rewriter.lost(made) == ()
    assert coach.rewrite(made.prompt, Context(offers=offered.phrases)).prompt == made.prompt
    moves = [term for term in slots.parse(made.prompt).of("camera") if term.name != "vague"]
    assert len(moves) == 1


@pytest.mark.parametrize(
    ("slot", "phrase", "reason"),
    [
        ("motion", "a woman walking along the shore", "people"),
        ("motion", "people strolling by", "people"),
        ("motion", "a dog running past", "things"),
        ("motion", "water rippling while the camera pans left", "camera"),
        ("motion", "no boats moving", "should not be there"),
        ("light", 'a sign that says "HOTEL" glowing', "words into the picture"),
        ("camera", "camera pans left, then tilts up", "one only"),
        ("camera", "beautiful view", "camera"),
        ("shot", "wide shot and close-up", "one only"),
        ("style", "watercolor painting", "nobody asked"),
        ("atmosphere", "anime style mist", "style"),
        ("light", "wonderful and good", "nothing of light"),
        ("motion", " ".join(["rippling"] * 15), "at most"),
        ("motion", "\u6c34\u9762\u8361\u6f3e", "English"),
    ],
)
def test_the_gate_refuses_what_a_prompt_must_not_gain(slot, phrase, reason):
    assert reason in objection(slot, phrase, slots.parse(LAKE), Context())


def test_what_is_refused_is_said_and_the_rules_fill_the_place():
    with model(GOOD | {"motion": "a woman walking along the shore"}) as (_, endpoint):
        offered = offer(endpoint, LAKE, Context())
    assert "motion (it adds people)" in offered.note
    made = coach.rewrite(LAKE, Context(offers=offered.phrases))
    assert "woman" not in made.prompt
    assert any(addition.slot == "motion" for addition in made.additions)


def test_a_scene_that_stands_still_gets_no_motion():
    still = slots.parse("In a still frame, a stop sign")
    assert objection("motion", "the sign swaying", still, Context()) == "the scene is to stand still"


@pytest.mark.parametrize(
    "content",
    ["certainly! here is your prompt", "[1, 2]", "{}x{", "null", "", '{"motion": 3, "camera": ["x"]}'],
)
def test_an_answer_that_is_no_json_of_phrases_changes_nothing(content):
    with model(content) as (_, endpoint):
        offered = offer(endpoint, LAKE, Context())
    assert offered.phrases == ()


def test_an_answer_in_a_fence_is_understood():
    with model(f"Sure:\n```json\n{json.dumps(GOOD)}\n```") as (_, endpoint):
        assert dict(offer(endpoint, LAKE, Context()).phrases)["shot"] == "wide shot"


def test_too_slow_too_large_failing_or_absent_it_is_left_out_and_that_is_said():
    with model(GOOD, delay_s=4.0) as (_, endpoint):
        begin = time.monotonic()
        assert "did not answer" in offer(endpoint, LAKE, Context()).note
        assert time.monotonic() - begin < 3.9
    with model(GOOD, status=500) as (_, endpoint):
        assert "did not answer" in offer(endpoint, LAKE, Context()).note
    with model(json.dumps(GOOD) + " " * 200_000) as (_, endpoint):
        assert offer(endpoint, LAKE, Context()).phrases == ()
    assert "did not answer" in offer(endpoint, LAKE, Context()).note  # nobody listens there any more


def test_the_same_question_is_asked_once(tmp_path):
    with model(GOOD) as (server, endpoint):
        kept = Endpoint(endpoint.url, endpoint.model, endpoint.key, 2.0, tmp_path / "coach")
        first = offer(kept, LAKE, Context())
        assert offer(kept, LAKE, Context()) == first
        assert len(server.asked) == 1
        offer(kept, LAKE, Context(use="weather"))
        assert len(server.asked) == 2
    assert offer(kept, LAKE, Context()) == first, "also when it has gone"
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "coach").iterdir())


def test_a_picture_goes_along_as_a_data_uri():
    with model(GOOD) as (server, endpoint):
        offer(endpoint, LAKE, Context(task="i2v"), b"\x89PNG")
    content = server.asked[0][2]["messages"][1]["content"]
    assert content[1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="
