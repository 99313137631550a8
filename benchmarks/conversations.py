"""Conversations with a draft model that is asked at random, everything checked by computing it anew.

    python benchmarks/conversations.py TARGET.gguf DRAFT.gguf [--minutes 10] [--seed 1] [-c 512]

Messages are added, edited and taken back, and answers outgrow the context, which shifts, at temperatures 0,
0.7 and 1. Two things are checked:

- Every answer is that of a session without drafts which reads the conversation anew.
- At steps drawn at random, the draft model proposes, token by token, what a second one does that reads the
  text anew.

DRAFT may have the vocabulary of TARGET or another one, and may be trimmed. The last line is JSON. Exit code 1
if something differs, or if nothing of a kind took place.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from beside_free import TARGET_MS

from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load
from specx.drafters.base import Draft, Offer, Text
from specx.drafters.calibration.merging import Merging
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import Guess, GuessCosts, Guesser
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel
from specx.drafters.reading import Read
from specx.engine.bench.suites import load_suite
from specx.engine.budget import Decision, Terms
from specx.engine.offers import Asking, Reason
from specx.engine.plan import Plan
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

TEMPERATURES = (0.0, 0.7, 1.0)
COMPARED = 0.7  # share of the steps in which the draft model is asked that are computed anew
KINDS = ("added", "edited", "taken back", "beyond the context", "guesses")
DRAFT_CTX = 4  # times the target's context: forgetting depends on when it began, so it does not come to that


class Anew(DraftModel):
    """A draft model that has read nothing whenever it begins to follow a text."""

    def take_idle(self, _tokens: Sequence[int]) -> Read | None:
        """Nothing."""
        return None

    def open(self) -> Read | None:
        """Room that is empty."""
        read = super().open()
        if read is not None:
            read.cache.rewind(0)
            read.held.clear()
        return read


class Checked(DraftModel):
    """A draft model whose proposals are computed anew now and then.

    Attributes:
        anew: computes them.
        choice: when.
        counts: how many guesses were compared, and how many differed.
        fresh: what computes those of the present step, if they are.
    """

    anew: Anew
    choice: random.Random
    counts: Counter[str]
    fresh: list[Guesser]

    def follow(self, text: Text) -> Guesser:
        """A guesser for one text."""
        guesser = super().follow(text)
        guess, fresh = guesser.guess, self.fresh  # an earlier text may have left one, which has the room

        def compared(chain: Sequence[int]) -> Guess | None:
            if not chain:
                while fresh:
                    fresh.pop().close()
                if self.choice.random() < COMPARED:
                    self.anew.calibration.merging = Merging.from_arrays(self.merging.to_arrays())
                    fresh.append(self.anew.follow(_copy(text)))
            given = guess(chain)
            if fresh:
                again = fresh[0].guess(chain)
                self.counts["guesses"] += 1
                # A prompt that is read at once has other last bits, so margins are only close.
                self.counts["guesses that differ"] += (given and given.token) != (again and again.token)
            return given

        guesser.guess = compared  # type: ignore[method-assign]
        return guesser


def _copy(text: Text) -> Text:
    copy = Text(list(text.tokens), text.seed, text.temperature, text.truncation)
    copy.position = text.position
    return copy


class AtRandom(Asking):
    """Asks whatever is on offer, as often as it happens to."""

    choice = random.Random(1)

    def weigh(
        self, _terms: Terms, _drafts: Sequence[Draft], _i: int, _offer: Offer, _best: Decision
    ) -> tuple[float, Reason | None]:
        """In seven of ten cases."""
        return 1.0, Reason.GAIN if self.choice.random() < 0.7 else None


class Conversation:
    """A conversation that somebody edits.

    Args:
        questions: what they say.
        choice: what they do next.
    """

    def __init__(self, questions: Sequence[str], choice: random.Random) -> None:
        self._questions, self._choice = questions, choice
        self.messages: list[dict[str, Any]] = []

    def next(self) -> str:
        """Say the next thing; returns what kind of turn it is."""
        choice, turns = self._choice, len(self.messages) // 2
        kind = choice.choices(KINDS[:3], (3, 2 * (turns > 0), 2 * (turns > 1)))[0]
        if kind == "edited":
            turn = choice.randrange(turns)
            before = str(self.messages[2 * turn]["content"])
            del self.messages[2 * turn :]
            self._say(before[: choice.randrange(len(before) + 1)] + " " + choice.choice(self._questions))
            return kind
        if kind == "taken back":
            del self.messages[2 * choice.randrange(1, turns) :]
        self._say(choice.choice(self._questions))
        return kind

    def answered(self, text: str) -> None:
        """The model said so."""
        self.messages.append({"role": "assistant", "content": text})

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})


def converse(
    session: Session,
    plain: Session,
    counts: Counter[str],
    options: argparse.Namespace,
    going: Callable[[], bool],
) -> None:
    """Talk until the time is over."""
    choice = random.Random(options.seed)
    questions = [
        text for prompt in load_suite("default") if prompt.messages
        if len(text := str(prompt.conversation()[-1]["content"])) < 300
    ]  # fmt: skip
    talk = Conversation(questions, choice)
    while going():
        kind = talk.next()
        prompt = session.prompt_of(talk.messages)
        if len(prompt) > session.n_ctx - 64:
            talk = Conversation(questions, choice)
            continue
        beyond = choice.random() < 0.06
        n = session.n_ctx - len(prompt) + choice.randrange(40, 90) if beyond else choice.randrange(8, 48)
        sampling = SamplingSettings(seed=len(prompt), temperature=choice.choice(TEMPERATURES))
        said = session.generate(prompt, sampling, n_predict=n, ignore_eos=beyond)
        for chunk in said:
            counts["drafted tokens that were right"] += max(len(chunk.tokens) - 1, 0)
        plain.forget_conversation()
        again = plain.generate(prompt, sampling, n_predict=n, ignore_eos=beyond)
        list(again)
        counts[kind] += 1
        counts["beyond the context"] += beyond
        counts["answers"] += 1
        counts["answers that differ"] += said.result.tokens != again.result.tokens
        talk.answered(said.result.text)


def main() -> int:
    """Converse, and tell what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-c", "--n-ctx", type=int, default=512)
    options = parser.parse_args()
    n_ctx, counts = options.n_ctx, Counter[str]()
    asked = Asked(
        options.target, n_ctx=n_ctx, drafter="none", store=False, kernels="specx", context_shift=True
    )
    same = not match_vocabularies(read_gguf(options.target), read_gguf(options.draft)).difference
    with Session.open(asked) as session, Session.open(asked) as plain:
        assert session.setup is not None
        threads = session.setup.load.threads
        load = Load(options.draft, threads, threads, n_ctx=DRAFT_CTX * n_ctx)
        models = [LlamaModel(load, kernels=KERNELS["specx"]) for _ in range(2)]

        def source(kind: type[DraftModel], model: LlamaModel) -> DraftModel:
            costs = GuessCosts(1.0, 0.1, 0.1, 1.0)  # nothing is decided by them
            target = None if same else session.vocab
            size = session.vocab.size
            return kind(lambda: model, n_ctx=DRAFT_CTX * n_ctx, shared=size, costs=costs, target=target)

        checked, anew = source(Checked, models[0]), source(Anew, models[1])
        assert isinstance(checked, Checked) and isinstance(anew, Anew)
        checked.anew, checked.choice, checked.counts = anew, random.Random(options.seed), counts
        checked.fresh = []
        session.drafter = MixtureDrafter(FreeDrafter(session.vocab.size))
        session.drafter.guessers.append(checked)
        steps = {str(n): ms for n, ms in TARGET_MS.items()}
        session.staircase.load_json({"0": steps, str(n_ctx): steps})
        for each in (session, plain):
            each.measure_staircase = lambda *_given: None  # type: ignore[method-assign]
            each.between_steps.go_on = lambda caches: 0  # type: ignore[method-assign]
        session.plan = Plan(session.staircase, widths=session.plan.widths, asking=AtRandom)
        end = time.monotonic() + 60 * options.minutes
        converse(session, plain, counts, options, lambda: time.monotonic() < end)
        for model in models:
            model.close()
    for name, count in counts.items():
        print(f"{name}: {count}")
    print(json.dumps(counts))
    wrong = counts["answers that differ"] or counts["guesses that differ"]
    return int(bool(wrong) or not all(counts[kind] for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
