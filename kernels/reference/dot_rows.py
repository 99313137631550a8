"""What `dot_rows` computes, on the values that quantized rows and vectors stand for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["dot_rows"]


def dot_rows(
    table: NDArray[np.float32], ids: NDArray[np.int32], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rows of a matrix times vectors.

    Args:
        table: (V, d).
        ids: (m,) the rows.
        vectors: (n, d).

    Returns:
        (n, m).
    """
    return vectors @ table[ids].T
