"""Each rule finds its bad prompt, leaves its good one alone, and its fix puts right what it found."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from broll.prompts import coach
from broll.prompts.findings import Context, Read
from broll.prompts.rules import RULES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "prompts.md").read_text()
WAN = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止"

IDS = (
    "TEXT-1 NEG-1 NEG-2 NEG-3 MOT-1 MOT-2 CAM-1 CAM-2 CAM-3 CAM-4 PHY-1 SEQ-1 SEQ-2 STY-1 STY-2 I2V-1 FLF-1 LEN-1 "
    "CNT-1 CHR-1 LOOP-1 RES-1 SPELL-1 LANG-1 SAFE-1"
)

# More prompts whose fix has to apply cleanly, beside each rule's own bad one.
FIXED = (
    ("TEXT-1", 'a neon sign reading "Hotel California" in the rain', Context()),
    ("TEXT-1", 'a cake with "Happy Birthday Mia" written in icing', Context()),
    ("NEG-1", "an oil painting of a stormy sea", Context(negative="风格, 模糊")),
    ("NEG-2", "an empty city street without cars, slow pan left", Context()),
    ("NEG-2", "a clear sky, no clouds, a single kite", Context(base_negative=WAN)),
    ("NEG-2", "no people, a beach at dawn", Context(negative="blurry")),
    ("NEG-3", "a static shot of a lake", Context(negative="static", guidance=1.0)),
    ("MOT-1", "A zebra. Soft light.", Context()),
    ("MOT-1", "a happy puppy", Context()),
    ("MOT-2", "Pan left across a valley", Context()),
    ("MOT-2", "The camera zooms in on a clock", Context()),
    ("MOT-2", "flags in wind at 40 km/h, static camera", Context()),
    ("CAM-1", "a candle flame in a dark room", Context(use="product-reveal")),
    ("CAM-2", "camera pans right and tilts up while orbiting a statue", Context()),
    ("CAM-2", "dolly in, pan left, crane up, a cathedral interior", Context()),
    ("CAM-2", "zoom in and zoom out on a clock", Context()),
    ("CAM-3", "wide shot and close-up of a lion", Context()),
    ("CAM-4", "cinematic camera movement, a temple in the jungle", Context()),
    ("CAM-4", "dynamic angle of a race car", Context()),
    ("PHY-1", "A waterfall in a rainforest.", Context()),
    ("SEQ-2", "a 30 second video of a sunrise over the sea", Context()),
    ("STY-1", "epic, dreamy, mysterious, nostalgic forest", Context()),
    ("STY-2", "a lake", Context(style="documentary")),
    ("I2V-1", "a tall man in a hat, he waves, slow zoom in", Context(task="i2v")),
    ("LOOP-1", "a lake at dawn, mist drifting, pan left", Context(loop=True)),
    ("CHR-1", "Mira opens an umbrella on a bridge", Context(cast=("@mira",))),
    ("SPELL-1", "Doly in on a cake", Context()),
)


def found(rule, prompt, context):
    return [finding for finding in coach.check(prompt, context) if finding.rule == rule]


def test_the_25_rules_of_the_design_are_there():
    assert sorted(rule.id for rule in RULES) == sorted(IDS.split()) and len(RULES) == 25


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_finds_its_bad_prompt_and_not_its_good_one(rule):
    assert found(rule.id, rule.bad.prompt, rule.bad.context)
    assert not found(rule.id, rule.good.prompt, rule.good.context)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_page_shows_the_pair_that_the_rule_is_tested_with(rule):
    section = re.search(rf"^### {rule.id}\b.*?(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"{rule.id} is not in docs/prompts.md"
    assert re.findall(r"^bad:.*?`([^`]+)`", section[0], re.MULTILINE) == [rule.bad.prompt]
    assert re.findall(r"^good:.*?`([^`]+)`", section[0], re.MULTILINE) == [rule.good.prompt]


@pytest.mark.parametrize(
    ("rule", "prompt", "context"),
    [*FIXED, *((rule.id, rule.bad.prompt, rule.bad.context) for rule in RULES)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_applying_a_fix_removes_its_finding(rule, prompt, context):
    before = found(rule, prompt, context)
    assert before
    for finding in before:
        if finding.fix is None:
            continue
        after = coach.apply(prompt, finding.fix)
        negative = context.negative if finding.fix.negative is None else finding.fix.negative
        left = found(rule, after, replace(context, negative=negative))
        assert len(left) < len(before), (after, left)
        assert "  " not in after and " ," not in after and ",," not in after
        assert after == after.strip()


def test_fixes_can_be_applied_until_none_is_left():
    prompt, context = (
        "panshot of a beach with no people, bokhe lights, zoom out, epic camera movement",
        Context(),
    )
    for _ in range(20):
        fixes = [f.fix for f in coach.check(prompt, context) if f.fix]
        if not fixes:
            break
        prompt = coach.apply(prompt, fixes[0])
        if fixes[0].negative is not None:
            context = replace(context, negative=fixes[0].negative)
    assert not fixes, prompt
    assert "people" not in prompt and "people" in (context.negative or "")


def test_findings_point_into_the_text_and_say_something_on_one_line():
    for rule in RULES:
        for finding in coach.check(rule.bad.prompt, rule.bad.context):
            assert 0 <= finding.span.start <= finding.span.end <= len(rule.bad.prompt)
            assert finding.message and "\n" not in finding.message and len(finding.message) < 250


def test_a_static_scene_is_not_asked_to_move():
    assert not found("MOT-1", "In a still frame, a pear", Context())
    assert not found("CAM-1", "In a still frame, a pear", Context())


def test_a_verb_in_ing_is_motion_and_a_building_is_not():
    assert not found("MOT-1", "a person juggling", Context())
    assert found("MOT-1", "a building in the evening", Context())


def test_a_camera_on_a_drone_makes_one_move():
    assert not found("CAM-2", "aerial drone shot slowly circling a lighthouse on a rocky coast", Context())
    assert not found("CAM-2", "handheld camera, slow zoom in on a street musician", Context())


def test_a_camera_that_stands_still_and_moves_is_two_moves():
    assert found("CAM-2", "static camera, a candle, zoom in slowly", Context())


def test_a_vague_word_beside_a_real_move_is_let_pass():
    assert not found("CAM-4", "slow pan left over a skyline, dynamic angle", Context())


def test_more_seconds_hold_more_events():
    prompt = "she opens the door, then the lights go out, then a dog barks, then it rains"
    assert found("SEQ-1", prompt, Context(seconds=5)) and not found("SEQ-1", prompt, Context(seconds=10))


def test_a_clip_of_thirty_seconds_may_be_asked_for_thirty_seconds():
    prompt = "a 30 second video of a sunrise over the sea"
    assert found("SEQ-2", prompt, Context(seconds=5)) and not found("SEQ-2", prompt, Context(seconds=30))


def test_the_negative_prompt_is_of_no_use_at_guidance_1():
    few = Context(negative="blurry", guidance=1.0, steps=4)
    assert found("NEG-3", "a lake", few) and not found("NEG-3", "a lake", replace(few, guidance=5.0))
    (finding,) = found("NEG-2", "a lake without people", Context(guidance=1.0))
    assert finding.fix is None


def test_only_a_clip_from_a_picture_is_told_not_to_describe_it():
    prompt = "a woman in a red dress, long dark hair, her hair blowing in the wind"
    assert found("I2V-1", prompt, Context(task="i2v")) and not found("I2V-1", prompt, Context())


def test_length_is_measured_by_the_real_tokenizer_where_there_is_one():
    (finding,) = found("LEN-1", "a lake" * 100, Context(read=lambda text: Read(tokens=600)))
    assert finding.severity == "error" and "600 tokens" in finding.message
    (finding,) = found("LEN-1", "word " * 150, Context())
    assert "150 words" in finding.message


def test_a_blocked_word_is_found_whatever_its_case_and_only_as_a_word():
    context = Context(blocklist=("burning flag",))
    assert [f.severity for f in found("SAFE-1", "A Burning  FLAG", context)] == ["error"]
    assert not found("SAFE-1", "burning flagpole", context)


def test_720p_is_too_much_for_the_small_model_alone():
    assert found("RES-1", "a lake", Context(width=1280, height=720))
    assert not found("RES-1", "a lake", Context(width=1280, height=720, small=False))


def test_what_nobody_asks_for_is_not_found():
    good = "4K cinematic, mountain lake at sunset, water rippling gently, the camera pans slowly to the left"
    assert [f.rule for f in coach.check(good)] == []
