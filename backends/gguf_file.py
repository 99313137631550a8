"""What a GGUF file says about itself, and whether it is whole, before llama.cpp is asked.

The header is walked by this module and not by `gguf.GGUFReader`: that builds an array object for every token
and merge, 8.3 s for a vocabulary of 262,144 and 2.2 s for one of 49,152, where this walk took 0.10 s and
0.04 s on the same two-core machine. Names and block sizes of the tensor types are the library's.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specx.backends.errors import ModelError

__all__ = ["GGUFInfo", "Tensor", "read_gguf", "shard_paths", "type_bytes"]

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar | tuple[Scalar, ...]]

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_KEPT_ARRAY = 1024
"""Longest array of numbers kept in `metadata`; per-layer values are kept, vocabularies only counted."""
_MOST_BLOCKS = 10_000
"""Above this a layer count is damage and not a model."""
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_HEADS = frozenset({"eagle3", "dflash", "dspark", "gemma4-assistant"})
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_FOREIGN_TYPES = {
    "mmproj": "a multimodal projector",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `shape` has the fastest-varying dimension first, as in ggml."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True, slots=True)
class GGUFInfo:
    """A language model in one GGUF file or in several parts.

    Attributes:
        path: the file llama.cpp is to be given: the first part.
        parts: every part, in order; one for an unsplit model.
        size: bytes of all parts together.
        parameters: number of values in all tensors.
        file_type: what the file was quantized as ("Q4_K_M"), "unknown" where it does not say.
        kv_heads: key/value heads of each of the `blocks` layers; 0 for a layer without a KV cache.
        key_length, value_length: dimensions of one head's key and value.
        vocabulary_size: number of tokens, 0 if the file has none.
        sliding_window: tokens a windowed layer looks back, 0 without one.
        state: what a sequence is kept in: a KV cache, a recurrent state, or both.
        fingerprint: hex digest of the headers, the sizes and a sample of the weights.
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
    sliding_window: int
    state: Literal["attention", "hybrid", "recurrent"]
    experts: int
    experts_used: int
    nextn_layers: int
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    fingerprint: str

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

    def kv_bytes(self, n_ctx: int, type_k: str = "F16", type_v: str = "F16") -> int:
        """Bytes of a KV cache for `n_ctx` tokens, counting windowed layers in full (an upper bound).

        Raises:
            ValueError: a type ggml does not have.
        """
        return sum(
            type_bytes(type_k, heads * self.key_length) + type_bytes(type_v, heads * self.value_length)
            for heads in self.kv_heads
        ) * max(0, n_ctx)

    @property
    def plain_reason(self) -> str | None:
        """Why specx decodes this model without drafting (one clause), or None if drafts can be verified."""
        reasons = {
            "recurrent": "its recurrent state cannot be taken back",
            "hybrid": "part of its state is recurrent and cannot be taken back",
        }
        return self.obstacle or reasons.get(self.state)

    @property
    def obstacle(self) -> str | None:
        """Why this file cannot continue a text token by token (one clause), or None if it can."""
        if self.architecture in _HEADS:
            return "it is a draft head that needs its target model (give it with -md)"
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
    first = _Part(path)
    count = first.integer("split.count")
    paths = [path]
    if count > 1:
        paths = _all_parts(path, first.integer("split.no") + 1, count)
    parts = [first if part == path else _Part(part) for part in paths]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    _refuse_foreign(path, parts[0], tensors)
    return _summary(paths, parts, tensors)


def shard_paths(path: Path) -> list[Path]:
    """Every part of the split model that `path` is named as a part of, else [path]. Nothing is opened."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count, suffix = match["stem"], int(match["count"]), match["suffix"]
    return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}{suffix}") for i in range(1, count + 1)]


def type_bytes(name: str, elements: int) -> int:
    """Bytes of a row of `elements` values of the ggml type `name`, a partial block counting in full.

    Raises:
        ValueError: ggml has no such type.
    """
    import gguf

    try:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    except KeyError:
        raise ValueError(f"no ggml type is called {name!r}") from None
    return int(-(-elements // block) * nbytes)


class _CutError(Exception):
    """The header goes on where the file has ended."""


class _Cursor:
    """Reads little-endian values from `data`, remembering where it is."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data = data
        self.at = at

    def number(self, form: str) -> int | float | bool:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error:
            raise _CutError from None
        self.at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def string(self) -> str:
        length = self.count()
        self.skip(length)
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def skip(self, nbytes: int) -> None:
        if nbytes > len(self.data) - self.at:
            raise _CutError
        self.at += nbytes

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings; the loop that a vocabulary is long for."""
        read, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        try:
            for _ in range(count):
                at += 8 + read(data, at)[0]
        except struct.error:
            raise _CutError from None
        self.at = at
        self.skip(0)

    def value(self) -> tuple[Scalar | tuple[Scalar, ...] | None, int]:
        """One metadata value and its length; the value of a long array or one of strings is None."""
        kind = self.count("<I")
        if kind == _STRING:
            return self.string(), 1
        if kind != _ARRAY:
            return self.number(_scalar_form(kind)), 1
        kind, count = self.count("<I"), self.count()
        if kind == _STRING:
            self.skip_strings(count)
            return None, count
        form = _scalar_form(kind)
        if count > _KEPT_ARRAY:
            self.skip(count * struct.calcsize(form))
            return None, count
        return tuple(self.number(form) for _ in range(count)), count


def _scalar_form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"value type {kind} does not exist")
    return _SCALARS[kind]


class _Part:
    """One GGUF file: its metadata, its tensors and a digest, read and checked on construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
        self.lengths: dict[str, int] = {}
        self.size = _regular_size(path)
        try:
            with path.open("rb") as file:
                _check_kind(path, file.read(1024), self.size)
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._read(data)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None

    def _read(self, data: mmap.mmap) -> None:
        cursor = _Cursor(data, 4)
        try:
            self.version = _checked_version(self.path, cursor.count("<I"))
            n_tensors, n_values = cursor.count(), cursor.count()
            for _ in range(n_values):
                key = cursor.string()
                value, self.lengths[key] = cursor.value()
                if value is not None:
                    self.metadata[key] = value
            rows = [_tensor_row(cursor) for _ in range(n_tensors)]
            alignment = self.integer("general.alignment") or 32
        except _CutError:
            raise ModelError(
                f"{self.path} is cut short: it ends inside its header, after {self.size:,} bytes",
                _again(self.path),
            ) from None
        except ValueError as error:
            raise ModelError(f"{self.path} is damaged: {error}", _again(self.path)) from None
        start = -(-cursor.at // alignment) * alignment
        self.tensors = self._sized(rows, start)
        self.digest = _digest(data, cursor.at, start)

    def _sized(self, rows: list[_Row], start: int) -> list[Tensor]:
        """Give every tensor its bytes and check that the file holds them all."""
        offsets = sorted({row.offset for row in rows})
        after = dict(zip(offsets, [*offsets[1:], max(0, self.size - start)], strict=True))
        tensors, end = [], start
        for row in rows:
            name, nbytes = _type_size(row.type, row.shape)
            if nbytes is None:  # a type newer than the gguf library: up to the next tensor
                nbytes = after[row.offset] - row.offset
            tensors.append(Tensor(row.name, row.shape, name, nbytes))
            end = max(end, start + row.offset + nbytes)
        if rows and end > self.size:
            raise ModelError(
                f"{self.path} is cut short: it has {self.size:,} of {end:,} bytes ({self.size / end:.0%})",
                _again(self.path),
            )
        return tensors

    def integer(self, key: str) -> int:
        """An integer of the metadata, the largest of an array, 0 if there is none."""
        return max(self.integers(key), default=0)

    def integers(self, key: str) -> tuple[int, ...]:
        """The integers of an array in the metadata, or the single one; empty without the key."""
        value = self.metadata.get(key, ())
        each = value if isinstance(value, tuple) else (value,)
        return tuple(v for v in each if isinstance(v, int))

    def text(self, key: str) -> str:
        """A string of the metadata, empty if there is none."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _tensor_row(cursor: _Cursor) -> _Row:
    name, dimensions = cursor.string(), cursor.count("<I")
    if dimensions > 4:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.count() for _ in range(dimensions))
    return _Row(name, shape, cursor.count("<I"), cursor.count())


def _type_size(kind: int, shape: tuple[int, ...]) -> tuple[str, int | None]:
    """Name and bytes of a tensor; the bytes are None for a type the gguf library does not know."""
    import gguf

    try:
        name = gguf.GGMLQuantizationType(kind)
    except ValueError:
        return f"type {kind}", None
    block, nbytes = gguf.GGML_QUANT_SIZES[name]
    elements = 1
    for extent in shape:
        elements *= extent
    return str(name.name), int(elements // block * nbytes)


def _regular_size(path: Path) -> int:
    """Size of a regular, non-empty file, or the reason why it is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ModelError(f"{path} is a link to a file that is gone", _again(path)) from None
        raise ModelError(
            f"there is no file {path}", "specx show --list names the models found here"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{str(path)!r} cannot be read: {reason}") from None
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(path.glob("*.gguf"))
        hint = f"give a file in it, such as {inside[0]}" if inside else "give the .gguf file itself"
        raise ModelError(f"{path} is a directory, not a GGUF file", hint)
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file")
    if status.st_size == 0:
        raise ModelError(f"{path} is empty", _again(path))
    return status.st_size


def _check_kind(path: Path, head: bytes, size: int) -> None:
    """Refuse whatever does not begin as a GGUF file does, saying what it looks like instead."""
    if head.startswith(b"GGUF"):
        return
    again, convert = (
        _again(path),
        "convert it with llama.cpp's convert_hf_to_gguf.py, or pull a GGUF of the model",
    )
    text = head.lstrip().lower()
    looks: tuple[tuple[bool, str, str], ...] = (
        (head.startswith(b"version https://git-lfs"), "a Git LFS pointer, not the file it points to", again),
        (text.startswith((b"<!doctype", b"<html", b"<?xml")), "a web page", again),
        (
            (head[8:9] == b"{" and b'"dtype"' in head) or b'"__metadata__"' in head[:64],
            "a safetensors file",
            convert,
        ),
        (head.startswith(b"PK\x03\x04"), "a zip archive or a PyTorch checkpoint", convert),
        (head.startswith(b"\x80\x02"), "a pickled PyTorch checkpoint", convert),
        (head.startswith(b"\x1f\x8b"), "compressed with gzip", f"unpack it first: gunzip {path.name}"),
        (
            head.startswith((b"ggjt", b"tjgg", b"ggml", b"lmgg", b"ggla")),
            "in the GGML format of before 2023",
            convert,
        ),
        (head.startswith(b"FUGG"), "a big-endian GGUF", "use a little-endian GGUF of the model"),
        (not head.strip(b"\0"), "nothing but zero bytes so far", again),
        (text.startswith(b"{"), "a JSON text", again),
    )
    for found, what, hint in looks:
        if found:
            raise ModelError(f"{path} is not a GGUF file: it is {what}", hint)
    raise ModelError(f"{path} is not a GGUF file: its {size:,} bytes do not begin with GGUF", again)


def _checked_version(path: Path, version: int) -> int:
    if version and version & 0xFFFF == 0:
        raise ModelError(f"{path} is a big-endian GGUF", "use a little-endian GGUF of the model")
    if version not in {2, 3}:
        raise ModelError(
            f"{path} has GGUF version {version}, and only 2 and 3 can be run",
            "use a newer conversion of the model" if version < 2 else "specx needs a newer llama.cpp for it",
        )
    return version


def _all_parts(path: Path, part: int, count: int) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count or int(match["part"]) != part:
        raise ModelError(
            f"{path} is part {part} of {count} of a split model, but is not named so",
            f"the parts are found by name: call this one NAME-{part:05d}-of-{count:05d}.gguf",
        )
    paths = shard_paths(path)
    missing = [p for p in paths if not p.exists()]
    if missing:
        also = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(
            f"the model is split into {count} parts, and {missing[0]}{also} is missing", _again(path)
        )
    return paths


def _refuse_foreign(path: Path, part: _Part, tensors: tuple[Tensor, ...]) -> None:
    """Raise for a GGUF that holds something other than a language model or a draft head."""
    architecture = part.text("general.architecture")
    what = _FOREIGN_TYPES.get("mmproj" if architecture == "clip" else part.text("general.type"))
    if what is not None:
        raise ModelError(
            f"{path} is {what}, not a language model", "give the GGUF of the language model it belongs to"
        )
    if not architecture:
        raise ModelError(f"{path} does not say which architecture it is", _again(path))
    if not tensors:
        raise ModelError(f"{path} holds a vocabulary only, no weights", "give the GGUF of the whole model")
    blocks = part.integer(f"{architecture}.block_count")
    if blocks > _MOST_BLOCKS:
        raise ModelError(f"{path} is damaged: it names {blocks} layers", _again(path))
    if blocks < 1:
        raise ModelError(
            f"{path} is not a language model: its architecture {architecture!r} has no layer count",
            "give the GGUF of a language model",
        )


def _summary(paths: list[Path], parts: list[_Part], tensors: tuple[Tensor, ...]) -> GGUFInfo:
    head = parts[0]
    architecture = head.text("general.architecture")

    def value(key: str) -> int:
        return head.integer(f"{architecture}.{key}")

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
        vocabulary_size=head.lengths.get("tokenizer.ggml.tokens", 0),
        tokenizer=head.text("tokenizer.ggml.model"),
        pre_tokenizer=head.text("tokenizer.ggml.pre"),
        chat_template=head.text("tokenizer.chat_template") or None,
        sliding_window=value("attention.sliding_window"),
        state=state,
        experts=value("expert_count"),
        experts_used=value("expert_used_count"),
        nextn_layers=value("nextn_predict_layers"),
        tensors=tensors,
        metadata=head.metadata,
        fingerprint=digest.hexdigest(),
    )


def _state(
    part: _Part, architecture: str, tensors: tuple[Tensor, ...]
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


def _file_type(part: _Part) -> str:
    import gguf

    if "general.file_type" not in part.metadata:
        return "unknown"
    number = part.integer("general.file_type")
    try:
        return str(gguf.LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"type {number}"


def _digest(data: mmap.mmap, header: int, start: int) -> bytes:
    """Digest of the header, the size and evenly spaced samples of the weights."""
    digest = hashlib.blake2b(data[:header], digest_size=16)
    digest.update(len(data).to_bytes(8, "little"))
    room = max(0, len(data) - _SAMPLE_BYTES - start)
    for i in range(_SAMPLES):
        at = start + room * i // (_SAMPLES - 1)
        digest.update(data[at : at + _SAMPLE_BYTES])
    return digest.digest()


def _again(path: Path) -> str:
    """How to fetch a file again: by its repository where it lies in a Hugging Face cache."""
    for folder in path.absolute().parents:
        if folder.name.startswith("models--"):
            repository = folder.name.removeprefix("models--").replace("--", "/", 1)
            return f"download it again: specx pull {repository}/{path.name}"
    return "download it again: specx pull ORG/REPO"
