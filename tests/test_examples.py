"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVED = {"serve_and_generate.py", "video_job.py"}  # need a server: tests/client/test_example.py
EXAMPLES = sorted(
    path for path in (Path(__file__).parent.parent / "examples").glob("*.py") if path.name not in SERVED
)
WRITES = {"first_clip.py": "sailboats.mp4", "steps.py": "preview.png"}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path):
    pytest.importorskip("broll_nano")
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / WRITES[script.name]).stat().st_size > 1000
