"""Causal 3-D autoencoder: pixels to latents and back, frame by frame in time.

Every layer at time f sees only frames <= f, so a clip of any length streams through in chunks: what a
layer needs of the past is kept in `memory`, a dict that the caller owns, one per clip. In chunks or at
once, the result is the same.

    encoder   1 frame -> 1 latent, then 4 frames -> 1 latent;   decoder   the way back
    stride    2 ** (levels - 1) * patch_size in space, 4 in time

    WAN 2.1, section 4.2              https://arxiv.org/abs/2503.20314
    parameter names and `patch_size`  diffusers, AutoencoderKLWan

The decoder may compute in another precision than the encoder: what it makes is looked at, and nothing is computed from
it any more. On a GPU, weights lie with their channels last (`channels_last`).

The layers are in vae_layers.py; tiles are in tiles.py, which wraps the seam `VAE.stream`. Left out: the residual
variant of WAN 2.2.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.config import VAEConfig
from broll.engine.shapes import TEMPORAL_STRIDE, Latent, Video, latent_frames, pixel_frames
from broll.engine.vae_layers import (
    CausalConv3d,
    Downsample,
    Memory,
    MiddleBlock,
    ResidualBlock,
    RMSNorm,
    Upsample,
    normed,
)

Stream = Callable[[Latent], Iterator[Tensor]]
DECODES = ("decoder.", "post_quant_conv.")  # how the names of what decodes begin
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of a weight's axes


def by_frame(finest: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Causal layers, one frame after the other: the same numbers, where a whole chunk would take most of the memory.

    With gradients all at once: then everything is held anyway.
    """
    if torch.is_grad_enabled():
        return finest(x)
    return torch.cat([finest(frame) for frame in x.split(1, dim=2)], dim=2)


def whole(level: int, x: Tensor) -> Tensor:  # noqa: ARG001  the untiled decoder keeps everything
    return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(3 * config.patch_size**2, dims[0], (3, 3, 3))
        layers: list[nn.Module] = []
        for level, (dim_in, dim_out) in enumerate(zip(dims, dims[1:], strict=False)):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(dim_in, dim_out))
                dim_in = dim_out
            if level < len(config.dim_mult) - 1:
                layers.append(Downsample(dim_out, time=config.temporal_downsample[level]))
        self.down_blocks = nn.ModuleList(layers)
        self.full_size = config.num_res_blocks  # so many of them see every pixel
        self.mid_block = MiddleBlock(dims[-1])
        self.norm_out = RMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], config.z_dim * 2, (3, 3, 3))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        blocks = list(self.down_blocks)
        halving = blocks[self.full_size]
        assert isinstance(halving, Downsample)

        def finest(x: Tensor) -> Tensor:
            x = self.conv_in(x, memory)
            for block in blocks[: self.full_size]:
                x = block(x, memory)
            return halving.in_space(x)

        x = halving.in_time(by_frame(finest, x), memory)
        for block in blocks[self.full_size + 1 :]:
            x = block(x, memory)
        x = self.mid_block(x, memory)
        return self.conv_out(normed(self.norm_out, x), memory)


class UpBlock(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, config: VAEConfig, *, last: bool, time: bool) -> None:
        super().__init__()
        dims = [dim_in] + [dim_out] * (config.num_res_blocks + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(dims, dims[1:], strict=False))
        self.upsamplers = None if last else nn.ModuleList([Upsample(dim_out, time=time)])

    def in_time(self, x: Tensor, memory: Memory) -> Tensor:
        """All but the doubling of height and width."""
        for resnet in self.resnets:
            x = resnet(x, memory)
        return x if self.upsample is None else self.upsample.in_time(x, memory)

    def in_space(self, x: Tensor) -> Tensor:
        return x if self.upsample is None else self.upsample.in_space(x)

    @property
    def upsample(self) -> Upsample | None:
        found = None if self.upsamplers is None else self.upsamplers[0]
        assert found is None or isinstance(found, Upsample)
        return found


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [(config.decoder_base_dim or config.base_dim) * m for m in reversed(config.dim_mult)]
        self.conv_in = CausalConv3d(config.z_dim, dims[0], (3, 3, 3))
        self.mid_block = MiddleBlock(dims[0])
        blocks, dim_in = [], dims[0]
        for level, dim_out in enumerate(dims):
            last = level == len(dims) - 1
            time = not last and config.temporal_downsample[::-1][level]
            blocks.append(UpBlock(dim_in, dim_out, config, last=last, time=time))
            dim_in = dim_out // 2  # each Upsample halves the channels
        self.up_blocks = nn.ModuleList(blocks)
        self.norm_out = RMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], 3 * config.patch_size**2, (3, 3, 3))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.rise(self.middle(x, memory), memory)

    def middle(self, x: Tensor, memory: Memory) -> Tensor:
        """At the size of the latent, where every place of a frame attends all others."""
        return self.mid_block(self.conv_in(x, memory), memory)

    def rise(self, x: Tensor, memory: Memory, kept: Callable[[int, Tensor], Tensor] = whole) -> Tensor:
        """To the size of the pixels; from here on a place sees its neighbours only. `kept` is told the level, and what
        came of it, and gives what goes on (tiles.py cuts off what its tile does not need).
        """
        *coarse, half, full = (block for block in self.up_blocks if isinstance(block, UpBlock))
        for level, block in enumerate(coarse):
            x = kept(level, block.in_space(block.in_time(x, memory)))
        x = half.in_time(x, memory)

        def finest(x: Tensor) -> Tensor:
            x = kept(len(coarse), half.in_space(x))
            x = kept(len(coarse) + 1, full.in_time(x, memory))
            return self.conv_out(normed(self.norm_out, x), memory)

        return by_frame(finest, x)


class VAE(nn.Module):
    """`encode` and `decode` take and give normalised latents; both work chunk by chunk.

    `stream` is how a clip is decoded, and `passes` how often it goes through the latents before frames come.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(config.z_dim * 2, config.z_dim * 2, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        self.stream: Stream = self.by_latent
        self.passes = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder."""
        return self.quant_conv.weight.dtype

    @property
    def decoder_dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype

    def moments(self, x: Video, memory: Memory) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents of one chunk, not normalised."""
        x = space_to_channels(x, self.config.patch_size)
        mean, logvar = self.quant_conv(self.encoder(x, memory), memory).chunk(2, dim=1)
        return mean, logvar

    def pixels(self, z: Tensor, memory: Memory) -> Video:
        """One chunk of latents, not normalised, to pixels, not clamped."""
        x = self.decoder(self.post_quant_conv(z, memory), memory)
        return channels_to_space(x, self.config.patch_size)

    def encode_stream(self, chunks: Iterable[Float[Tensor, "b 3 _ H W"]]) -> Iterator[Latent]:
        """Chunks of pixel frames (the first of 1 + 4k frames, later ones of 4k) to latents, as they come."""
        memory: Memory = {}
        mean, std = self._statistics()
        for chunk in chunks:
            mu, _ = self.moments(chunk.to(mean.device, self.dtype), memory)
            yield (mu.float() - mean) / std

    def encode(self, video: Video) -> Latent:
        """All latents of a clip of 4k + 1 frames: the means, as the official code takes them."""
        first, rest = video[:, :, :1], video[:, :, 1:]
        chunks = [first, *(rest.split(TEMPORAL_STRIDE, dim=2) if rest.shape[2] else ())]
        return gathered(self.encode_stream(chunks), latent_frames(video.shape[2]))

    def decode_stream(self, z: Latent) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        """Pixels in [-1, 1]: 1 frame, then 4 at a time. No frames at all mean that some work is done, and no more."""
        return self.stream(z)

    def by_latent(self, z: Latent) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        """Latent by latent. Memory does not grow with f."""
        memory: Memory = {}
        for latent in z.split(1, dim=2):
            yield self.pixels(self.raw(latent), memory).float().clamp(-1, 1)

    def raw(self, z: Latent) -> Latent:
        """As the decoder takes them."""
        mean, std = self._statistics()
        return (z.to(mean.device) * std + mean).to(self.decoder_dtype)

    def decode(self, z: Latent) -> Video:
        return gathered(self.decode_stream(z), pixel_frames(z.shape[2]))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Latent mean and deviation, [1, c, 1, 1, 1] in fp32."""
        device = self.quant_conv.weight.device
        mean, std = torch.tensor([self.config.latents_mean, self.config.latents_std], device=device)
        return mean[None, :, None, None, None], std[None, :, None, None, None]


def gathered(chunks: Iterable[Tensor], frames: int) -> Tensor:
    """All chunks in one tensor, each let go as soon as it is there: torch.cat would hold everything twice."""
    whole: Tensor | None = None
    done = 0
    for chunk in chunks:
        if whole is None:
            whole = chunk.new_empty(*chunk.shape[:2], frames, *chunk.shape[3:])
        whole[:, :, done : done + chunk.shape[2]] = chunk
        done += chunk.shape[2]
        del chunk  # it need not live beside its successor
    assert whole is not None
    assert done == frames
    return whole


def channels_last(vae: VAE) -> VAE:
    """The same numbers in the order in which cuDNN convolves fastest. What a convolution gives has the order of its
    weights, so that nothing is turned round in between.
    """
    for parameter in vae.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    return vae


def space_to_channels(x: Tensor, patch: int) -> Tensor:
    """B c f (h q) (w r) -> b (c r q) f h w, diffusers' order of the patch's pixels."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # b c f h q w r
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def channels_to_space(x: Tensor, patch: int) -> Tensor:
    """B (c r q) f h w -> b c f (h q) (w r)"""
    x = x.unflatten(1, (-1, patch, patch))  # b c r q f h w
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
