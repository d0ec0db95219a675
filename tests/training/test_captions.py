"""Captions say what their labels are, in words that are kept for them, and tell which labels they name."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from training import words
from training.camera import CAMERAS, MOVES
from training.captions import ARTICLE, caption, describe
from training.scenes import Scene
from training.styles import STYLES
from training.text import TABLES, draw, littered, others, targets

STILL = Scene("lake", "noon", "static", "normal", "", 3)
SAID = {  # one of these, in every caption of that camera
    "pan left": ("pan", "leftward"), "pan right": ("pan", "rightward"),
    "tilt up": ("tilt", "look"), "tilt down": ("tilt", "look"),
    "zoom in": ("zoom", "push", "forward", "dolly", "dollies", "closer", "approach"),
    "zoom out": ("zoom", "pull", "backward", "dolly", "dollies", "away", "reveal"),
    "truck left": ("left",), "truck right": ("right", "truck", "slide", "sideways"),
    "crane up": ("crane", "rise", "rising", "boom", "jib", "pedestal", "up"),
    "crane down": ("crane", "lower", "descend", "boom", "jib", "pedestal", "down", "sink"),
    "orbit": ("orbit", "circl", "arc", "360", "around"), "tracking": ("track", "follow", "travels"),
    "handheld": ("hand", "shak"), "aerial": ("aerial", "drone", "flyover", "bird"),
}  # fmt: skip
RESERVED = re.compile(
    r"grain|35mm|16mm|film look|analog|anamorphic|letterbox|cinemascope|widescreen|depth of field|bokeh|blur"
    r"|documentary|natural lighting|reportage|time-?\s?lapse|hyperlapse|sped up|watercolou?r|aquarelle|shallow"
    r"|illustration"
)


def _captions(count: int, **fixed: Any) -> list[tuple[Scene, str]]:
    rng = random.Random(str(fixed))
    scenes = [replace(draw(rng), **fixed) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def test_every_label_has_words_and_a_part_of_them_is_held_out() -> None:
    cameras = {
        f"{c}/{m}" if c in ("zoom in", "zoom out") else c for c in CAMERAS for m in MOVES.get(c, ("",))
    }
    assert set(words.CAMERAS) == cameras
    assert set(words.STYLES) == set(STYLES) - {"plain"}
    for tables, least in ((words.SCENES, 12), (words.LIGHTS, 8), (words.CAMERAS, 8), (words.STYLES, 5)):
        for label, table in tables.items():
            assert len(set(table.said)) == len(table.said) >= least, label
            assert len(table.unseen) == 2, label
            assert not {*table.said, *table.clear} & set(table.unseen), label


def test_pairs_name_scenes_and_lights_that_there_are() -> None:
    for pair in words.PAIRS:
        scene, _, light = pair.partition("/")
        assert scene in words.SCENES
        assert light in words.LIGHTS


def test_the_prompts_of_the_article_are_captions_of_fitting_clips() -> None:
    for article in words.ARTICLES:
        rng = random.Random(0)
        labels: dict[str, Any] = dict(article.clip)
        scene = replace(STILL, **labels)
        scene = replace(scene, move="left") if scene.camera == "orbit" else scene
        found = [c for c in (describe(scene, rng) for _ in range(300)) if c.text == article.prompt]
        assert found, article.prompt
        assert all({"scene", *article.names} <= c.names for c in found)
    assert all(prompt in [article.prompt for article in words.ARTICLES] for prompt in ARTICLE)


def test_a_moving_camera_is_always_mentioned() -> None:
    for scene, text in _captions(4000):
        assert not set("{}~^") & set(text), text
        assert "  " not in text
        if scene.camera != "static":
            assert any(word in text.lower() for word in SAID[scene.camera]), (scene.camera, text)
        if scene.camera.endswith(" left"):
            assert "left" in text.lower(), text


def test_a_speed_is_said_and_only_that_one() -> None:
    rng = random.Random(4)
    for scene, _ in _captions(1500):
        told = describe(scene, rng)
        pace = {"slow": "slow|gradual|gentl|unhurried", "fast": "quick|fast|rapid|swift"}.get(scene.speed)
        assert pace is None or (re.search(pace, told.text.lower()) and "speed" in told.names), told
        if scene.camera in ("static", "handheld"):
            assert "speed" not in told.names


def test_words_of_a_style_are_kept_for_it() -> None:
    assert not [text for _, text in _captions(4000, style="plain") if RESERVED.search(text.lower())]
    for style in set(STYLES) - {"plain"}:
        texts = [text for _, text in _captions(100, style=style)]
        told = re.compile(
            RESERVED.pattern + r"|35mm|film|telephoto|black bars|out of focus|shallow|news|time passing"
        )
        assert all(told.search(text.lower()) for text in texts)


@pytest.mark.parametrize("light", words.LIGHTS)
def test_a_tenth_leaves_the_light_out_and_the_others_name_it(light: str) -> None:
    rng = random.Random(5)
    scenes = [replace(STILL, scene="sea", light=light, seed=i) for i in range(1000)]
    told = [describe(scene, rng) for scene in scenes]
    silent = sum("light" not in c.names for c in told)
    assert 60 < silent < 230
    table = words.LIGHTS[light]
    mine = {w.lower().removeprefix("the ").replace(",", "") for w in (*table.said, *table.clear)}
    for c in told:
        text = c.text.lower().replace(",", "")
        assert ("light" in c.names) == any(word in text for word in mine), c


def test_held_out_phrases_are_used_only_when_asked_for() -> None:
    rng = random.Random(6)
    unseen = [p for table in words.SCENES.values() for p in table.unseen if "{" not in p]
    scenes = [draw(rng) for _ in range(1500)]
    assert not [s for s in scenes if any(p in describe(s, rng).text for p in unseen)]
    told = [describe(s, rng, unseen=True) for s in scenes if s.scene != "product"]
    bare = [re.sub(r"\A(?:an?|the) ", "", p).lower() for p in unseen]
    assert sum(any(p in c.text.lower() for p in bare) for c in told) > 0.7 * len(told)
    assert all(c.names >= {"scene"} for c in told)


def test_the_ways_of_an_orbit_are_said_only_sometimes() -> None:
    rng = random.Random(7)
    scene = replace(STILL, camera="orbit", move="left", speed="normal")
    told = [describe(scene, rng) for _ in range(600)]
    named = [c for c in told if "move" in c.names]
    assert 0.25 < len(named) / len(told) < 0.45
    assert all(re.search("left|(?<!counter)clockwise", c.text.lower()) for c in named)
    assert not [
        c
        for c in told
        if "move" not in c.names and re.search(r"\b(left|right|(counter)?clockwise)\b", c.text.lower())
    ]


def test_the_encoder_is_asked_only_what_a_caption_says() -> None:
    rng = random.Random(8)
    scenes = [draw(rng) for _ in range(400)]
    captions = [describe(scene, rng) for scene in scenes]
    asked = targets(scenes, captions)
    assert set(asked) == set(TABLES)
    for key, table in TABLES.items():
        for scene, told, place in zip(scenes, captions, asked[key].tolist(), strict=True):
            assert place < 0 or table[place] == getattr(scene, key)
            assert place >= 0 or key not in told.names
    assert all((asked[key] >= 0).all() for key in ("scene", "camera", "speed"))


def test_litter_knows_no_word_of_the_grammar() -> None:
    known = " ".join(phrase for table in words.SCENES.values() for phrase in table.said)
    assert len(others()) > 300
    assert not set(others()) & set(re.findall("[a-z]+", known.lower()))
    rng = random.Random(9)
    texts = [littered("a lake at night, the camera pans left", rng) for _ in range(300)]
    assert 100 < texts.count("a lake at night, the camera pans left") < 250
