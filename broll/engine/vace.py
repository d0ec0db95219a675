"""VACE: a transformer that also follows a control video, through hints.

    c  = control video -> patches -> tokens                              vace_patch_embedding
    c  = before_proj(c) + x                                              in the first of its blocks
    c  = block(c);  hint = after_proj(c)                                 vace_blocks, given the same text and time
    x  = block(x);  x += scale * hint                                    after each main block in `vace_layers`

The control video is, per latent frame: 16 channels of what is kept, 16 of what is to be made anew, and the mask
between them, each 8x8 pixels of it as 64 channels. With nothing to follow, everything is to be made anew.

The hints need only the tokens before the first block, so each is computed where it is added: one is held, not all.

    VACE                     https://arxiv.org/abs/2503.07598
    parameter names          the official checkpoints (wan/modules/vace_model.py)
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.config import TransformerConfig
from broll.engine.shapes import TEMPORAL_STRIDE, Grid, Latent, Tokens, Video
from broll.engine.transformer import Block, Context, Transformer, patches
from broll.engine.vae import VAE


class HintBlock(Block):
    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__(config, config.num_layers + index)  # layers of attention are counted on
        if index == 0:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)


class VACE(Transformer):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        assert config.vace_in_dim is not None
        assert config.vace_layers[0] == 0
        self.vace_patch_embedding = nn.Conv3d(
            config.vace_in_dim, config.dim, config.patch_size, stride=config.patch_size
        )
        self.vace_blocks = nn.ModuleList(HintBlock(config, i) for i in range(len(config.vace_layers)))

    def follow(self, context: Context, control: Float[Tensor, "b _ f h w"], scale: float = 1.0) -> Context:
        """The context with a control video, whose hints weigh `scale`. Embedded once per prompt."""
        return replace(context, control=patches(self.vace_patch_embedding, control), control_scale=scale)

    def hints(self, x: Tokens, context: Context) -> Iterator[Tokens]:
        """One for each of `vace_layers`, in order; `x` are the tokens before the first block."""
        assert context.control is not None, "VACE is given a control video: see `free` for an empty one"
        low = context.dtype
        c = self.vace_blocks.get_submodule("0.before_proj")(context.control.to(low)) + x
        for block in self.vace_blocks:
            assert isinstance(block, HintBlock)
            c = block(c, context)
            yield block.after_proj(c.to(low))

    def each_block(self, tokens: Tokens, context: Context) -> Iterator[Tokens]:
        hints = self.hints(tokens, context)
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, context)
            if layer in self.config.vace_layers:
                tokens = tokens + next(hints) * context.control_scale
            yield tokens


def transformer(config: TransformerConfig) -> Transformer:
    """The class that has these numbers, with random weights."""
    return VACE(config) if config.vace_layers else Transformer(config)


def free(vae: VAE, frames: int, height: int, width: int) -> Float[Tensor, "1 _ f h w"]:
    """The control video that asks for nothing: grey, and all of it to be made anew. Then VACE is text-to-video."""
    grey = torch.cat(list(vae.encode_stream(grey_chunks(frames, height, width))), dim=2)
    return control(grey, grey, torch.ones(1, 1, frames, height, width), vae.config.spatial_stride)


def grey_chunks(frames: int, height: int, width: int) -> Iterator[Video]:
    yield torch.zeros(1, 3, 1, height, width)
    for _ in range(1, frames, TEMPORAL_STRIDE):
        yield torch.zeros(1, 3, TEMPORAL_STRIDE, height, width)


def control(
    kept: Latent, anew: Latent, mask: Float[Tensor, "1 1 F H W"], stride: int
) -> Float[Tensor, "1 _ f h w"]:
    """Latents of what is kept and of what is not, and the mask (1: made anew), `stride` squared channels of it.

    Of the pixel frames that a latent frame stands for, the mask of one is taken (nearest-exact, as in wan/vace.py).
    """
    grid = Grid(*kept.shape[2:])
    folded = nn.functional.pixel_unshuffle(mask[0].transpose(0, 1), stride).transpose(0, 1)[None]
    folded = nn.functional.interpolate(
        folded, size=(grid.frames, grid.height, grid.width), mode="nearest-exact"
    )
    return torch.cat([kept, anew, folded.to(kept)], dim=1)
