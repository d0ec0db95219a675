"""The diffusion transformer: a noisy latent, a time and a text in, a velocity out.

    x      -> patches -> tokens                                          patch_embedding
    t      -> e, and six vectors for every block                         time_embedding, time_projection
    text, image -> tokens for cross-attention                            text_embedding, img_emb
    blocks:  x += gate1 * self_attention(norm1(x) * (1 + scale1) + shift1)
             x += cross_attention(norm3(x), text, image)
             x += gate2 * ffn(norm2(x) * (1 + scale2) + shift2)
    head:    norm(x) * (1 + scale) + shift -> patches -> v

Precision is the official one: the residual stream, norms, modulation, time, text and image embeddings,
patches and head are fp32; the Linears inside the blocks compute in `context.dtype`.

    WAN 2.1, section 4.2     https://arxiv.org/abs/2503.20314
    parameter names          the official checkpoints (wan/modules/model.py)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine import attention
from broll.engine.attention import Attend, AttendCall, merge_heads, split_heads
from broll.engine.config import TransformerConfig
from broll.engine.rope import Rotary, rotary, rotate
from broll.engine.shapes import Grid, Heads, Keys, Latent, TextTokens, Tokens, token_grid

KeysValues = dict[nn.Module, tuple[Keys, Keys]]


@dataclass(frozen=True)
class Context:
    """All that the blocks are given besides the tokens."""

    grid: Grid  # of the tokens
    rotary: Rotary
    text: TextTokens  # embedded
    dtype: torch.dtype  # of the Linears inside the blocks
    image: Float[Tensor, "b i m"] | None = None  # embedded CLIP tokens
    control: Tokens | None = None  # embedded control video, for VACE
    control_scale: float = 1.0  # weight of its hints
    text_bias: Float[Tensor, "l"] | None = None  # weight of collapsed padding, as a logit
    time: Float[Tensor, "b g 6 m"] | None = (
        None  # set anew for every step; g: one, or one of each latent frame
    )
    branch: str = "positive"
    step: int = 0
    memory: KeysValues | None = field(default_factory=dict)  # cross-attention keys and values; None: no reuse

    def call(self, kind: str, layer: int) -> AttendCall:
        bias = self.text_bias if kind == "text" else None
        return AttendCall(kind, layer, self.grid, bias, self.branch, self.step)  # type: ignore[arg-type]


Stack = Callable[[Tokens, Context], Tokens]
PART = 8192  # tokens that are normed and turned at a time
# On a CPU so few that what lies between stays in its cache; and those that are widened at a time.
CPU_PART, CPU_FFN_PART = 256, 512


class RMSNorm(nn.Module):
    """Over the whole model width, all heads together; computed in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def turned(norm: nn.Module, y: Tokens, heads: int, turns: Rotary | None = None) -> Heads:
    """Queries or keys, normed and turned in fp32, in the dtype of y. Some tokens at a time: what lies between would be
    four times y (3 GB for the 14B at 720p), and no token's numbers depend on the others.
    """
    n, part = y.shape[1], CPU_PART if y.device.type == "cpu" else PART

    def of(place: slice) -> Heads:
        x = split_heads(norm(y[:, place]), heads)
        return x if turns is None else rotate(x, turns[place])

    if n <= part:
        return of(slice(n)).to(y.dtype)
    out = split_heads(torch.empty_like(y), heads)
    for begin in range(0, n, part):
        place = slice(begin, begin + part)
        out[:, :, place] = of(place)
    return out


def widened(ffn: nn.Module, x: Tokens) -> Tokens:
    """The feed-forward network, on a CPU of some tokens at a time."""
    if x.device.type != "cpu" or x.shape[1] <= CPU_FFN_PART:
        return ffn(x)
    return torch.cat([ffn(part) for part in x.split(CPU_FFN_PART, dim=1)], dim=1)


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)
        self.attend: Attend = attention.sdpa

    def forward(self, x: Tokens, context: Context) -> Tokens:
        q = turned(self.norm_q, self.q(x), self.heads, context.rotary)
        k = turned(self.norm_k, self.k(x), self.heads, context.rotary)
        v = split_heads(self.v(x), self.heads)
        out = self.attend(q, k, v, context.call("self", self.layer))
        return self.o(merge_heads(out))


class CrossAttention(nn.Module):
    """Attends the text and, in image models, also the image; the two results are added.

    Keys and values do not change during a clip: they are computed once and kept in `context.memory`.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)
        if config.image_dim is not None:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps)
        self.attend: Attend = attention.sdpa

    def forward(self, x: Tokens, context: Context) -> Tokens:
        q = turned(self.norm_q, self.q(x), self.heads)
        k, v = self.keys_values(self.k, self.norm_k, self.v, context.text, context)
        out = self.attend(q, k, v, context.call("text", self.layer))
        if context.image is not None:
            k, v = self.keys_values(self.k_img, self.norm_k_img, self.v_img, context.image, context)
            out = out + self.attend(q, k, v, context.call("image", self.layer))
        return self.o(merge_heads(out))

    def keys_values(
        self, to_k: nn.Module, norm: nn.Module, to_v: nn.Module, source: TextTokens, context: Context
    ) -> tuple[Keys, Keys]:
        if context.memory is not None and to_k in context.memory:
            return context.memory[to_k]
        source = source.to(context.dtype)
        v = split_heads(to_v(source), self.heads)
        pair = split_heads(norm(to_k(source)), self.heads).to(v.dtype), v
        if context.memory is not None:
            context.memory[to_k] = pair
        return pair


def shifts(count: int, dim: int) -> nn.Parameter:
    """First values by torch.nn.init, which on_meta leaves out: arithmetic on the meta device imports the compiler."""
    made = nn.Parameter(torch.empty(1, count, dim))
    nn.init.normal_(made, std=dim**-0.5)
    return made


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config, layer)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config, layer)
        self.norm2 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = shifts(6, config.dim)

    def forward(self, x: Tokens, context: Context) -> Tokens:
        assert context.time is not None, "a context gets its time in Transformer.forward"
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + context.time).unbind(2)
        low = context.dtype
        x = x + by_frame(gate1, self.self_attn(modulate(self.norm1(x), shift1, scale1).to(low), context))
        x = x + self.cross_attn(self.norm3(x).to(low), context)
        return x + by_frame(gate2, widened(self.ffn, modulate(self.norm2(x), shift2, scale2).to(low)))


class Head(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = shifts(2, config.dim)

    def forward(self, x: Tokens, e: Float[Tensor, "b g m"]) -> Float[Tensor, "b n p"]:
        shift, scale = (self.modulation + e[:, :, None]).unbind(2)
        return self.head(modulate(self.norm(x), shift, scale))


class ImageEmbedding(nn.Module):
    """CLIP tokens to model width; first-last-frame models add a learned position to the 2 x 257 tokens."""

    def __init__(self, image_dim: int, dim: int, positions: int | None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )
        if positions is not None:
            self.emb_pos = nn.Parameter(torch.zeros(1, positions, image_dim))

    def forward(self, tokens: Float[Tensor, "b l c"]) -> TextTokens:
        return self.proj(tokens + self.emb_pos if hasattr(self, "emb_pos") else tokens)


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(
            config.in_dim, config.dim, config.patch_size, stride=config.patch_size
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.dim, config.dim),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, config.dim * 6))
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, config.dim, config.image_positions)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.head = Head(config)
        self.stack: Stack = self.run_blocks
        self.compute_dtype = torch.float32  # of the Linears inside the blocks

    def context(
        self,
        latent: Grid,
        text: Float[Tensor, "b l c"],
        image: Float[Tensor, "b i _"] | None = None,
        *,
        text_bias: Float[Tensor, "l"] | None = None,
        branch: str = "positive",
    ) -> Context:
        """What stays the same through a clip: made once per prompt, used at every step."""
        grid = token_grid(latent, self.config.patch_size)
        return Context(
            grid=grid,
            rotary=rotary(grid, self.config.head_dim, text.device),
            text=self.text_embedding(text.float()),
            image=None if image is None else self.img_emb(image.float()),
            text_bias=text_bias,
            dtype=self.compute_dtype,
            branch=branch,
        )

    def forward(
        self, x: Latent, t: Float[Tensor, "b"] | Float[Tensor, "b f"], context: Context, step: int = 0
    ) -> Float[Tensor, "b o f h w"]:
        """Velocity at latent x [b, in_dim, f, h, w] and time t in 0..1000; [b, out_dim, f, h, w] in fp32.

        Frames that are already clean have time 0 while the others are at t: then t is given for each latent frame.
        """
        t = t[:, None] if t.dim() == 1 else t
        e = self.time_embedding(time_features(t.flatten(), self.config.freq_dim)).unflatten(0, t.shape)
        time = self.time_projection(e).unflatten(2, (6, -1))
        context = replace(context, time=time, step=step)
        # no name here: the tokens that go in are let go after the first block
        tokens = self.stack(patches(self.patch_embedding, x), context)
        return self._unpatchify(self.head(tokens, e), context.grid)

    def use(self, attend: Attend) -> None:
        """Compute all attention by this function."""
        for module in self.modules():
            if isinstance(module, SelfAttention | CrossAttention):
                module.attend = attend

    @property
    def attends(self) -> set[Attend]:
        """All that computes attention in it."""
        return {m.attend for m in self.modules() if isinstance(m, SelfAttention | CrossAttention)}

    @property
    def attend_name(self) -> str:
        """What computes the attention, for the record."""
        return " ".join(sorted({attend.__name__ for attend in self.attends}))

    def each_block(self, tokens: Tokens, context: Context) -> Iterator[Tokens]:
        """The tokens after every block, once, in order."""
        for block in self.blocks:
            tokens = block(tokens, context)
            yield tokens

    def run_blocks(self, tokens: Tokens, context: Context) -> Tokens:
        """The plain stack."""
        for tokens in self.each_block(tokens, context):  # noqa: B007, B020, PLR1704  so that those before are let go
            pass
        return tokens

    def _unpatchify(self, x: Float[Tensor, "b n p"], grid: Grid) -> Latent:
        """B (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)"""
        x = x.unflatten(2, (*self.config.patch_size, -1))
        x = x.unflatten(1, (grid.frames, grid.height, grid.width))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def patches(embed: nn.Module, x: Float[Tensor, "b _ f h w"]) -> Tokens:
    return embed(x.float()).flatten(2).transpose(1, 2).contiguous()


def modulate(x: Tokens, shift: Float[Tensor, "b g m"], scale: Float[Tensor, "b g m"]) -> Tokens:
    """Shift and scale the tokens, each of the g equal parts of a clip by its own."""
    parts = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], parts, 1 + scale[:, :, None]).flatten(1, 2)


def by_frame(gate: Float[Tensor, "b g m"], x: Tensor) -> Tensor:
    return (gate[:, :, None] * x.unflatten(1, (gate.shape[1], -1))).flatten(1, 2)


def time_features(t: Float[Tensor, "b"], dim: int) -> Float[Tensor, "b f"]:
    """Cosines, then sines, of t * 10000 ** (-i / (dim / 2)), in double precision."""
    speeds = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=t.device) / (dim // 2))
    angles = torch.outer(t.double(), speeds)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


# Inside the blocks; their norms stay fp32.
LOW_PRECISION = ("self_attn.", "cross_attn.", "ffn.", "before_proj.", "after_proj.")


def parameter_dtype(name: str, low: torch.dtype) -> torch.dtype:
    """The dtype a parameter is kept in when the Linears of the blocks compute in `low`."""
    inside = name.startswith(("blocks.", "vace_blocks.")) and any(part in name for part in LOW_PRECISION)
    return low if inside and ".norm_" not in name else torch.float32


def set_precision(model: Transformer, low: torch.dtype) -> Transformer:
    """Cast a loaded model to its fp32 islands and `low` Linears."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, low))
    model.compute_dtype = low
    return model
