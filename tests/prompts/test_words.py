from hypothesis import given
from hypothesis import strategies as st

from broll.prompts import words

texts = st.text(max_size=80)


def test_a_hyphen_parts_words_and_an_apostrophe_does_not():
    assert [token.text for token in words.tokens("Close-up of the cat’s eye")] == [
        "close",
        "up",
        "of",
        "the",
        "cat's",
        "eye",
    ]


def test_every_chinese_sign_is_a_word():
    assert [token.text for token in words.tokens("4K 镜头pan")] == ["4k", "镜", "头", "pan"]


@given(texts)
def test_a_token_says_where_it_stands(text: str):
    for token in words.tokens(text):
        assert 0 <= token.span.start < token.span.end <= len(text)
        assert text[token.span.start : token.span.end].lower().replace("’", "'") == token.text


def test_the_forms_of_a_word_have_one_stem():
    for forms in (
        "pan pans panning panned",
        "ripple rippling ripples rippled",
        "city cities",
        "box boxes",
        "fall falls falling",
    ):
        assert len({words.stem(form) for form in forms.split()}) == 1, forms
    assert words.stem("cat’s") == words.stem("cats") == "cat"


def test_different_words_keep_different_stems():
    some = ["glass", "grass", "gas", "rock", "rocket", "pan", "panda", "water", "winter", "car", "cart"]
    assert len({words.stem(word) for word in some}) == len(some)


@given(texts)
def test_a_stem_is_never_longer_than_its_word_and_one(text: str):
    assert len(words.stem(text)) <= len(text.lower()) + 1


def test_content_words_leave_out_what_carries_nothing():
    assert [token.text for token in words.content_words("There is a cat on the roof of it")] == [
        "cat",
        "roof",
    ]


def test_words_are_counted_as_a_person_counts_them():
    assert words.count("A close-up, of two cats - 4K!") == 6
    assert words.count("一只猫在雨中") == 3
    assert words.count(" ,. ") == 0
