"""Film words that were written wrongly: "bokhe", "doly shot", "panaromic", "zom in slowly".

A word is put right only if nothing else can be meant: it is no word of the vocabulary, no English word that
looks like one (data/near.txt, from word frequencies), it begins like the film word, and one slip leads there,
or two if it is long. A swap of two neighbours is one slip (optimal string alignment). Short film words need a
second word beside them; that is for the lexicon to see.
"""

import functools
from importlib import resources

from rapidfuzz import process
from rapidfuzz.distance import OSA

from broll.prompts import vocabulary, words

FILM = frozenset({"camera", "shot", "angle", "lens", "style", "light", "speed"})
SHORTEST = 4  # of a film word
LONG = 8  # from here on two slips are forgiven


@functools.cache
def known() -> frozenset[str]:
    """Words that are never wrong."""
    near = resources.files("broll.prompts").joinpath("data", "near.txt").read_text("utf-8").split()
    mine = {word for entry in vocabulary.entries() for word in entry.phrase.words}
    return frozenset(near) | mine | words.STOP


@functools.cache
def film_words() -> dict[str, tuple[str, ...]]:
    """By first letter."""
    found: dict[str, set[str]] = {}
    for entry in vocabulary.entries():
        if entry.kind in FILM:
            for word in entry.phrase.words:
                if len(word) >= SHORTEST and word.isascii() and word.isalpha() and word not in words.STOP:
                    found.setdefault(word[0], set()).add(word)
    return {letter: tuple(sorted(some)) for letter, some in found.items()}


@functools.lru_cache(maxsize=4096)
def meant(word: str) -> str | None:
    """The film word that was meant, if only one can be; None for every right word."""
    if len(word) < SHORTEST - 1 or not word.isascii() or not word.isalpha() or word in known():
        return None
    some = film_words().get(word[0], ())
    near = process.extract(word, some, scorer=OSA.distance, score_cutoff=2, limit=4)
    fits = [(slips, found) for found, slips, _ in near if slips <= (2 if len(found) >= LONG else 1)]
    fits.sort()
    if not fits or (
        len(fits) > 1 and fits[0][0] == fits[1][0] and words.stem(fits[0][1]) != words.stem(fits[1][1])
    ):
        return None
    return fits[0][1]
