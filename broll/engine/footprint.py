"""Bytes of every part: weights as they are kept, and what is alive while a part runs.

    weights    the entries of the checkpoint's own headers, each as load.py will keep it: quantized matrices in their
               bytes, islands in fp32, the rest in the precision chosen; without a checkpoint, from the shapes
    working    the real modules run on the meta device at the clip's own size, under a mode that sees every tensor
               come and go; what was alive at most is what the part needs

So nothing here repeats the code that it is about: a change of transformer.py or vae.py changes the answer.

Left out: what a library holds inside one operation (but for convolutions on a CPU, see `workspace`), and fragmentation.
"""

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from broll.engine import load, offload, outlines, packed, shapes, tiles, vace
from broll.engine.attention import AttendCall
from broll.engine.config import ImageConfig, ModelConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.dequantize import EVERY, KINDS
from broll.engine.formats import Opened
from broll.engine.image_encoder import clip_vision
from broll.engine.load import Precision, on_meta
from broll.engine.shapes import Grid, Heads, Keys
from broll.engine.sources import sources
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Block, parameter_dtype
from broll.engine.vae import VAE

Bytes = Mapping[str, int]  # by component

PLAIN = Precision()  # nothing is kept in another form than it is computed in

# --- weights ----------------------------------------------------------------------------------------------


def kept(folder: Path, config: ModelConfig, precision: Precision) -> dict[str, int]:
    """What each component of this checkpoint takes in memory; only headers are read."""
    needed = ["transformer", "vae", "text_encoder"] + ([] if config.image is None else ["image_encoder"])
    found = sources(folder)
    return {
        name: of_opened(found[name].open(), dtypes(precision)[name], precision)
        for name in needed
        if name in found
    }


def dtypes(precision: Precision) -> dict[str, Callable[[str], torch.dtype]]:
    """What load.py gives each parameter, by component."""
    return {
        "transformer": lambda name: parameter_dtype(name, precision.linears),
        "vae": precision.of_vae,
        "text_encoder": lambda name: precision.text,
        "image_encoder": lambda name: precision.image,
    }


def of_opened(opened: Opened, dtype: Callable[[str], torch.dtype], how: Precision = PLAIN) -> int:
    stays, kinds = load.STAYS.get(opened.component), EVERY if how.halves else KINDS
    total = 0
    for name, entry in opened.entries.items():
        matrix = len(entry.shape) == 2 and stays is not None and stays(name)
        if matrix and how.int8 and opened.component == "transformer" and entry.kind not in KINDS:
            total += stored("I8", entry.shape[0] * entry.shape[1])
        elif matrix and entry.kind in kinds:
            total += stored(entry.kind, entry.shape[0] * entry.shape[1])
        else:
            total += functools.reduce(int.__mul__, entry.shape, 1) * dtype(name).itemsize
    return total


@functools.lru_cache(maxsize=64)
def streamed(held: int, config: ModelConfig, precision: Precision, device: str) -> tuple[int, int]:
    """Of a transformer's bytes: those that leave when its blocks are streamed, and the rooms that they pass through."""
    c, low = config.transformer, precision.linears
    stay = numbers = 0
    for name, parameter in on_meta(lambda: vace.transformer(c)).named_parameters():
        if offload.MATRIX.fullmatch(name) is None:
            stay += parameter.numel() * parameter_dtype(name, low).itemsize
        else:
            numbers += parameter.numel()
    blocks, away = c.num_layers + len(c.vace_layers), held - stay
    inside = (
        numbers * low.itemsize if precision.halves and away > 1.5 * numbers else away
    )  # halves are cast on the way
    rooms = min(offload.ROOMS, blocks)
    if device == "cpu" and low == torch.bfloat16 and packed.available():
        rooms += 1  # the block that runs is packed beside them
    return away, math.ceil(inside / blocks) * rooms


def stored(kind: str, values: int) -> int:
    return values // EVERY[kind].values * EVERY[kind].bytes


@functools.lru_cache(maxsize=64)
def built(config: ModelConfig, precision: Precision, form: str | None = None) -> Bytes:
    """The same of a model that is not here; with a form of dequantize.EVERY, as if its matrices were kept in it."""
    forms = {"transformer": form, "text_encoder": form}
    if form is None and precision.halves:
        forms = {"transformer": "BF16", "text_encoder": "BF16"}  # as they are published
    if form is None and precision.int8:
        forms["transformer"] = "I8"
    image = config.image
    makers: dict[str, Callable[[], nn.Module]] = {
        "transformer": lambda: vace.transformer(config.transformer),
        "vae": lambda: VAE(config.vae),
        "text_encoder": lambda: umt5(config.text),
    }
    if image is not None:
        makers["image_encoder"] = lambda: clip_vision(image)
    sizes = {}
    for component, make in makers.items():
        stays, form, total = load.STAYS.get(component), forms.get(component), 0
        for name, parameter in on_meta(make).named_parameters():
            if form is not None and parameter.dim() == 2 and stays is not None and stays(name):
                total += stored(form, parameter.numel())
            else:
                total += parameter.numel() * dtypes(precision)[component](name).itemsize
        sizes[component] = total
    return sizes


# --- what is alive ----------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made under it and still are; `most` is their maximum."""

    def __init__(self, workspace: Callable[[Any, Any, Any], int]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        self._workspace = workspace

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it, and to say so torch would import its compiler: two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outline = outlines.OUTLINES.get(func) if outlines.on_meta_only(args, kwargs or {}) else None
        out = (outline or func)(*args, **(kwargs or {}))
        given = {_key(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in given | self._known:
                self._add(tensor.untyped_storage())
        self.most = max(self.most, self.now + self._workspace(func, args, out))
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  what tells one storage from another
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


class FusedAttention(TorchFunctionMode):
    """On the meta device torch would write out the whole matrix of logits, which no device's own kernel does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return args[0].new_empty(args[0].shape)
        return func(*args, **(kwargs or {}))


def workspace(device: str) -> Callable[[Any, Any, Any], int]:
    """What an operation takes while it runs. On a CPU, oneDNN convolves in its own layout: input and output again."""

    def of(func: Any, args: Any, out: Any) -> int:
        if device != "cpu" or func is not torch.ops.aten.convolution.default:
            return 0
        return int(args[0].nbytes + out.nbytes)

    return of


@contextmanager
def watched(device: str) -> Iterator[Alive]:
    with torch.no_grad(), torch.device("meta"), FusedAttention(), Alive(workspace(device)) as alive:
        yield alive


def attend(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """In place of any kernel: they all hold the result and a block of logits, which is small."""
    return q.new_empty(q.shape)


@functools.lru_cache(maxsize=256)
def forward(
    c: TransformerConfig, latent: Grid, text: int, image: int, low: torch.dtype, device: str, matrix: int = 0
) -> int:
    """Denoising with guidance: one forward, and what is remembered of two prompts. `matrix`: see `largest`."""
    hints = (0,) if c.vace_layers else ()
    model = on_meta(lambda: vace.transformer(replace(c, num_layers=1, vace_layers=hints))).eval()
    model.compute_dtype = low
    model.use(attend)
    if device == "cpu" and low == torch.bfloat16 and packed.available():
        for block in model.modules():
            if isinstance(block, Block):
                block.ffn[1] = nn.Identity()  # packed Linears make GELU inside the product
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, low))
    with watched(device) as alive:
        features = torch.empty(1, text, c.text_dim)
        clip = torch.empty(1, image, c.image_dim or 1) if image else None
        shape = (latent.frames, latent.height, latent.width)
        context = model.context(latent, features, clip)
        if isinstance(model, vace.VACE):
            context = model.follow(context, torch.empty(1, c.vace_in_dim or 1, *shape))
        before = alive.now
        model(torch.empty(1, c.in_dim, *shape), torch.empty(1), context)
    latents = 12 * 4 * c.out_dim * latent.size  # the sampler's: noise, x, x0, its history, two velocities
    known = 2 * 2 * (text + image) * c.dim * low.itemsize * (c.num_layers + len(c.vace_layers))
    return alive.most + before + latents + known + matrix


def largest(held: int, c: TransformerConfig, low: torch.dtype) -> int:
    """The greatest matrix in plain form, beside its bytes, where what is held is too little for plain blocks."""
    plain = (c.num_layers + len(c.vace_layers)) * (8 * c.dim**2 + 2 * c.dim * c.ffn_dim) * low.itemsize
    return c.dim * c.ffn_dim * (low.itemsize + 4) if held < 0.9 * plain else 0


@functools.lru_cache(maxsize=256)
def decode(
    c: VAEConfig, height: int, width: int, frames: int, dtype: torch.dtype, device: str, count: int = 1
) -> int:
    """Latents of this height and width to frames. From the third latent on nothing grows any more. In more tiles than
    one, the first needs most, and of every latent something is kept: what comes of it in the middle, and its frames,
    which do not count where they wait in main memory.
    """
    model, some = tiles.use(on_meta(lambda: VAE(c)).to(dtype), count), min(3, frames)
    with watched(device) as alive:
        stream = model.decode_stream(torch.empty(1, c.z_dim, some, height, width))
        for _ in itertools.islice(stream, some):
            pass
    if count == 1:
        return alive.most
    middle = model.decoder.conv_in.out_channels * height * width * dtype.itemsize
    a_frame = 3 * height * width * c.spatial_stride**2 * torch.float32.itemsize
    shown = shapes.pixel_frames(some), shapes.pixel_frames(frames)
    waiting = -shown[0] if device == "cuda" else shown[1] - shown[0]
    return alive.most + (frames - some) * middle + waiting * a_frame


@functools.lru_cache(maxsize=256)
def encode(c: VAEConfig, height: int, width: int, frames: int, dtype: torch.dtype, device: str) -> int:
    """Frames of this height and width in pixels to latents."""
    model = on_meta(lambda: VAE(c)).to(dtype)
    with watched(device) as alive:
        lengths = (1, 4, 4)[: shapes.latent_frames(frames)]
        chunks = (torch.empty(1, 3, length, height, width) for length in lengths)
        for _ in model.encode_stream(chunks):
            pass
    return alive.most


def text_encoder(c: TextConfig, tokens: int, dtype: torch.dtype) -> int:
    """One layer's tensors, its logits among them: small beside its weights, so they are counted, not watched."""
    inner = c.num_heads * c.d_kv
    return dtype.itemsize * (tokens * (4 * c.d_model + 4 * inner + 3 * c.d_ff) + 3 * c.num_heads * tokens**2)


def image_encoder(c: ImageConfig, tokens: int, dtype: torch.dtype) -> int:
    """The states of all layers, which transformers keeps, and one layer's tensors."""
    width = (c.num_layers + 1 + 8) * c.hidden_size + 2 * c.intermediate_size
    return dtype.itemsize * (tokens * width + 3 * c.num_heads * tokens**2)
