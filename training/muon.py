"""Muon: momentum, made orthogonal, for the weights of convolutions and Linears.

On nano's autoencoder it left the plateau of 14 dB on which AdamW stayed (training/LOG.md).

    https://kellerjordan.github.io/posts/muon/   Newton-Schulz iteration, quintic coefficients
"""

from collections import defaultdict

import torch
from torch import Tensor

from training import run


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices of g [count, rows, columns], roughly: singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(run.dtype(g.device.type))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; the first is taken as rows, the others as columns."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices of one shape are made orthogonal together
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.flatten(1).shape].append(p)
            for (rows, columns), parameters in alike.items():
                updates = orthogonal(torch.stack(self._nesterov(parameters, group["momentum"])))
                wide = max(1.0, rows / columns) ** 0.5
                shaped = [update.view_as(p) for p, update in zip(parameters, updates, strict=True)]
                torch._foreach_add_(parameters, shaped, alpha=-group["lr"] * wide)

    def _nesterov(self, parameters: list[Tensor], decay: float) -> list[Tensor]:
        """All of a shape in a few kernels: one by one, a GPU would wait for a busy CPU."""
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        gradients = [p.grad for p in parameters]
        torch._foreach_mul_(momenta, decay)
        torch._foreach_add_(momenta, gradients)
        return [g.flatten(1) for g in torch._foreach_add(gradients, momenta, alpha=decay)]
