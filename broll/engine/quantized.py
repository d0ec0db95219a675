"""The Linear seam for weights that stay as the checkpoint keeps them: fp8 and its scale, blocks of GGUF, 16-bit floats.

    y = x W' + b,    W = dequantize(bytes) in x's dtype, made anew at every call and let go after it

A call gives what a plain Linear with the dequantized weight gives, bit for bit; in memory are only the bytes
(tests/engine/test_quantized.py). On a CPU all Linears of a model make their weight on one `Desk`: new memory at
every call would have to be cleared by the system first, which takes longer than the numbers do. An Embedding looks its
rows up first and dequantizes only those. All that is held is bytes, also the scales, so that `module.to(dtype)` cannot
spoil it; `module.to(device)` moves it.

Products in fp8 itself, which round x too: fp8.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine.dequantize import dequantize
from broll.engine.stored import Stored


class Quantized(nn.Module):
    """A matrix [rows, columns] in its bytes."""

    data: Tensor
    scale_bytes: Tensor | None

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.kind = stored.kind
        self.rows, self.columns = stored.shape
        self.register_buffer("data", stored.data)
        scale = stored.scale
        self.register_buffer("scale_bytes", None if scale is None else scale.contiguous().view(torch.uint8))

    @property
    def scale(self) -> Tensor | None:
        return None if self.scale_bytes is None else self.scale_bytes.view(torch.float32)

    @property
    def stored(self) -> Stored:
        return Stored(self.kind, (self.rows, self.columns), self.data, self.scale)

    @property
    def nbytes(self) -> int:
        """What it holds; the plain matrix would take rows * columns * 4."""
        return self.stored.nbytes

    @property
    def weight(self) -> None:
        """There is none: transformers' umT5 asks for it, to learn the dtype."""
        return

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.data, self.kind, dtype, self.scale)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, {self.kind}, {self.nbytes} bytes"


class Desk:
    """Memory for one matrix at a time, as large as the largest so far. For one thread."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def lay(self, matrix: Quantized, dtype: torch.dtype) -> Tensor:
        """Its numbers, until the next one comes."""
        size = matrix.rows * matrix.columns * dtype.itemsize
        if self._memory.nbytes < size:
            with torch.inference_mode(mode=False):  # it may be written to outside of it, too
                self._memory = torch.empty(size, dtype=torch.uint8)
        out = self._memory[:size].view(dtype).view(matrix.rows, matrix.columns)
        return dequantize(matrix.data, matrix.kind, dtype, matrix.scale, out)


class QuantizedLinear(Quantized):
    def __init__(self, stored: Stored, bias: nn.Parameter | None, desk: Desk | None = None) -> None:
        super().__init__(stored)
        self.desk = desk
        self.out_features, self.in_features = self.rows, self.columns
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.desk is None or x.device.type != "cpu":
            return F.linear(x, self.dequantized(x.dtype), bias)
        return F.linear(x, self.desk.lay(self, x.dtype), bias)


class QuantizedEmbedding(Quantized):
    """`dtype` is that of what it gives."""

    def __init__(self, stored: Stored, dtype: torch.dtype) -> None:
        super().__init__(stored)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        scale = self.scale
        own = scale if scale is None or scale.shape[0] == 1 else scale[flat]
        return dequantize(self.data[flat], self.kind, self.dtype, own).reshape(*ids.shape, -1)


def install(
    module: nn.Module, name: str, stored: Stored, dtype: torch.dtype = torch.float32, desk: Desk | None = None
) -> bool:
    """Put the stored weight of this parameter's name in place of its Linear or Embedding; False if it is neither.

    A layer that several names share (umT5's embedding) is replaced under each.
    """
    path, _, kind = name.rpartition(".")
    layer = module.get_submodule(path)
    if kind != "weight" or stored.data.shape[0] != stored.shape[0]:
        return False
    if isinstance(layer, nn.Linear):
        new: Quantized = QuantizedLinear(stored, layer.bias, desk)
    elif isinstance(layer, nn.Embedding):
        new = QuantizedEmbedding(stored, dtype)
    else:
        return False
    same = [
        (parent, own)
        for parent in module.modules()
        for own, child in parent.named_children()
        if getattr(child, "weight", None) is layer.weight
    ]
    for parent, own in same:
        setattr(parent, own, new)
    return True


def held(module: nn.Module) -> dict[str, int]:
    """Bytes of each kind that a module holds; plain parameters count under their dtype."""
    sizes: dict[str, int] = {}
    for part in module.modules():
        if isinstance(part, Quantized):
            sizes[part.kind] = sizes.get(part.kind, 0) + part.nbytes
    for parameter in module.parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        sizes[kind] = sizes.get(kind, 0) + parameter.nbytes
    return sizes
