"""Words to better words: the language of film, what a prompt says of it, and what would make it say more.

    words         spans, tokens, content words
    vocabulary    the data of data/*.toml, typed
    lexicon       film language and subjects found in a text
    titles        words that are meant to be read in the picture
    exclusions    "no clouds", "without people"
    phrases, spelling, measures, company     below the lexicon: notation, typos, numbers, ambiguity
    slots         a prompt taken apart
    negative      the negative prompt that fits the positive one
    findings      what a rule says
    rules, coach, rewriter

Knows no model, no torch, no HTTP. Offsets are code points of the text that was given: `text[start:end]`.
"""
