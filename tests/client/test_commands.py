"""`broll jobs` and `broll generate --server`, the real command line against the small server."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from broll.cli import app
from tests.cli.conftest import Ran
from tests.client.small_server import VIDEO

PROMPT = "a lake at sunset"


@pytest.fixture
def broll(small, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, with the small server as the environment's."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("BROLL_SERVER", small.url)
    monkeypatch.setenv("BROLL_KEY", small.key)

    def run(*words):
        capsys.readouterr()
        status = app.run([str(word) for word in words])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def there(small):
    return ("--server", small.url)


def test_a_clip_made_there_comes_here(broll, there, small, tmp_path):
    ran = broll("generate", PROMPT, "--seed", 7, *there)
    assert ran.status == 0, ran.err
    assert (tmp_path / "work" / "a-lake-at-sunset-7.mp4").read_bytes() == VIDEO
    assert ran.out.startswith("a-lake-at-sunset-7.mp4  seed 7  ") and ran.out.endswith(" s\n")
    assert f"job_0001 at {small.url}: nano: 160x96, 81 frames, seed 7, 4 credits" in ran.err
    assert "1280x720 became 160x96" in ran.err and "denoise 50/100" in ran.err


def test_options_become_fields(broll, there, small, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"PNG")
    words = ["--size", "832x480", "--seconds", 3, "--negative", "text", "--guidance", 4, "--model", "nano"]
    assert broll("generate", PROMPT, *words, "--image", tmp_path / "cat.png", "-q", *there).status == 0
    assert small.jobs["job_0001"]["fields"] == {
        "prompt": PROMPT, "width": "832", "height": "480", "seconds": "3.0", "negative_prompt": "text",
        "guidance": "4.0", "model": "nano", "image": b"PNG",
    }  # fmt: skip


def test_loras_are_asked_for_by_their_names_there(broll, there, small):
    words = ["--lora", "film:0.5:2-4", "--lora", "fast", "-q"]
    assert broll("generate", PROMPT, *words, *there).status == 0
    first, second = small.jobs["job_0001"]["fields"]["loras"]
    assert first == {"name": "film", "weight": 0.5, "first": 1, "last": 3}
    assert second == {"name": "fast"}


def test_json_has_the_shape_of_a_clip_made_here(broll, there, tmp_path):
    ran = broll("generate", PROMPT, "--json", "-q", "--out", "a.mp4", "--poster", "--sheet", *there)
    told = ran.json
    assert ran.status == 0 and ran.err == ""
    assert told["file"] == "a.mp4" and told["seed"] == 7 and told["job_id"] == "job_0001"
    assert told["resumed_elsewhere"] is False and told["spec"]["prompt"] == PROMPT and told["seconds"] >= 0
    names = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert names == ["a.mp4", "a.poster.webp", "a.sheet.webp"]


def test_a_gif_is_asked_for_as_one(broll, there, small, tmp_path):
    assert broll("generate", PROMPT, "--format", "gif", *there).status == 0
    assert (tmp_path / "work" / "a-lake-at-sunset-7.gif").exists()
    assert "variant=gif" in small.requests("GET", "/content")[0].path


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["  "], 2, "bad_prompt"),
        ([], 2, "bad_prompt"),
        ([PROMPT, "--size", "big"], 2, "bad_option"),
        ([PROMPT, "--steps", "0"], 2, "bad_option"),
        ([PROMPT, "--seconds", "nan"], 2, "bad_option"),
        ([PROMPT, "--seconds", "3", "--frames", "9"], 2, "bad_option"),
        ([PROMPT, "--format", "webm"], 2, "bad_option"),
        ([PROMPT, "--out", "a.webm"], 2, "bad_option"),
        ([PROMPT, "--out", "no/such/a.mp4"], 5, "output_error"),
        ([PROMPT, "--image", "no.png"], 2, "bad_image"),
        (["--resume", "a.mp4.snapshot"], 2, "bad_option"),
        ([PROMPT, "--lora", "film:99"], 2, "bad_option"),
        ([PROMPT, "--lora", "film", "--merge-loras"], 2, "bad_option"),
        ([PROMPT, "--attention", "sdpa"], 2, "bad_option"),
        ([PROMPT, "--compile", "on"], 2, "bad_option"),
        ([PROMPT, "--int8"], 2, "bad_option"),
        ([PROMPT, "--vae-precision", "float32"], 2, "bad_option"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(broll, there, small, words, status, code):
    ran = broll("generate", *words, "--json", *there)
    assert ran.status == status and ran.json["error"]["code"] == code
    assert small.seen == []


def test_what_is_there_is_not_overwritten(broll, there, small, tmp_path):
    (tmp_path / "work" / "a.mp4").write_bytes(b"before")
    assert broll("generate", PROMPT, "--out", "a.mp4", *there).status == 5
    assert small.seen == []
    assert broll("generate", PROMPT, "--out", "a.mp4", "--force", *there).status == 0
    assert (tmp_path / "work" / "a.mp4").read_bytes() == VIDEO


def test_a_key_without_a_server_is_refused(broll):
    ran = broll("generate", PROMPT, "--key", "x")
    assert ran.status == 2 and "--server" in ran.err


def test_a_failure_there_ends_the_program_like_one_here(broll, there, small):
    ran = broll("generate", "fail", "--json", *there)
    assert ran.status == 7 and ran.json["error"]["code"] == "out_of_memory"
    assert ran.err.splitlines()[-1] == "broll: error [out_of_memory]: job_0001 failed: it does not fit"
    small.key = "another"
    assert broll("generate", PROMPT, *there).status == 7


def test_jobs_are_listed(broll, small):
    for prompt in ("first", "\33[31mred\nand more", "x" * 100):
        small.make({"prompt": prompt})
    lines = broll("jobs", "list").out.splitlines()
    assert len(lines) == 3 and lines[2].split()[0] == "job_0001"
    assert "\33" not in lines[1] and lines[0].endswith("…")
    assert [job["job_id"] for job in broll("jobs", "list", "--limit", 1, "--json").json["jobs"]] == [
        "job_0003"
    ]
    assert broll("jobs", "list", "--status", "failed").out == ""


def test_a_job_is_shown(broll, small):
    small.make({"prompt": PROMPT})
    rows = dict(line.split(maxsplit=1) for line in broll("jobs", "show", "job_0001").out.splitlines())
    assert rows["prompt"] == PROMPT and rows["seed"] == "7" and rows["note"] == "1280x720 became 160x96"
    assert broll("jobs", "show", "job_0001", "--json").json["brand_new_field"] == {"of": "a newer server"}


def test_a_job_that_is_not_there_is_one_line(broll):
    ran = broll("jobs", "show", "job_none")
    assert ran.status == 7 and ran.err == "broll: error [not_found]: there is no job job_none\n"


def test_a_job_is_watched_until_it_is_done(broll, small):
    small.make({"prompt": PROMPT})
    ran = broll("jobs", "watch", "job_0001")
    assert ran.status == 0 and ran.out.startswith("job_0001  completed  seed 7") and "denoise" in ran.err
    assert broll("jobs", "watch", "job_0001", "--json", "-q").json["status"] == "completed"
    small.make({"prompt": "fail"})
    assert broll("jobs", "watch", "job_0002").status == 7


def test_a_job_is_cancelled_and_made_again(broll, small):
    small.make({"prompt": "forever"})
    assert broll("jobs", "cancel", "job_0001").out == "job_0001  cancelled  seed 7\n"
    assert broll("jobs", "retry", "job_0001").out == "job_0002  processing 50 %  seed 7  retry of job_0001\n"
    assert broll("jobs", "retry", "job_0002").status == 7


def test_a_file_of_a_job_is_fetched(broll, small, tmp_path):
    small.make({"prompt": PROMPT}, begun=time.monotonic() - 9)
    assert broll("jobs", "download", "job_0001").out == "a-lake-at-sunset-7.mp4\n"
    assert broll("jobs", "download", "job_0001").out == "a-lake-at-sunset-7-2.mp4\n"
    assert broll("jobs", "download", "job_0001", "--out", "a.webp", "--variant", "thumbnail").status == 0
    assert broll("jobs", "download", "job_0001", "--out", "a.webp").status == 5
    told = broll("jobs", "download", "job_0001", "--out", "a.webp", "--force", "--json").json
    assert told == {"file": "a.webp", "job_id": "job_0001", "seed": 7}
    assert (tmp_path / "work" / "a.webp").read_bytes() == VIDEO
    assert broll("jobs", "download", "job_0001", "--variant", "movie").status == 2


# --- in a process of its own ------------------------------------------------------------------------------


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "broll", *words],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_watching_and_not_the_job(broll, there, small, tmp_path, signum):
    process = start("generate", "forever", "--json", *there, cwd=tmp_path / "work")
    until = time.monotonic() + 20
    while not small.requests("GET", "/events") and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    last = f"job_0001 goes on; continue with: broll jobs watch job_0001 --server {small.url}"
    assert err.splitlines()[-1].endswith(last) and json.loads(out)["error"]["code"] == "stopped"
    assert small.requests("POST", "/cancel") == [] and list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("words", [["jobs", "--help"], ["jobs", "list", "--help"], ["generate", "--help"]])
def test_help_loads_neither_the_engine_nor_httpx(words):
    code = (
        f"import sys; from broll.cli.app import run; run({words!r}); "
        "print({'torch', 'av', 'numpy', 'PIL', 'httpx'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
