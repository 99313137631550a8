"""What a draft head costs, and how often its first token is right, by how many tokens it has read.

The target answers prompts greedily; at every other token of the answers the head is asked anew, having read
the last so many tokens. That tells how late it can begin: it scores its whole vocabulary for every token it
reads (docs/log.md). Costs are processor time, so other processes weigh little.

    python benchmarks/heads.py MODEL.gguf HEAD.gguf PROMPTS.jsonl --category qa --prompts 8
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Tree, Want, chain_parents
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.head_target import widened_by
from specx.backends.gguf.heads import HeadFile, check_head, read_head
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import HEAD_ROWS, Load

WINDOWS = (1, 4, 16, 32, 64, 128, 256)
N_CTX = 2048
LONGEST_PROMPT = 400  # tokens
REPEATS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with its answer.

    Attributes:
        text: token ids of both.
        start: where the answer begins.
        states: (n, d) the head's states of all tokens but the last.
    """

    text: list[int]
    start: int
    states: NDArray[np.float32]


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("prompts_file", type=Path, help="a JSON object a line, with `turns` and `category`")
    parser.add_argument("--category", default="")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=60, help="of each answer")
    parser.add_argument("--kernels", choices=sorted(KERNELS), default="specx")
    options = parser.parse_args()
    info, file = read_runnable(options.model), read_head(options.head)
    if reason := check_head(file, info):
        print(f"{options.head} cannot draft: {reason}", file=sys.stderr)
        return 1
    kernels = KERNELS[options.kernels]
    target = LlamaModel(Load(options.model, 1, 1, n_ctx=N_CTX), kernels=kernels)
    target.extract(file.layers)
    load = Load(options.head, 1, 1, n_ctx=N_CTX, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
    head = LlamaHead(file, load, target_context=target.context, scale=widened_by(info), kernels=kernels)
    answers = [
        answered(target, head, prompt, options.tokens)
        for prompt in read_prompts(options.prompts_file, options.category, options.prompts)
    ]
    print_costs(target, head, file)
    print("tokens read  right")
    for window in WINDOWS:
        right, asked = rightness(head, answers, window)
        print(f"{window:11}  {right / max(asked, 1):.3f} of {asked}", flush=True)
    return 0


def read_prompts(path: Path, category: str, count: int) -> list[str]:
    """The first turns of `count` prompts, evenly spread over those of a category."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [line["turns"][0] for line in lines if category in line.get("category", "")]
    return texts[:: max(len(texts) // count, 1)][:count]


def answered(target: LlamaModel, head: LlamaHead, prompt: str, tokens: int) -> Answer:
    """A prompt in ChatML, and the target's greedy answer."""
    vocab, rows = target.vocab, list[NDArray[np.float32]]()
    said = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n".encode()
    text = vocab.tokenize(said, add_special=True, parse_special=True)[-LONGEST_PROMPT:]
    start, cache = len(text), target.open()
    cache.prefill(text[:-1], features=lambda _, features: rows.append(features.copy()))
    while len(text) < start + tokens and text[-1] not in vocab.eog:
        tree = Tree(cache, np.array(text[-1:], np.int32), chain_parents(1))
        output = target.forward([tree], Want.LOGITS | Want.HIDDEN)[0]
        assert output.hidden is not None
        rows.append(output.hidden.copy())
        text.append(int(output.logits[0].argmax()))
        cache.keep([0])
    cache.close()
    return Answer(text, start, head.encode(np.concatenate(rows)))


def rightness(head: LlamaHead, answers: list[Answer], window: int) -> tuple[int, int]:
    """How many tokens were right of how many asked for, having read `window` tokens."""
    right = asked = 0
    for answer in answers:
        for last in range(answer.start - 1, len(answer.text) - 2, 2):
            first = max(0, last - window + 1)
            head.forget(0, 0)
            tokens = np.array(answer.text[first + 1 : last + 2], np.int32)
            logits, _ = head.step(0, tokens, answer.states[first : last + 1], 0)
            best = int(logits.argmax())
            right += (best if head.columns is None else int(head.columns[best])) == answer.text[last + 2]
            asked += 1
    head.forget(0, 0)
    return right, asked


def print_costs(target: LlamaModel, head: LlamaHead, file: HeadFile) -> None:
    """Milliseconds of processor time, the least of some, on one thread."""
    cache, one = target.open(), np.zeros(1, np.int32)
    cache.prefill(range(200))

    def step() -> None:
        target.forward([Tree(cache, one, chain_parents(1))])
        cache.keep([0])
        cache.rewind(200)

    states = np.zeros((HEAD_ROWS, file.info.embedding_length), np.float32)

    def rows(n: int) -> Callable[[], None]:
        def call() -> None:
            head.step(0, np.zeros(n, np.int32), states[:n], 0)
            head.forget(0, 0)

        return call

    whole = least_ms(step)
    found = {n: least_ms(rows(n)) for n in (1, 4, HEAD_ROWS)}
    cache.close()
    print(f"a step of the target {whole:.2f} ms; the head: " + ", ".join(
        f"{n} tokens {ms:.2f} ms ({ms / whole:.3f})" for n, ms in found.items()
    ))  # fmt: skip


def least_ms(call: Callable[[], None]) -> float:
    """The least processor time of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        times.append((time.process_time() - start) * 1e3)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
