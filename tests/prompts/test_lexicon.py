import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broll.prompts import lexicon, vocabulary
from broll.prompts.lexicon import KINDS, Term, find

MEASURED = {
    "static", "pan left", "pan right", "tilt up", "tilt down", "roll left", "roll right", "zoom in", "zoom out",
    "dolly in", "dolly out",
    "truck left", "truck right", "pedestal up", "pedestal down", "orbit left", "orbit right", "handheld",
}  # fmt: skip
FILM = {"camera", "shot", "angle", "lens", "style"}
LONG = (
    "The camera slowly pans to the left across a mountain lake at sunset, water rippling gently, a fisherman in a "
    "small red boat casting his net, golden hour, wide shot, film grain"
)


def names(text: str, kind: str) -> list[str]:
    return [term.name for term in find(text) if term.kind == kind]


def the(text: str) -> Term:
    (term,) = (term for term in find(text) if term.kind in FILM)
    return term


ASKED = {
    "camera pans to the left": "pan left",
    "The camera is panning slowly right across the bay": "pan right",
    "panned left over the city": "pan left",
    "slow camera pan across a mountain lake": "pan",
    "push in slowly on her face": "dolly in",
    "zooms out slowly": "zoom out",
    "a panda in Paris zoom in": "zoom in",
    "pull back to reveal a valley": "dolly out",
    "drone circling a castle": "orbit",
    "aerial drone shot slowly circling a lighthouse": "orbit",
    "orbiting a lighthouse, golden hour": "orbit",
    "circle around a vase": "orbit",
    "circling around the old tower at dusk": "orbit",
    "the camera orbits around in a clockwise direction": "orbit left",
    "the camera orbits counterclockwise": "orbit right",
    "a dog running, tracking shot": "tracking",
    "the camera follows a horse": "tracking",
    "handheld, a busy street": "handheld",
    "with an intense shaking effect": "handheld",
    "FPV drone dives down a waterfall": "fpv",
    "whip pan to the door": "whip pan",
    "racking focus": "rack focus",
    "dolly zoom on a man": "dolly zoom",
    "camera cranes up over the roofs": "crane up",
    "crane shot of a village": "crane",
    "dolly shot of a hall": "dolly",
    "the camera trucks left past the shops": "truck left",
    "camera slides right": "truck right",
    "lateral tracking shot along a wall": "truck",
    "camera rises above the trees": "pedestal up",
    "camera descends into the canyon": "pedestal down",
    "camera rolls clockwise": "roll right",
    "tilt up to reveal a tower": "tilt up",
    "camera gently tilts down": "tilt down",
    "a lighthouse, the camera quickly looks upward": "tilt up",
    "camera looks down": "tilt down",
    "sideways slide to the left past a reef": "truck left",
    "slight handheld shake": "handheld",
    "static wide shot of a field": "static",
    "In a still frame, a stop sign": "static",
    "A tranquil tableau of a cup": "static",
    "tripod shot": "static",
    "the camera does not move": "static",
    "flyover of a forest": "fly over",
    "dynamic camera movement": "vague",
    "镜头推近一只猫": "dolly in",
    "镜头缓慢向左摇": "pan left",
    "摇镜头，海边": "pan",
    "镜头环绕灯塔": "orbit",
    "固定镜头，湖面": "static",
    "手持拍摄": "handheld",
    "镜头跟随一匹马": "tracking",
    "镜头缓缓拉远": "dolly out",
}


@pytest.mark.parametrize("text", ASKED)
def test_a_move_is_found_however_people_write_it(text: str):
    assert names(text, "camera") == [ASKED[text]]


ORDINARY = """
a frying pan on the stove
a pan of paella, steam rising
a pan left in the sink
he cooks with a pan
a knife, a fork, a pan
rolling hills under a blue sky
a rolling stone and a bread roll
a crane standing in shallow water
a crane lifts a steel beam at a construction site
cranes over the harbor
a zoom call on a laptop
cars zoom past on the highway
motorcycles zoom in and out of traffic
Dolly the sheep in a field
a hand dolly in a warehouse
a tilted hat and a tilted head
she tilts her head up
she looks down at her phone
a boy looks up at the stars
a tracking number on a parcel
train tracks in the snow
a satellite orbiting a planet
the planets orbit around the sun
the orbit of the moon
static electricity makes her hair stand up
TV static on an old screen
a truck left the parking lot
a truck in the middle of the road
a man pushes in a cart
she pulls back the curtain
the dog follows the man
birds circling above the sea
moths circling around a lamp
a still lake
a fixed gear bicycle
children slide down a hill
a handheld vacuum cleaner on a table
a woman painting an oil painting
a black and white cat
a photo album on a table
the sun rises over the mountains
a macro economy lecture
a wide river
two tripods on a hill
the wheel spins and the leaves swirl around
an arc of light
a boy shakes a tree
a room in a zoo
a plan for a pond
Zoë and Dalí in Rome, Tilburg and Zomba
""".strip().splitlines()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_english_is_no_film_language(text: str):
    assert [term for term in find(text) if term.kind in FILM] == []


def test_what_follows_a_move_is_no_second_one():
    assert names("The camera pans over rolling hills", "camera") == ["pan"]
    assert names("low-angle shot of the cow as it lowers its head", "camera") == []
    assert names("medium shot of the truck and the crane", "camera") == []


def test_the_camera_goes_on_moving_after_a_comma_and_an_and():
    assert names("The camera pans across the field, following a horse", "camera") == ["pan", "tracking"]
    assert names("The camera tilts upward and zooms in", "camera") == ["tilt up", "zoom in"]


def test_an_adverb_inside_a_move_belongs_to_it_and_one_behind_does_not():
    move = the("camera pans slowly to the left")
    assert (move.text, [(one.kind, one.name) for one in move.inner]) == (
        "pans slowly to the left",
        [("speed", "slow")],
    )
    assert [(term.name, term.text) for term in find("zoom in slowly")] == [
        ("zoom in", "zoom in"),
        ("slow", "slowly"),
    ]


WRONG = {
    "a hall, doly shot": ("dolly", "dolly shot"),
    "bokhe background": ("shallow depth of field", "bokeh background"),
    "panaromic view of a bay": ("wide shot", "panoramic view"),
    "zom in slowly": ("zoom in", "zoom in"),
    "handeld camera": ("handheld", "handheld camera"),
    "Cinematc shot of a cat": ("cinematic", "Cinematic shot"),
    "anamorfic lens": ("anamorphic", "anamorphic lens"),
    "watercolr painting": ("watercolor", "watercolor painting"),
    "shalow depth of feild": ("shallow depth of field", "shallow depth of field"),
    "a man, clsoe-up": ("close-up", "close-up"),
    "aeriel drone shot": ("aerial", "aerial drone shot"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_film_word_written_wrongly_is_put_right(text: str):
    term = the(text)
    assert term.typo and (term.name, term.meant) == WRONG[text]


@pytest.mark.parametrize(
    "text",
    [
        "boom in a room",
        "a shop, a ship, a shirt",
        "a ponytail",
        "Dally and Polly",
        "a zoo",
        "still life",
        "a camel",
    ],
)
def test_a_right_word_is_never_put_right(text: str):
    assert not any(term.typo for term in find(text))


LOOKS = {
    "low-angle view of a tower": [("angle", "low angle")],
    "over-the-shoulder shot": [("angle", "over the shoulder")],
    "bird's-eye view of a town": [("angle", "overhead")],
    "extreme close-up of an eye": [("shot", "extreme close-up")],
    "medium close up": [("shot", "medium close-up")],
    "Gwen Stacy reading, oil painting": [("style", "oil painting")],
    "a cat in cyberpunk style": [("style", "cyberpunk")],
    "a cat, Van Gogh style": [("style", "van gogh")],
    "一只猫，水彩，特写": [("style", "watercolor"), ("shot", "close-up")],
    "无人机航拍": [("angle", "aerial")],
    "a cat, shot on 35mm film, 24mm": [("style", "film look"), ("lens", "wide-angle lens")],
}


@pytest.mark.parametrize("text", LOOKS)
def test_shots_angles_lenses_and_styles_are_found(text: str):
    assert [(term.kind, term.name) for term in find(text) if term.kind in FILM] == LOOKS[text]


def test_numbers_are_counts_durations_or_speeds():
    found = [
        (term.kind, term.name) for term in find("3 cats run for 10 seconds at 2 mph in the 1980s, 4K, 60 fps")
    ]
    assert ("count", "3") in found and ("duration", "10 s") in found and ("speed", "numeric") in found
    assert ("style", "4k") in found and ("style", "frame rate") in found
    assert not any(name.startswith("1980") for _, name in found)


def test_a_gentle_motion_is_physics_with_a_motion_and_a_pace_inside():
    (term,) = (term for term in find("water rippling gently") if term.kind == "physics")
    assert {(one.kind, one.name) for one in term.inner} == {("motion", "ripple"), ("speed", "slow")}


@settings(max_examples=300)
@given(
    st.text(max_size=120)
    | st.lists(
        st.sampled_from([*LONG.split(), ",", ".", "pans", "then", "zom", "镜头推近"]), max_size=25
    ).map(" ".join)
)
def test_terms_of_any_text_stand_in_it_in_order_and_never_overlap(text: str):
    end = 0
    for term in find(text):
        assert end <= term.span.start < term.span.end <= len(text)
        assert term.text == text[term.span.start : term.span.end]
        assert term.kind in KINDS and term.name
        for inner in term.inner:
            assert term.span.start <= inner.span.start < inner.span.end <= term.span.end
        end = term.span.end


def test_thirty_words_take_well_under_five_milliseconds():
    find(LONG)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        find(LONG)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003  # 0.6 ms on an idle core


def test_long_repetitions_do_not_take_longer_than_their_length():
    start = time.perf_counter()
    for text in (
        "slowly " * 3000,
        "camera " * 3000,
        "pan to the " * 2000,
        "镜" * 5000,
        "a sign that says " * 1000,
    ):
        find(text)
    assert time.perf_counter() - start < 10


def test_moves_name_only_what_can_be_measured():
    for move in vocabulary.moves().values():
        assert set(move.measured) <= MEASURED
        assert move.opposite is None or vocabulary.moves()[move.opposite].opposite == move.name


@pytest.mark.parametrize(
    "move", [move for move in vocabulary.moves().values() if move.phrase], ids=lambda move: move.name
)
def test_the_phrase_of_a_move_reads_as_that_move(move: vocabulary.Move):
    assert set(names(f"A lake, {move.phrase}", "camera")) == {move.name}


def test_no_phrase_to_add_names_a_person_or_a_second_move():
    for use in vocabulary.uses().values():
        assert set(use.camera) <= set(vocabulary.moves()) and set(use.slots) <= set(use.phrases)
        for slot, phrases in use.phrases.items():
            for phrase in phrases:
                assert names(phrase, "person") == []
                assert len(set(names(phrase, "camera"))) == (slot == "camera"), phrase
    for subject in vocabulary.subjects().values():
        for phrase in subject.motions + subject.anchors:
            assert names(phrase, "person") == names(phrase, "camera") == [], phrase
            assert set(names(phrase, "subject")) <= {subject.name}, phrase


def test_a_fluid_has_an_anchor_and_every_anchor_is_physics():
    for subject in vocabulary.subjects().values():
        assert subject.anchors or not subject.fluid, subject.name
        for anchor in subject.anchors:
            assert names(anchor, "physics"), anchor


def test_the_articles_three_style_presets_are_there_among_ten():
    presets = vocabulary.style_presets()
    assert len(presets) >= 10
    assert presets["cinematic"] == "4K cinematic, shallow depth of field, anamorphic lens, film grain"
    assert presets["documentary"] == "documentary style, handheld camera, natural lighting"
    assert presets["time-lapse"] == "time-lapse, fast motion, clouds moving rapidly"
    assert all(any(term.kind in ("style", "speed") for term in find(phrase)) for phrase in presets.values())


def test_every_style_has_a_family():
    families = vocabulary.style_families()
    assert set(families.values()) == {"photo", "drawn", "render", "any"}
    assert {entry.name for entry in vocabulary.entries() if entry.kind == "style"} <= set(families)


def test_every_kind_of_the_data_has_its_place():
    assert {entry.kind for entry in vocabulary.entries()} <= set(KINDS)
    assert lexicon.find("") == ()
