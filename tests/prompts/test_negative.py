import pytest
from hypothesis import given
from hypothesis import strategies as st

from broll.engine.config import NEGATIVE, NEGATIVE_FLF2V
from broll.prompts import negative, vocabulary
from broll.prompts.negative import Negative
from broll.prompts.slots import parse


def build(prompt: str, base: str = NEGATIVE) -> Negative:
    return negative.build(prompt, base, parse(prompt))


def dropped(prompt: str, base: str = NEGATIVE) -> set[str]:
    return {token for token, _ in build(prompt, base).dropped}


STILL = {"静态", "静止", "静止不动的画面"}
PICTURE = {"作品", "画作", "画面", "风格"}
DROPPED = {
    "static wide shot of a lake": STILL,
    "In a still frame, a stop sign": STILL,
    "a lake, camera pans left": set(),
    "a panda in a cafe, watercolor painting": PICTURE,
    "a lake, cinematic": {"风格"},
    "a lake, 4K, photorealistic": set(),
    "a marathon in Berlin": {"背景人很多"},
    "a busy market full of people": {"背景人很多"},
    "one woman in a field": set(),
    'a sign that says "SALE"': {"字幕"},
    "a blank sign": set(),
    "vivid neon street": {"色调艳丽"},
    "a man walking backwards": {"倒着走"},
    "a forest in thick fog": {"整体发灰"},
    "a city at night": set(),
    "a lake, black and white": {"风格", "整体发灰"},
    "a camera on a tripod in a studio": {"三条腿", *STILL},
    "a zombie in a hall": {"丑陋的", "毁容的", "畸形的"},
    "a lake without text, no crowd, no fog": set(),
    "一只猫，水彩，固定镜头": PICTURE | STILL,
}


@pytest.mark.parametrize("prompt", DROPPED)
def test_what_the_prompt_asks_for_is_not_pushed_away(prompt: str):
    assert dropped(prompt) == DROPPED[prompt]


def test_the_rest_of_the_list_stays_in_its_order():
    made = build("static wide shot of a lake")
    assert made.text == "，".join(token for token in NEGATIVE.split("，") if token not in STILL)


def test_the_longer_lists_lose_shaking_and_cuts_when_these_are_asked_for():
    assert dropped("handheld camera, a street", NEGATIVE_FLF2V) == {"镜头晃动"}
    assert dropped("a street, jump cut to a park", NEGATIVE_FLF2V) == {"镜头切换"}


def test_english_lists_are_read_as_well():
    base = "static, blurry, subtitles, Style, works, paintings, low quality, crowded background"
    made = build("Static shot of a crowd, oil painting", base)
    assert made.text == "blurry, subtitles, low quality"


def test_what_the_prompt_excludes_is_added_once_with_the_reason():
    made = build("A beach, no clouds, without people or text", "low quality, text")
    assert made.text == "low quality, text, clouds, people"
    assert made.added[0] == ("clouds", 'the prompt excludes it ("no clouds")')


def test_an_empty_list_stays_empty_but_for_what_is_excluded():
    assert build("static shot of a lake", "") == Negative("")
    assert build("a lake without boats", "").text == "boats"


def test_every_reason_names_what_was_found():
    for token, why in build("static shot, watercolor style, neon").dropped:
        assert token in NEGATIVE and why.startswith("the prompt asks for") and why.endswith(")")


def test_a_prompt_that_asks_for_nothing_special_keeps_the_list_to_the_letter():
    assert build("a cat walks over a roof") == Negative(NEGATIVE)


def test_every_token_of_the_data_has_a_reason_and_known_kinds():
    families = set(vocabulary.style_families().values())
    names = {f"{entry.kind}:{entry.name}" for entry in vocabulary.entries()}
    for row in vocabulary.table("negative")["token"]:
        assert "{found}" in row["why"]
        for key in (*row["asked_by"], *row.get("but", ())):
            family = key.startswith("style/") and key[6:] in families
            assert family or key == "moving" or key.endswith(":*") or key in names, key


@given(st.text(max_size=60), st.text(alphabet="静态，, \nab字幕{}", max_size=40))
def test_any_texts_make_a_negative_prompt(prompt: str, base: str):
    made = build(prompt, base)
    assert all(word in base for word, _ in made.dropped)
