"""The stack seam, with a question between blocks: go on?

One forward of the 14B model at 720p takes about ten seconds; who cancels should not wait for it. On a GPU, blocks
are only queued by the CPU, which runs far ahead; so it is held back to two blocks, or the question would come early
and mean nothing.
"""

from collections import deque
from collections.abc import Callable

import torch

from broll.engine.shapes import Tokens
from broll.engine.transformer import Context, Transformer

AHEAD = 2  # blocks that may be queued on a GPU but not finished


class Interruptible:
    """Every block, once, in order; before and after each, `check` may raise. The same numbers as the plain stack."""

    def __init__(self, model: Transformer, check: Callable[[], None]) -> None:
        self._model, self._check = model, check

    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        queued: deque[torch.cuda.Event] = deque()
        self._check()
        for tokens in self._model.each_block(tokens, context):  # noqa: B020, PLR1704  as Transformer.run_blocks
            if tokens.is_cuda:
                queued.append(torch.cuda.Event())
                queued[-1].record()
                if len(queued) > AHEAD:
                    queued.popleft().synchronize()
            self._check()
        return tokens
