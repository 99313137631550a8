"""What is lost by drafting through another vocabulary, token by token of what the target says.

The target answers every prompt greedily. At every fourth token of the answer (`--chain`) the draft model is
asked for the next four, in two ways:

- *own*: it reads the text so far in its own tokenization, made anew, and continues in its own tokens. As many
  of the next tokens of the answer are right as have all their bytes written by it. *made* are those of them
  that the target makes of what it wrote: where it says two line ends and the answer has one, the bytes of
  that one are right, but the target has a token for two.
- *mapped*: it is asked as it is while drafting, for the target's tokens.

Only tokens before the first wrong one count. The mapping keeps *mapped / own* of what the draft model knows.
That can be more than 1, since mapped drafting weighs other ways to end a text that stops within a word. Its
time is what it takes outside the draft model, divided by the time inside, without the prompt; in CPU time the
threads of the draft model count as one, as they work side by side.

    python benchmarks/mapping.py TARGET.gguf DRAFT.gguf --prompts FILE [FILE ...] [-n 64] [--limit 200]

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specx.backends.base import Output, Vocab
from specx.backends.errors import SpecxError
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.machine.machine import this_cpu
from specx.backends.settings import Load
from specx.drafters.base import EMPTY_DRAFT, Text, Verified
from specx.drafters.byte_map import ByteMap, whole
from specx.drafters.guesser import GuessCosts
from specx.drafters.model import DraftModel
from specx.drafters.reading import Reader, in_common
from specx.engine.bench.suites import Prompt, load_suite, sample
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.template import ChatTemplate

GREEDY = SamplingSettings(seed=1, temperature=0.0)
NOTHING = Output(np.zeros((1, 1), np.float32))  # the draft model does not look at the target's logits
UNKNOWN_COSTS = (1.0, 0.1, 0.1, 1.0)  # nothing is decided by them here


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and what the target says to it, in its tokens."""

    category: str
    prompt: list[int]
    output: list[int]


@dataclass(slots=True)
class Count:
    """Tokens of one category.

    Attributes:
        places: where the draft model was asked.
        own, made, mapped: tokens that were right.
        own_first, mapped_first: places whose very next token was right.
    """

    places: int = 0
    own: int = 0
    made: int = 0
    mapped: int = 0
    own_first: int = 0
    mapped_first: int = 0

    def add(self, own: int, made: int, mapped: int) -> None:
        """At one place so many tokens were right."""
        self.places += 1
        self.own += own
        self.made += made
        self.mapped += mapped
        self.own_first += own > 0
        self.mapped_first += mapped > 0

    @property
    def kept(self) -> float:
        """Mapped tokens as a share of the own ones."""
        return self.mapped / self.own if self.own else float("nan")


class Times:
    """Seconds of drafting.

    Attributes:
        inside, cpu_inside: the draft model, by the clock and of all threads.
        total, cpu_total: all of it.
    """

    def __init__(self) -> None:
        self.inside = self.total = self.cpu_inside = self.cpu_total = 0.0

    @contextmanager
    def of(self, model: LlamaModel) -> Iterator[None]:
        """What happens meanwhile is drafting, and its calls of `model` are inside."""
        for name in ("forward", "read"):
            setattr(model, name, self._timed(getattr(model, name)))
        start, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.total += time.perf_counter() - start
            self.cpu_total += time.process_time() - cpu
            for name in ("forward", "read"):
                delattr(model, name)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.inside += time.perf_counter() - start
                self.cpu_inside += time.process_time() - cpu

        return timed


class OwnContinuation:
    """The draft model alone: it reads the text in its own tokenization.

    Args:
        source: the draft model.
        byte_map: between the vocabularies; only special tokens are taken from it, by their role.
        answer: whose prompt it begins with.
    """

    def __init__(self, source: DraftModel, byte_map: ByteMap, answer: Answer) -> None:
        self._map = byte_map
        self._target, self._draft = byte_map.target.vocab, byte_map.draft.vocab
        self._reader = Reader(source)
        self._reader.open()
        self._held: list[int] = []
        bos = self._draft.added_bos
        self._before: list[int] = [] if bos is None else [bos]  # tokens up to the last special one
        self._said = b""  # since then
        self.said(answer.prompt)

    def said(self, tokens: Sequence[int]) -> None:
        """The target said `tokens`."""
        for token in tokens:
            role = self._map.special_for_draft(token)
            if role is None:
                self._said += self._target.piece(token)
                continue
            self._before += self._tokenized(self._said)
            self._said = b""
            if role >= 0 and self._before != [role]:
                self._before.append(role)

    def right(self, following: Sequence[int]) -> tuple[int, int]:
        """How many of the tokens that follow the draft model writes, before it writes something else.

        By their bytes, and by the tokens that the target makes of what it writes.
        """
        end = whole(self._said)
        tokens, goal = self._before + self._tokenized(self._said[:end]), self._said[end:]
        self._reader.changed(in_common(self._held, tokens))
        self._held = tokens
        ends, last = list[int](), None
        for token in following:
            piece = self._target.piece(token)
            if not piece:  # it has no bytes, and nothing comes after it
                last = token
                break
            goal += piece
            ends.append(len(goal))
        right, written = self._written(tokens, goal, ends, last)
        made = self._map.continued(written[len(self._said) - end :])
        return right, min(right, in_common(made, following)) if last is None else right

    def _tokenized(self, text: bytes) -> list[int]:
        return self._draft.tokenize(text, add_special=False, parse_special=False)

    def close(self) -> None:
        """The answer is finished."""
        self._reader.close()

    def _written(
        self, tokens: list[int], goal: bytes, ends: Sequence[int], last: int | None
    ) -> tuple[int, bytes]:
        """How many of the tokens that end at `ends` of `goal` come true, and of `last` without bytes.

        And what was written.
        """
        written, chain = b"", list[int]()
        while goal.startswith(written) and (len(written) < len(goal) or last is not None):
            token = int(self._reader.logits(tokens, chain)[0].argmax())
            piece = self._draft.piece(token)
            if not piece:
                ended = written == goal and token in self._draft.eog and last in self._target.eog
                return sum(end <= len(written) for end in ends) + ended, written
            chain.append(token)
            written += piece
        agreed = in_common(list(written), list(goal))
        return sum(end <= agreed for end in ends), written


def main() -> int:
    """Answer every prompt, ask at every token, and print the table."""
    arguments = parse()
    try:
        prompts = [prompt for path in arguments.prompts for prompt in load_suite(path)]
        chosen = spread(prompts, arguments.limit)
        answers = answer(arguments.target, chosen, arguments.n_predict, arguments.n_ctx)
        counts, times = compare(arguments, answers)
    except (SpecxError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(counts, times)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("-n", "--n-predict", type=int, default=64, help="tokens of an answer (64)")
    parser.add_argument("--limit", type=int, default=200, help="prompts, evenly from all categories (200)")
    parser.add_argument("--chain", type=int, default=4, help="tokens asked for at once (4)")
    parser.add_argument("-c", "--n-ctx", type=int, default=2048, help="longer prompts are left out (2048)")
    return parser.parse_args()


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """About `limit` prompts, as many of each category as there are, the same whenever it is called."""
    most = 1
    while len(chosen := sample(prompts, most, seed=0)) < min(limit, len(prompts)):
        most += 1
    return chosen[:limit]


def answer(target: Path, prompts: Sequence[Prompt], n_predict: int, n_ctx: int) -> list[Answer]:
    """What the target says, greedily, to the prompts that fit its context."""
    answers = []
    with Session.open(Asked(model=target, n_ctx=n_ctx, drafter="none", store=False)) as session:
        template = ChatTemplate(session.chat_template, bos=session.bos_text, eos=session.eos_text)
        for prompt in prompts:
            if prompt.text:
                tokens = session.tokenize(prompt.text, add_special=True, parse_special=True)
            else:
                text = template.render(prompt.conversation(), tools=prompt.tools or None)
                tokens = template.tokenize(text, session.tokenize)
            if len(tokens) + n_predict < session.n_ctx // 2:  # the draft model may need more tokens
                session.forget_conversation()
                generation = session.generate(tokens, GREEDY, n_predict=n_predict)
                list(generation)
                answers.append(Answer(prompt.category, tokens, generation.result.tokens))
    return answers


def compare(arguments: argparse.Namespace, answers: Sequence[Answer]) -> tuple[dict[str, Count], Times]:
    """Ask the draft model all through every answer.

    Returns:
        Counts by category, and the time of mapped drafting.
    """
    counts: dict[str, Count] = defaultdict(Count)
    times = Times()
    threads, n_ctx = this_cpu().default_threads, arguments.n_ctx
    load = Load(arguments.draft, threads=threads, threads_batch=threads, n_ctx=n_ctx, texts=2)
    model = LlamaModel(load)
    try:
        with load_vocabulary(arguments.target) as target:
            own, mapped = source_of(model, n_ctx, None), source_of(model, n_ctx, target)
            if (room := mapped.open()) is not None:  # the tables of the mapping are made once
                mapped.finish(room)
            assert mapped.byte_map is not None
            for answer in answers:
                alone, drafting = OwnContinuation(own, mapped.byte_map, answer), Mapped(mapped, answer)
                for i in range(0, len(answer.output), arguments.chain):
                    following = answer.output[i : i + arguments.chain]
                    right = alone.right(following)
                    with (times if i else Times()).of(model):  # at first it reads the prompt
                        counts[answer.category].add(*right, drafting.right(following))
                        drafting.said(following)
                    alone.said(following)
                alone.close()
                drafting.close()
    finally:
        model.close()
    return counts, times


def source_of(model: LlamaModel, n_ctx: int, target: Vocab | None) -> DraftModel:
    """The loaded draft model as the drafters see it; through a mapping if `target` is given."""
    costs = GuessCosts(*UNKNOWN_COSTS)
    return DraftModel(lambda: model, n_ctx=n_ctx, shared=model.vocab.size, costs=costs, target=target)


class Mapped:
    """The draft model as it is asked while drafting.

    Args:
        source: the draft model, with the target's vocabulary.
        answer: whose prompt it begins with.
    """

    def __init__(self, source: DraftModel, answer: Answer) -> None:
        self._text = Text(list(answer.prompt))
        self._guesser = source.follow(self._text)

    def right(self, following: Sequence[int]) -> int:
        """How many of the tokens that follow are proposed, before something else is."""
        chain = list[int]()
        while len(chain) < len(following) and self._guesser.usable and not self._guesser.ended:
            guess = self._guesser.guess(chain)
            if guess is None or guess.token != following[len(chain)]:
                break
            chain.append(guess.token)
        return len(chain)

    def said(self, tokens: Sequence[int]) -> None:
        """The target said `tokens`."""
        self._text.append(tokens)
        self._guesser.observe(Verified(tokens, EMPTY_DRAFT, NOTHING))

    def close(self) -> None:
        """The answer is finished."""
        self._guesser.close()


def report(counts: dict[str, Count], times: Times) -> None:
    """Print a table, and the same as JSON."""
    rows = dict(sorted(counts.items()))
    rows["all"] = Count(*(sum(column) for column in zip(*map(astuple, counts.values()), strict=True)))
    names = f"{'category':<18}{'places':>8}{'own':>8}{'made':>8}{'mapped':>8}"
    print(f"{names}{'kept':>8}{'of made':>9}{'first token kept':>18}")
    for name, count in rows.items():
        first = f"{count.mapped_first / max(count.own_first, 1):18.3f}"
        tokens = f"{count.places:8}{count.own:8}{count.made:8}{count.mapped:8}"
        print(f"{name:<18}{tokens}{count.kept:8.3f}{count.mapped / max(count.made, 1):9.3f}{first}")
    share = (times.total - times.inside) / times.inside
    cpu = (times.cpu_total - times.cpu_inside) / (times.cpu_inside / this_cpu().default_threads)
    print(f"mapping: {share:.1%} of the draft model's time ({times.inside:.1f} s), {cpu:.1%} by CPU time")
    tables = {name: {**asdict(count), "kept": count.kept} for name, count in rows.items()}
    print(json.dumps({"counts": tables, "mapping_time": share, "mapping_cpu_time": cpu}))


if __name__ == "__main__":
    sys.exit(main())
