"""How far apart the logits of different kernels are, on real text.

Every arm reads the same text. Its distribution over the next token is compared with that of llama.cpp's own
kernels at 8 tokens a step, position by position: the mean Kullback-Leibler divergence, and how often both
like the same token best. llama.cpp against itself, at another width or without rearranged weights, is the
yardstick.

All of them round activations to 8 bits. With --exact they are compared, too, with the same weights
multiplied in 32-bit floats (a file made for the purpose, four bytes a weight, and removed again): which
kernels are nearer to what the model file says.

    python benchmarks/kernel_quality.py MODEL.gguf --prompts prompts/*.jsonl --exact
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache
from specx.backends.errors import SpecxError
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK, Kernels
from specx.backends.llama.libllama import lib
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load
from specx.engine.bench.suites import Prompt, load_suite

Logits = NDArray[np.float32]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """Kernels, and how many tokens they get at once; without `repack` the weights are as in the file."""

    name: str
    kernels: Kernels
    width: int
    repack: bool = True


REFERENCE = Arm("stock", STOCK, 8)
ARMS = (
    Arm("stock", STOCK, 1),
    Arm("stock, weights not rearranged", STOCK, 8, repack=False),
    Arm("attention", ATTENTION, 8),
    Arm("specx", SPECX, 8),
)
EXACT = Arm("32-bit floats", STOCK, 8)


@dataclass(slots=True)
class Distance:
    """What was measured at every position so far."""

    divergences: list[float] = field(default_factory=list)
    agreements: int = 0

    def add(self, expected: Numbers, actual: Numbers) -> None:
        """Compare two tables of log probabilities, (n, V) each."""
        self.divergences += divergence(expected, actual).tolist()
        self.agreements += int(np.sum(np.argmax(expected, axis=-1) == np.argmax(actual, axis=-1)))

    def cells(self) -> tuple[str, str, str]:
        """Mean and 99th percentile of the divergence in nats, and the share of equal best tokens."""
        mean, high = np.mean(self.divergences), np.quantile(self.divergences, 0.99)
        return f"{mean:.1e}", f"{high:.1e}", f"{self.agreements / len(self.divergences):.2%}"


def main() -> int:
    """Compare, then print the table."""
    arguments = parse(sys.argv[1:])
    try:
        prompts = [prompt for path in arguments.prompts for prompt in load_suite(path)]
        print(report(measure(arguments, passages(prompts, arguments.seed))))
    except (SpecxError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="JSONL files of prompts")
    parser.add_argument("--exact", action="store_true", help="compare with 32-bit floats as well")
    parser.add_argument("--positions", type=int, default=2000, help="tokens to read in all (2000)")
    parser.add_argument("--window", type=int, default=1000, help="tokens of context, at most (1000)")
    parser.add_argument("--threads", type=int, help="CPU threads; with 1, a busy machine does no harm")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the prompts (0)")
    return parser.parse_args(argv)


def passages(prompts: Iterable[Prompt], seed: int) -> str:
    """What the users of all prompts say first, in an order that depends on the seed.

    Raises:
        ValueError: no prompt is a user's alone.
    """
    texts = [
        prompt.messages[0]["content"]
        for prompt in prompts
        if prompt.messages and all(message["role"] == "user" for message in prompt.messages)
    ]
    if not texts:
        raise ValueError("none of the prompts is a user's alone")
    random.Random(seed).shuffle(texts)
    return "\n\n".join(texts)


def windows(tokens: Sequence[int], positions: int, size: int) -> list[NDArray[np.int32]]:
    """The first `positions` tokens, cut into contexts of `size`.

    Raises:
        ValueError: there are not so many.
    """
    if len(tokens) < positions:
        raise ValueError(f"the prompts have {len(tokens)} tokens, not {positions}")
    return [np.array(tokens[i : min(i + size, positions)], np.int32) for i in range(0, positions, size)]


def measure(arguments: argparse.Namespace, text: str) -> dict[str, dict[Arm, Distance]]:
    """By what the arms are compared with ("stock", and "32-bit floats" if wanted), and by arm."""
    threads = arguments.threads
    wanted = Load(arguments.model, threads, threads, n_ctx=arguments.window + 64)
    with ExitStack() as stack:
        caches = {arm: load(stack, wanted, arm) for arm in (REFERENCE, *ARMS)}
        if arguments.exact:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            floats = replace(wanted, path=in_floats(wanted.path, folder), type_k="f32", type_v="f32")
            caches[EXACT] = load(stack, floats, EXACT)
        found = {REFERENCE.name: {arm: Distance() for arm in ARMS}}
        if arguments.exact:
            found[EXACT.name] = {arm: Distance() for arm in (REFERENCE, *ARMS)}
        vocab = caches[REFERENCE].model.vocab
        tokens = vocab.tokenize(text.encode(), add_special=False, parse_special=False)
        for window in windows(tokens, arguments.positions, arguments.window):
            for cache in caches.values():
                cache.rewind(0)
            for start in range(0, len(window), REFERENCE.width):
                piece = window[start : start + REFERENCE.width]
                rows = {arm: read(cache, piece, arm.width) for arm, cache in caches.items()}
                compare(rows, found)
    return found


def load(stack: ExitStack, wanted: Load, arm: Arm) -> Cache:
    """Room for a text in a model of the arm's own, which is closed with the stack."""
    model = LlamaModel(wanted, kernels=arm.kernels, repack=arm.repack)
    return stack.enter_context(closing(model)).open()


def in_floats(model: Path, folder: Path) -> Path:
    """A copy of `model` whose weights are 32-bit floats.

    Raises:
        ValueError: llama.cpp cannot write it.
    """
    target = folder / "floats.gguf"
    params = lib().llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = lib().LLAMA_FTYPE_ALL_F32, True
    if lib().llama_model_quantize(str(model).encode(), str(target).encode(), params) != 0:
        raise ValueError(f"{model.name} could not be written with 32-bit floats")
    return target


def read(cache: Cache, tokens: NDArray[np.int32], width: int) -> Numbers:
    """Commit tokens in steps of `width`; (n, V) log probabilities of what follows each of them."""
    rows = []
    for start in range(0, len(tokens), width):
        piece = tokens[start : start + width]
        output = cache.forward(piece, np.arange(-1, len(piece) - 1, dtype=np.int32))
        rows.append(log_softmax(output.logits))
        cache.keep(range(len(piece)))
    return np.concatenate(rows)


def log_softmax(logits: Logits) -> Numbers:
    """Log probabilities of logits (n, V)."""
    shifted: Numbers = logits.astype(np.float64)
    shifted -= np.max(shifted, axis=-1, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return shifted


def divergence(expected: Numbers, actual: Numbers) -> Numbers:
    """Kullback-Leibler divergence of each row of `actual` from that of `expected`, in nats."""
    nats: Numbers = np.sum(np.exp(expected) * (expected - actual), axis=-1)
    return nats


def compare(rows: dict[Arm, Numbers], found: dict[str, dict[Arm, Distance]]) -> None:
    """Add the distances between the arms' log probabilities of one piece of text."""
    references = {REFERENCE.name: REFERENCE, EXACT.name: EXACT}
    for name, distances in found.items():
        for arm, distance in distances.items():
            distance.add(rows[references[name]], rows[arm])


def report(found: dict[str, dict[Arm, Distance]]) -> str:
    """A table in Markdown, one row for each arm and what it is compared with."""
    lines = ["| compared with | kernels | tokens a step | mean KL, nats | 99% below | same best token |"]
    lines += ["|---|---|---|---|---|---|"]
    for reference, distances in found.items():
        against = f"{REFERENCE.name}, {REFERENCE.width} a step" if reference == REFERENCE.name else reference
        for arm, distance in distances.items():
            lines.append("| " + " | ".join((against, arm.name, str(arm.width), *distance.cells())) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
