"""Where a process puts its passing files: in the system's folder for those, under a name that says whose they are.

A process that is killed leaves them; whoever sees it die clears them away (jobs/local.py), and a child whose dispatcher
is gone its own (renderer.py).
"""

import os
import shutil
import tempfile
from pathlib import Path


def prefix(pid: int) -> str:
    return f"broll-{pid}-"


def folder() -> "tempfile.TemporaryDirectory[str]":
    """A new one of this process, gone when its `with` ends."""
    return tempfile.TemporaryDirectory(prefix=prefix(os.getpid()))


def clear(pid: int) -> None:
    """What this process, dead or about to end, has left."""
    for left in Path(tempfile.gettempdir()).glob(prefix(pid) + "*"):
        shutil.rmtree(left, ignore_errors=True)
