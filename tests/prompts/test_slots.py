import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broll.prompts import exclusions
from broll.prompts.slots import Asked, asked_camera, parse


def clauses(prompt: str) -> list[tuple[str, str]]:
    return [(clause.slot, clause.text) for clause in parse(prompt).clauses]


def test_a_clause_of_film_language_has_its_slot_and_the_rest_is_the_users():
    assert clauses("A lake in fog, golden hour, slow pan left, wide shot, watercolor painting. A boat!") == [
        ("subject", "A lake in fog"),
        ("light", "golden hour"),
        ("camera", "slow pan left"),
        ("shot", "wide shot"),
        ("style", "watercolor painting"),
        ("subject", "A boat"),
    ]


def test_a_tail_of_film_language_is_a_clause_and_other_tails_are_not():
    assert clauses("a cat with shallow depth of field") == [
        ("subject", "a cat"),
        ("style", "with shallow depth of field"),
    ]
    assert clauses("a cat in cyberpunk style") == [("subject", "a cat"), ("style", "in cyberpunk style")]
    assert clauses("a cat with a hat in the rain") == [("subject", "a cat with a hat in the rain")]


def test_numbers_abbreviations_and_quotations_are_not_cut():
    assert clauses('Mr. Bean runs 3.5 m past a shop sign that says "Tea, Cake. Now"') == [
        ("subject", 'Mr. Bean runs 3.5 m past a shop sign that says "Tea, Cake. Now"')
    ]


def test_a_prompt_of_light_alone_is_its_own_subject():
    assert clauses("sunset") == [("subject", "sunset")]
    assert clauses("a beach, sunset") == [("subject", "a beach"), ("light", "sunset")]


def test_chinese_clauses_are_cut_at_chinese_marks():
    assert clauses("一只猫在雨中，水彩风格，固定镜头") == [
        ("subject", "一只猫在雨中"),
        ("style", "水彩风格"),
        ("camera", "固定镜头"),
    ]


def test_the_slots_of_a_full_prompt():
    slots = parse(
        "Two dogs wearing red scarves run slowly along a beach at dusk, "
        "35mm film, camera pans smoothly to the left, 5 seconds"
    )
    assert [term.name for term in slots.count] == ["2"]
    assert [term.name for term in slots.subject] == ["animal", "fabric", "water"]
    assert [term.text for term in slots.action] == ["run"]
    assert [term.name for term in slots.camera] == ["pan left"]
    assert [term.name for term in slots.speed] == ["slow", "steady"]
    assert [term.name for term in slots.light] == ["blue hour"]
    assert [term.name for term in slots.style] == ["film look"]
    assert [term.name for term in slots.duration] == ["5 s"]
    assert slots.text[slots.appearance[0].start :].startswith("wearing red scarves")
    assert "along a beach" in [slots.text[span.start : span.end] for span in slots.scene]


def test_what_is_quoted_or_excluded_is_in_no_term():
    slots = parse('A street without people, a sign that says "Zoom In Bar"')
    assert slots.of("person") == slots.camera == ()
    assert [quoted.words for quoted in slots.titles] == ["Zoom In Bar"]
    assert [one.things for one in slots.excluded] == [("people",)]
    assert len(slots.text_) == 1


EXCLUDED = {
    "a street without any people or cars in the rain": [("people", "cars")],
    "no clouds, no text": [("clouds",), ("text",)],
    "there are no visible people walking": [("people",)],
    "Nobody on the beach": [("people",)],
    "航拍，没有人和车": [("人", "车")],
    "没有行人的街道": [("行人",)],
    "a candle, no camera movement": [],
    "a candle, no zoom": [("zoom",)],
    "no longer young": [],
    "无人机航拍": [],
    "notable people": [],
}


@pytest.mark.parametrize("text", EXCLUDED)
def test_exclusions_name_their_things(text: str):
    assert [one.things for one in exclusions.find(text)] == EXCLUDED[text]


LANGUAGES = {
    "a cat on a roof": "en",
    "一只猫在雨中，4K": "zh",
    "一只猫 a cat on the roof": "mixed",
    "кот на крыше": "other",
    "": "en",
    "镜头推近 cinematic": "zh",
}


@pytest.mark.parametrize("text", LANGUAGES)
def test_the_language_is_told(text: str):
    assert parse(text).language == LANGUAGES[text]


def test_one_move_is_asked_with_its_speed_and_what_satisfies_it():
    assert asked_camera("A lake. The camera pans slowly to the left.") == Asked(
        "pan left", "slow", ("pan left", "truck left")
    )
    assert asked_camera("a cat, zoom in") == Asked("zoom in", None, ("zoom in", "dolly in"))
    assert asked_camera("drone circling a castle") == Asked("orbit", None, ("orbit left", "orbit right"))
    assert asked_camera("fast tracking shot of a car") == Asked(
        "tracking", "fast", ("truck left", "truck right", "pan left", "pan right", "dolly in")
    )
    static = asked_camera("In a still frame, a stop sign")
    assert static and static.accepts == ("static",) and static.speed is None


def test_no_move_several_moves_and_vague_ones_are_not_one():
    for prompt in (
        "a cat",
        "a cat, pan left, zoom in",
        "dynamic camera movement",
        "a cat, no zoom",
        "static shot, pan left",
    ):
        assert asked_camera(prompt) is None, prompt


def test_a_rig_beside_a_move_and_a_general_word_for_it_are_the_same_move():
    for prompt in ("handheld, a cat, pan left", "camera pan across a lake, pan left"):
        asked = asked_camera(prompt)
        assert asked and asked.move == "pan left", prompt


@settings(max_examples=200)
@given(
    st.text(max_size=100) | st.text(alphabet="a .,;\"'“”，。with in no zoom pan left 镜头推近\n", max_size=60)
)
def test_clauses_of_any_text_stand_in_it_in_order(text: str):
    slots, end = parse(text), 0
    for clause in slots.clauses:
        assert end <= clause.span.start < clause.span.end <= len(text)
        assert clause.text == text[clause.span.start : clause.span.end]
        end = clause.span.end
    for name in ("style", "appearance", "scene", "text_", "duration"):
        getattr(slots, name)
    asked_camera(text)


def test_the_lower_half_loads_without_torch_and_reads_its_data_later():
    code = """
import sys
import broll.prompts.negative
from broll.prompts import vocabulary
assert "torch" not in sys.modules and vocabulary.table.cache_info().currsize == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
