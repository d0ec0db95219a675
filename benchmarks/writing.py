"""What the file adds to a clip: `python -m benchmarks.writing CLIP`, seconds beside a clip's frames in main memory.

The frames of CLIP, scaled to the sizes that WAN makes and repeated to 81, as bytes. Each is converted and handed to the
encoder as it would come from the autoencoder; `waits` is what making the next frame would have waited for, `ends` what
remains after the last one. An encoder works on its own threads, so on more cores both are shorter.
"""

import argparse
import os
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import av
import numpy as np

from broll.media.video_file import VideoWriter

SIZES = {"480p": (832, 480), "720p": (1280, 720)}
FRAMES, FPS = 81, 16


def frames(clip: Path, width: int, height: int) -> list[np.ndarray]:
    with av.open(str(clip)) as container:
        decoded = [f.reformat(width, height, format="rgb24") for f in container.decode(video=0)]
    if not decoded:
        raise ValueError(f"{clip} has no pictures")
    return list(islice(cycle([frame.to_ndarray() for frame in decoded[:FRAMES]]), FRAMES))


def written(pictures: list[np.ndarray], path: Path) -> tuple[float, float]:
    height, width, _ = pictures[0].shape
    begin = time.perf_counter()
    with VideoWriter(path, width=width, height=height, fps=FPS, format="mp4") as video:
        for picture in pictures:
            video.write(picture[None])
        waits = time.perf_counter() - begin
    return waits, time.perf_counter() - begin - waits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "clip", type=Path, help="any video: a real one, for how long encoding takes depends on it"
    )
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    try:
        frames(args.clip, 64, 64)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        parser.error(f"{args.clip} is no video: {error}")
    print(
        f"{len(os.sched_getaffinity(0))} cores, medians of {args.runs}\n\n| | waits, s | ends, s |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height) in SIZES.items():
            pictures = frames(args.clip, width, height)
            runs = [written(pictures, Path(folder) / "clip.mp4") for _ in range(args.runs)]
            waits, ends = (median(times) for times in zip(*runs, strict=True))
            print(f"| {name} | {waits:.2f} | {ends:.2f} |")


if __name__ == "__main__":
    main()
