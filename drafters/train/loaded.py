"""A head in torch from its file, as it was quantized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from specx.backends.gguf.file import GGUFInfo
from specx.drafters.make.gguf_writing import Source
from specx.drafters.train.batches import Batches, Rows
from specx.drafters.train.export import NAMES, target_matrix
from specx.drafters.train.head import Head
from specx.drafters.train.loop import Learning, Trainer, has_bf16
from specx.drafters.train.memory import batch_that_fits
from specx.drafters.train.shape import HeadShape
from specx.drafters.train.states import StatesFile

__all__ = ["EMBEDDING", "read_trained", "trained_further"]

EMBEDDING = "token_embd.weight"
SMALL = 512  # tokens of a batch: of little text, more steps are worth more than better ones


def read_trained(target: GGUFInfo, made: GGUFInfo) -> tuple[Head, Rows]:
    """A head that was trained here, and the tokens that it scores.

    Args:
        target: the model whose embedding it reads if it has none of its own.
        made: the head's header, which was checked (`backends.gguf.heads`).

    Raises:
        KeyError, NotImplementedError: it is another kind of head, or has matrices that cannot be decoded.
    """

    def value(key: str) -> float:
        found = made.metadata[f"eagle3.{key}"]
        assert isinstance(found, int | float)
        return found

    layers = made.metadata["eagle3.target_layers"]
    assert isinstance(layers, tuple)
    ids = np.asarray(Source(made).tensors["d2t"].data).view("<i8").astype(np.int32)
    shape = HeadShape(
        target_layers=tuple(int(layer) for layer in layers),
        target_width=int(value("target_hidden_size")),
        width=made.embedding_length,
        heads=made.heads,
        kv_heads=max(made.kv_heads),
        head_width=made.key_length,
        ffn=made.feed_forward_length,
        rows=len(ids),
        epsilon=value("attention.layer_norm_rms_epsilon"),
        rope_base=value("rope.freq_base"),
        norm_before_fc=bool(made.metadata.get("eagle3.norm_before_fc")),
        norm_before_residual=bool(made.metadata.get("eagle3.norm_before_residual")),
    )
    own = any(tensor.name == EMBEDDING for tensor in made.tensors)
    embedding = torch.from_numpy(target_matrix(made if own else target, EMBEDDING))
    head = Head(shape, embedding, torch.from_numpy(target_matrix(made, "output.weight")))
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            values = target_matrix(made, NAMES[name])
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    return head, Rows(ids, target.vocabulary_size)


def trained_further(
    target: GGUFInfo,
    made: GGUFInfo,
    states: StatesFile,
    texts: tuple[Sequence[int], Sequence[int]],
    *,
    rate: float,
    seed: int,
    memory: int,
    threads: int,
) -> tuple[Trainer, Batches, Batches, Rows]:
    """A head that learns on from where it is.

    Args:
        target: the model.
        made: the head's header.
        states: captured texts.
        texts: which of them are learned from, and which are held back.
        rate: the highest learning rate.
        seed: of everything that is drawn.
        memory: bytes that may be used.
        threads: CPU threads.

    Returns:
        What learns, the batches of both kinds of texts, and the tokens that the head scores.

    Raises:
        KeyError, NotImplementedError: it is another kind of head, or has matrices that cannot be decoded.
        SpecxError: the memory does not suffice.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    head, rows = read_trained(target, made)
    learning = Learning(rate=rate, orthogonal=False, seed=seed, bf16=has_bf16())
    size = min(batch_that_fits(head.shape, target.vocabulary_size, learning, memory), SMALL)
    learned, held = (Batches(states, each, rows, seed, size) for each in texts)
    return Trainer(head, learned, learning), learned, held, rows
