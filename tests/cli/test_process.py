"""What only a process of its own can show: signals, start-up, what is imported, what is not installed."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "broll", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run(*words: object, code: str | None = None) -> subprocess.CompletedProcess:
    line = command(*words) if code is None else [sys.executable, "-c", code]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120, check=False)


def test_help_answers_at_once(place):
    """In processor time, which does not depend on what else the machine does; 0.3 s of the clock when it is quiet."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1.0


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["--version"], ["models", "list"]])
def test_what_only_answers_imports_nothing_heavy(place, words):
    code = (
        f"import sys; from broll.cli.app import run; run({words!r}); "
        "print([m for m in ('torch', 'transformers', 'av', 'numpy', 'PIL') if m in sys.modules])"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("missing", ["torch", "transformers", "av"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(place, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from broll.cli.app import run; "
        "sys.exit(run(['generate', 'a lake', '--model', 'tiny', '--json']))"
    )
    ran = run(code=code)
    assert ran.returncode == 4, ran.stderr
    assert json.loads(ran.stdout)["error"]["code"] == "missing_extra"
    assert 'pip install "broll[engine]"' in ran.stderr.splitlines()[-1]
    assert list(place.iterdir()) == []


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stop_at(process: subprocess.Popen, sign: str, signum: int) -> tuple[float, str]:
    """Send the signal when a line of stderr holds `sign`; the seconds to its end, and the rest of stderr."""
    for line in process.stderr:
        if sign in line:
            break
    begin = time.perf_counter()
    process.send_signal(signum)
    _, rest = process.communicate(timeout=30)
    return time.perf_counter() - begin, rest


def test_stopped_in_the_middle_and_continued_is_the_same_clip(place, broll):
    spec = ("generate", "a lake", "--model", "tiny", "--seed", 5, "--steps", 80)
    whole = broll(*spec, "--out", "whole.mp4", "--json").json
    took, rest = stop_at(process := start(*spec, "--out", "part.mp4"), "denoise 8/80", signal.SIGINT)
    assert process.returncode == 130
    assert took < 1.0
    assert "[stopped]" in rest
    assert "continue with: broll generate --resume part.mp4.snapshot" in rest
    assert sorted(path.name for path in place.iterdir()) == ["part.mp4.snapshot", "whole.mp4"]
    again = broll("generate", "--resume", "part.mp4.snapshot", "--json").json
    assert again["file"] == "part.mp4"
    assert again["latents_sha256"] == whole["latents_sha256"]
    assert not again["resumed_elsewhere"]
    assert sorted(path.name for path in place.iterdir()) == ["part.mp4", "whole.mp4"]


def test_stopped_while_loading_leaves_nothing(place):
    took, rest = stop_at(
        process := start("generate", "a lake", "--model", "tiny"), "starting", signal.SIGTERM
    )
    assert process.returncode == 143
    assert took < 1.5
    assert rest.splitlines()[-1].startswith("broll: error [stopped]: stopped before the first step")
    assert list(place.iterdir()) == []


def test_stopped_while_decoding_keeps_the_steps_and_no_half_clip(place):
    words = ("generate", "a lake", "--model", "tiny", "--frames", 401, "--out", "long.mp4")
    took, _ = stop_at(start(*words), "decode 1/401", signal.SIGINT)
    assert took < 1.0
    assert [path.name for path in place.iterdir()] == ["long.mp4.snapshot"]
