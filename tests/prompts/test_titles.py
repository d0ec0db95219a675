import pytest
from hypothesis import given
from hypothesis import strategies as st

from broll.prompts import titles

LIFTED = {
    'a red sign that says "SALE" in a shop': ("a red blank sign in a shop", ("SALE",)),
    'the words "Happy Birthday" written on a cake': ("a blank cake", ("Happy Birthday",)),
    'a man says "hello"': ("a man", ("hello",)),
    "a sign that says SALE, red": ("a blank sign, red", ("SALE",)),
    "a sign reading WELCOME HOME on a door": ("a blank sign on a door", ("WELCOME HOME",)),
    "a sign that says open at night": ("a blank sign at night", ("open",)),
    "写着“欢迎”的牌子": ("空白的牌子", ("欢迎",)),
    "a t-shirt with the text “I ♥ NY” on it": ("a blank t-shirt", ("I ♥ NY",)),
    "a mug with 'Good Morning', steam": ("a blank mug, steam", ("Good Morning",)),
    'a billboard with the logo "ACME" and a poster that reads "Go"': (
        "a blank billboard and a blank poster",
        ("ACME", "Go"),
    ),
    'an envelope marked "Urgent"': ("a blank envelope", ("Urgent",)),
}


@pytest.mark.parametrize("text", LIFTED)
def test_words_to_be_read_are_lifted_and_leave_a_blank_surface(text: str):
    assert titles.lift(text) == LIFTED[text]


@pytest.mark.parametrize(
    "text",
    [
        "a stop sign",
        "a woman under a sign reading a book",
        "the dog's bone and the cats' bowl",
        '"a whole prompt in quotation marks"',
        'a 27" screen',
        "a blank sign",
        '""',
        "a wall with a window",
    ],
)
def test_other_texts_stay_as_they_are(text: str):
    assert titles.lift(text) == (text, ())


def test_a_title_knows_its_place_and_its_surface():
    text = 'On the road a rusty sign that says "Last Gas", dusk'
    (quoted,) = titles.find(text)
    assert text[quoted.span.start : quoted.span.end] == 'sign that says "Last Gas"'
    assert (quoted.words, quoted.surface, quoted.blank) == ("Last Gas", "sign", "blank sign")


@given(st.text(alphabet="ab SALE\"'“”「」sign that says reading \n写着", max_size=60) | st.text(max_size=60))
def test_titles_of_any_text_stand_in_it_in_order(text: str):
    end = 0
    for quoted in titles.find(text):
        assert end <= quoted.span.start < quoted.span.end <= len(text)
        assert quoted.words in " ".join(text[quoted.span.start : quoted.span.end].split())
        end = quoted.span.end
    titles.lift(text)
