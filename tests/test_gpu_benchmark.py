"""`benchmarks/gpu.py` on small models without a GPU: everything runs, nothing is lost, and little is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import without

ROOT = Path(__file__).parent.parent
WITHOUT = ("pydantic", "av", "ftfy", "diffusers", "cv2", "platformdirs")
START = 'import runpy; runpy.run_module("benchmarks.gpu", run_name="__main__")'
FP8 = {"fp8 by rows, as the engine", "fp8 by rows, fast sums"}  # not every torch multiplies them on a CPU
ON_GPU_ONLY = {f"attention {size}, {name}" for size in ("480p", "720p") for name in ("cudnn", "efficient")}


def run(file, *arguments):
    given = ["--tiny", "--device", "cpu", "--json", str(file), *arguments]
    done = without.run(WITHOUT, START, *given, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())["rows"], done.stdout


@pytest.mark.slow
def test_every_part_runs_where_only_torch_and_transformers_are_installed_and_small_models_agree(tmp_path):
    rows, _ = run(tmp_path / "rows.json")
    assert {row["part"] for row in rows} >= {
        "rates",
        "parity",
        "14b",
        "1.3b",
        "stages",
        "clip",
        "ways",
        "more",
        "vae",
        "batch",
        "diffusers",
    }
    assert {row["name"] for row in rows if "failed" in row and row["part"] != "end"} - FP8 == ON_GPU_ONLY
    errors = {row["name"]: row["error"] for row in rows if "error" in row}
    assert max(error for name, error in errors.items() if "float32" in name and "fp8 mul" not in name) < 1e-6
    assert max(errors.values()) < 0.05
    assert all(row["same_bits"] for row in rows if "same_bits" in row)
    table = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--table", str(tmp_path / "rows.json")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert "| t2v-14b 720p exact, fused |" in table


@pytest.mark.slow
def test_a_part_alone_runs_where_only_torch_and_transformers_are_installed(tmp_path):
    rows, _ = run(tmp_path / "rows.json", "--parts", "rates")
    assert len(rows) > 3
    assert {row["name"] for row in rows if "failed" in row and row["part"] != "end"} - FP8 <= ON_GPU_ONLY


def test_when_the_budget_is_spent_every_row_says_so(tmp_path):
    rows, printed = run(tmp_path / "rows.json", "--seconds", "0", "--parts", "rates")
    measured = [row for row in rows if row["part"] == "rates"]
    assert measured
    assert all("skipped" in row for row in measured)
    assert printed.count("skipped") == len(measured)
