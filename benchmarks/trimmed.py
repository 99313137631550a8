"""What trimming a draft model costs in agreement, and what it saves in time.

    python benchmarks/trimmed.py TARGET DRAFT TRIMMED... [--tokens N] [--rounds N]

The target answers the built-in prompts greedily. Every draft model then reads its answers, and what it would
have proposed for each token is counted as right or wrong: the same tokens for all of them. Draft models of
another vocabulary read the text as their own tokenizer splits it. The time of a token is taken in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import chain_parents
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load
from specx.engine.bench.suites import load_suite
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

N_CTX = 2048
PIECE = 32  # tokens that are read at once
STEPS = 64  # timed single tokens of a round


@dataclass(frozen=True, slots=True)
class Answer:
    """What the target wrote; `start` is the number of tokens of the prompt."""

    category: str
    tokens: list[int]
    start: int


def main() -> None:
    """Count and time."""
    arguments = parse()
    answers, texts = target_answers(arguments.target, arguments.tokens, arguments.limit)
    same = not match_vocabularies(read_gguf(arguments.target), read_gguf(arguments.draft)).difference
    models = {path.name: load(path, arguments) for path in (arguments.draft, *arguments.trimmed)}
    try:
        if not same:
            answers = retokenized(models[arguments.draft.name], answers, texts)
        right = {name: dict(agreement(model, answers)) for name, model in models.items()}
        show_agreement(right, answers)
        show_times(models, max(answers, key=lambda answer: len(answer.tokens)), arguments.rounds)
    finally:
        for model in models.values():
            model.close()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("trimmed", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=64, help="of each of the hundred answers (64)")
    parser.add_argument("--limit", type=int, help="most prompts of a category (all ten)")
    parser.add_argument("--rounds", type=int, default=9, help="of timing (9)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", choices=KERNELS, default="specx", help="(specx)")
    return parser.parse_args()


def load(path: Path, arguments: argparse.Namespace) -> LlamaModel:
    """A draft model."""
    threads = arguments.threads
    return LlamaModel(Load(path, threads, threads, n_ctx=N_CTX), kernels=KERNELS[arguments.kernels])


def target_answers(
    target: Path, tokens: int, limit: int | None
) -> tuple[list[Answer], list[tuple[str, str]]]:
    """Greedy answers by category, and the same as (question, answer) texts."""
    greedy = SamplingSettings(temperature=0.0, seed=1)
    asked = Asked(target, n_ctx=N_CTX, texts=8, drafter="none", measure=False)
    with Session.open(asked) as session:
        found = []
        for prompt in load_suite("default", limit=limit):
            read = (
                session.prompt_of(prompt.conversation())
                if prompt.messages
                else session.tokenize(prompt.text, add_special=True, parse_special=True)
            )
            if len(read) + tokens <= N_CTX:
                found.append((prompt, read, session.generate(read, greedy, n_predict=tokens)))
        for _ in session.together([generation for _, _, generation in found]):
            pass
    answers = [
        Answer(prompt.category, [*read, *written.result.tokens], len(read)) for prompt, read, written in found
    ]
    asked_for = (prompt.text or str(prompt.conversation()[-1]["content"]) for prompt, _, _ in found)
    return answers, list(zip(asked_for, (w.result.text for _, _, w in found), strict=True))


def retokenized(model: LlamaModel, answers: list[Answer], texts: list[tuple[str, str]]) -> list[Answer]:
    """The same text in the tokens of another vocabulary."""
    found = []
    for answer, (question, text) in zip(answers, texts, strict=True):
        before = model.vocab.tokenize(f"{question}\n".encode(), add_special=True, parse_special=False)
        after = model.vocab.tokenize(text.encode(), add_special=False, parse_special=False)
        if len(before) + len(after) <= N_CTX:
            found.append(Answer(answer.category, before + after, len(before)))
    return found


def agreement(model: LlamaModel, answers: list[Answer]) -> Iterator[tuple[str, int]]:
    """Tokens of each category that are what the model finds most likely there."""
    right: dict[str, int] = {}
    for answer in answers:
        right[answer.category] = right.get(answer.category, 0) + int(agreed(model, answer).sum())
    yield from right.items()


def agreed(model: LlamaModel, answer: Answer) -> NDArray[np.bool_]:
    """Whether each token of the answer is the model's own choice, of the rows that it has by then: those that
    were kept, and those of the tokens before."""
    tokens, start = np.array(answer.tokens, np.int32), max(answer.start - 1, 0)
    has_row = kept_tokens(model)
    has_row[tokens[:start]] = True
    chosen: list[int] = []
    cache = model.open()
    try:
        if start:
            cache.prefill(answer.tokens[:start])
        for at in range(start, len(tokens) - 1, PIECE):
            piece = tokens[at : min(at + PIECE, len(tokens) - 1)]
            logits = cache.forward(piece, chain_parents(len(piece))).logits
            cache.keep(range(len(piece)))
            head = np.arange(len(has_row)) if model.facts.head is None else model.facts.head
            for token, row in zip(piece, logits, strict=True):
                has_row[token] = True  # those after it have none yet
                chosen.append(int(head[np.where(has_row[head], row, -np.inf).argmax()]))
    finally:
        cache.close()
    found: NDArray[np.bool_] = np.array(chosen, np.int32) == tokens[start + 1 :]
    return found


def kept_tokens(model: LlamaModel) -> NDArray[np.bool_]:
    """(V,) the tokens that have a row whatever the context."""
    found = np.ones(model.vocab.size, np.bool_)
    if model.trimmed is not None and model.trimmed.trim is not None:
        found[:] = False
        found[list(model.trimmed.trim.ids(model.trimmed.path))] = True
    return found


def show_agreement(right: dict[str, dict[str, int]], answers: list[Answer]) -> None:
    """A line for each category: tokens, what the whole model has right, and the others as a share of that."""
    whole, *rest = right
    totals: dict[str, int] = {}
    for answer in answers:
        totals[answer.category] = totals.get(answer.category, 0) + len(answer.tokens) - answer.start
    print(f"{'':16}{'tokens':>8}{'whole':>8}  " + "  ".join(rest))
    for category in [*totals, "overall"]:
        names = list(totals) if category == "overall" else [category]
        counted = {name: sum(by[each] for each in names) for name, by in right.items()}
        total, base = sum(totals[each] for each in names), counted[whole]
        shares = "  ".join(f"{counted[name] / max(base, 1):>{len(name)}.3f}" for name in rest)
        print(f"{category:16}{total:8}{base / max(total, 1):8.3f}  {shares}")


def show_times(models: dict[str, LlamaModel], answer: Answer, rounds: int) -> None:
    """Milliseconds of a single token after an answer, in turns, and times the speed of the whole model."""
    caches = {name: model.open() for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    one, tokens = np.array([-1], np.int32), np.array(answer.tokens[:STEPS], np.int32)
    for cache in caches.values():
        cache.prefill(answer.tokens)
    for turn in range(rounds + 1):
        for name, cache in caches.items():
            cache.rewind(len(answer.tokens))
            started = time.perf_counter()
            for i in range(STEPS):
                cache.forward(tokens[i : i + 1], one)
                cache.keep([0])
            if turn:  # the first is a warm-up
                times[name].append((time.perf_counter() - started) * 1e3 / STEPS)
    whole = next(iter(models))
    for name, each in times.items():
        ratios = [a / b for a, b in zip(times[whole], each, strict=True)]
        print(
            f"{name}: {statistics.median(each):.2f} ms a token, {statistics.median(ratios):.2f}x as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
