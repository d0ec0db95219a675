"""The coach's own phrases: each is what it is meant to be, and nothing else."""

import pytest

from broll.prompts import film, slots, vocabulary, wording

MOTIONS = [(name, one.text) for name, some in wording.load().motion.items() for one in some if one.text]
ANCHORS = [(name, one.text) for name, some in wording.load().physics.items() for one in some if one.text]
LIGHTS = [one.text for one in wording.load().light if one.text]


@pytest.mark.parametrize("text", [text for _, text in MOTIONS + ANCHORS] + LIGHTS)
def test_a_phrase_names_no_person_camera_shot_or_style(text):
    assert not {t.kind for t in slots.parse(f"Something, {text}.").terms} & {
        "person",
        "camera",
        "shot",
        "style",
        "lens",
    }


@pytest.mark.parametrize("text", [text for _, text in MOTIONS])
def test_a_motion_is_understood_as_motion(text):
    assert film.moves_by_itself(slots.parse(f"Something, {text}."))


@pytest.mark.parametrize(
    ("name", "text"), [one for one in MOTIONS if vocabulary.subjects().get(one[0], None)]
)
def test_the_motion_of_a_fluid_has_its_pace(name, text):
    parsed = slots.parse(f"Something, {text}.")
    assert not vocabulary.subjects()[name].fluid or parsed.of("physics") or film.has_pace(parsed)


@pytest.mark.parametrize("text", [text for _, text in ANCHORS])
def test_an_anchor_is_understood_as_physics(text):
    assert slots.parse(f"Something, {text}.").of("physics")


@pytest.mark.parametrize("text", LIGHTS)
def test_light_is_understood_as_light(text):
    assert slots.parse(f"Something, {text}.").of("light")


def test_every_class_and_move_that_is_named_exists():
    known = wording.load()
    classes = set(vocabulary.subjects()) | {"person"}
    assert set(known.motion) | set(known.physics) | set(known.camera) <= classes
    assert {known.camera_else, *known.camera.values()} <= set(vocabulary.moves())


def test_the_first_phrase_that_fits_is_taken():
    motion = wording.load().motion
    assert wording.fitting(motion["vehicle"], "sailboat") == "rocking gently on the water"
    assert wording.fitting(motion["animal"], "teddy bear") == ""
    assert wording.fitting((), "anything") is None
