"""What a GGUF model says about itself, checked before llama.cpp is asked."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specx.backends.bare import gguf_types
from specx.backends.errors import ModelError
from specx.backends.gguf.header import Metadata, Part, Tensor, download_again, type_bytes
from specx.backends.gguf.shards import SHARD, shard_paths
from specx.backends.gguf.trim import Trim, trim_of

__all__ = ["HYBRID", "RECURRENT", "ROLLBACK", "GGUFInfo", "Tensor", "read_gguf", "shard_paths", "type_bytes"]

_MOST_BLOCKS = 10_000
"""Above this a layer count is damage and not a model."""
_TOKENS = "tokenizer.ggml.tokens"
_HEADS = frozenset({"eagle3", "dflash", "dspark", "gemma4-assistant"})
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
RECURRENT = "its recurrent state cannot be taken back"
HYBRID = "part of its state is recurrent and cannot be taken back"
ROLLBACK = {"lfm2": 7, "lfm2moe": 7, "nemotron_h": 7, "nemotron_h_moe": 7, "qwen35": 31, "qwen35moe": 31}
"""Architectures of whose recurrent states libllama can keep earlier ones, and the most for which its graph
has room whatever the layers are: beyond it ends the process."""
_FOREIGN_TYPES = {
    "mmproj": "a multimodal projector",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
}


@dataclass(frozen=True, slots=True)
class GGUFInfo:
    """A language model in one GGUF file or in several parts.

    Attributes:
        path: the file llama.cpp is to be given: the first part.
        parts: every part, in order; one for an unsplit model.
        size: bytes of all parts together.
        version: of the GGUF format.
        architecture: as llama.cpp calls it ("llama", "gemma3").
        name: what the header calls the model, or else the file's.
        parameters: number of values in all tensors.
        file_type: what the file was quantized as ("Q4_K_M"), "unknown" where it does not say.
        context_length: tokens that the model was trained for.
        embedding_length, feed_forward_length: values of a hidden state, and within a layer's network.
        blocks: number of layers.
        heads: query heads of a layer.
        kv_heads: key/value heads of each of the `blocks` layers; 0 for a layer without a KV cache.
        key_length, value_length: dimensions of one head's key and value.
        vocabulary_size: number of tokens, 0 if the file has none.
        tokenizer, pre_tokenizer: names of how text is split; empty where it does not say.
        chat_template: its source in Jinja; None where there is none.
        tool_template: that of conversations with tools, where it has another one for these.
        sliding_window: tokens a windowed layer looks back, 0 without one.
        state: what a sequence is kept in: a KV cache, a recurrent state, or both.
        experts, experts_used: of a layer, and for each token; 0 without.
        nextn_layers: layers that predict the token after the next one, counted in `blocks` as well.
        tensors, metadata: as the headers have them.
        fingerprint: hex digest of the headers, the sizes and a sample of the weights.
        token_span, token_type_span: where in the first part the texts of the tokens lie, each behind its
            length (8 bytes), and their types (4 bytes each); (0, 0) where there are none.
        trim: which tokens a trimmed draft model scores; None if it scores all.
    """

    path: Path
    parts: tuple[Path, ...]
    size: int
    version: int
    architecture: str
    name: str
    file_type: str
    parameters: int
    context_length: int
    embedding_length: int
    blocks: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    feed_forward_length: int
    vocabulary_size: int
    tokenizer: str
    pre_tokenizer: str
    chat_template: str | None
    tool_template: str | None
    sliding_window: int
    state: Literal["attention", "hybrid", "recurrent"]
    experts: int
    experts_used: int
    nextn_layers: int
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    fingerprint: str
    token_span: tuple[int, int] = (0, 0)
    token_type_span: tuple[int, int] = (0, 0)
    trim: Trim | None = None

    @property
    def head_rows(self) -> int:
        """Number of tokens that it scores: the width of its logits."""
        return self.vocabulary_size if self.trim is None else self.trim.rows

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of the tensors of each type, largest first."""
        total: Counter[str] = Counter()
        for tensor in self.tensors:
            total[tensor.type] += tensor.nbytes
        return dict(total.most_common())

    @property
    def main_type(self) -> str:
        """The tensor type that most bytes are in."""
        return next(iter(self.bytes_by_type))

    def integer(self, key: str) -> int:
        """An integer of the architecture's metadata, such as "ssm.inner_size": the largest of an array, 0 if
        there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        each = value if isinstance(value, tuple) else (value,)
        return max((v for v in each if isinstance(v, int)), default=0)

    @property
    def plain_reason(self) -> str | None:
        """Why specx decodes this model without drafting (one clause), or None if drafts can be verified."""
        return self.obstacle or (None if self.can_go_back else self.state_reason)

    @property
    def state_reason(self) -> str | None:
        """Why tokens cannot be taken back one by one (one clause), or None if they can."""
        return {"recurrent": RECURRENT, "hybrid": HYBRID}.get(self.state)

    @property
    def can_go_back(self) -> bool:
        """Whether it has recurrent states of which earlier ones can be kept."""
        return self.state != "attention" and self.architecture in ROLLBACK

    @property
    def obstacle(self) -> str | None:
        """Why this file cannot continue a text token by token (one clause), or None if it can."""
        if self.architecture in _HEADS:
            return "it is a draft head, which needs its target model"
        if self.architecture in _DIFFUSION:
            return "it is a diffusion model, which does not write one token after another"
        causal = self.metadata.get(f"{self.architecture}.attention.causal", True)
        if self.architecture in {"t5", "t5encoder"} or not causal:
            return "it is an encoder, which writes no text"
        if not self.vocabulary_size:
            return "it has no vocabulary"
        return None


def read_gguf(path: Path | str) -> GGUFInfo:
    """Read and check the header of a GGUF model; any part of a split model stands for the whole.

    Raises:
        ModelError: it cannot be opened, is no GGUF, is cut short, lacks a part or is no language model.
    """
    path = Path(path)
    first = Part(path)
    count = first.integer("split.count")
    paths = [path]
    if count > 1:
        paths = _all_parts(path, first.integer("split.no") + 1, count)
    parts = [first if part == path else Part(part) for part in paths]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    _refuse_foreign(path, parts[0], tensors)
    return _summary(paths, parts, tensors)


def _all_parts(path: Path, part: int, count: int) -> list[Path]:
    match = SHARD.fullmatch(path.name)
    named = match is not None and (int(match["part"]), int(match["count"])) == (part, count)
    if not named or part > count:
        raise ModelError(
            f"{path} is part {part} of {count} of a split model, but is not named so",
            f"the parts are found by name: call this one NAME-{part:05d}-of-{count:05d}.gguf",
        )
    paths = shard_paths(path)
    missing = [p for p in paths if not os.path.exists(p)]  # noqa: PTH110 - Path.exists may raise
    if missing:
        also = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(
            f"the model is split into {count} parts, and {missing[0]}{also} is missing", download_again(path)
        )
    return paths


def _refuse_foreign(path: Path, part: Part, tensors: tuple[Tensor, ...]) -> None:
    """Raise for a GGUF that holds something other than a language model or a draft head."""
    architecture = part.text("general.architecture")
    what = _FOREIGN_TYPES.get("mmproj" if architecture == "clip" else part.text("general.type"))
    if what is not None:
        raise ModelError(
            f"{path} is {what}, not a language model", "give the GGUF of the language model it belongs to"
        )
    if not architecture:
        raise ModelError(f"{path} does not say which architecture it is", download_again(path))
    if not tensors:
        raise ModelError(f"{path} holds a vocabulary only, no weights", "give the GGUF of the whole model")
    blocks = part.integer(f"{architecture}.block_count")
    if blocks > _MOST_BLOCKS:
        raise ModelError(f"{path} is damaged: it names {blocks} layers", download_again(path))
    if blocks < 1:
        raise ModelError(
            f"{path} is not a language model: its architecture {architecture!r} has no layer count",
            "give the GGUF of a language model",
        )


def _summary(paths: list[Path], parts: list[Part], tensors: tuple[Tensor, ...]) -> GGUFInfo:
    head = parts[0]
    architecture = head.text("general.architecture")

    def value(key: str) -> int:
        return head.integer(f"{architecture}.{key}")

    if _TOKENS in head.lengths and _TOKENS not in head.texts:
        raise ModelError(f"{paths[0]} is damaged: {_TOKENS} is no list of texts", download_again(paths[0]))
    blocks, heads = value("block_count"), value("attention.head_count")
    per_head = value("embedding_length") // heads if heads else 0
    state, kv_heads = _state(head, architecture, tensors)
    digest = hashlib.blake2b(b"".join(part.digest for part in parts), digest_size=16)
    return GGUFInfo(
        path=paths[0],
        parts=tuple(paths),
        size=sum(part.size for part in parts),
        version=head.version,
        architecture=architecture,
        name=head.text("general.name") or paths[0].stem,
        file_type=_file_type(head),
        parameters=sum(tensor.elements for tensor in tensors),
        context_length=value("context_length"),
        embedding_length=value("embedding_length"),
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        key_length=value("attention.key_length") or per_head,
        value_length=value("attention.value_length") or per_head,
        feed_forward_length=value("feed_forward_length"),
        vocabulary_size=head.lengths.get(_TOKENS, 0),
        tokenizer=head.text("tokenizer.ggml.model"),
        pre_tokenizer=head.text("tokenizer.ggml.pre"),
        chat_template=head.text("tokenizer.chat_template") or None,
        tool_template=head.text("tokenizer.chat_template.tool_use") or None,
        sliding_window=value("attention.sliding_window"),
        state=state,
        experts=value("expert_count"),
        experts_used=value("expert_used_count"),
        nextn_layers=value("nextn_predict_layers"),
        tensors=tensors,
        metadata=head.metadata,
        fingerprint=digest.hexdigest(),
        token_span=head.spans.get(_TOKENS, (0, 0)),
        token_type_span=head.spans.get("tokenizer.ggml.token_type", (0, 0)),
        trim=trim_of(head, value("embedding_length")),
    )


def _state(
    part: Part, architecture: str, tensors: tuple[Tensor, ...]
) -> tuple[Literal["attention", "hybrid", "recurrent"], tuple[int, ...]]:
    """What a sequence is kept in, and the key/value heads of every layer.

    Judged by the tensors of each layer, because few files of hybrid models name their recurrent layers.
    """
    blocks = part.integer(f"{architecture}.block_count")
    recurrent = _layers(tensors, r"ssm_|shortconv\.|time_mix_")
    fused = _layers(tensors, r"attn_qkv\.") - recurrent  # gated linear attention has an attn_qkv as well
    attending = _layers(tensors, r"attn_k\.|attn_kv_") | fused
    key = f"{architecture}.attention.head_count"
    heads = part.integers(f"{key}_kv") or part.integers(key) or (0,)
    own = blocks - part.integer(f"{architecture}.attention.shared_kv_layers")
    stateful = recurrent - attending
    kv_heads = tuple(
        0 if layer >= own or layer in stateful else heads[min(layer, len(heads) - 1)]
        for layer in range(blocks)
    )
    if not recurrent:
        return "attention", kv_heads
    return ("hybrid" if attending else "recurrent"), kv_heads


def _layers(tensors: tuple[Tensor, ...], pattern: str) -> set[int]:
    search = re.compile(rf"blk\.(\d+)\.(?:{pattern})").match
    return {int(match[1]) for tensor in tensors if (match := search(tensor.name))}


def _file_type(part: Part) -> str:
    gguf = gguf_types()

    if "general.file_type" not in part.metadata:
        return "unknown"
    number = part.integer("general.file_type")
    try:
        return str(gguf.LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"type {number}"
