"""Names to modules: rename, check, assign. Strictly: one missing, unexpected or misshapen tensor is refused.

Modules are built on the meta device and take over the tensors of the file (`assign`): nothing is held twice.

Names. The transformer's are the official ones, the VAE's are diffusers', the encoders' are transformers'. The
other published layout of each is a table here, used in both directions:

    transformer    official <-> diffusers          VAE, umT5, CLIP    official -> diffusers / transformers
                                                   umT5               llama.cpp -> transformers
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from broll.engine import reading
from broll.engine.containers import open_tensors as _open
from broll.engine.stored import Entries, Entry, Stored, Value
from broll.errors import BadCheckpoint

V = TypeVar("V")
Tensors = dict[str, Callable[[], Tensor]]  # name -> read it now
Names = tuple[tuple[str, str], ...]  # regular expression -> replacement, in order

TRANSFORMER_TO_DIFFUSERS: Names = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^((?:vace_)?blocks\.\d+\.)modulation$", r"\1scale_shift_table"),
    (r"^((?:vace_)?blocks\.\d+\.)norm3\.", r"\1norm2."),  # diffusers numbers the norms in order of use
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"(\.attn\d\.)([qkv])\.", r"\1to_\2."),
    (r"(\.attn\d\.)o\.", r"\1to_out.0."),
    (r"\.([kv])_img\.", r".add_\1_proj."),
    (r"\.norm_k_img\.", ".norm_added_k."),
    (r"\.before_proj\.", ".proj_in."),
    (r"\.after_proj\.", ".proj_out."),
)
TRANSFORMER_FROM_DIFFUSERS: Names = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"^condition_embedder\.image_embedder\.pos_embed$", "img_emb.emb_pos"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"^((?:vace_)?blocks\.\d+\.)scale_shift_table$", r"\1modulation"),
    (r"^((?:vace_)?blocks\.\d+\.)norm2\.", r"\1norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"(\.attn\d\.)to_([qkv])\.", r"\1\2."),
    (r"(\.attn\d\.)to_out\.0\.", r"\1o."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
)
T5_FROM_OFFICIAL: Names = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
CLIP_FROM_OFFICIAL: Names = (
    (r"^visual\.patch_embedding\.", "embeddings.patch_embedding."),
    (r"^visual\.cls_embedding$", "embeddings.class_embedding"),
    (r"^visual\.pos_embedding$", "embeddings.position_embedding.weight"),
    (r"^visual\.pre_norm\.", "pre_layrnorm."),
    (r"^visual\.post_norm\.", "post_layernorm."),
    (r"^visual\.transformer\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^visual\.transformer\.(\d+)\.attn\.([qkv])\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"^visual\.transformer\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^visual\.transformer\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^visual\.transformer\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
)
T5_FROM_LLAMA: Names = (
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (
        r"^enc\.blk\.(\d+)\.attn_rel_b\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
VAE_RESIDUAL = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}


def rename(name: str, names: Names) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def vae_from_official(name: str, num_res_blocks: int = 2) -> str:
    """encoder.downsamples.0.residual.2.weight -> encoder.down_blocks.0.conv1.weight, and so on."""
    name = re.sub(r"\.residual\.([0236])\.", lambda m: f".{VAE_RESIDUAL[m[1]]}.", name)
    name = name.replace(".shortcut.", ".conv_shortcut.")
    name = re.sub(r"\.middle\.([02])\.", lambda m: f".mid_block.resnets.{int(m[1]) // 2}.", name)
    name = name.replace(".middle.1.", ".mid_block.attentions.0.")
    name = name.replace(".head.0.", ".norm_out.").replace(".head.2.", ".conv_out.")
    name = re.sub(r"^(en|de)coder\.conv1\.", r"\1coder.conv_in.", name)
    name = re.sub(r"^conv1\.", "quant_conv.", name)
    name = re.sub(r"^conv2\.", "post_quant_conv.", name)
    name = name.replace("encoder.downsamples.", "encoder.down_blocks.")
    return re.sub(r"^decoder\.upsamples\.(\d+)\.", lambda m: _upsampling(int(m[1]), num_res_blocks), name)


def _upsampling(number: int, num_res_blocks: int) -> str:
    block, place = divmod(number, num_res_blocks + 2)  # resnets and one upsampler a level
    inner = "upsamplers.0" if place > num_res_blocks else f"resnets.{place}"
    return f"decoder.up_blocks.{block}.{inner}."


def open_tensors(paths: list[Path]) -> Tensors:
    """Names in these files, each with a function that reads it as a plain tensor; nothing is read yet."""
    return {name: entry.plain for name, entry in _open(paths).items()}


def split_qkv(tensors: Mapping[str, V], third: Callable[[V, int], V]) -> dict[str, V]:
    """The official CLIP keeps q, k and v of a layer in one tensor; transformers wants three."""
    parts: dict[str, V] = {}
    for name, tensor in tensors.items():
        if ".attn.to_qkv." not in name:
            parts[name] = tensor
            continue
        for place, letter in enumerate("qkv"):
            parts[name.replace("to_qkv", letter)] = third(tensor, place)
    return parts


def assign(
    module: nn.Module,
    entries: Entries,
    *,
    source: Path,
    dtype: Callable[[str], torch.dtype] = lambda name: torch.float32,
    keep: Callable[[str, Stored], bool] = lambda name, stored: False,
    put_off: Callable[[str, Entry], bool] = lambda name, entry: False,
    halves: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give every parameter of a meta-device module its tensor; `entries` are under the module's own names.

    `keep` may take over a quantized tensor (quantized.install) by saying True; the others become plain. It is also
    shown the 16-bit matrices of those names that are among the `halves`, if they are to be cast. What is
    `put_off` is checked but not read, and stays on the meta device (offload.Away).
    """
    everything = module.state_dict(keep_vars=True)
    wanted = {**dict(module.named_parameters()), **persistent_buffers(module)}
    tied = {name: first for name, tensor in everything.items() for first in wanted if wanted[first] is tensor}
    check(set(wanted), set(everything), entries, source)
    for name, parameter in wanted.items():  # all of them, before the first is read
        check_shape(entries[name], parameter, source)
    state: dict[str, Tensor] = {}
    ahead = reading.Ahead()
    for name in sorted(wanted, key=lambda name: reading.order(entries[name])):
        entry, parameter = entries[name], wanted[name]
        if put_off(name, entry):
            continue
        ahead(entry)
        value = read(entry, source, dtype(name), stays=halves(name))
        if isinstance(value, Stored) and value.shape == parameter.shape and keep(name, value):
            continue
        value = value.tensor(dtype(name)) if isinstance(value, Stored) else value
        # CLIP's class embedding is [1, 1, c] or [c]
        state[name] = value.reshape(parameter.shape).to(dtype(name))
    module.load_state_dict(
        {name: state[tied[name]] for name in everything if tied[name] in state}, strict=False, assign=True
    )
    module.requires_grad_(False)


def check(wanted: set[str], possible: set[str], entries: Entries, source: Path) -> None:
    """Every name, and no other."""
    extra = sorted((entry.key, entry.file) for name, entry in entries.items() if name not in possible)
    missing = sorted(name for name in wanted if name not in entries)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0][0]}, which this model does not have"
        count = f"; {len(missing)} missing, {len(extra)} unexpected in all"
        where = source if missing else extra[0][1] or source
        raise BadCheckpoint(f"{where} {what}{count}: is it a checkpoint of another model?")


def check_shape(entry: Entry, parameter: Tensor, source: Path) -> None:
    got, needed = entry.shape, tuple(parameter.shape)
    if got != needed and [n for n in got if n != 1] != [n for n in needed if n != 1]:
        raise BadCheckpoint(
            f"{entry.file or source}: {entry.key} has shape {list(got)}, this model needs {list(needed)}: "
            "is it a checkpoint of another model?"
        )


def read(entry: Entry, source: Path, dtype: torch.dtype, *, stays: bool = False) -> Value:
    """As the file has it, mapped if it can be; plain numbers of another dtype already cast, unless they stay."""
    try:
        if stays and reading.stays(entry, dtype):
            return reading.kept(entry)
        return reading.cast(entry, dtype) if reading.can_cast(entry, dtype) else entry.read()
    except Exception as error:  # safetensors, torch and numpy each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpoint(f"{entry.file or source}: {entry.key} cannot be read: {reason}") from error


def persistent_buffers(module: nn.Module) -> Mapping[str, Tensor]:
    """Buffers that a checkpoint holds."""
    state = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name in state}
