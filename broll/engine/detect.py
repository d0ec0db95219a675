"""What a component is, from the names and shapes of its tensors alone: for files that have no config.json.

    blocks        counted                        dim, in_dim, patch_size    patch_embedding.weight
    ffn_dim       blocks.0.ffn.0                 text_dim, freq_dim         text_embedding.0, time_embedding.0
    heads         dim / 128, as in all of them   image branch               img_emb.proj.0, img_emb.emb_pos
    task          16 channels: text; 36 and an image branch: image; positions for two images: first and last frame;
                  hint blocks: VACE, a hint after every k-th block, as evenly as the two counts allow

Any other combination (WAN 2.2, camera and control models) is named and refused.
"""

import math
import re

from broll.engine.config import Defaults, ImageConfig, Task, TextConfig, TransformerConfig, VAEConfig
from broll.engine.formats import Opened
from broll.errors import BadCheckpoint

HEAD_DIM = 128  # of every published transformer
CLIP_HEAD_DIM = 80  # of ViT-H/14
IMAGE_CHANNELS = 36  # 16 of noise, 4 of mask, 16 of the condition
CONTROL = "vace_patch_embedding.weight"
OTHERS = (  # a name that tells another kind of model
    (r"control_adapter\.", "a camera-controlled model"),
    (r"ref_conv\.", "a reference-controlled model"),
    (r"audio|casual_", "a speech-driven model"),
    (r"face_|motion_encoder", "an animation model"),
)
GENERAL = Defaults((832, 480), 832 * 480)


def shape(opened: Opened, name: str, axes: int) -> tuple[int, ...]:
    """Of one tensor that every model of the kind has."""
    entry = opened.entries.get(name)
    if entry is None:
        raise BadCheckpoint(f"{opened.source} lacks {name}: is it cut short, or of another model?")
    if len(entry.shape) != axes or not all(entry.shape):
        raise BadCheckpoint(
            f"{opened.source}: {entry.key} has shape {list(entry.shape)}; it needs {axes} axes"
        )
    return entry.shape


def layers(opened: Opened, pattern: str) -> int:
    """How many layers there are; numbered from 0, and none left out."""
    found = {int(match[1]) for name in opened.entries if (match := re.match(pattern, name))}
    missing = sorted(set(range(len(found))) - found)
    if missing or not found:
        example = pattern.replace(r"(\d+)", str(missing[0] if missing else 0)).replace("\\", "")
        raise BadCheckpoint(
            f"{opened.source} lacks {example}*, but has {len(found)} such layers: is it cut short?"
        )
    return len(found)


def transformer(opened: Opened, num_heads: int | None = None) -> TransformerConfig:
    for pattern, what in OTHERS:
        odd = next((entry.key for name, entry in opened.entries.items() if re.match(pattern, name)), None)
        if odd is not None:
            raise BadCheckpoint(f"{opened.source} is {what} (it has {odd}); possible are {tasks()}")
    dim, in_dim, *patch = shape(opened, "patch_embedding.weight", 5)
    positions = opened.entries.get("img_emb.emb_pos")
    image = "img_emb.proj.0.weight" in opened.entries
    head = shape(opened, "head.head.weight", 2)[0]
    if head % math.prod(patch) or (num_heads is None and dim % HEAD_DIM) or dim % (num_heads or 1):
        raise BadCheckpoint(
            f"{opened.source} has the width {dim} and {head} outputs for patches of {patch}; possible are widths "
            f"that are a multiple of {num_heads or HEAD_DIM}"
        )
    found = TransformerConfig(
        dim=dim,
        ffn_dim=shape(opened, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=num_heads or dim // HEAD_DIM,
        num_layers=layers(opened, r"blocks\.(\d+)\."),
        in_dim=in_dim,
        out_dim=head // math.prod(patch),
        text_dim=shape(opened, "text_embedding.0.weight", 2)[1],
        freq_dim=shape(opened, "time_embedding.0.weight", 2)[1],
        patch_size=(patch[0], patch[1], patch[2]),
        image_dim=shape(opened, "img_emb.proj.0.weight", 1)[0] if image else None,
        image_positions=None if positions is None else shape(opened, "img_emb.emb_pos", 3)[1],
        vace_layers=hinted(opened),
        vace_in_dim=shape(opened, CONTROL, 5)[1] if CONTROL in opened.entries else None,
    )
    check_task(found, opened)
    return found


def hinted(opened: Opened) -> tuple[int, ...]:
    """The blocks that VACE's hints are added after; the names tell only how many there are."""
    if CONTROL not in opened.entries:
        return ()
    blocks, hints = layers(opened, r"blocks\.(\d+)\."), layers(opened, r"vace_blocks\.(\d+)\.")
    if blocks % hints:
        raise BadCheckpoint(
            f"{opened.source} has {hints} hint blocks for {blocks} blocks; possible are divisors"
        )
    return tuple(range(0, blocks, blocks // hints))


def tasks() -> str:
    return "text-to-video and VACE (16 channels), image-to-video and first-last-frame (36 channels and an image branch)"


def check_task(c: TransformerConfig, opened: Opened) -> None:
    if c.in_dim != (c.out_dim if c.image_dim is None else IMAGE_CHANNELS):
        branch = "no image branch" if c.image_dim is None else "an image branch"
        raise BadCheckpoint(f"{opened.source} has {c.in_dim} channels and {branch}; possible are {tasks()}")


def task_of(transformer: TransformerConfig) -> Task:
    """From the numbers alone: 36 channels and the image branch make it image-to-video."""
    if transformer.vace_layers:
        return "vace"
    if transformer.image_dim is None:
        return "t2v"
    return "flf2v" if transformer.image_positions else "i2v"


def vae(opened: Opened) -> VAEConfig:
    """Widths and patch; the strict reading that follows finds out whether the rest is as published."""
    if any(".avg_shortcut." in name or ".downsamples." in name for name in opened.entries):
        raise BadCheckpoint(f"{opened.source} is WAN 2.2's autoencoder; this engine runs WAN 2.1")
    base, pixels, *_ = shape(opened, "encoder.conv_in.weight", 5)
    last = shape(opened, "decoder.conv_out.weight", 5)[1]
    patch = math.isqrt(pixels // 3)
    if pixels != 3 * patch**2:
        raise BadCheckpoint(f"{opened.source} takes {pixels} channels of pixels; possible are 3, 12, 27 ...")
    return VAEConfig(
        base_dim=base,
        decoder_base_dim=None if last == base else last,
        z_dim=shape(opened, "post_quant_conv.weight", 5)[0],
        patch_size=patch,
    )


def text(opened: Opened) -> TextConfig:
    vocabulary, width = shape(opened, "shared.weight", 2)
    first = "encoder.block.0.layer"
    heads = shape(opened, f"{first}.0.SelfAttention.relative_attention_bias.weight", 2)[1]
    return TextConfig(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shape(opened, f"{first}.0.SelfAttention.q.weight", 2)[0] // heads,
        d_ff=shape(opened, f"{first}.1.DenseReluDense.wi_0.weight", 2)[0],
        num_layers=layers(opened, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
    )


def image(opened: Opened, num_heads: int | None = None) -> ImageConfig:
    width, _, patch, _ = shape(opened, "embeddings.patch_embedding.weight", 4)
    positions = (
        math.prod(opened.entries["embeddings.position_embedding.weight"].shape[:-1])
        if ("embeddings.position_embedding.weight" in opened.entries)
        else 0
    )
    side = math.isqrt(max(0, positions - 1))
    if side**2 + 1 != positions or (num_heads is None and width % CLIP_HEAD_DIM):
        raise BadCheckpoint(
            f"{opened.source} has the width {width} and {positions} positions; possible are widths that are a "
            f"multiple of {CLIP_HEAD_DIM}, and a square of positions and one"
        )
    return ImageConfig(
        hidden_size=width,
        intermediate_size=shape(opened, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_layers=layers(opened, r"encoder\.layers\.(\d+)\."),
        num_heads=num_heads or width // CLIP_HEAD_DIM,
        image_size=side * patch,
        patch_size=patch,
    )
