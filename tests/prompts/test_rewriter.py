"""A rewritten prompt keeps what was said, says what was missing, and comes to rest."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broll.prompts import coach, film, rewriter, slots, vocabulary, words
from broll.prompts.findings import Context
from broll.prompts.rewriter import lost, rewrite

WAN = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，背景人很多"
PIECES = [
    "pan left",
    "zoom in",
    "no people",
    ", ",
    ". ",
    "static",
    "close-up",
    "wide shot",
    "oil painting",
    "“SALE”",
    "doly",
]
PIECES += [
    "a sign that says OPEN",
    "slowly",
    "then ",
    "camera",
    "a dog",
    "in a still frame",
    "the ocean",
    "cut to",
    "一只猫",
]
PIECES += [
    "epic camera movement",
    "镜头",
    "!",
    "...",
    "in cyberpunk style",
    "golden hour",
    "\n",
    "while",
    "and",
    " of ",
    "(",
]
FILM_WORDS = st.sampled_from(PIECES)
ANY = st.one_of(
    st.text(max_size=80),
    st.lists(FILM_WORDS, max_size=8).map(" ".join),
    st.lists(FILM_WORDS, max_size=8).map("".join),
)


def test_the_camera_becomes_a_sentence_at_the_end():
    assert rewrite("The bund Shanghai, tilt down").prompt.endswith("The camera tilts down slowly.")


def test_a_style_stands_in_front():
    made = rewrite("Gwen Stacy reading a book, in cyberpunk style")
    assert made.prompt.startswith("In cyberpunk style")
    assert [change.text for change in made.moved] == ["in cyberpunk style"]


def test_the_users_words_stay_as_they_are_and_in_their_order():
    said = "An astronaut feeding ducks on a sunny afternoon, reflection from the water"
    assert said in rewrite(said).prompt


def test_what_was_added_is_listed_and_can_be_left_out():
    made = rewrite("a zebra")
    assert {a.slot for a in made.additions} == {"motion", "camera", "light"}
    for addition in made.additions:
        assert addition.text.split()[-1] in made.prompt and addition.why
        without = rewrite("a zebra", without=(addition.id,))
        assert addition.id not in {a.id for a in without.additions}
    assert rewrite("a zebra", without=tuple(a.id for a in made.additions)).prompt == "A zebra."


def test_a_speed_that_was_added_is_listed_too():
    made = rewrite("a street in the rain, zoom out")
    assert "speed:slowly" in {a.id for a in made.additions}
    assert rewrite("a street in the rain, zoom out", without=("speed:slowly",)).prompt.endswith(
        "The camera zooms out."
    )


def test_a_complete_prompt_gains_nothing():
    said = "slow camera pan across a mountain lake at sunset, water rippling gently, golden reflections"
    made = rewrite(said)
    assert (
        made.additions == ()
        and made.prompt
        == "Slow camera pan across a mountain lake at sunset, water rippling gently, golden reflections."
    )


def test_a_still_scene_stays_still():
    made = rewrite("In a still frame, a park bench with a view of the lake")
    assert not {"motion", "physics", "camera"} & {a.slot for a in made.additions}


def test_words_in_the_picture_become_titles():
    made = rewrite('a shop front with a sign that says "OPEN"')
    assert made.titles == ("OPEN",) and "OPEN" not in made.prompt and "blank sign" in made.prompt


def test_what_is_not_wanted_goes_to_the_negative_prompt():
    made = rewrite("a beach with no people", Context(base_negative=WAN))
    assert "people" not in made.prompt and "people" in made.negative.text
    assert [change.text for change in made.dropped] == ["with no people"] or "no people" in made.dropped[
        0
    ].text


@pytest.mark.parametrize(
    "words", ["no camera movement", "without any camera motion", "don't move the camera", "no zoom"]
)
def test_a_camera_that_must_not_move_stands_still(words):
    made = rewrite(f"a candle, {words}")
    assert made.prompt == "A candle, flickering steadily. Static camera."


def test_what_comes_behind_an_exclusion_in_chinese_stays():
    made = rewrite("没有行人的街道，镜头推进")
    assert made.prompt == "街道，镜头推进"
    assert made.negative.text.endswith("行人")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("the camera tracks him through a forest", "The camera smoothly tracks him through a forest"),
        ("a vase. camera orbits it", "The camera slowly orbits it."),
        ("a vase. camera orbits", "The camera orbits slowly."),
    ],
)
def test_the_speed_does_not_part_a_verb_from_its_object(typed, said):
    assert said in rewrite(typed).prompt


def test_at_guidance_1_it_stays_in_the_prompt():
    assert "no people" in rewrite("a beach with no people", Context(guidance=1.0)).prompt


def test_one_camera_move_stays_and_the_other_is_listed():
    made = rewrite("pan left across a valley, then zoom in on a farmhouse")
    assert film.moves(slots.parse(made.prompt))[1] == ()
    assert "farmhouse" in made.prompt and any("zoom" in change.text for change in made.dropped)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("big purple plums rotating. close-up. macro.", "Macro close-up."),
        ("Macro slo-mo. A cropped closeup of coffee beans falling", "macro closeup of coffee beans"),
    ],
)
def test_a_macro_and_a_close_up_are_one_size_and_no_word_is_lost(typed, wanted):
    made = rewrite(typed)
    assert wanted in made.prompt and made.dropped == () and lost(made) == ()
    assert {term.name for term in slots.parse(made.prompt).of("shot")} == {"macro"}


def test_a_macro_shot_of_something_stays_and_the_close_up_beside_it_goes():
    made = rewrite("macro shot of a bee, close-up, wings trembling")
    assert "acro shot of a bee" in made.prompt and "close-up" not in made.prompt
    assert [change.text for change in made.dropped] == ["close-up"]


def test_a_film_word_spelt_wrong_is_corrected():
    made = rewrite("doly in on a birthday cake")
    assert "doly" not in made.prompt and "birthday cake" in made.prompt and lost(made) == ()


def test_no_contradiction_is_left_in_the_negative_prompt():
    made = rewrite("a static shot of a lake, watercolor painting", Context(base_negative=WAN))
    assert {"静态", "静止"} <= {token for token, _ in made.negative.dropped}
    assert "静态" not in made.negative.text and "模糊" in made.negative.text


def test_never_beyond_what_the_model_reads():
    long = "a red lantern " * 36
    made = rewrite(long)
    assert words.count(made.prompt) <= 110
    assert rewrite("a red lantern " * 50).additions == ()


def test_another_language_is_left_as_it_is():
    assert rewrite("夜晚的城市街道，镜头缓慢向左平移").prompt == "夜晚的城市街道，镜头缓慢向左平移"


def test_without_words_there_is_nothing_to_rewrite():
    for text in ("", "   ", "...", "\n", "👍"):
        assert rewrite(text).prompt == text


@pytest.mark.parametrize("use", sorted(vocabulary.uses()))
def test_a_preset_fills_its_slots_and_comes_to_rest(use):
    context = Context(use=use)
    for said in ("a bottle of perfume on a table", "mountain lake", "a person", "a silk scarf, pan left"):
        made = rewrite(said, context)
        assert made.additions and rewrite(made.prompt, context).prompt == made.prompt
        assert not film.moves(slots.parse(made.prompt))[1]
        assert slots.parse(said).of("person") or not slots.parse(made.prompt).of("person")


@pytest.mark.parametrize("style", sorted(vocabulary.style_presets()))
def test_a_style_preset_is_put_in_front(style):
    made = rewrite("a lighthouse on a cliff", Context(style=style))
    phrase = vocabulary.style_presets()[style]
    assert made.prompt.lower().startswith(phrase.lower())
    assert rewrite(made.prompt, Context(style=style)).prompt == made.prompt


def test_the_diff_tells_both_texts():
    made = rewrite("a shark is swimming in the ocean, pan right")
    steps = made.diff()
    assert "".join(text for tag, text in steps if tag != "insert") == made.original
    assert "".join(text for tag, text in steps if tag != "delete") == made.prompt
    assert {"equal", "insert"} <= {tag for tag, _ in steps}


@settings(max_examples=300, deadline=None)
@given(ANY)
@example("pan left zoom in")
@example("“")
@example('"" no "a" no')
def test_any_text_is_rewritten_once_and_for_all(text):
    for context in (Context(base_negative=WAN), Context(guidance=1.0, task="i2v", use="ambient-loop")):
        made = coach.rewrite(text, context)
        assert coach.rewrite(made.prompt, context).prompt == made.prompt
        assert lost(made) == ()
        steps = made.diff()
        assert "".join(word for tag, word in steps if tag != "insert") == text
        for finding in (*coach.check(text, context), *made.findings_left):
            assert finding.message


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_spans_and_edits_are_inside_any_text(text):
    for context in (
        Context(),
        Context(task="flf2v", loop=True, negative=WAN, blocklist=("dog",), cast=("dog",)),
    ):
        for finding in coach.check(text, context):
            edits = finding.fix.edits if finding.fix else ()
            for span in (finding.span, *(edit.span for edit in edits)):
                assert 0 <= span.start <= span.end <= len(text)


def test_rewriting_is_the_same_every_time():
    said = "a boat sailing leisurely along the Seine River, zoom out"
    assert rewriter.rewrite(said) == rewriter.rewrite(said)
