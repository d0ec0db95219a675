"""An optional language model: asked for phrases, slot by slot, never for prose.

Any OpenAI-compatible `/chat/completions` (vLLM, llama.cpp, Ollama, LM Studio ...). What it offers passes a gate before
the rewriter may use it, in the places that the rules would have filled themselves: so it can choose better words, but
cannot lose what was said, add people, things or another style, or ask for a second camera move.

Answers are cached on disk by what was asked. Whatever goes wrong (nobody there, too slow, no JSON), the rules' own
phrases are taken, and a note says why.
"""

import base64
import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from broll.prompts import exclusions, film, slots, titles, vocabulary, words
from broll.prompts.findings import Context
from broll.prompts.slots import Slots

OFFERED = ("motion", "physics", "light", "atmosphere", "style", "camera", "shot")
MOST_WORDS = 14
MOST_BYTES = 100_000  # of an answer
LIVELY = {"crowd", "animal", "person", "vehicle"}
ASK = """You help to write prompts for a video model. You are given a prompt, and perhaps the picture that the clip
starts from. Answer with one JSON object with the keys motion, physics, light, atmosphere, style, camera, shot. Each
value is one short English phrase of at most 12 words that fits the prompt, or "" where the prompt says that already.
motion: what moves and how, with a verb ending in -ing, only of things that the prompt names.
physics: what drives it (wind, gravity, pace).
camera: one camera move with its speed, such as "camera pans slowly to the right". shot: one shot size.
Never add people, animals or things, text, quotation marks, negations, or a style that was not asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where the model is; `url` ends before /chat/completions, as in http://127.0.0.1:11434/v1."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 10.0
    cache: Path | None = None


@dataclass(frozen=True)
class Offer:
    """Phrases by slot that passed the gate, and what to say about the rest."""

    phrases: tuple[tuple[str, str], ...] = ()
    note: str = ""


def offer(endpoint: Endpoint, prompt: str, context: Context, picture: bytes | None = None) -> Offer:
    """What the model offers for this prompt; never an error."""
    try:
        told = _cached(endpoint, prompt, context, picture)
    except httpx.HTTPError as error:
        return Offer(
            note=f"the language model did not answer ({type(error).__name__}); the rules' own phrases were used"
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Offer(note="the language model gave no JSON of phrases; the rules' own were used")
    parsed, taken, refused = slots.parse(prompt), [], []
    for slot in OFFERED:
        phrase = told.get(slot)
        if not isinstance(phrase, str) or not phrase.strip():
            continue
        phrase = " ".join(phrase.split()).strip(" .,;:")
        reason = objection(slot, phrase, parsed, context)
        if reason:
            refused.append(f"{slot} ({reason})")
        else:
            taken.append((slot, phrase))
    note = f"refused of the language model: {', '.join(refused)}" if refused else ""
    return Offer(tuple(taken), note)


# --- the gate ---------------------------------------------------------------------------------------------


def objection(slot: str, phrase: str, prompt: Slots, context: Context) -> str:
    """Why a phrase may not be used; empty if it may."""
    parsed = slots.parse(phrase)
    reasons = (
        (not plain(phrase), f"it is not a phrase of at most {MOST_WORDS} English words"),
        (bool(titles.find(phrase)) or '"' in phrase, "it puts words into the picture"),
        (bool(exclusions.find(phrase)), "it names what should not be there"),
        (bool(names(parsed, "person") - names(prompt, "person")), "it adds people"),
        (adds_things(slot, parsed, prompt), "it adds things"),
        (camera_moves(parsed) != (slot == "camera"), "a camera move belongs into camera, and one only"),
        (len(names(parsed, "shot")) != (slot == "shot"), "a size of shot belongs into shot, and one only"),
        (bool(names(parsed, "style")) != (slot == "style"), "a style belongs into style"),
        (slot == "style" and other_family(parsed, prompt, context), "nobody asked for this style"),
        (slot == "motion" and film.is_still(prompt), "the scene is to stand still"),
        (slot in ("light", "atmosphere") and not parsed.of(slot), f"it says nothing of {slot}"),
    )
    return next((reason for broken, reason in reasons if broken), "")


def plain(phrase: str) -> bool:
    return 1 <= words.count(phrase) <= MOST_WORDS and phrase.isascii() and phrase.isprintable()


def names(parsed: Slots, kind: str) -> set[str]:
    return {term.name for term in parsed.of(kind)}


def camera_moves(parsed: Slots) -> int:
    return sum(term.name != "vague" for term in parsed.of("camera"))


def adds_things(slot: str, parsed: Slots, prompt: Slots) -> bool:
    """Light and air may bring their own (the sun, mist); nothing brings what lives or drives."""
    new = names(parsed, "subject") - names(prompt, "subject")
    return bool(new & LIVELY if slot in ("light", "atmosphere") else new)


def other_family(parsed: Slots, prompt: Slots, context: Context) -> bool:
    """A painting where a photograph was asked for, or where nothing was."""
    families = vocabulary.style_families()
    now, new = (
        {families.get(name) for name in names(one, "style")} - {None, "any"} for one in (prompt, parsed)
    )
    return bool(new - now) and not (context.use or context.style)


# --- asking -----------------------------------------------------------------------------------------------


def _cached(endpoint: Endpoint, prompt: str, context: Context, picture: bytes | None) -> dict[str, Any]:
    digest = hashlib.sha256(picture or b"").hexdigest()
    question = json.dumps(
        [endpoint.url, endpoint.model, ASK, prompt, context.task, context.use, context.style, digest]
    )
    path = None
    if endpoint.cache is not None:
        path = endpoint.cache / f"{hashlib.sha256(question.encode()).hexdigest()}.json"
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(path.read_text()))
    told = _ask(endpoint, prompt, context, picture)
    if path is not None:
        part = path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(told))
            part.replace(path)
    return told


def _ask(endpoint: Endpoint, prompt: str, context: Context, picture: bytes | None) -> dict[str, Any]:
    about = f"Prompt: {prompt}\nThe clip lasts {context.seconds:.0f} seconds."
    about += f" It is for: {context.use}." if context.use else ""
    content: Any = about
    if picture is not None:
        link = "data:image/png;base64," + base64.b64encode(picture).decode()
        content = [{"type": "text", "text": about}, {"type": "image_url", "image_url": {"url": link}}]
    body = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": ASK}, {"role": "user", "content": content}],
        "response_format": {"type": "json_object"},
        "temperature": 0,
    }
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with (
        httpx.Client(timeout=endpoint.timeout_s) as client,
        client.stream(
            "POST", endpoint.url.rstrip("/") + "/chat/completions", json=body, headers=headers
        ) as answer,
    ):
        answer.raise_for_status()
        return _object(_text(answer, endpoint.timeout_s))


def _text(answer: httpx.Response, timeout_s: float) -> str:
    """The message; refused if it is large, or if it comes in drops."""
    until, data = time.monotonic() + timeout_s, b""
    for part in answer.iter_bytes():
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError("too long")
        if time.monotonic() > until:
            raise httpx.ReadTimeout("too slow")
    return str(json.loads(data)["choices"][0]["message"]["content"])


def _object(text: str) -> dict[str, Any]:
    """The JSON object in a text; models like to put it into a fence."""
    start, end = text.find("{"), text.rfind("}")
    return dict(json.loads(text[start : end + 1]))
