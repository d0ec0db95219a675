"""`broll prompt`, and the coach in `broll generate`."""

import io
import json

import pytest

WEAK = "mountain lake at sunset"
STRONG = "slow camera pan across a mountain lake at sunset, water rippling gently, golden reflections"
MODEL = ("--model", "tiny")


def test_check_says_what_is_lacking_and_how_to_mend_it(broll):
    ran = broll("prompt", "check", WEAK)
    assert ran.status == 0
    assert "CAM-1" in ran.out
    assert "fix: " in ran.out
    assert "negative prompt: " in ran.out
    assert "CAM-1" not in broll("prompt", "check", STRONG).out


def test_check_as_json_has_spans_inside_the_text(broll):
    prompt = WEAK + ', a sign that says "OPEN"'
    report = broll("prompt", "check", prompt, "--json").json
    assert {finding["rule"] for finding in report["findings"]} >= {"CAM-1", "TEXT-1"}
    for finding in report["findings"]:
        assert 0 <= finding["start"] <= finding["end"] <= len(prompt)


def test_rewrite_gives_the_prompt_alone_on_stdout_and_every_change_on_stderr(broll):
    ran = broll("prompt", "rewrite", WEAK, "--preset", "ambient-loop")
    assert len(ran.out.splitlines()) == 1
    assert "lake" in ran.out
    added = [line for line in ran.err.splitlines() if "added [" in line]
    assert added
    name = added[0].split("[")[1].split("]")[0]
    without = broll("prompt", "rewrite", WEAK, "--preset", "ambient-loop", "--without", name)
    assert f"[{name}]" not in without.err
    assert "nothing is added as" not in without.err
    told = broll("prompt", "rewrite", WEAK, "--without", "light:blue").err
    assert "nothing is added as light:blue here; additions are: " in told
    assert name in told
    again = broll("prompt", "rewrite", ran.out.strip(), "--preset", "ambient-loop")
    assert again.out == ran.out


def test_rewrite_as_json_has_a_diff_that_gives_both_texts(broll):
    told = broll("prompt", "rewrite", WEAK, "--json").json
    assert "".join(text for op, text in told["diff"] if op != "insert") == WEAK
    assert "".join(text for op, text in told["diff"] if op != "delete") == told["prompt"]


def test_explain_shows_slots_and_rules(broll):
    ran = broll("prompt", "explain", STRONG)
    assert '"move": "pan"' in ran.out or '"move": "pan ' in ran.out
    rule = broll("prompt", "explain", "cam-1", "--json").json
    assert rule["rule"] == "CAM-1"
    assert rule["bad"] != rule["good"]


def test_a_prompt_may_come_through_a_pipe(broll, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(WEAK + "\n"))
    assert broll("prompt", "check", "-", "--json").json["prompt"] == WEAK


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("check", " "), "bad_prompt"),
        (("check", WEAK, "--preset", "nonsense"), "bad_option"),
        (("rewrite", WEAK, "--style", "nonsense"), "bad_option"),
        (("rewrite", WEAK, "--size", "big"), "bad_option"),
        (("check", WEAK, "--model", "nonsense"), "unknown_model"),
    ],
)
def test_bad_requests_are_one_line(broll, words, code):
    ran = broll("prompt", *words)
    assert ran.status == 2
    assert ran.err.startswith(f"broll: error [{code}]: ")
    assert len(ran.err.splitlines()) == 1


def test_generate_shows_what_the_coach_found_and_what_was_measured(broll):
    ran = broll("generate", "a lake", *MODEL)
    assert "CAM-1" in ran.err
    assert "camera: measured " in ran.err
    assert "CAM-1" not in broll("generate", "a lake", *MODEL, "--no-coach").err


def test_fix_makes_the_better_prompt_and_the_clip_says_both(broll):
    told = broll("generate", "a lake", *MODEL, "--fix", "--json").json
    assert told["coach"]["given"] == "a lake"
    assert told["spec"]["prompt"] == told["coach"]["prompt"] != "a lake"
    assert "camera" in told["checks"]
    again = broll("generate", "--like", told["file"], "--json").json
    assert again["latents_sha256"] == told["latents_sha256"]
    assert again["coach"] == told["coach"]


def test_words_for_the_picture_become_titles(broll):
    ran = broll("generate", 'a shop with a sign that says "OPEN"', *MODEL, "--fix", "--json")
    assert ran.json["spec"]["titles"] == [{"text": "OPEN"}]
    assert "OPEN" not in ran.json["spec"]["prompt"]
    assert "to be read in the clip" in ran.err


def test_a_clip_shows_asked_beside_measured(broll):
    made = broll(
        "generate", "a lake, camera pans left slowly", *MODEL, "--takes", 2, "--pick", "camera", "--json"
    ).json
    assert len(made["takes"]) == 2
    ran = broll("inspect", made["file"])
    assert "asked pan left, slow; measured " in ran.out
    assert "as asked" in ran.out
    assert json.loads(broll("inspect", made["file"], "--json").out)["checks"] == made["checks"]


def test_options_that_exclude_each_other_say_so(broll):
    ran = broll("generate", "a lake", *MODEL, "--no-coach", "--fix")
    assert (ran.status, "--no-coach" in ran.err) == (2, True)
    ran = broll("generate", "a lake", *MODEL, "--pick", "sharp")
    assert (ran.status, "one take" in ran.err) == (2, True)
    ran = broll("generate", "a lake", *MODEL, "--motion", "wild")
    assert (ran.status, "'low', 'medium' or 'high'" in ran.err) == (2, True)
