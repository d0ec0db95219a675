"""The package as a whole: what an import costs, and what is public."""

import subprocess
import sys

import broll

HEAVY = "{'torch', 'transformers', 'av', 'numpy', 'diffusers'}"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_broll_loads_nothing_heavy():
    assert run(f"import broll, sys; print({HEAVY} & set(sys.modules))").strip() == "set()"


def test_the_public_names_are_those_in_all():
    assert broll.__all__ == ["AsyncClient", "BrollError", "Client", "VideoSpec", "__version__", "clip"]
    assert all(hasattr(broll, name) for name in broll.__all__)
