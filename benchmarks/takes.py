"""Asked against measured, one take against several: `python -m benchmarks.takes [--count 100] [--takes 4]`.

nano makes each prompt with several seeds; the camera is measured in the files. `single` is what the first seed gives,
`best` what `--takes N --pick camera` keeps. The prompts are training's, by seeds that training never used; they name
one camera move each.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from broll import catalog, clips, takes, wiring
from broll.clips import Clip
from broll.engine import pipeline
from broll.prompts.slots import asked_camera
from broll.settings import Settings
from broll.spec import parse
from training.evaluate import questions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--takes", type=int, default=4)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = Settings()
    model = catalog.find(settings, "nano")
    config = wiring.describe(model)
    parts = wiring.load(model, config)
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        for number, question in enumerate(questions(args.count, args.seed)):
            prompt = question.prompt
            asked = asked_camera(prompt)
            if asked is None:
                rows.append({"prompt": prompt, "asked": None})
                continue
            fields = {"frames": args.frames, "steps": args.steps, "seed": 1000 * number}
            wish = {"takes": args.takes, "pick": "camera"} if args.takes > 1 else {}
            spec = pipeline.resolve(parse(model="nano", prompt=prompt, **fields, **wish), config)
            made: list[Clip] = []
            for index in range(args.takes):
                own = takes.Series(spec).spec(index)
                *_, clip = clips.make_clip(own, parts, Path(name) / f"{index}.mp4", format="mp4")
                assert isinstance(clip, Clip)
                made.append(clip)
            checks = [clip.record.checks for clip in made if clip.record.checks]
            best = max(range(args.takes), key=lambda i: takes.score(checks[i], spec))
            follows = [checks[i].camera.move in asked.accepts for i in range(args.takes)]
            rows.append(
                {
                    "prompt": prompt,
                    "asked": asked.move,
                    "measured": [check.camera.move for check in checks],
                    "single": follows[0],
                    "best": follows[best],
                }
            )
            if args.json:  # so far
                args.json.write_text(json.dumps(rows, indent=1))
    report(rows, args.takes, time.perf_counter() - begin)


def report(rows: list[dict[str, Any]], count: int, seconds: float) -> None:
    judged = [row for row in rows if row["asked"]]
    single, best = (sum(row[key] for row in judged) for key in ("single", "best"))
    print(f"{len(judged)} prompts with one move of {len(rows)}; {seconds:.0f} s")
    print(f"single take   {single}/{len(judged)}  {single / len(judged):.0%}")
    print(f"best of {count}     {best}/{len(judged)}  {best / len(judged):.0%}")
    for move, total in sorted(Counter(row["asked"] for row in judged).items()):
        of = [row for row in judged if row["asked"] == move]
        found = (sum(row[key] for row in of) for key in ("single", "best"))
        print("  {:<12} {:>3}  single {:>3}  best {:>3}".format(move, total, *found))


if __name__ == "__main__":
    main()
