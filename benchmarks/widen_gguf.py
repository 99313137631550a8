"""Make a small llama or gemma3 GGUF cost as much as a larger one, without changing what it says.

Verification behaves differently on a model that outgrows the processor's caches, and models of that size are
large downloads. This pads the hidden state, the heads and the feed-forward layers of a small one with zeros:

- A padded weight matrix maps zeros to zeros, so the first dimensions compute what they did before.
- An RMS norm divides by the root of the mean square, and the mean is now taken over more elements, most of
  them zero. With D dimensions widened to W, its weights times sqrt(D / W) and its epsilon times D / W undo
  that exactly.
- Gemma multiplies the embedding by the root of the width, so there the whole hidden state grows by
  sqrt(W / D), and its mean square stays, as does the epsilon: norms of single heads need no change. Weights
  of norms that read it shrink. What is added to it passes a norm too, over mostly zeros, and grows by that;
  for the epsilon to weigh as much as before, the matrices before those norms are multiplied by sqrt(W / D).
- Query head h reads the key and value head h // (heads / kv_heads). The ratio stays and heads are added at
  the end, so the old ones keep theirs. An added head attends evenly to values that are zero.
- Weights are quantized in blocks along the input dimension, which is padded at the end and a multiple of the
  block in every model, so the blocks that hold something stay as they were.

What remains is rounding: in the norms, and of activations and weights that were multiplied. At four times the
width every factor is a power of two, and nothing is rounded otherwise. `--check` compares greedy answers with
the model at its own width, quantized the same way.

`--type same` leaves the blocks as they are, which is a matter of copying: billions of weights in seconds.
What multiplies the added zeros is then made of the source's own blocks and not of zeros, so that a processor
meets no more zeros among the weights than it must.

    python benchmarks/widen_gguf.py small.gguf wide.gguf \\
        --width 2048 --ffn 4096 --heads 30 --kv-heads 10 --check
    python benchmarks/widen_gguf.py gemma3-270m.gguf wide-gemma.gguf --width 2560 --check
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, ReaderTensor
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from specx.backends.errors import SpecxError
from specx.backends.gguf.head_target import WIDENED_BY, WIDENED_FROM
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

TYPES = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "Q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
SAME = "same"
CHECK_PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "1. Wash the vegetables.\n2.")
CHECK_TOKENS = 48


STREAM_NORMS = ("attn_norm", "ffn_norm", "output_norm")  # of the hidden state
POST_NORMS = ("post_attention_norm", "post_ffw_norm")  # of what is added to it
ADDED = ("attn_output", "ffn_down")
GEMMA3_27B = 62  # layers: llama.cpp then scales attention by the width
ROWS = 8192  # of a matrix at a time: an embedding takes gigabytes as 32-bit floats


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
            ValueError: the architectures known here have no such matrix.
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
        kind = kind_of(name)
        if kind not in shapes:
            raise ValueError(f"the tensor {name} is not one this tool knows")
        return shapes[kind]


@dataclass(frozen=True, slots=True)
class Widening:
    """From which dimensions to which, and what that multiplies.

    Attributes:
        own, wide: the dimensions before and after.
        scaled: whether the architecture multiplies its embedding by the root of the width.
    """

    own: Shape
    wide: Shape
    scaled: bool

    def factor(self, name: str) -> float:
        """What the values of the tensor `name` are multiplied by."""
        grown = math.sqrt(self.wide.width / self.own.width)
        kind = kind_of(name)
        if kind in STREAM_NORMS:
            return 1 / grown
        return grown if self.scaled and kind in ADDED else 1.0

    @property
    def epsilon_factor(self) -> float:
        """What the epsilon of the norms is multiplied by."""
        return 1.0 if self.scaled else self.own.width / self.wide.width


def kind_of(name: str) -> str:
    """The part of a tensor's name that says what it is for."""
    return name.removesuffix(".weight").split(".")[-1]


def main() -> int:
    """Widen a file, and check it if asked."""
    arguments = parse()
    try:
        reader = GGUFReader(arguments.source)
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
    parser.add_argument(
        "--type", choices=(*TYPES, SAME), default="Q4_0", help="of the weight matrices (Q4_0)"
    )
    parser.add_argument("--check", action="store_true", help="compare greedy answers with the source's")
    return parser.parse_args()


def architecture_of(reader: GGUFReader) -> str:
    """The architecture of the model in the file.

    Raises:
        ValueError: it is not one that can be widened.
    """
    architecture = str(reader.fields["general.architecture"].contents())
    if architecture not in ("llama", "gemma3"):
        raise ValueError(f"the architecture {architecture} is neither llama nor gemma3")
    if architecture == "gemma3" and value(reader, "block_count") == GEMMA3_27B:
        raise ValueError(f"attention of a gemma3 of {GEMMA3_27B} layers depends on the width")
    return architecture


def value(reader: GGUFReader, key: str) -> int:
    """An integer of the model's architecture.

    Raises:
        ValueError: it differs from layer to layer.
        KeyError: the file does not have it.
    """
    architecture = reader.fields["general.architecture"].contents()
    found = reader.fields[f"{architecture}.{key}"].contents()
    if not isinstance(found, int):
        raise ValueError(f"{key} differs from layer to layer")
    return found


def own_shape(reader: GGUFReader) -> Shape:
    """The dimensions of the model in the file."""
    architecture = architecture_of(reader)
    width, heads = value(reader, "embedding_length"), value(reader, "attention.head_count")
    explicit = f"{architecture}.attention.key_length" in reader.fields
    head = value(reader, "attention.key_length") if explicit else width // heads
    kv_heads = value(reader, "attention.head_count_kv")
    return Shape(width, value(reader, "feed_forward_length"), heads, kv_heads, head)


def widen(reader: GGUFReader, target: Path, own: Shape, wide: Shape, kind: str) -> None:
    """Write the model of `reader` with the dimensions `wide`.

    Raises:
        ValueError: a dimension would shrink, or the ratio of query to key heads would change.
    """
    grows = all(getattr(wide, name) >= getattr(own, name) for name in ("width", "ffn", "heads", "kv_heads"))
    if not grows or wide.heads * own.kv_heads != own.heads * wide.kv_heads:
        raise ValueError(f"dimensions may only grow, and heads with their kv heads: {own} to {wide}")
    own_type = reader.fields["general.file_type"].contents() if kind == SAME else 0
    weights, file_type = TYPES.get(kind, (None, own_type))
    architecture = architecture_of(reader)
    widening = Widening(own, wide, scaled=architecture == "gemma3")
    writer = GGUFWriter(target, architecture)
    write_metadata(reader, writer, widening, int(file_type))
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, vector(tensor, widening))
        elif weights is None:
            writer.add_tensor(tensor.name, widened_blocks(tensor, widening), raw_dtype=tensor.tensor_type)
        else:
            data = np.concatenate([quantize(rows, weights) for rows in matrix(tensor, widening)])
            writer.add_tensor(tensor.name, data, raw_dtype=weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_metadata(reader: GGUFReader, writer: GGUFWriter, widening: Widening, file_type: int) -> None:
    """The source's metadata, but for what the dimensions change."""
    architecture, wide = writer.arch, widening.wide
    epsilon = f"{architecture}.attention.layer_norm_rms_epsilon"
    changed: dict[str, int | float] = {
        f"{architecture}.embedding_length": wide.width,
        f"{architecture}.feed_forward_length": wide.ffn,
        f"{architecture}.attention.head_count": wide.heads,
        f"{architecture}.attention.head_count_kv": wide.kv_heads,
        epsilon: reader.fields[epsilon].contents() * widening.epsilon_factor,
        "general.file_type": file_type,
    }
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, changed.get(key, field.contents()), field.types[0], inner)
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if f"{architecture}.{name}" not in reader.fields:  # else they would be taken from the width
            writer.add_uint32(f"{architecture}.{name}", wide.head)
    # A draft head of the narrow model reads the hidden states of this one, too.
    writer.add_uint32(WIDENED_FROM, widening.own.width)
    grown = math.sqrt(wide.width / widening.own.width)
    writer.add_float32(WIDENED_BY, grown if widening.scaled else 1.0)


def vector(tensor: ReaderTensor, widening: Widening) -> NDArray[np.float32]:
    """A tensor of one dimension: norms of the hidden state grow, those of heads and rotary factors do not."""
    values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).reshape(-1).astype(np.float32)
    values *= np.float32(widening.factor(tensor.name))
    if kind_of(tensor.name) in STREAM_NORMS + POST_NORMS:
        values = np.pad(values, (0, widening.wide.width - len(values)))
    return values


def widened_blocks(tensor: ReaderTensor, widening: Widening) -> NDArray[np.uint8]:
    """A weight matrix (outputs, bytes) with its blocks as they are.

    Added inputs are zeros whatever they are multiplied with. Added outputs have to be zeros: old inputs are
    multiplied with zeros there, and the outputs of the embedding are the hidden state itself.

    Raises:
        ValueError: a row would end within a block, or weights would change.
    """
    blocks = tensor.data.view(np.uint8)
    rows, size = blocks.shape
    outputs, inputs = widening.wide.rows_and_columns(tensor.name, rows)
    length, nbytes = GGML_QUANT_SIZES[tensor.tensor_type]
    if inputs % length:
        raise ValueError(f"{inputs} inputs of {tensor.name} are no multiple of its blocks of {length}")
    if widening.factor(tensor.name) != 1:
        raise ValueError(f"{tensor.name} is scaled by the width: --type {SAME} cannot do that")
    found = np.zeros((outputs, inputs // length * nbytes), np.uint8)
    found[:rows, :size] = blocks
    if tensor.name != "token_embd.weight":
        added = np.tile(blocks, -(-found.shape[1] // size))[:, size : found.shape[1]]
        for start in range(0, outputs, rows):
            found[start : start + rows, size:] = added[: outputs - start]
    return found


def matrix(tensor: ReaderTensor, widening: Widening) -> Iterator[NDArray[np.float32]]:
    """A weight matrix (outputs, inputs) with zeros below and to the right, `ROWS` outputs at a time."""
    own_rows = len(tensor.data)
    rows, columns = widening.wide.rows_and_columns(tensor.name, own_rows)
    for start in range(0, rows, ROWS):
        part = np.zeros((min(ROWS, rows - start), columns), np.float32)
        if start < own_rows:
            values = dequantize(tensor.data[start : start + ROWS], tensor.tensor_type)
            part[: values.shape[0], : values.shape[1]] = values * np.float32(widening.factor(tensor.name))
        yield part


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
