"""What a prompt lacks, and the phrase for it.

The rules offer these phrases, and the rewriter adds them. Each comes from a slot that is empty and that the use case
needs; none names a person. With no use case: something that moves, one camera move with its speed, what drives a fluid
or cloth, and light if nothing says it. A scene that is to stand still gets no motion.
"""

import re
from dataclasses import dataclass

from broll.prompts import film, lexicon, vocabulary, wording, words
from broll.prompts.findings import Context
from broll.prompts.lexicon import Term
from broll.prompts.slots import Slots
from broll.prompts.vocabulary import Use


@dataclass(frozen=True)
class Addition:
    id: str  # the same for the same prompt; `without` takes it
    slot: str
    text: str
    why: str


SEVERAL = re.compile(r"\band\s+(?:an?|the)\b|\bon\s+the\s+(?:left|right|top|bottom)\s+of\b", re.IGNORECASE)
INDOORS = "soft ambient light"
LARGE = frozenset({"city", "mountain", "place"})
NEAR = frozenset({"macro", "close-up", "extreme close-up", "medium close-up"})
INERT = frozenset(
    {"city", "place", "object", "mountain", "product", "food", "machine", "mirror", "hands"}
)  # moved last
BARE = ("motion", "physics", "light", "camera")  # with no use case

LIT = re.compile(
    r"\b(?:day|daylight|night|dawn|dusk|noon|morning|afternoon|evening|sun\w*|moon\w*|light\w*|lit|neon|glow\w*|bright|dark\w*|shadow\w*"
    r"|overcast|cloudy|rainy|storm\w*|candle\w*|fire|flames?|space|underwater|backdrop|colou?rs?|background)\b",
    re.IGNORECASE,
)


def use(context: Context) -> Use | None:
    return vocabulary.uses().get(context.use) if context.use else None


def needs(slot: str, context: Context) -> bool:
    preset = use(context)
    return slot in (preset.slots if preset else BARE)


def _preset(slot: str, context: Context) -> str:
    preset = use(context)
    phrases = preset.phrases.get(slot, ()) if preset else ()
    return next((phrase for phrase in phrases if _nobody(phrase)), "")


def _nobody(phrase: str) -> bool:
    return not any(term.kind == "person" for term in lexicon.find(phrase))


def _id(slot: str, text: str) -> str:
    return f"{slot}:{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')}"


def subjects(slots: Slots) -> tuple[Term, ...]:
    """What is in the picture, in the order of the text."""
    return tuple(sorted(slots.of("subject") + slots.of("person"), key=lambda term: term.span.start))


def motion(slots: Slots, context: Context) -> Addition | None:
    """A verb for what is there. Nothing for a scene that is to stand still, or that moves already."""
    if not english(slots) or film.is_still(slots) or film.moves_by_itself(slots):
        return None
    for term in sorted(subjects(slots), key=lambda term: term.name in INERT):
        text = _motion_of(slots, term)
        if text:
            text = _of_one(slots, term, text)
            return Addition(_id("motion", text), "motion", text, f'nothing moved; "{term.text}" can')
    text = _preset("motion", context)
    return Addition(_id("motion", text), "motion", text, "nothing moved") if text else None


def _motion_of(slots: Slots, term: Term) -> str:
    if film.rests(slots) and term.name in ("vehicle", "crowd", "animal"):
        return "breathing calmly" if term.name == "animal" else ""
    own, known = wording.load().motion, vocabulary.subjects()
    found = wording.fitting(own.get(term.name, ()), _with_neighbours(slots, term))
    if found is None:
        found = next(iter(known[term.name].motions), "") if term.name in known else ""
    return found


def _of_one(slots: Slots, term: Term, text: str) -> str:
    """Which of several things it is: "a bus and a traffic light, the bus moving forward"."""
    alike = [other for other in subjects(slots) if other.name == term.name]
    if len(alike) > 1 or not SEVERAL.search(slots.text) or not text.split(maxsplit=1)[0].endswith("ing"):
        return text
    return f"the {term.text.lower()} {text}"


def _with_neighbours(slots: Slots, term: Term) -> str:
    """As in "teddy bear", "train station"."""
    before = slots.text[: term.span.start].split()[-1:]
    after = slots.text[term.span.end :].split(maxsplit=1)[:1]
    return " ".join([*before, term.text, *after])


def fluid(slots: Slots) -> Term | None:
    """A fluid, cloth or swarm that the prompt is about, and that nothing drives yet: no force, no wind, no pace."""
    said = subjects(slots)
    if not said or slots.of("physics") or film.is_still(slots) or film.has_pace(slots):
        return None
    first, known = said[0], vocabulary.subjects()
    acts = [term.span.start for term in slots.of("motion")]
    if any(start < first.span.start for start in acts) or len(acts) > 1:
        return None
    return first if first.name in known and known[first.name].fluid else None


def physics(slots: Slots, _context: Context) -> Addition | None:
    term = fluid(slots)
    if term is None or not english(slots):
        return None
    own, known = wording.load().physics, vocabulary.subjects()
    text = wording.fitting(own.get(term.name, ()), term.text)
    if text is None:
        text = next(iter(known[term.name].anchors), "")
    return Addition(_id("physics", text), "physics", text, f'says what moves "{term.text}"') if text else None


def light(slots: Slots, context: Context) -> Addition | None:
    if not english(slots) or slots.of("light") or LIT.search(slots.text):
        return None
    families = vocabulary.style_families()
    if any(families.get(term.name) in ("drawn", "render") for term in slots.of("style")):
        return None
    text = _preset("light", context) or wording.fitting(wording.load().light, slots.text)
    return Addition(_id("light", text), "light", text, "nothing said of light") if text else None


def english(slots: Slots) -> bool:
    """Phrases are in English, so nothing is added to a prompt that is not."""
    if slots.language != "en":
        return False
    said, foreign = words.tokens(slots.text), wording.load().foreign
    return sum(token.text in foreign for token in said) < max(2, len(said) / 8)


def lacking(slots: Slots, context: Context) -> tuple[Addition, ...]:
    """What the use case needs and the prompt lacks, the most needed first. Film words alone show nothing to add to."""
    if not any(clause.slot in ("subject", "other") for clause in slots.clauses):
        return ()
    moves = motion(slots, context)
    found = [moves, camera(slots, context), speed(slots)]
    found += [None if moves else physics(slots, context), light(slots, context)]  # what moves it has its pace
    found += [_other(slot, slots, context) for slot in ("style", "shot", "atmosphere")]
    found = _offered(found, slots, context)
    asked = {"speed"} | ({"style"} if context.style else set())
    return tuple(one for one in found if one and (one.slot in asked or needs(one.slot, context)))


def _offered(found: list[Addition | None], slots: Slots, context: Context) -> list[Addition | None]:
    """A language model's phrases in the place of the rules' own, and a motion where the rules knew none."""
    offers = dict(context.offers)
    if not offers:
        return found
    why = "a phrase of the language model"
    chosen = [
        Addition(_id(one.slot, offers[one.slot]), one.slot, offers[one.slot], f"{one.why}; {why}")
        if one and one.slot in offers
        else one
        for one in found
    ]
    lacks = (
        found[0] is None and english(slots) and not film.is_still(slots) and not film.moves_by_itself(slots)
    )
    if lacks and "motion" in offers:
        chosen[0] = Addition(
            _id("motion", offers["motion"]), "motion", offers["motion"], f"nothing moved; {why}"
        )
    return chosen


def _other(slot: str, slots: Slots, context: Context) -> Addition | None:
    """Slots that only a preset fills."""
    text = style(context) if slot == "style" and context.style else _preset(slot, context)
    if not text or not english(slots) or slots.of(slot) or text.casefold() in slots.text.casefold():
        return None
    return Addition(_id(slot, text), slot, text, f"the preset asks for {slot}")


def speed(slots: Slots) -> Addition | None:
    """How fast a move goes that stands by itself, so that a word can be added to it."""
    move = film.dominant(slots)
    if move is None or move.name in film.AT_ITS_OWN_PACE or film.has_speed(slots, move) or not english(slots):
        return None
    text = "smoothly" if move.name == "tracking" else "slowly"
    return Addition(f"speed:{text}", "speed", text, f'"{move.text}" had no speed')


def camera(slots: Slots, context: Context) -> Addition | None:
    if not english(slots) or film.asked(slots):
        return None
    move = _move(slots, context)
    phrase = vocabulary.moves()[move].phrase if move in vocabulary.moves() else ""
    if not phrase:
        return None
    text = (
        phrase
        if move in film.AT_ITS_OWN_PACE
        else f"{phrase} slowly"
        if "camera" in phrase
        else f"smooth {phrase}"
    )
    return Addition(_id("camera", text), "camera", text, "nothing said of the camera")


def _move(slots: Slots, context: Context) -> str:
    if film.is_still(slots):
        return film.STATIC
    preset = use(context)
    if preset and preset.camera:
        return preset.camera[0]
    own = wording.load()
    near = any(term.name in NEAR for term in slots.of("shot"))
    if near or slots.of("angle"):  # "front view": a move around it would leave it
        return own.camera_else
    said = sorted(subjects(slots), key=lambda term: term.name in INERT - LARGE)
    if not said or (said[0].name == "vehicle" and film.rests(slots)):
        return own.camera_else
    if own.camera.get(said[0].name) == "pan right" and wording.fitting(own.light, slots.text) == INDOORS:
        return own.camera_else
    return own.camera.get(said[0].name, own.camera_else)


def concrete(vague: str, follows: str) -> str:
    """A real move for "cinematic camera movement", that fits what comes after it."""
    after = follows.split()[:1]
    if vague.lower().endswith(("angle", "angles", "perspective", "perspectives")):
        return "low-angle shot"
    if after and after[0].lower() in ("around", "of"):
        return "slow orbit around" if after[0].lower() == "of" else "slow orbit"
    if after and after[0].lower() in ("over", "across", "along"):
        return "slow pan"
    return "slow push-in"


def style(context: Context) -> str:
    presets = vocabulary.style_presets()
    if context.style:
        return presets.get(context.style, "")
    return _preset("style", context) or presets.get("cinematic", "")
