"""benchmarks/writing.py runs, and says a time for each size."""

import sys

import numpy as np

from benchmarks import writing
from broll.media.video_file import VideoWriter


def test_a_clip_of_any_size_and_length_is_written_at_each_size(tmp_path, monkeypatch, capsys):
    clip = tmp_path / "short.mp4"
    with VideoWriter(clip, width=64, height=48, fps=16, format="mp4") as video:
        video.write(np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8))
    monkeypatch.setattr(writing, "FRAMES", 5)
    pictures = writing.frames(clip, 128, 64)
    assert len(pictures) == 5 and pictures[0].shape == (64, 128, 3)
    assert (pictures[3] == pictures[0]).all() and (pictures[1] != pictures[0]).any()
    monkeypatch.setattr(sys, "argv", ["writing", str(clip), "--runs", "1"])
    writing.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [name.strip() for name, *_ in rows] == ["480p", "720p"]
    assert all(float(seconds) > 0 for _, *times in rows for seconds in times)
