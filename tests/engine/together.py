"""Several processes of this machine that torch.distributed knows (gloo), each running the same function.

`python -m tests.engine.together FOLDER MODULE:FUNCTION` is one of them; its result lies in FOLDER as RANK.pt.
"""

import importlib
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 300


def run(count: int, function: str, folder: Path) -> list[Any]:
    """What each of them gave, in order."""
    import torch

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROLL_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "tests.engine.together", str(folder), function]
    running = [subprocess.Popen(command, env=env | {"RANK": str(rank)}, cwd=ROOT) for rank in range(count)]
    try:
        statuses = [process.wait(LIMIT_S) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert statuses == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def main(folder: Path, function: str) -> None:
    from jaxtyping import install_import_hook

    install_import_hook("broll.engine", "beartype.beartype")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(folder)
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
