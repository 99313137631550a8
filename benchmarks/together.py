"""Tokens per second of several texts written together, against one after the other, without drafts.

    python benchmarks/together.py MODEL [TEXTS [ROUNDS]]

Both take turns, now this one first and now that, on the same prompts and the same threads; texts that are the
same are counted. Texts are of uneven length, and end one by one.
"""

from __future__ import annotations

import statistics
import sys
import time

from specx.engine.session import Session, load
from specx.engine.settings import SamplingSettings

GREEDY = SamplingSettings(temperature=0)


def write(model: Session, texts: int) -> tuple[float, list[list[int]]]:
    """Seconds for all texts together if `model` has room for them, else in turn, and their tokens."""
    model.forget_conversation()
    answers = [
        model.generate(f"A letter about the number {i}.", GREEDY, n_predict=60 + 7 * i, ignore_eos=True)
        for i in range(texts)
    ]
    start = time.perf_counter()
    if model.asked.texts == 1:
        for answer in answers:
            list(answer)
    else:
        list(model.together(answers))
    return time.perf_counter() - start, [answer.result.tokens for answer in answers]


def main(path: str, texts: int = 8, rounds: int = 5) -> None:
    ratios = []
    with (
        load(path, n_ctx=512, drafter="none", store=False) as alone,
        load(path, n_ctx=512, drafter="none", store=False, texts=texts) as together,
    ):
        for model in (alone, together):
            write(model, texts)  # a warm-up
        for number in range(rounds):
            order = (together, alone) if number % 2 else (alone, together)
            wrote = {id(model): write(model, texts) for model in order}
            (one_s, expected), (all_s, tokens) = wrote[id(alone)], wrote[id(together)]
            ratios.append(one_s / all_s)
            count = sum(map(len, tokens))
            same = sum(a == b for a, b in zip(expected, tokens, strict=True))
            print(
                f"{count / one_s:.1f} and {count / all_s:.1f} tokens/s: {ratios[-1]:.2f}x, {same} identical"
            )
    print(f"median {statistics.median(ratios):.2f}x, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
