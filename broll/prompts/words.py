"""A text as words, each with its place in it.

A word is a run of letters and digits, apostrophes inside it included; a hyphen parts two words ("close-up"
reads like "close up"). Every Chinese or Japanese sign is a word of its own. `content_words` leaves out what
carries no meaning by itself, and `stem` makes "pans", "panning" and "panned" one, for comparing only: it is no
word.
"""

import functools
import re
from dataclasses import dataclass

SIGNS = "぀-ヿ㐀-䶿一-鿿豈-﫿"
WORD = re.compile(rf"[{SIGNS}]|[^\W_{SIGNS}]+(?:['’][^\W_{SIGNS}]+)*")
SIGN = re.compile(rf"[{SIGNS}]")

# Two signs of Chinese say about as much as one English word.
SIGNS_PER_WORD = 2

STOP = frozenset({
    "a", "an", "the", "and", "or", "but", "nor", "so", "yet", "of", "to", "in", "on", "at", "by", "for",
    "from", "with", "without", "into", "onto", "upon", "over", "under", "up", "down", "out", "off", "as",
    "than", "then", "that", "this", "these", "those", "it", "its", "it's", "he", "she", "they", "we",
    "you", "i", "me", "him", "her", "them", "us", "his", "their", "our", "your", "my", "mine", "one's",
    "who", "whom", "whose", "which", "what", "when", "where", "while", "there", "here", "is", "are",
    "was", "were", "be", "been", "being", "am", "do", "does", "did", "doing", "done", "has", "have",
    "had", "having", "will", "would", "can", "could", "shall", "should", "may", "might", "must", "not",
    "no", "very", "just", "also", "too", "some", "any", "each", "every", "all", "both", "such", "only",
    "own", "same", "other", "more", "most", "much", "many", "few", "through", "during", "before", "after",
    "above", "below", "between", "about", "against", "along", "across", "around", "behind", "beside",
    "near", "toward", "towards", "again", "once", "if", "because", "until", "like", "amid", "among",
    "amidst", "within", "via", "per", "的", "了", "在", "是", "和", "与", "着", "一", "个", "里", "上", "中",
})  # fmt: skip


@dataclass(frozen=True)
class Span:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Token:
    span: Span
    text: str  # lower case, with a straight apostrophe


def tokens(text: str) -> tuple[Token, ...]:
    return tuple(
        Token(Span(found.start(), found.end()), found[0].lower().replace("’", "'"))
        for found in WORD.finditer(text)
    )


def is_sign(word: str) -> bool:
    return SIGN.match(word) is not None


def content_words(text: str) -> tuple[Token, ...]:
    return tuple(token for token in tokens(text) if token.text not in STOP)


def count(text: str) -> int:
    """As a person counts: "close-up" is one word, two Chinese signs are one."""
    signs = len(SIGN.findall(text))
    rest = SIGN.sub(" ", text).split()
    return sum(1 for word in rest if any(letter.isalnum() for letter in word)) + -(-signs // SIGNS_PER_WORD)


@functools.lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """What is left of a word without its ending; equal for the forms of one word, mostly."""
    word = word.lower().replace("’", "'").removesuffix("'s").removesuffix("'")
    if not word.isascii() or len(word) <= 3:
        return word
    for ending, instead in (
        ("ies", "y"),
        ("ied", "y"),
        ("sses", "ss"),
        ("xes", "x"),
        ("ches", "ch"),
        ("shes", "sh"),
    ):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    for ending in ("ing", "ed", "es", "s", "e"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and not (ending == "s" and root.endswith(("s", "u", "i"))):
            return _single(root.removesuffix("e"), ending)
    return word


def _single(root: str, ending: str) -> str:
    """The "pann" of "panning" is "pan", but the "fall" of "falls" stays."""
    doubled = len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz"
    return root[:-1] if doubled and ending in ("ing", "ed") else root
