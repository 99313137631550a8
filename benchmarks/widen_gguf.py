"""Make a small llama-architecture GGUF cost as much as a larger one, without changing what it says.

Verification behaves differently on a model that outgrows the processor's caches, and models of that size are
large downloads. This pads the hidden state, the heads and the feed-forward layers of a small one with zeros:

- A padded weight matrix maps zeros to zeros, so the first dimensions compute what they did before.
- An RMS norm divides by the root of the mean square, and the mean is now taken over more elements, most of
  them zero. With D dimensions widened to W, its weights times sqrt(D / W) and its epsilon times D / W undo
  that exactly.
- Query head h reads the key and value head h // (heads / kv_heads). The ratio stays and heads are added at
  the end, so the old ones keep theirs. An added head attends evenly to values that are zero.
- Weights are quantized in blocks along the input dimension, which is padded at the end and a multiple of the
  block in every model, so the blocks that hold something stay as they were.

What remains is rounding in the norms. `--check` compares greedy answers with the model at its own width,
quantized the same way.

    python benchmarks/widen_gguf.py small.gguf wide.gguf \\
        --width 2048 --ffn 4096 --heads 30 --kv-heads 10 --check
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, ReaderTensor
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from specx.backends.errors import SpecxError
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

TYPES = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "Q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
CHECK_PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "1. Wash the vegetables.\n2.")
CHECK_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions that can grow; `head` is the length of one head and stays."""

    width: int
    ffn: int
    heads: int
    kv_heads: int
    head: int

    def rows_and_columns(self, name: str, vocabulary: int) -> tuple[int, int]:
        """Shape of the weight matrix `name`, as (outputs, inputs).

        Raises:
            ValueError: the llama architecture has no such matrix.
        """
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        shapes = {
            "token_embd": (vocabulary, self.width),
            "output": (vocabulary, self.width),
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.ffn, self.width),
            "ffn_up": (self.ffn, self.width),
            "ffn_down": (self.width, self.ffn),
        }
        kind = name.removesuffix(".weight").split(".")[-1]
        if kind not in shapes:
            raise ValueError(f"the tensor {name} is not one this tool knows")
        return shapes[kind]


def main() -> int:
    """Widen a file, and check it if asked."""
    arguments = parse()
    try:
        reader = GGUFReader(arguments.source)
        if reader.fields["general.architecture"].contents() != "llama":
            raise ValueError(f"{arguments.source} is not of the llama architecture")
        own = own_shape(reader)
        wide = Shape(
            arguments.width or own.width,
            arguments.ffn or own.ffn,
            arguments.heads or own.heads,
            arguments.kv_heads or own.kv_heads,
            own.head,
        )
        widen(reader, arguments.target, own, wide, arguments.type)
        print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.0f} MB")
        return 0 if not arguments.check or check(reader, own, arguments) else 1
    except (SpecxError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    for name in ("--width", "--ffn", "--heads", "--kv-heads"):
        parser.add_argument(name, type=int, help="the source's own if not given")
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the weight matrices (Q4_0)")
    parser.add_argument("--check", action="store_true", help="compare greedy answers with the source's")
    return parser.parse_args()


def own_shape(reader: GGUFReader) -> Shape:
    """The dimensions of the model in the file."""

    def value(key: str) -> int:
        return int(reader.fields[f"llama.{key}"].contents())

    width, heads = value("embedding_length"), value("attention.head_count")
    return Shape(width, value("feed_forward_length"), heads, value("attention.head_count_kv"), width // heads)


def widen(reader: GGUFReader, target: Path, own: Shape, wide: Shape, kind: str) -> None:
    """Write the model of `reader` with the dimensions `wide`.

    Raises:
        ValueError: a dimension would shrink, or the ratio of query to key heads would change.
    """
    grows = all(getattr(wide, name) >= getattr(own, name) for name in ("width", "ffn", "heads", "kv_heads"))
    if not grows or wide.heads * own.kv_heads != own.heads * wide.kv_heads:
        raise ValueError(f"dimensions may only grow, and heads with their kv heads: {own} to {wide}")
    weights, file_type = TYPES[kind]
    writer = GGUFWriter(target, "llama")
    write_metadata(reader, writer, own, wide, int(file_type))
    for name, data in widened(reader, own, wide):
        if data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, quantize(data, weights), raw_dtype=weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_metadata(reader: GGUFReader, writer: GGUFWriter, own: Shape, wide: Shape, file_type: int) -> None:
    """The source's metadata, but for what the dimensions change."""
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    changed: dict[str, int | float] = {
        "llama.embedding_length": wide.width,
        "llama.feed_forward_length": wide.ffn,
        "llama.attention.head_count": wide.heads,
        "llama.attention.head_count_kv": wide.kv_heads,
        epsilon: reader.fields[epsilon].contents() * own.width / wide.width,
        "general.file_type": file_type,
    }
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, changed.get(key, field.contents()), field.types[0], inner)
    for key in ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"):
        if key not in reader.fields:  # else they would be taken from the width
            writer.add_uint32(key, own.head)


def widened(reader: GGUFReader, own: Shape, wide: Shape) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor of the file, dequantized and padded: matrices as (outputs, inputs), norms as (width,)."""
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.endswith("_norm.weight"):
            norm = np.zeros(wide.width, np.float32)
            norm[: own.width] = values.reshape(-1) * np.sqrt(own.width / wide.width)
            yield tensor.name, norm
        elif len(tensor.shape) == 1:  # factors of the rotary embedding, which the width does not touch
            yield tensor.name, values
        else:
            yield tensor.name, padded(tensor, values, wide)


def padded(tensor: ReaderTensor, values: NDArray[np.float32], wide: Shape) -> NDArray[np.float32]:
    """A weight matrix with zeros below and to the right."""
    rows, columns = values.shape
    matrix = np.zeros(wide.rows_and_columns(tensor.name, rows), np.float32)
    matrix[:rows, :columns] = values
    return matrix


def check(reader: GGUFReader, own: Shape, arguments: argparse.Namespace) -> bool:
    """Whether the widened model answers as the source does at its own width, with the same quantization."""
    with tempfile.TemporaryDirectory() as folder:
        narrow = Path(folder) / "narrow.gguf"
        widen(reader, narrow, own, own, arguments.type)
        before, after = answers(narrow), answers(arguments.target)
    for prompt, old, new in zip(CHECK_PROMPTS, before, after, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))
        print(f"{prompt!r}: {same} of {len(old)} tokens the same")
    return before == after


def answers(model: Path) -> list[list[int]]:
    """Greedy continuations of the prompts of the check, without speculation."""
    greedy = SamplingSettings(temperature=0.0, seed=1)
    found = []
    with Session.open(Asked(model=model, n_ctx=512, drafter="none", store=False)) as session:
        for text in CHECK_PROMPTS:
            generation = session.generate(
                session.tokenize(text, add_special=True, parse_special=False), greedy, n_predict=CHECK_TOKENS
            )
            for _chunk in generation:
                pass
            found.append(generation.result.tokens)
    return found


if __name__ == "__main__":
    sys.exit(main())
