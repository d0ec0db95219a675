"""What is promised of every rewritten prompt, over 200 of our own and, where they are, VBench's 946."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broll.prompts import coach, film, negative, rewriter, slots, vocabulary, words
from broll.prompts.findings import Context
from tests.prompts.test_rewriter import WAN

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VBENCH = ROOT.parent / "shared" / "data" / "vbench" / "prompts.txt"
CONTEXT = Context(base_negative=WAN)


def read(name):
    path = HERE / "corpus.txt" if name == "own" else VBENCH
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path.read_text("utf-8").splitlines()


@pytest.fixture(scope="module", params=["own", "vbench"])
def made(request):
    return [rewriter.rewrite(prompt, CONTEXT) for prompt in read(request.param)]


def all_in(made, good):
    return [(m.original, m.prompt) for m in made if not good(m)]


def kept(m):
    places = (m.prompt, *m.titles, m.negative.text, *(c.to for c in m.replaced))
    listed = [c.text for c in m.dropped + m.replaced]  # film words, each told with its reason
    there = {words.stem(t.text) for place in (*places, *listed) for t in words.tokens(place)}
    return all(words.stem(t.text) in there for t in words.content_words(m.original))


def test_the_corpus_has_200_different_prompts():
    assert len(set(read("own"))) == 200


def test_every_content_word_is_kept(made):
    assert all_in(made, kept) == []


def test_nothing_is_dropped_from_a_prompt_that_asks_for_one_thing(made):
    asks = [
        m
        for m in made
        if not film.moves(slots.parse(m.original))[1] and not film.shots(slots.parse(m.original))[1]
    ]
    assert all_in(asks, lambda m: not m.dropped or slots.parse(m.original).excluded) == []


def test_nobody_is_added(made):
    assert (
        all_in(made, lambda m: slots.parse(m.original).of("person") or not slots.parse(m.prompt).of("person"))
        == []
    )


def test_there_is_at_most_one_size_of_shot_and_one_camera_move(made):
    assert all_in(made, lambda m: not film.moves(slots.parse(m.prompt))[1]) == []
    assert all_in(made, lambda m: not film.shots(slots.parse(m.prompt))[1]) == []


def test_the_length_is_what_the_model_reads(made):
    assert all_in(made, lambda m: words.count(m.prompt) <= 110) == []


def test_every_added_word_comes_from_an_addition(made):
    def listed(m):
        texts = (
            m.original,
            "the camera",
            *m.titles,
            *(a.text for a in m.additions),
            *(c.to for c in m.replaced),
        )
        known = {words.stem(t.text) for text in texts for t in words.tokens(text)} | {
            "blank",
            "slow",
            "smooth",
        }
        return all(words.stem(t.text) in known for t in words.content_words(m.prompt))

    assert all_in(made, listed) == []


def test_the_negative_prompt_contradicts_nothing(made):
    assert (
        all_in(made, lambda m: not negative.build(m.prompt, m.negative.text, slots.parse(m.prompt)).dropped)
        == []
    )


def test_nobody_gets_a_drawing_that_nobody_asked_for(made):
    def drawn(text):
        families = vocabulary.style_families()
        return any(families.get(t.name) in ("drawn", "render") for t in slots.parse(text).of("style"))

    assert all_in(made, lambda m: drawn(m.original) or not drawn(m.prompt)) == []


def test_a_second_time_changes_nothing(made):
    assert all_in(made, lambda m: rewriter.rewrite(m.prompt, CONTEXT).prompt == m.prompt) == []


def test_commas_and_full_stops_are_right(made):
    def tidy(m):
        text = m.prompt
        odd = any(
            mark in text and mark not in m.original for mark in ("  ", " ,", ",,", "..", ",.", ".,", ": ,")
        )
        return (
            not odd
            and text == text.strip()
            and (not text[0].isascii() or not text[0].islower() or text == m.original)
        )

    assert all_in(made, tidy) == []


def test_all_are_checked_within_3_s(made):
    begin = time.perf_counter()
    for m in made:
        coach.check(m.original, CONTEXT)
    assert time.perf_counter() - begin < 3


def test_the_benchmark_prints_the_table_for_any_two_files(tmp_path):
    prompts, expanded = tmp_path / "prompts.txt", tmp_path / "expanded.txt"
    prompts.write_text("a lake\na shark is swimming in the ocean, pan right\n")
    expanded.write_text(
        "A man at a pond, anime style. Close-up. Wide shot.\nA shark is swimming in the ocean.\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "prompts.py"), str(prompts), str(expanded)]
    found = tmp_path / "found.json"
    done = subprocess.run(
        [*command, "--json", str(found)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    told = json.loads(found.read_text())["prompts"]
    assert told["rewriter"]["kept"] == 1 and told["expander"]["kept"] == 0
    assert told["expander"]["people"] == told["expander"]["shots"] == told["expander"]["illustration"] == 0.5
    assert "rewriter" in done.stdout and "ms a prompt" in done.stdout
