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

Left out: the residual variant of WAN 2.2. Tiles are in tiles.py, which wraps the seam `VAE.stream`.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.config import VAEConfig
from broll.engine.shapes import TEMPORAL_STRIDE, Latent, Video, latent_frames, pixel_frames

SMALL = 20_480  # use_mkldnn's number
Memory = dict[nn.Module, list[Tensor]]  # the last frames each causal layer saw, one by one
Stream = Callable[[Latent], Iterator[Tensor]]
DECODES = ("decoder.", "post_quant_conv.")  # how the names of what decodes begin
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of a weight's axes


class CausalConv3d(nn.Conv3d):
    """Convolution over (f, h, w) that pads time on the left only. `stride` in time needs no past."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], time_stride: int = 1) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(dim_in, dim_out, kernel, stride=(time_stride, 1, 1), padding=padding)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        keep = self.kernel_size[0] - 1
        if keep:
            past = memory.pop(self, None) or [x.new_zeros(*x.shape[:2], 1, *x.shape[3:])] * keep
            # A frame on its own is kept as it is; a view of one among others would keep them all alive.
            seen = [x] if x.shape[2] == 1 else [frame.clone() for frame in x[:, :, -keep:].split(1, dim=2)]
            memory[self] = [*past, *seen][-keep:]
            x = torch.cat([*past, x], dim=2)
            del past, seen  # they need not live while this is computed
        return self.onednn(x) if overlooked(x) else super().forward(x)

    def onednn(self, x: Tensor) -> Tensor:
        """What torch takes for larger chunks."""
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def overlooked(x: Tensor) -> bool:
    """Whether torch would leave oneDNN out: its rule for pictures counts b c f h of a video, and so many are small.

    With nano's chunks that costs more than half of the decoder's time. ATen/native/Convolution.cpp, use_mkldnn.
    """
    small = x.device.type == "cpu" and x.dtype == torch.float32 and math.prod(x.shape[:4]) <= SMALL
    return small and torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()


class RMSNorm(nn.Module):
    """Unit length over channels, times sqrt(channels) and a learned gain; any number of trailing axes."""

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).clamp(min=1e-12)
        gain = self.scale * self.gamma
        if torch.is_grad_enabled():
            return (x / length).to(x.dtype) * gain
        return torch.div(x, length, out=torch.empty_like(x)).mul_(gain)  # in bf16 too, no copy of x in fp32


def activated(x: Tensor) -> Tensor:
    """SiLU of a norm's output, in its place where no gradient needs it: the decoder's peak is made of such copies."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim_in, 3)
        self.conv1 = CausalConv3d(dim_in, dim_out, (3, 3, 3))
        self.norm2 = RMSNorm(dim_out, 3)
        self.conv2 = CausalConv3d(dim_out, dim_out, (3, 3, 3))
        self.conv_shortcut = CausalConv3d(dim_in, dim_out, (1, 1, 1)) if dim_in != dim_out else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x, memory)
        x = activated(self.norm1(x))
        x = self.conv1(x, memory)
        x = activated(self.norm2(x))  # one name, so that what came before is let go
        x = self.conv2(x, memory)
        return x.add_(shortcut)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame on its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        y = frames_to_batch(x)
        # contiguous: on the transposed view every fused kernel declines, and all logits of a frame are written out
        qkv = self.to_qkv(self.norm(y)).flatten(2).transpose(1, 2).contiguous()
        q, k, v = qkv[:, None].chunk(3, dim=-1)
        out = self.attend(q, k, v)[:, 0].transpose(1, 2).reshape_as(y)
        return x + batch_to_frames(self.proj(out), x.shape[0])


class MiddleBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(dim, dim), ResidualBlock(dim, dim)])
        self.attentions = nn.ModuleList([FrameAttention(dim)])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.resnets[0](x, memory)
        x = self.attentions[0](x, memory)
        return self.resnets[1](x, memory)


class Downsample(nn.Module):
    """Halve height and width; with `time`, also halve the frames after the clip's first."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), time_stride=2) if time else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.in_time(self.in_space(x), memory)

    def in_space(self, x: Tensor) -> Tensor:
        return batch_to_frames(self.resample(frames_to_batch(x)), x.shape[0])

    def in_time(self, x: Tensor, memory: Memory) -> Tensor:
        if self.time_conv is None:
            return x
        last = memory.get(self)
        memory[self] = [x[:, :, -1:].clone()]
        if last is not None:
            return nn.Conv3d.forward(self.time_conv, torch.cat([*last, x], dim=2))
        first = x[:, :, :1]  # the clip's first frame has no partner and passes as it is
        if x.shape[2] == 1:
            return first
        return torch.cat([first, nn.Conv3d.forward(self.time_conv, x)], dim=2)


class Upsample(nn.Module):
    """Double height and width, halve the channels; with `time`, also double the frames after the first."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            nn.Conv2d(dim, dim // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if time else None

    def in_space(self, x: Tensor) -> Tensor:
        return batch_to_frames(self.resample(frames_to_batch(x)), x.shape[0])

    def in_time(self, x: Tensor, memory: Memory) -> Tensor:
        if self.time_conv is None:
            return x
        first = x[:, :, :0]
        if self not in memory:  # the clip's first frame stays single, and later ones never see it
            memory[self] = []
            first, x = x[:, :, :1], x[:, :, 1:]
        if x.shape[2] == 0:
            return first
        pair = self.time_conv(x, memory).unflatten(1, (2, -1))  # b 2 c f h w
        return torch.cat([first, pair.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)


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
        return self.conv_out(activated(self.norm_out(x)), memory)


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
            return self.conv_out(activated(self.norm_out(x)), memory)

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


def frames_to_batch(x: Tensor) -> Tensor:
    """B c f h w -> (b f) c h w"""
    return x.transpose(1, 2).flatten(0, 1)


def batch_to_frames(x: Tensor, batch: int) -> Tensor:
    """(b f) c h w -> b c f h w"""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def space_to_channels(x: Tensor, patch: int) -> Tensor:
    """B c f (h q) (w r) -> b (c r q) f h w, diffusers' order of the patch's pixels."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # b c f h q w r
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def channels_to_space(x: Tensor, patch: int) -> Tensor:
    """B (c r q) f h w -> b c f (h q) (w r)"""
    x = x.unflatten(1, (-1, patch, patch))  # b c r q f h w
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
