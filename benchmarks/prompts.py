"""Rewritten prompts: `python benchmarks/prompts.py [--json FILE] [PROMPTS [EXPANDED]]`.

    kept             prompts all of whose content words are still there: in the prompt, or in what was lifted into
                     titles or moved into the negative prompt. Words are compared by their stems, so "pans" is
                     "panning"; a paraphrase is a loss
    told             the same, counting what the rewriter lists with a reason: film words that were dropped (a second
                     camera move), typos that were put right, "that says" of a sign that is blank now
    people           prompts with no person in them that have gained one
    shots, moves     prompts that name more than one size of shot, or ask for more than one camera move
    long             prompts of more than 110 words
    illustration     prompts that have become a drawing or a rendering that nobody asked for
    contradictions   prompts that the negative prompt pushes away: WAN's own, as it is; and the one that the coach
                     builds
    check            milliseconds for one prompt, seconds for all

PROMPTS and EXPANDED have a prompt a line, EXPANDED what another rewriter made of the same line. By default VBench's
946 prompts, and what WAN's own expander, a language model of 3 billion parameters, made of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broll.prompts import coach, film, negative, rewriter, slots, vocabulary, words
from broll.prompts.findings import Context
from broll.prompts.slots import Slots

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "vbench"
COUNTED = ("kept", "told", "people", "shots", "moves", "long", "illustration", "contradictions")
LONG = 110


def published_negative() -> str:
    """WAN's own, out of the engine's table; without torch, for the table alone is read."""
    from broll.engine.config import PUBLISHED

    return PUBLISHED["wan2.1-t2v-1.3b"].defaults.negative_prompt


def has(parsed: Slots, *families: str) -> bool:
    known = vocabulary.style_families()
    return any(known.get(term.name) in families for term in parsed.of("style"))


def judge(
    before: str, after: str, built: str, places: Sequence[str] = (), listed: Sequence[str] = ()
) -> dict[str, bool]:
    """`built`: the negative prompt of `after`; `places`: where else words may be; `listed`: told with a reason."""
    given, made = slots.parse(before), slots.parse(after)
    kept = stems(after, *places)
    asked = {words.stem(token.text) for token in words.content_words(before)}
    crowd = bool(given.of("person")) or any(term.name == "crowd" for term in given.terms)
    return {
        "kept": asked <= kept,
        "told": asked <= kept | stems(*listed),
        "people": not crowd and bool(made.of("person")),
        "shots": bool(film.shots(made)[1]),
        "moves": bool(film.moves(made)[1]),
        "long": words.count(after) > LONG,
        "illustration": has(made, "drawn", "render") and not has(given, "drawn", "render"),
        "contradictions": bool(negative.build(after, built, made).dropped),
    }


def table(prompts: Sequence[str], expanded: Sequence[str] | None, base: str) -> dict[str, dict[str, float]]:
    context = Context(base_negative=base)
    made = [rewriter.rewrite(prompt, context) for prompt in prompts]
    rows = {
        "as typed": [judge(p, p, base) for p in prompts],
        "rewriter": [judge_rewrite(m) for m in made],
    }
    texts = {"as typed": list(prompts), "rewriter": [m.prompt for m in made]}
    if expanded is not None:
        rows["expander"] = [judge(p, e, base) for p, e in zip(prompts, expanded, strict=True)]
        texts["expander"] = list(expanded)
    found: dict[str, dict[str, float]] = {}
    for name, judged in rows.items():
        found[name] = {what: sum(row[what] for row in judged) / len(judged) for what in COUNTED}
        lengths = [words.count(text) for text in texts[name]]
        found[name] |= {"median_words": statistics.median(lengths), "longest": max(lengths)}
    found["rewriter"]["dropped_film_words"] = sum(bool(m.dropped or m.replaced) for m in made) / len(made)
    return found


def judge_rewrite(made: rewriter.Rewrite) -> dict[str, bool]:
    listed = [change.text for change in (*made.dropped, *made.replaced)]
    places = (made.negative.text, *made.titles)
    return judge(made.original, made.prompt, made.negative.text, places, listed)


def stems(*places: str) -> set[str]:
    return {words.stem(token.text) for place in places for token in words.tokens(place)}


def timing(prompts: Sequence[str]) -> dict[str, float]:
    begin = time.perf_counter()
    coach.check(prompts[0])
    first = time.perf_counter() - begin
    times = []
    for prompt in prompts:
        begin = time.perf_counter()
        coach.check(prompt)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for prompt in prompts:
        coach.rewrite(prompt)
    rewritten = time.perf_counter() - begin
    return {
        "first_ms": 1000 * first, "median_ms": 1000 * statistics.median(times), "longest_ms": 1000 * max(times),
        "all_s": sum(times), "prompts": len(prompts), "rewrite_all_s": rewritten,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    names = list(found["prompts"])
    print(f"{'':20}" + "".join(f"{name:>12}" for name in names))
    for what in (*COUNTED, "dropped_film_words", "median_words", "longest"):
        cells = [found["prompts"][name].get(what) for name in names]
        share = what not in ("median_words", "longest")
        told = ["" if cell is None else f"{100 * cell:.1f} %" if share else f"{cell:g}" for cell in cells]
        print(f"{what.replace('_', ' '):20}" + "".join(f"{cell:>12}" for cell in told))
    check = found["check"]
    longest = f"longest {check['longest_ms']:.1f}, the first {check['first_ms']:.0f}"
    print(
        f"check: {check['median_ms']:.2f} ms a prompt ({longest}), {check['all_s']:.2f} s for {check['prompts']}"
    )
    print(f"rewrite: {check['rewrite_all_s']:.2f} s for {check['prompts']}")


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path, nargs="?", default=DATA / "prompts.txt")
    parser.add_argument("expanded", type=Path, nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--negative", help="the base negative prompt; by default WAN's published one")
    args = parser.parse_args()
    expanded = args.expanded or (DATA / "wan_expanded.txt" if args.prompts == DATA / "prompts.txt" else None)
    for path in filter(None, (args.prompts, expanded)):
        if not path.is_file():
            parser.error(f"{path} is not there; give a file with a prompt a line")
    base = published_negative() if args.negative is None else args.negative
    prompts = [line for line in lines(args.prompts) if line.strip()]
    other = lines(expanded) if expanded else None
    if other is not None and len(other) != len(prompts):
        parser.error(f"{args.prompts} has {len(prompts)} prompts and {expanded} has {len(other)} lines")
    found = {"prompts": table(prompts, other, base), "check": timing(prompts)}
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
