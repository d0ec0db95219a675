"""One clip by several processes: the velocity seam for two prompts, the stack and attend seams for tokens.

    velocity   cfg=2: each half computes the forward of one prompt; they swap velocities and all combine them alike
    stack      each process has its own tokens, cut between rows of the picture, with their turns and times
    attend     where tokens look at each other (parallel_attention.py)
               after the stack, all tokens are everywhere again

All else every process computes for itself, from the same noise: so latents are the same in all of them, bit for bit.
With cfg=2 alone they are those of a single process; where tokens are cut, products have other shapes, and their last
bits may differ.
Text is encoded in shares (parallel_text.py), frames are decoded in strips (parallel_vae.py).

Step caches keep residuals of a process's own tokens; streamed blocks are streamed by each. What does not go together is
refused by `check`. mesh.py says who the processes are.

    CFG parallel    https://arxiv.org/abs/2411.01738
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate

from jaxtyping import Float
from torch import Tensor

from broll.engine import compiled, guidance, kernels, mesh, parallel_attention, sparse
from broll.engine.compiled import Compiler
from broll.engine.config import ModelConfig
from broll.engine.guidance import Forward
from broll.engine.mesh import Group, Layout, Mesh, Team
from broll.engine.rope import Rotary
from broll.engine.sampler import Velocity
from broll.engine.shapes import Grid, Latent, Tokens
from broll.engine.transformer import Context, SelfAttention, Stack, Transformer
from broll.errors import BadOption
from broll.spec import VideoSpec

# --- for a clip -------------------------------------------------------------------------------------------


def layout(words: str, size: int, spec: VideoSpec, config: ModelConfig) -> Layout:
    """Of so many processes, for a resolved spec."""
    both = spec.guidance != 1 and spec.guided == spec.steps
    return mesh.chosen(words, size, guided=both, heads=config.transformer.num_heads)


def check(
    made: Layout, spec: VideoSpec, config: ModelConfig, *, compile: str = "auto", attention: str = "auto"
) -> None:
    """Refuse what does not go together, before any weight is read."""
    count = sparse.grid_of(spec, config).size
    if count < made.tokens:
        raise BadOption(
            f"parallel {made} cuts the tokens in {made.tokens} parts, and this clip has {count} tokens"
        )
    if made.tokens > 1 and compile == compiled.ON:
        raise BadOption(
            f"compile on does not go with parallel {made}: a process that drops a compiled pass would leave the others "
            "waiting. Possible are compile auto and off, or parallel cfg=2 alone"
        )
    if made.ring > 1 and spec.sparsity:
        raise BadOption(
            f"sparsity does not go with parallel {made}: a ring computes all pairs. Possible are cfg and ulysses"
        )
    if made.ring > 1 and attention not in parallel_attention.RING:
        raise BadOption(
            f"attention {attention} does not go with parallel {made}: a ring needs sums that torch's kernels give. "
            "Possible are attention auto and sdpa, or cfg and ulysses"
        )


def of(spec: VideoSpec, config: ModelConfig, team: Team | None, compiler: Compiler) -> Mesh | None:
    """The processes of this clip; None if there is but one."""
    if team is None or team.size == 1:
        return None
    made = layout(team.words, team.size, spec, config)
    check(made, spec, config, compile=compiler.how)
    return team.mesh(made)


def named(spec: VideoSpec, config: ModelConfig, team: Team | None) -> str:
    """The layout, for the record; empty for a single process."""
    return "" if team is None or team.size == 1 else str(layout(team.words, team.size, spec, config))


def together(team: Team | None, model: Transformer, news: list[str]) -> list[str]:
    """What has to be told, of all processes; and a kernel that one of them dropped is dropped by all."""
    if team is None or team.size == 1:
        return news
    checks = list(kernels.checks(model))
    told = team.collect((news, {one.kernel_name: one.dropped for one in checks}))
    for one in checks:
        why = next((dropped[one.kernel_name] for _, dropped in told if dropped.get(one.kernel_name)), "")
        if why and not one.dropped:
            one.drop(why)
            one.news()
    return list(dict.fromkeys(line for lines, _ in told for line in lines))


# --- velocity ---------------------------------------------------------------------------------------------


def guided(
    parts: Mesh | None, positive: Forward, negative: Forward | None, scale: float, held: Collection[int]
) -> Velocity:
    """guidance.guided, with each prompt's forward in a half of the processes."""
    if parts is None or parts.layout.cfg == 1 or negative is None:
        return guidance.guided(positive, negative, scale, held)
    group, own = parts.cfg, (positive, negative)[parts.cfg.rank]

    def velocity(x: Latent, index: int) -> Latent:
        v, against = group.gather(own(x, index), 0, [x.shape[0]] * 2).chunk(2)
        return against + scale * (v - against)

    return velocity


# --- stack ------------------------------------------------------------------------------------------------


def spans(grid: Grid, processes: int) -> list[int]:
    """How many tokens each process has: whole rows, if there are enough."""
    rows = grid.frames * grid.height
    unit = grid.width if rows >= processes else 1
    return [count * unit for count in mesh.shares(grid.size // unit, processes)]


class Cut:
    """A stack around a stack, for one clip. `sizes`: how many tokens each process of the group has."""

    def __init__(self, stack: Stack, group: Group, sizes: Sequence[int]) -> None:
        self._stack, self._group, self._sizes = stack, group, list(sizes)
        ends = list(accumulate(sizes))
        self._own = slice(ends[group.rank] - sizes[group.rank], ends[group.rank])
        self._kept: dict[str, tuple[Rotary, Rotary, Tokens | None]] = {}  # by branch

    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        after = self._stack(tokens[:, self._own], self._of(context))
        return self._group.gather(after, 1, self._sizes)

    def _of(self, context: Context) -> Context:
        """What these tokens need of it; cut once, so that whoever prepares turns for a clip need not do it again."""
        kept = self._kept.get(context.branch)
        if kept is None or kept[0] is not context.rotary:
            control = None if context.control is None else context.control[:, self._own]
            kept = context.rotary, context.rotary[self._own], control
            self._kept[context.branch] = kept
        return replace(context, rotary=kept[1], control=kept[2], time=self._times(context))

    def _times(self, context: Context) -> Float[Tensor, "b g 6 m"] | None:
        """Of frames with times of their own, those of each row: strips of tokens that are equally long everywhere."""
        time, grid = context.time, context.grid
        if time is None or time.shape[1] == 1:
            return time
        unit = grid.width if all(size % grid.width == 0 for size in self._sizes) else 1
        rows = slice(self._own.start // unit, self._own.stop // unit)
        return time.repeat_interleave(grid.size // time.shape[1] // unit, dim=1)[:, rows]


@contextmanager
def on(model: Transformer, parts: Mesh | None, grid: Grid) -> Iterator[None]:
    """Around whatever stack and kernels the model has. Where each process has all tokens, nothing is changed."""
    if parts is None or parts.layout.tokens == 1:
        yield
        return
    sizes = spans(grid, parts.layout.tokens)
    places = [module for module in model.modules() if isinstance(module, SelfAttention)]
    before, stack = [place.attend for place in places], model.stack
    for place in places:
        place.attend = parallel_attention.attend(place.attend, parts, sizes)
    model.stack = Cut(stack, parts.tokens, sizes)
    try:
        yield
    finally:
        model.stack = stack
        for place, attend in zip(places, before, strict=True):
            place.attend = attend
