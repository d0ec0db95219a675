"""A machine with `pip install broll` and nothing more: what asks a server, and the coach, work there."""

import pytest

from tests import without

ENGINE = ("torch", "av", "cv2", "transformers", "safetensors", "jaxtyping", "ftfy", "sentencepiece", "gguf")
NOBODY = ("--server", "http://127.0.0.1:9")


def run(*words: str):
    return without.run(ENGINE, "from broll.cli.app import main; main()", *words)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a lake", "--seconds", "3", "--size", "832x480", "--poster", *NOBODY),
        pytest.param(("jobs", "list", *NOBODY), marks=pytest.mark.slow),
        pytest.param(("jobs", "download", "job_1", *NOBODY), marks=pytest.mark.slow),
    ],
)
def test_a_server_is_asked_without_an_engine(place, words):
    ran = run(*words)
    assert "connection_failed" in ran.stderr, ran.stderr


def test_a_prompt_for_a_published_model_is_checked_and_rewritten_without_an_engine(place):
    for verb in ("check", "rewrite"):
        ran = run("prompt", verb, "a lake", "--model", "wan2.1-t2v-14b")
        assert ran.returncode == 0, ran.stderr
        assert "CAM-1" in ran.stdout or "camera" in ran.stdout


def test_making_a_clip_there_says_what_to_install(place):
    ran = run("generate", "a lake")
    assert "[missing_extra]" in ran.stderr
    assert "broll[engine]" in ran.stderr
    assert "Traceback" not in ran.stderr
