"""A Python in which some packages are not installed."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

START = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
{code}
"""


def run(
    packages: Sequence[str],
    code: str,
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """`code` with these arguments, where none of the packages can be imported."""
    line = [sys.executable, "-c", START.format(packages=tuple(packages), code=code), *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=600)
