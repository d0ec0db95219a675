"""What the autoencoder is made of (vae.py): layers over [b, c, f, h, w] that see no frame behind their own.

What a causal layer needs of the past lies in `memory`, which the caller owns.

    WAN 2.1, section 4.2    https://arxiv.org/abs/2503.20314
    parameter names         diffusers, AutoencoderKLWan
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 20_480  # use_mkldnn's number
Memory = dict[nn.Module, list[Tensor]]  # the last frames each causal layer saw, one by one


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


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    return activated(norm(x))


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
        x = normed(self.norm1, x)
        x = self.conv1(x, memory)
        x = normed(self.norm2, x)  # one name, so that what came before is let go
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
    """B c f h w. First halve h and w (`in_space`, each frame alone); with `time`, then also the frames after the clip's
    first (`in_time`).
    """

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
    """B c f h w. With `time`, first double the frames after the clip's first (`in_time`); then double h and w and
    halve c (`in_space`, each frame alone).
    """

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


def frames_to_batch(x: Tensor) -> Tensor:
    """B c f h w -> (b f) c h w"""
    return x.transpose(1, 2).flatten(0, 1)


def batch_to_frames(x: Tensor, batch: int) -> Tensor:
    """(b f) c h w -> b c f h w"""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
