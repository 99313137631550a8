"""DFlash and DSpark heads on libllama: states become keys and values, and a block is drafted at once.

Like other heads, they have a context of their own, and their bits decide nothing but what is drafted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.gguf.heads import HeadFile
from specx.backends.llama.head import HeadContext, Rows
from specx.backends.llama.libllama import floats_at
from specx.backends.settings import HEAD_ROWS as ROWS
from specx.backends.settings import Load

__all__ = ["LlamaBlockHead"]

SECTIONS = "dflash.rope.dimension_sections"


class LlamaBlockHead(HeadContext):
    """A loaded head that drafts a block at once. Implements `BlockModel` of `drafters.blocks`.

    Args:
        head: its file, which has a block.
        load, options: as for `HeadContext`.

    Attributes:
        size: tokens of a block, the last one of the text included.
        most: tokens that are drafted.
    """

    def __init__(self, head: HeadFile, load: Load, **options: Any) -> None:
        super().__init__(head, load, **options)
        assert head.block is not None
        self.size, self.most = head.block.size, head.block.most
        self._mask = head.block.mask
        self._lib.llama_set_causal_attn(self._ctx, head.block.causal)
        width, sections = len(self.layers) * self._read, SECTIONS in head.info.metadata
        self._states = Rows(self._lib, width, tokens=False, wanted=False, sections=sections)
        self._block = np.full(self.size, self._mask, np.int32)
        self._drafts = Rows(self._lib, 0, tokens=True)

    def try_out(self) -> None:
        """Draft a block after two tokens and forget them: some of what damages a file shows only then.

        Raises:
            ModelError: it cannot be computed.
        """
        self.accept(0, np.zeros((2, self.features), np.float32), 0)
        self.draft(0, 0, 2)
        self.forget(0, 0)

    def accept(self, slot: int, features: NDArray[np.float32], position: int) -> None:
        """Hold what the target gives for consecutive tokens of a text.

        Args:
            slot: which of the texts.
            features: (n, k * d_t) what entered the target's layers.
            position: of the first one.

        Raises:
            ContextFullError: there is no room.
            ModelError: it cannot be computed.
        """
        read = self._known(features)
        for at in range(0, len(read), ROWS):
            batch = self._states.filled(None, read[at : at + ROWS], slot, position + at)
            self._check(self._lib.llama_decode(self._ctx, batch))

    def draft(self, slot: int, token: int, position: int) -> NDArray[np.float32]:
        """Logits (most, R) of the tokens after `token`, the last one of a text, which has this position.

        Raises:
            ContextFullError: there is no room.
            ModelError: they cannot be computed.
        """
        self._block[0] = token
        batch = self._drafts.filled(self._block, None, slot, position)
        try:
            self._check(self._lib.llama_decode(self._ctx, batch))
            count = self.size * self._vocabulary
            rows = floats_at(self._lib.llama_get_logits(self._ctx), count, 1).reshape(self.size, -1)
            rows = rows[self.size - self.most :]
            return rows.copy() if self.columns is None else np.take(rows, self.columns, axis=1)
        finally:
            self.forget(slot, position)
