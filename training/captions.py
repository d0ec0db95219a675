"""A grammar of captions: what people type for each scene, light, camera move, speed and style.

A caption is subject, details, light, camera and style in some order: a list with commas, a few terse words, or
sentences as a prompt coach writes them; often with tails that mean nothing. Only a still camera may go
unmentioned, so silence means static; "pan" and "slide" without a direction mean to the right.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from training import words
from training.camera import STEADY
from training.scenes import Scene, product_kind

ARTICLE = tuple(article.prompt for article in words.ARTICLES[:3])
NO_SKY = ("product", "underwater", "window", "fog", "rain", "storm", "snowfall")  # nothing clear above
CLOSED = ("fog", "rain", "storm", "snowfall")  # the sky: their day is what people call overcast, too
ON_THE_SPOT = "documentary style, handheld camera, natural lighting"  # the article's, of both at once
PREPOSITIONS = ("at ", "on ", "in ", "under ", "by ", "during ", "after ")


@dataclass(frozen=True)
class Caption:
    """A prompt, and which labels of its scene it names: the rest is for the model to choose.

    Of "scene", "light", "camera", "move", "speed" and "style". A still camera that goes unmentioned, a normal
    speed and a plain style are not named.
    """

    text: str
    names: frozenset[str]


@dataclass
class _Parts:
    """What a caption is put together from; "" is left out."""

    subject: str
    head: str  # the subject with the camera, the style or a size of shot around it
    camera: str  # unless it is in the head
    light: str
    style: str
    details: list[str]
    clause: str
    tails: list[str]


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many captions that fit this clip."""
    return describe(scene, rng).text


def describe(scene: Scene, rng: random.Random, unseen: bool = False) -> Caption:
    """A caption with the labels it names; `unseen`: in phrases that training never uses."""
    fitting = [a for a in words.ARTICLES if all(getattr(scene, k) == v for k, v in a.clip.items())]
    if fitting and not unseen and rng.random() < 0.15:
        article = rng.choice(fitting)
        return Caption(article.prompt, frozenset(("scene", *article.names)))
    names = {"scene"}
    parts = _parts(scene, rng, unseen, names)
    layout = rng.choices((_list, _terse, _coached, _prose), (0.45, 0.12, 0.18, 0.25))[0]
    return Caption(_finish(layout(parts, rng), rng), frozenset(names))


def _parts(scene: Scene, rng: random.Random, unseen: bool, names: set[str]) -> _Parts:
    """Draw every part, and note which labels are named."""
    table = words.SCENES[scene.scene]
    subject = rng.choice(table.phrases(unseen))
    if "{kind}" in subject:
        subject = subject.format(kind=product_kind(scene))
    subject = _adorned(subject, rng)
    light = _light(scene, rng, unseen, names)
    style = _style(scene, rng, unseen, names)
    camera = "" if style == ON_THE_SPOT else _camera(scene, rng, unseen, names, alone="{of}" in style)
    if "{of}" in style:
        head, style = style.format(of=subject), ""
    elif "{of}" in camera:
        head, camera = camera.format(of=subject), ""
    else:
        head = rng.choice(words.SHOTS) + subject if rng.random() < 0.4 else _bare(subject, rng)
    return _Parts(
        subject=subject, head=head, camera=camera, light=light, style=style,
        details=rng.sample(table.details, rng.choices((0, 1, 2), (0.45, 0.45, 0.1))[0]),
        clause=rng.choice(table.clauses),
        tails=rng.sample(words.TAILS, rng.choices((0, 1, 2, 3), (0.65, 0.2, 0.1, 0.05))[0]),
    )  # fmt: skip


def _adorned(subject: str, rng: random.Random) -> str:
    """Now and then with an adjective that says nothing."""
    lead, _, rest = subject.partition(" ")
    if lead not in ("a", "an", "the") or rng.random() > 0.15:
        return subject
    return f"{'a' if lead == 'an' else lead} {rng.choice(words.ADJECTIVES)} {rest}"


def _bare(subject: str, rng: random.Random) -> str:
    """Half the time drop the article, as terse prompts do."""
    return re.sub(r"\A(?:an?|the) ", "", subject) if rng.random() < 0.5 else subject


def _light(scene: Scene, rng: random.Random, unseen: bool, names: set[str]) -> str:
    """A tenth of captions leave it out; a few say no more than that it is day."""
    chance = rng.random()
    if chance < 0.1:
        return ""
    if chance < 0.17 and scene.light in words.DAYLIGHTS:
        return rng.choice(words.DAYLIGHT)
    if chance < 0.4 and scene.scene in CLOSED and scene.light == "noon":
        return rng.choice(words.LIGHTS["overcast"].said)
    table = words.LIGHTS[scene.light]
    names.add("light")
    if unseen:
        return rng.choice(table.unseen)
    pair = words.PAIRS.get(f"{scene.scene}/{scene.light}", [])
    return rng.choice((*table.said, *(() if scene.scene in NO_SKY else table.clear), *pair, *pair))


def _style(scene: Scene, rng: random.Random, unseen: bool, names: set[str]) -> str:
    """Always said, unless it is plain; may hold "{of}"."""
    if scene.style == "plain":
        return ""
    if scene.style in words.MIXED_STYLES and not unseen and rng.random() < 0.1:
        return rng.choice(words.MIXED)
    names.add("style")
    if scene.style == "documentary" and scene.camera == "handheld" and not unseen and rng.random() < 0.3:
        names.add("camera")
        return ON_THE_SPOT
    return rng.choice(words.STYLES[scene.style].phrases(unseen))


def _camera(scene: Scene, rng: random.Random, unseen: bool, names: set[str], alone: bool) -> str:
    """A camera phrase with its speed; holds "{of}" where it takes the subject, unless it must stand alone."""
    if scene.camera == "static" and rng.random() < 0.4:
        return ""
    names.add("camera")
    table = words.CAMERAS.get(scene.camera) or words.CAMERAS[f"{scene.camera}/{scene.move}"]
    phrases = table.phrases(unseen)
    if alone:
        phrases = tuple(p for p in phrases if "{of}" not in p) or tuple(
            p.format(of="the scene") for p in phrases
        )
    speed = scene.speed
    if speed != "normal" or (scene.camera not in STEADY and rng.random() < 0.1):
        phrases = tuple(p for p in phrases if "~" in p or "^" in p)
        names.add("speed")
    else:
        speed = ""
    phrase = _paced(rng.choice(phrases), speed, rng, unseen)
    if table.left:
        if rng.random() < 0.35:
            names.add("move")
            phrase = f"{phrase} {rng.choice(table.left if scene.move == 'left' else table.right)}"
    elif scene.move:
        names.add("move")
    return phrase


def _paced(phrase: str, speed: str, rng: random.Random, unseen: bool) -> str:
    """Put the speed in one of the places for it, and an article before a noun now and then."""
    noun = phrase.startswith("^")
    places = [i for i, letter in enumerate(phrase) if letter in "~^"]
    if speed:
        pace = words.SPEEDS[speed]
        if unseen and pace.unseen and any(phrase[i] == "~" for i in places):
            at, word = next(i for i in places if phrase[i] == "~"), rng.choice(pace.unseen)
        else:
            at = rng.choice(places)
            word = rng.choice(pace.adverbs if phrase[at] == "~" else pace.adjectives)
        phrase = phrase[:at] + word + phrase[at + 1 :]
    phrase = " ".join(re.sub(r"[~^]", "", phrase).split())
    if noun and rng.random() < 0.15:
        phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    return phrase


def _attached(head: str, light: str, rng: random.Random) -> tuple[str, str]:
    """One breath for "a lake" and "at sunset", as often."""
    if light.startswith(PREPOSITIONS) and rng.random() < 0.6:
        return f"{head} {light}", ""
    return head, light


def _list(parts: _Parts, rng: random.Random) -> str:
    """Parts in nearly any order, between commas."""
    head, light = _attached(parts.head, parts.light, rng)
    rest = [light, *parts.details]
    rng.shuffle(rest)
    style = [parts.style]
    if light and rng.random() < 0.12:
        head, rest = f"{light}, {head}", parts.details
    body = [parts.camera, head, *rest] if rng.random() < 0.5 else [head, *rest, parts.camera]
    said = [*style, *body, *parts.tails] if rng.random() < 0.3 else [*body, *style, *parts.tails]
    if parts.tails and rng.random() < 0.2:
        said = [*parts.tails, *body, *style]
    return (", " if rng.random() < 0.85 else " ").join(part for part in said if part)


def _terse(parts: _Parts, rng: random.Random) -> str:
    """As in "lake, night, pan left"."""
    said = [parts.head, parts.light, parts.camera, parts.style]
    if rng.random() < 0.4:
        said = [parts.style, parts.head, parts.camera, parts.light]
    return (", " if rng.random() < 0.8 else " ").join(re.sub(r"\A(?:an?|the) ", "", p) for p in said if p)


def _coached(parts: _Parts, rng: random.Random) -> str:
    """As `broll prompt` rewrites: style, subject, motion, light; then the camera in its own sentence."""
    head, light = _attached(parts.head, parts.light, rng)
    said = [parts.style, *parts.tails, head] if rng.random() < 0.8 else [head, parts.style, *parts.tails]
    first = ", ".join(part for part in (*said, *parts.details, light) if part)
    return _sentences([first, parts.camera])


def _prose(parts: _Parts, rng: random.Random) -> str:
    """Whole sentences, as long prompts have them."""
    first = parts.head
    detail = parts.details[0] if parts.details else ""
    chance = rng.random()
    if chance < 0.5:
        first = f"{first} {rng.choice(('while', 'as'))} {parts.clause}"
    elif detail and chance < 0.75:
        first = f"{first} with {detail}"
    elif detail:
        first = f"{first}, {detail}"
    light = parts.light
    if light and rng.random() < 0.4:
        first, light = f"{first}, {light}" if rng.random() < 0.5 else f"{first} {light}", ""
    said = [first, parts.camera]
    if rng.random() < 0.25:
        said.reverse()
    said += [light, parts.style] if rng.random() < 0.7 else [parts.style, light]
    if parts.style and rng.random() < 0.2:
        said = [parts.style, *(part for part in said if part != parts.style)]
    return _sentences([*said, ", ".join(parts.tails)])


def _sentences(said: list[str]) -> str:
    return ". ".join(part[0].upper() + part[1:] for part in said if part) + "."


def _finish(text: str, rng: random.Random) -> str:
    """Vary commas, capitals and the final stop as people do."""
    chance = rng.random()
    if chance < 0.1:
        text = text.replace(",", "")
    elif chance < 0.2:
        text = text.lower()
    elif chance < 0.45:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text = text[:-1] if text.endswith(".") else text + "."
    return text
