"""A machine with `pip install broll` and nothing more: what asks a server, and the coach, work there."""

import subprocess
import sys

import pytest

ENGINE = ("torch", "av", "cv2", "transformers", "safetensors", "jaxtyping", "ftfy", "sentencepiece", "gguf")
START = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ENGINE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from broll.cli.app import main
main()
"""
NOBODY = ("--server", "http://127.0.0.1:9")


def run(*words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", START, *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a lake", "--seconds", "3", "--size", "832x480", "--poster", *NOBODY),
        pytest.param(("jobs", "list", *NOBODY), marks=pytest.mark.slow),
        ("jobs", "download", "job_1", *NOBODY),
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
