"""The text encoder in shares: each process holds a run of layers, and no process all of them.

    the table of words -> run of layers -> run of layers -> ... -> features       every arrow goes to all processes

So each computes its own run, while the others wait, and passes on what came out: 40 tokens of 4,096 numbers. The layers
and what they are given are those of a single process, and so are the bits. umT5-xxl has 11.4 GB in bf16, of which 2.1
are the table of words; it is read for a prompt only, so what counts is its memory, not its time.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from broll.engine.config import TextConfig
from broll.engine.mesh import Group
from broll.engine.stored import Entry

LAYER = re.compile(r"encoder\.block\.(\d+)\.")
TABLE = "shared.weight"


def owners(config: TextConfig, processes: int) -> list[int]:
    """Who has the table, and who each layer: in order, in shares of about equal bytes."""
    c = config
    layer = 4 * c.d_model * c.num_heads * c.d_kv + 3 * c.d_model * c.d_ff
    found, before = [], 0
    sizes = [c.vocab_size * c.d_model, *[layer] * c.num_layers]
    for size in sizes:
        found.append((before + size / 2) * processes // sum(sizes))
        before += size
    return [int(owner) for owner in found]


class Share:
    """What of the encoder's file is read here; as offload.Away, but what is elsewhere never comes."""

    def __init__(self, config: TextConfig, group: Group) -> None:
        self._group, self._owners = group, owners(config, group.size)

    def __call__(self, name: str, entry: Entry) -> bool:  # noqa: ARG002  as Away
        """Whether this is for another process."""
        layer = LAYER.match(name)
        if layer is None and name != TABLE:
            return False  # the last norm: everywhere
        return self._owners[0 if layer is None else int(layer[1]) + 1] != self._group.rank

    def settle(self, model: Any, source: Path, dtype: Callable[[str], torch.dtype]) -> None:  # noqa: ARG002  as Away
        """Of transformers' UMT5EncoderModel nothing is left on the meta device."""
        table, *layers = self._owners
        own = model.shared if table == self._group.rank else None
        words = Words(own, table, self._group, model.config.d_model, dtype(TABLE))
        model.shared, model.encoder.embed_tokens = words, words
        blocks = list(model.encoder.block)
        model.encoder.block = nn.ModuleList(
            Run(
                [block for block, has in zip(blocks, layers, strict=True) if has == owner], owner, self._group
            )
            for owner in sorted(set(layers))
        )


class Words(nn.Module):
    """The table of words; computed by the process that has it, and told to the others."""

    def __init__(
        self, table: nn.Module | None, owner: int, group: Group, dim: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.table, self._owner, self._group, self._dim, self._dtype = table, owner, group, dim, dtype

    def forward(self, ids: Tensor) -> Tensor:
        own = self.table
        got = ids.new_empty(*ids.shape, self._dim, dtype=self._dtype) if own is None else own(ids)
        return self._group.spread(got, self._owner)


class Run(nn.Module):
    """Some layers, likewise."""

    def __init__(self, layers: Sequence[nn.Module], owner: int, group: Group) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers if owner == group.rank else ())
        self._owner, self._group = owner, group

    def forward(self, hidden: Tensor, *context: Any, **more: Any) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, *context, **more)
        return self._group.spread(hidden if len(self.layers) else torch.empty_like(hidden), self._owner)
