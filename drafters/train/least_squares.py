"""Linear maps of least squares, from second moments."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["low_rank", "sizes_of", "solved"]

RIDGE = 1e-3  # of the mean square of the inputs
LEAST = 1e-2  # an input's size, of the median one


def solved(inputs: Tensor, targets: Tensor) -> Tensor:
    """(n, m): the linear map from inputs of second moments (n, n) to targets with cross moments (n, m)."""
    sizes = sizes_of(inputs.diagonal().sqrt())
    scaled = inputs / sizes / sizes[:, None] + RIDGE * torch.eye(len(inputs))
    return torch.linalg.solve(scaled, targets / sizes[:, None]) / sizes[:, None]


def sizes_of(root: Tensor) -> Tensor:
    """(n,) root mean squares of values, those that hardly vary as large as a share of the median one."""
    return root.clamp(min=float(root.median()) * LEAST)


def low_rank(matrix: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(r, n) and (m, r), whose product is nearest to `matrix` (m, n) on inputs of these second moments; what
    lies between has values of size 1."""
    variance, directions = torch.linalg.eigh(matrix @ inputs @ matrix.T)
    rank = min(rank, len(variance))
    root = sizes_of(variance[-rank:].flip(0).clamp(min=0).sqrt())
    back = directions[:, -rank:].flip(1)
    return back.T @ matrix / root[:, None], back * root
