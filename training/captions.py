"""A grammar of captions: what people type for each scene, light and camera move.

A caption is subject + light + camera in some order, joined with or without commas, sometimes with
a style tail that means nothing. Only a still camera may go unmentioned, so silence means static;
"pan" without a direction means to the right.
"""

from __future__ import annotations

import random

from training.scenes import Scene, product_kind

ARTICLE = (
    "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour",
    "slow camera pan across a mountain lake at sunset, water rippling gently, golden reflections",
    "leaves falling slowly in autumn wind, gentle spiral motion, "
    "golden afternoon light filtering through trees",
)

# Each subject fits after "a shot of"; the second list holds details that may follow it.
SUBJECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "lake": (
        (
            "a mountain lake",
            "an alpine lake with peaks behind it",
            "a calm lake below mountains",
            "a lake in the mountains",
            "a still lake with snowy mountains",
            "mountains reflected in a lake",
            "a small island in a mountain lake",
        ),
        (
            "water rippling gently",
            "calm water",
            "snowy peaks in the distance",
            "pine trees on the shore",
            "reflections on the water",
        ),
    ),
    "lighthouse": (
        (
            "a lighthouse on rocky coast",
            "a lighthouse",
            "a lighthouse on a rocky coast",
            "a striped lighthouse on the rocks",
            "an old lighthouse by the sea",
            "a lighthouse on a small island",
        ),
        ("ocean waves below", "waves around the rocks", "sea all around", "coastline behind it"),
    ),
    "sea": (
        (
            "sailboats on the sea",
            "the open sea with sailing boats",
            "the ocean",
            "sailing boats on the ocean",
            "a sailboat at sea",
            "waves on the sea",
            "a seascape with rocks and boats",
        ),
        ("gentle waves", "waves rolling slowly", "islands on the horizon", "rocks in the water"),
    ),
    "city": (
        (
            "a city skyline",
            "skyscrapers downtown",
            "a city by the water",
            "tall buildings on the waterfront",
            "a modern city skyline",
            "downtown towers reflected in the river",
            "a city",
        ),
        ("reflections in the water", "tall towers", "rows of windows", "boats on the water"),
    ),
    "desert": (
        (
            "sand dunes",
            "a desert",
            "desert dunes",
            "rolling sand dunes",
            "dunes in the desert",
            "a wide desert landscape",
            "the Sahara desert",
        ),
        ("soft ridges of sand", "dunes to the horizon", "clean shadows on the sand", "empty land"),
    ),
    "forest": (
        (
            "a forest",
            "leaves falling in a forest",
            "trees in a misty forest",
            "a quiet forest with falling leaves",
            "leaves falling between trees",
            "woods with tall trees",
            "leaves falling slowly in the wind",
        ),
        ("leaves drifting down", "gentle spiral motion", "tall trunks", "mist between the trees"),
    ),
    "product": (
        (
            "a product on a table",
            "a product shot",
            "a {kind} on a table",
            "a {kind} on a wooden table",
            "a {kind} in a studio",
            "a studio product",
            "an object on a table in a studio",
        ),
        ("soft shadow", "studio backdrop", "clean background", "advertising style"),
    ),
}
LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "noon": (
        "at noon",
        "midday sun",
        "bright daylight",
        "sunny day",
        "on a sunny day",
        "in bright sunlight",
        "clear blue sky",
        "in daylight",
    ),
    "golden hour": (
        "golden hour",
        "at golden hour",
        "at sunset",
        "warm evening light",
        "at dusk with golden reflections",
        "golden afternoon light",
        "during sunset",
        "at sunrise",
        "warm golden light",
    ),
    "night": (
        "at night",
        "under the moon",
        "night time, moonlight",
        "by night",
        "in the dark",
        "night",
        "under the stars",
        "moonlit night",
    ),
    "overcast": (
        "overcast",
        "cloudy grey day",
        "under a grey sky",
        "flat grey light",
        "on an overcast day",
        "overcast sky",
        "on a cloudy day",
        "dull grey weather",
    ),
}
# What only suits some pairs of scene and light.
PAIR_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("forest", "golden hour"): ("golden afternoon light filtering through trees",),
    ("forest", "noon"): ("sunlight filtering through trees",),
    ("lake", "golden hour"): ("at sunset, golden reflections",),
    ("lighthouse", "night"): ("at night, beam sweeping round",),
    ("city", "night"): ("at night, lit windows", "city lights at night"),
    ("product", "noon"): ("bright studio light", "bright window light"),
    ("product", "golden hour"): ("warm orange light",),
    ("product", "night"): ("dark room, warm lamp", "lit by a lamp at night"),
    ("product", "overcast"): ("soft grey light", "grey window light"),
}
# "{of}" takes a subject; entries without it stand alone as a part of the caption.
CAMERA_WORDS: dict[str, tuple[str, ...]] = {
    "static": (
        "static wide shot of {of}",
        "static shot of {of}",
        "locked-off shot of {of}",
        "tripod shot, camera does not move",
        "static camera",
        "fixed camera",
        "locked-off camera",
        "the camera is still",
    ),
    "pan left": (
        "camera pan across {of} to the left",
        "pan left across {of}",
        "camera pans left",
        "panning left",
        "pan left",
        "the camera pans to the left",
        "pan to the left over {of}",
    ),
    "pan right": (
        "camera pan across {of}",
        "camera pan across {of} to the right",
        "pan right across {of}",
        "camera pans right",
        "panning right",
        "pan right",
        "the camera pans to the right",
        "panning shot of {of}",
    ),
    "tilt up": (
        "tilt up",
        "camera tilts up",
        "the camera tilts upward",
        "tilting up over {of}",
        "tilt up to reveal {of}",
        "camera tilt up on {of}",
    ),
    "tilt down": (
        "tilt down",
        "camera tilts down",
        "the camera tilts downward",
        "tilting down over {of}",
        "tilt down to reveal {of}",
        "camera tilt down on {of}",
    ),
    "orbit": (
        "aerial drone shot circling {of}",
        "drone shot circling {of}",
        "orbit shot around {of}",
        "camera orbits",
        "camera orbits around {of}",
        "orbiting {of}",
        "camera circles {of}",
        "orbit shot",
    ),
    "tracking": (
        "tracking shot of {of}",
        "tracking shot",
        "camera tracks sideways past {of}",
        "camera tracks sideways",
        "sideways tracking shot past {of}",
        "camera moves sideways past {of}",
        "lateral tracking shot along {of}",
    ),
}
# Towards and away differ by how the camera does it; the last entries fit both ways.
MOVE_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("zoom in", "zoom"): ("zoom in", "camera zooms in", "zoom in on {of}", "zooming in on {of}"),
    ("zoom in", "dolly"): (
        "dolly in",
        "dolly in towards {of}",
        "push in",
        "push in on {of}",
        "camera moves forward towards {of}",
        "camera pushes in",
    ),
    ("zoom out", "zoom"): ("zoom out", "camera zooms out", "zoom out from {of}", "zooming out"),
    ("zoom out", "dolly"): (
        "dolly out",
        "dolly out from {of}",
        "pull back to reveal {of}",
        "camera pulls back",
        "camera moves backward from {of}",
        "pull back",
    ),
}
SPEED_WORDS = {"slow": ("slow", "slowly", "gently"), "fast": ("fast", "quickly", "quick")}
BEFORE = {"slow", "fast", "quick"}  # adjectives lead the phrase, adverbs end or begin it
STYLES = (
    "cinematic",
    "4K cinematic, shallow depth of field",
    "documentary style, natural lighting",
    "cinematic, 4K",
    "photorealistic",
    "beautiful",
    "high quality video",
    "peaceful mood",
    "film look",
)
SHOTS = ("", "", "", "a video of ", "wide shot of ", "view of ", "footage of ", "a clip of ")


def _article(scene: Scene) -> str | None:
    """The prompt of the article that describes exactly this clip, if there is one."""
    if scene.light != "golden hour":
        return None
    if (scene.scene, scene.camera) == ("lighthouse", "orbit") and scene.speed != "fast":
        return ARTICLE[0]
    if (scene.scene, scene.camera) == ("lake", "pan right") and scene.speed != "fast":
        return ARTICLE[1]
    if (scene.scene, scene.camera) == ("forest", "static"):
        return ARTICLE[2]
    return None


def _bare(subject: str, rng: random.Random) -> str:
    """Half the time drop the article, as terse prompts do."""
    for lead in ("a ", "an ", "the "):
        if subject.startswith(lead) and rng.random() < 0.5:
            return subject.removeprefix(lead)
    return subject


def _camera(scene: Scene, rng: random.Random) -> str:
    """A camera phrase, with a speed word where the speed calls for one; may hold "{of}"."""
    phrases = CAMERA_WORDS.get(scene.camera) or MOVE_WORDS[scene.camera, scene.move]
    phrase = rng.choice(phrases)
    if scene.camera == "static":
        return phrase
    speed = scene.speed
    if speed == "normal":
        # People say "slowly circling" of any unhurried move.
        if rng.random() > 0.15:
            return phrase
        speed = "slow"
    word = rng.choice(SPEED_WORDS[speed])
    if "circling" in phrase and word not in BEFORE:
        return phrase.replace("circling", f"{word} circling")
    if word in BEFORE:
        return f"{word} {phrase.removeprefix('the ')}"
    return f"{phrase}, {word}" if "{of}" in phrase else f"{phrase} {word}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many captions that fit this clip."""
    prompt = _article(scene)
    if prompt is not None and rng.random() < 0.12:
        return prompt
    subjects, details = SUBJECTS[scene.scene]
    subject = _bare(rng.choice(subjects), rng)
    if "{kind}" in subject:
        subject = subject.format(kind=product_kind(scene))
    lights = LIGHT_WORDS[scene.light] + 2 * PAIR_WORDS.get((scene.scene, scene.light), ())
    light = "" if rng.random() < 0.1 else rng.choice(lights)
    silent = scene.camera == "static" and rng.random() < 0.4
    camera = "" if silent else _camera(scene, rng)
    if "{of}" in camera:
        head, camera = camera.format(of=subject), ""
    else:
        head = rng.choice(SHOTS) + subject
    if light.startswith(("at ", "on ", "in ", "under ", "by ", "during ")) and rng.random() < 0.6:
        head, light = f"{head} {light}", ""
    rest = [light, rng.choice(details) if rng.random() < 0.5 else ""]
    if rng.random() < 0.5:
        rest.reverse()
    parts = [camera, head, *rest] if rng.random() < 0.5 else [head, *rest, camera]
    if rng.random() < 0.25:
        parts.append(rng.choice(STYLES))
    return _finish([part for part in parts if part], rng)


def _finish(parts: list[str], rng: random.Random) -> str:
    """Join the parts and vary commas, capitals and the final stop as people do."""
    text = (", " if rng.random() < 0.8 else " ").join(parts)
    if rng.random() < 0.12:
        text = text.replace(",", "")
    case = rng.random()
    if case < 0.3:
        text = text[0].upper() + text[1:]
    elif case < 0.4:
        text = text.lower()
    return text + "." if rng.random() < 0.12 else text
