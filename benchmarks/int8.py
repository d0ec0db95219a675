"""What rounding to integers loses, by the layers that are rounded: `python -m benchmarks.int8 [--model nano]`.

One forward of a trained model beside the exact one, for three times of the schedule; each kind of Linear of all blocks
alone, then all of them. The integers are simulated, so that both reaches are told on any machine.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll import catalog, wiring
from broll.engine import conditioning, int8
from broll.engine.load import Parts
from broll.engine.shapes import Grid
from broll.settings import Settings

PROMPT = "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour"
GRID = Grid(5, 20, 32)
TIMES = (999.0, 500.0, 50.0)


class Rounded(nn.Module):
    def __init__(self, linear: nn.Linear, reach: int) -> None:
        super().__init__()
        integers, scale = int8.rounded(linear.weight, reach)
        self.weight, self.bias = integers * scale, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        integers, size = int8.rounded(x.flatten(0, -2), int8.LARGEST)
        return F.linear((integers * size).view(x.shape), self.weight, self.bias)


@contextmanager
def rounded(model: nn.Module, names: Sequence[str], reach: int) -> Iterator[None]:
    exact = {name: model.get_submodule(name) for name in names}
    for name, linear in exact.items():
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, Rounded(linear, reach))
    yield
    for name, linear in exact.items():
        model.set_submodule(name, linear)


def velocities(parts: Parts) -> list[Tensor]:
    model = parts.transformer
    text = conditioning.collapsed(parts.text(PROMPT), model.config.text_len)
    x = torch.randn(
        1,
        model.config.in_dim,
        GRID.frames,
        GRID.height,
        GRID.width,
        generator=torch.Generator().manual_seed(0),
    )
    found = []
    for time in TIMES:
        context = model.context(GRID, text.features, text_bias=text.bias)
        found.append(model(x, torch.tensor([time]), context))
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    settings = Settings()
    wiring.use_threads(settings)
    model = catalog.find(settings, args.model)
    parts = wiring.load(model, wiring.describe(model))
    exact, kinds = velocities(parts), defaultdict[str, list[str]](list)
    for name, module in parts.transformer.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            kinds[re.sub(r"blocks\.\d+\.", "", name)].append(name)
            kinds["all"].append(name)
    print(f"{'':16}{'8 bits':>8}{'7 bits':>8}")
    for kind in sorted(kinds, key=lambda kind: (kind == "all", kind)):
        row = []
        for reach in (int8.LARGEST, int8.SMALLER):
            with rounded(parts.transformer, kinds[kind], reach):
                pairs = zip(velocities(parts), exact, strict=True)
                row.append(max(float((ours - true).norm() / true.norm()) for ours, true in pairs))
        print(f"{kind:16}{row[0]:>8.4f}{row[1]:>8.4f}", flush=True)


if __name__ == "__main__":
    main()
