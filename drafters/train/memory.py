"""What a training takes of memory, and the batches that fit into it."""

from __future__ import annotations

from specx.backends.errors import SpecxError
from specx.drafters.train.batches import BATCH, BATCH_ON_GPU
from specx.drafters.train.loop import DRAWN, SHARE, Learning
from specx.drafters.train.shape import HeadShape

__all__ = ["batch_that_fits", "training_bytes"]

LIBRARIES = 400 << 20  # torch, NumPy and Python
COPIES = 9  # of what is trained: itself, gradient, two of AdamW, the best, and those of a checkpoint; before
# there are any, the start takes less for its second moments
SMALLEST = 128  # tokens of a batch
CANDIDATES = 3  # tokens of a batch bring so many new rows each into the sum, about


def training_bytes(shape: HeadShape, vocabulary: int, learning: Learning, batch: int) -> int:
    """Bytes of a training with batches of so many tokens, about.

    Args:
        shape: of the head.
        vocabulary: V, tokens of the target.
        learning: how it is trained.
        batch: tokens of a batch.
    """
    d, attended = shape.width, shape.heads * shape.head_width
    trained = (
        shape.features * d
        + 2 * d * (attended + 2 * shape.kv_heads * shape.head_width)
        + attended * d
        + 3 * d * shape.ffn
    )
    fixed = 4 * d * (vocabulary + 2 * shape.rows) + 4 * COPIES * trained
    steps = 1 + (learning.steps - 1) / SHARE
    scored = min(shape.rows, CANDIDATES * batch + DRAWN)
    token = 4 * (3 * shape.features + steps * (4 * scored + 12 * d + 4 * shape.ffn + 4 * attended))
    return LIBRARIES + fixed + round(batch * token)


def batch_that_fits(
    shape: HeadShape, vocabulary: int, learning: Learning, memory: int, *, on_gpu: bool = False
) -> int:
    """Tokens of a batch with which a training takes no more than `memory` bytes, those of the GPU if one
    computes it; at most `BATCH` or `BATCH_ON_GPU`.

    Raises:
        SpecxError: there is none.
    """
    batch = BATCH_ON_GPU if on_gpu else BATCH
    while training_bytes(shape, vocabulary, learning, batch) > memory:
        batch //= 2
        if batch < SMALLEST:
            least = training_bytes(shape, vocabulary, learning, SMALLEST)
            raise SpecxError(
                f"this training needs {least / 2**30:.1f} GiB of memory", "raise --memory, or lower --vocab"
            )
    return batch
