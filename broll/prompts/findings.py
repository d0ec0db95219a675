"""What a rule says of a prompt, and what it knows of the clip: the words that the whole coach uses.

A Finding points at a span of the text that was given and may carry one Fix. A Fix is edits of that text, a
negative prompt, or words lifted out of the picture; applying it is the caller's business.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from broll.prompts.words import Span

Severity = Literal["error", "warning", "hint"]
Task = Literal["t2v", "i2v", "flf2v"]


@dataclass(frozen=True)
class Edit:
    span: Span
    text: str


@dataclass(frozen=True)
class Fix:
    label: str
    edits: tuple[Edit, ...] = ()
    negative: str | None = None
    titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    rule: str
    severity: Severity
    span: Span
    message: str
    fix: Fix | None = None


@dataclass(frozen=True)
class Read:
    """What a model's tokenizer makes of a text."""

    tokens: int = 0
    unknown: str = ""  # the letters that its vocabulary lacks, each once


@dataclass(frozen=True)
class Context:
    """What the coach knows of the clip; the defaults are WAN 1.3B from text."""

    task: Task = "t2v"
    seconds: float = 5.0
    width: int = 832
    height: int = 480
    guidance: float = 5.0
    steps: int = 50
    base_negative: str = ""  # the model's published one; nano has none
    negative: str | None = None  # the user's own, instead of the built one
    words: tuple[int, int] = (12, 110)
    small: bool = True  # 1.3B or nano
    use: str | None = None  # a preset by use
    style: str | None = None  # a style preset
    loop: bool = False
    blocklist: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    offers: tuple[tuple[str, str], ...] = ()  # phrases by slot, of a language model, that passed its gate
    read: Callable[[str], Read] = lambda text: Read()  # the model's own tokenizer, where it is there
