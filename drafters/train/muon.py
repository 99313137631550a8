"""Muon: steps of matrices whose directions are equally large (Jordan et al., 2024).

The momentum of a matrix's gradient is replaced by the orthogonal matrix that is nearest, about, which a
polynomial of it finds (Newton and Schulz); its size is that of AdamW's steps (Liu et al., arXiv 2502.16982).
torch has it from version 2.9 on, always in bfloat16, which many processors do not multiply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalized"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
POWERS = 3  # of the polynomial: five come nearer, and take as much longer
MOMENTUM = 0.95
SIZE = 0.2  # root mean square of AdamW's steps at a rate of 1


class Muon(torch.optim.Optimizer):
    """The optimizer.

    Args:
        matrices: what is trained, all of two dimensions.
        lr: learning rate.
        weight_decay: share of the weights that a step at a rate of 1 takes away.
        bf16: multiply in bfloat16.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, bf16: bool) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._kind = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step along the gradients that are there."""
        del closure
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
                ahead = matrix.grad.lerp(state["momentum"], MOMENTUM)
                size = group["lr"] * SIZE * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(orthogonalized(ahead.to(self._kind)), alpha=-size)


def orthogonalized(matrix: Tensor) -> Tensor:
    """(m, n) the orthogonal matrix nearest to one, about: singular values of at least a fortieth of its
    Frobenius norm come between 0.6 and 1.2, smaller ones grow fortyfold."""
    wide = matrix.T if len(matrix) > len(matrix.T) else matrix
    x = wide / wide.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(POWERS):
        products = x @ x.T
        x = torch.addmm(x, torch.addmm(products, products, products, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
