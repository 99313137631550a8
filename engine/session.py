"""A loaded model and everything that belongs to it: ready to answer, one text or many."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from specx.backends.base import Cache, Model, Progress
from specx.backends.errors import ContextFullError, GrammarError, UsageError
from specx.drafters import registry
from specx.drafters.base import Drafter
from specx.drafters.mixture import MixtureDrafter
from specx.engine.cost.identity import Identity, identity_text, measure_identity
from specx.engine.cost.measuring import BetweenSteps, give_up_provisional, measure_steps, reading_s
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import Stopped, never
from specx.engine.decode import Step
from specx.engine.draft_choice import models_of
from specx.engine.drafting import DraftModels
from specx.engine.generation import Arrivals, Generation
from specx.engine.learned.knowledge import Learned, StartingPoint
from specx.engine.learned.lengths import LONGEST, Outlook
from specx.engine.plan import Plan
from specx.engine.sampling import Constraint
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.choice import Setup
from specx.engine.setup.exact import exact_widths
from specx.engine.setup.explain import silent
from specx.engine.setup.here import Here, Told
from specx.engine.setup.threads import governor_of
from specx.engine.slots import Slots
from specx.engine.text.alphabet import Alphabet
from specx.engine.text.answer import Chunk, Request, Result, Timings
from specx.engine.text.specials import SpecialTexts, special_texts
from specx.engine.together import write
from specx.engine.turns import Turns

__all__ = ["Chunk", "Generation", "Result", "Session", "Timings", "load"]

Notice = Callable[[str], None]


class Session:
    """One loaded model, ready to answer. A context manager. Implements `Writer`.

    Args:
        model: the target.
        asked: what was asked for.
        learned: what is kept of the model between runs.
        name: what to call the model.
        chat_template: its own template, if it has one.
        tool_template: its own for conversations with tools, if that is another one.
        notice: told what a person should know, one sentence at a time.
        clock: seconds, of everything that is timed.
        draft_models: where a draft model would come from; None for never.
        setup: everything that was decided for it; None if nothing was.

    Attributes:
        warn: told what is probably a mistake of the person's; the same as `notice` unless it is set.
    """

    def __init__(
        self,
        model: Model,
        asked: Asked,
        learned: Learned,
        *,
        name: str,
        chat_template: str | None = None,
        tool_template: str | None = None,
        notice: Notice = silent,
        clock: Callable[[], float] = time.perf_counter,
        draft_models: Callable[[Session], DraftModels] | None = None,
        setup: Setup | None = None,
    ) -> None:
        self.model = model
        self.asked = asked
        self.setup = setup
        self.context_shift = asked.context_shift
        self.clock = clock
        self.model_name = name
        self.chat_template, self.tool_template = chat_template, tool_template
        self.vocab = model.vocab
        self.n_ctx = model.facts.n_ctx
        self.plain_reason = model.facts.plain_reason
        self.notice = notice
        self.warn = notice
        self._second_bos_told = self._closed = False
        self._turns = Turns()
        self._alphabet: Alphabet | None = None  # for grammars
        self.learned = learned
        self.staircase = learned.load_staircase(Staircase(model.facts.max_width))
        self.slots = Slots(model, copies=not asked.context_shift)
        held = asked.exact and asked.measure and not self.plain_reason
        widths = exact_widths(self.measure_identity(), model.facts, notice) if held else None
        self.plan = Plan(self.staircase, max_nodes=asked.draft_max, widths=widths, clock=clock)
        self.plan.governor = governor_of(model, setup)
        self.between_steps = BetweenSteps(self.staircase, clock)
        self.draft_models = draft_models(self) if draft_models and not self.plain_reason else None
        self.drafter_name = ""
        self.drafter: Drafter
        self.set_drafter(setup.drafter.value if setup else asked.drafter)
        if self.plain_reason and asked.drafter != "none":
            notice(f"{name} decodes plainly: {self.plain_reason}")

    @classmethod
    def open(
        cls,
        asked: Asked,
        *,
        progress: Told | None = None,
        notice: Notice = silent,
        setup: Setup | None = None,
    ) -> Session:
        """Load a GGUF file, as it was decided if it was.

        Raises:
            DoesNotFitError: there is not enough memory for it.
            ModelError: it cannot be loaded.
        """
        from specx.engine.setup.open import open_model

        here = Here.of(asked, progress=progress, notice=notice)
        opened = open_model(asked, here, setup)
        setup = opened.setup
        return cls(
            opened.model,
            asked,
            Learned(
                here.store,
                model_key=setup.info.fingerprint,
                cost_key=setup.cost_key(),
                origin=(setup.name, setup.info.path),
            ),
            name=setup.name,
            chat_template=setup.info.chat_template,
            tool_template=setup.info.tool_template,
            notice=notice,
            draft_models=models_of(setup, here),
            setup=setup,
        )

    @property
    def bos_text(self) -> str:
        """Text of the token that begins a sequence, for chat templates."""
        return self._special_text(self.vocab.bos)

    @property
    def eos_text(self) -> str:
        """Text of the token that ends a sequence, for chat templates."""
        return self._special_text(self.vocab.eos)

    @property
    def at_once(self) -> int:
        """How many texts can be written together: one, where company would change what is to be exact."""
        alone = self.plan.widths is not None or (self.asked.exact and self.model.facts.shared)
        return 1 if alone else self.model.facts.max_texts

    @property
    def worthwhile(self) -> int:
        """How many texts are best written at once, by costs as known; all there is room for, if one asked."""
        if self.asked.texts is not None or self.plan.widths is not None:
            return self.at_once
        lengths = [slot.cache.length for slot in self.slots if slot.user is not None]
        typical = sum(lengths) // len(lengths) if lengths else 0
        return self.plan.company.best_count(self.at_once, typical, self.plan.host_ms)

    def set_drafter(self, name: str) -> None:
        """Draft with the drafter of that name from now on; the text does not change.

        Raises:
            UsageError: there is no such drafter.
        """
        entry = registry.find(name)
        if entry.named and self.draft_models is None and not self.plain_reason:
            raise UsageError("there is no draft model", "name one when specx starts: -md FILE")
        if self.plain_reason:
            name, entry = "none", registry.find("none")
        drafter = entry.build(StartingPoint(self.vocab, self.learned))
        if problem := registry.extract_for(drafter, self.model):
            others = f"choose another: {', '.join(self.drafters)}"
            raise UsageError(f"the drafter {name!r} needs hidden states: {problem}", others)
        self.drafter_name, self.drafter = name, drafter
        if self.draft_models is not None:
            mixture = MixtureDrafter(self.drafter) if entry.guessers else None
            self.draft_models.attach(mixture, required=entry.named)
            self.drafter = mixture or self.drafter

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names that `set_drafter` takes; "model" if a draft model was named."""
        named = self.draft_models is not None and self.draft_models.forced is not None
        return tuple(name for name in registry.names() if named or name != "model")

    @property
    def drafter_label(self) -> str:
        """The drafter's name, and the draft model's if one is in use."""
        model = self.draft_models.name if self.draft_models is not None else None
        asked = model and isinstance(self.drafter, MixtureDrafter)
        return f"{self.drafter_name}, model {model}" if asked else self.drafter_name

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; that it has a second BOS is told, once, as llama.cpp does.

        Raises:
            UsageError: it has half of a surrogate pair, which is no text.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise UsageError("the text has half of a surrogate pair in it, which is no text") from None
        tokens = self.vocab.tokenize(data, add_special=add_special, parse_special=parse_special)
        if add_special and not self._second_bos_told and (warning := self.second_bos(tokens)):
            self._second_bos_told = True
            self.warn(warning)
        return tokens

    def second_bos(self, tokens: Sequence[int]) -> str:
        """What a person should know if a prompt has the BOS itself that the model adds; else nothing."""
        bos = getattr(self.vocab, "added_bos", None)
        if bos is None or list(tokens[:2]) != [bos, bos]:
            return ""
        return f"the prompt begins with {self.bos_text}, and the model adds it as well: both are kept"

    @cached_property
    def special_texts(self) -> SpecialTexts | None:
        """Control tokens that messages cannot write; None if they may."""
        return None if self.asked.parse_special else special_texts(self.vocab, self.setup)

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation (oldest message first) in the model's chat template, up to its answer.

        Raises:
            TemplateError: the template cannot be used, or refuses the messages.
        """
        from specx.engine.text.template import template_of

        return (template := template_of(self)).tokenize(template.render(messages), self.tokenize)

    def grammar(self, text: str, root: str = "root") -> Constraint:
        """A constraint from a GBNF grammar, whose rule `root` the whole text must match.

        Raises:
            GrammarError: it does not parse, or the model has no grammars.
        """
        pointer = getattr(self.vocab, "pointer", None)
        if pointer is None:
            raise GrammarError("this model has no grammars", "leave the grammar out")
        from specx.engine.text.grammar import GrammarConstraint

        self._alphabet = self._alphabet or Alphabet(self.vocab)
        return GrammarConstraint(pointer, text, root, alphabet=self._alphabet)

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingSettings | None = None,
        *,
        n_predict: int = -1,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        constraint: Constraint | None = None,
        keep: int = 0,
        progress: Progress | None = None,
        evidence: bool = False,
        score_prompt: bool = False,
        shown: frozenset[int] = frozenset(),
        label: object = None,
    ) -> Generation:
        """Prepare an answer to `prompt`; iterate over it to get it, or give several to `together`.

        Args:
            prompt: all of the conversation so far, as text or as token ids.
            sampling: how tokens are chosen; by default as llama.cpp does.
            n_predict: most tokens to emit; negative means no limit.
            stop, ignore_eos, constraint, keep, progress, evidence, score_prompt, shown: as in `Request`.
            label: kept as that of the generation.

        Raises:
            UsageError: the prompt is empty, a token of it is none of the model's, or a stop string is empty.
            ContextFullError: it does not fit the context.
        """
        self._check_open()
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt, add_special=True, parse_special=True)
        sampling = sampling or SamplingSettings()
        if not prompt:
            raise UsageError("the prompt is empty", "give some text")
        if not all(stop):
            raise UsageError("a stop string is empty", "leave it out")
        if not 0 <= min(prompt) <= max(prompt) < self.vocab.size:
            raise UsageError(f"the prompt has a token that is none of the {self.vocab.size} of this model")
        if len(prompt) >= self.n_ctx:
            seconds = reading_s(self.staircase, len(prompt))
            raise ContextFullError.of_prompt(len(prompt), self.n_ctx, self.model.facts.n_ctx_train, seconds)
        if sampling.seed is None:
            sampling = replace(sampling, seed=int.from_bytes(os.urandom(4)))
        request = Request(
            list(prompt), sampling, n_predict if n_predict >= 0 else None, stop, ignore_eos, constraint,
            keep, progress, evidence, score_prompt, shown,
        )  # fmt: skip
        return Generation(self, request, label)

    def together(
        self,
        source: Iterable[Generation] | Arrivals,
        at_once: int | None = None,
        *,
        patient: bool = True,
    ) -> Iterator[tuple[Generation, Chunk]]:
        """Write several answers together; says what each step adds to which.

        Each text is what it would be alone. One that fails ends with `result.failure`. The end of each is a
        chunk that is its `last`. A generation that was begun before is a UsageError, which ends all. A thread
        waits while another one writes with this session.

        Args:
            source: generations of this session; the next one is taken when there is room for it.
            at_once: most texts; by default as many as there is room for, or, if patient and no number was
                asked for, as many as are `worthwhile`.
            patient: read prompts whole, in the least time; else in pieces, so that nobody waits long.
        """
        self._check_open()
        most = self.at_once if at_once is None else max(1, min(at_once, self.at_once))
        writing = partial(write, self, at_once=most, patient=patient, weighed=patient and at_once is None)
        learns = self.draft_models and self.draft_models.adapting
        return self._turns.of(learns.beside(writing, source) if learns else writing(source))

    @property
    def cache(self) -> Cache:
        """Room for one text, for measurements; conversations lose what it holds."""
        return self.slots.measured().cache

    def summary(self) -> str:
        """One line: what runs, and what was chosen."""
        parts = [self.model_name, f"context {self.n_ctx}"]
        drafter = self.drafter_label
        if self.plain_reason:
            drafter = f"none ({self.plain_reason})"
        elif self.drafter_name == "auto":
            drafter = drafter.replace("auto", "auto (suffix + recycle)", 1)
            if (models := self.draft_models) and models.forced and not models.name:  # loaded when it pays
                drafter += f", {models.forced.name} as asked"
        if kernels := getattr(self.model, "kernels", None):
            parts.append(f"kernels {kernels.name}")
        parts.append(f"drafter {drafter}")
        if self.staircase.depths:
            parts.append(self.staircase.describe())
        return ", ".join(parts)

    def reset(self) -> None:
        """Forget the conversation and everything drafters learned in this session."""
        self.forget_conversation()
        self.forget_learned()
        self.set_drafter(self.drafter_name)

    def forget_learned(self) -> None:
        """Go back to what was known when the session began; takes effect with the next `set_drafter`."""
        self.learned.forget()
        if self.draft_models is not None:
            self.draft_models.forget()

    def forget_conversation(self) -> None:
        """Empty all caches; the next prompts are read from their beginning."""
        for slot in self.slots:
            slot.clear()

    def measure_staircase(self, cache: Cache | None = None, stopped: Stopped = never) -> None:
        """Time steps at the depth of a text, or of the latest, if it matters and no other waits."""
        cache, staircase = cache or self.slots[-1].cache, self.staircase
        if not self._measures:
            return
        give_up_provisional(staircase)
        # Others would wait: it is done between steps. In a shared cache, steps go through the cells of all.
        others = [slot for slot in self.slots if slot.cache is not cache]
        waiting = any(slot.user is not None for slot in others) and bool(staircase.depths)
        crowded = self.model.facts.shared and any(slot.cache.length for slot in others)
        if staircase.needs_measuring(cache.length) and not waiting and not crowded:
            measure_steps(staircase, cache, self.learned, self.notice, clock=self.clock, stopped=stopped)

    def measure_between(self, caches: Sequence[Cache]) -> int:
        """Time one step at a new depth, if one of the texts is there and that is due; its width, or 0."""
        apart = not self.model.facts.shared or sum(slot.cache.length > 0 for slot in self.slots) <= 1
        return self.between_steps.go_on(caches) if self._measures and apart else 0

    @property
    def _measures(self) -> bool:
        """Whether it matters what steps cost."""
        choosing = self.drafter_name != "none" or self.plan.widths is not None or self.asked.texts is None
        return choosing and not self.plain_reason

    def outlook(self, request: Request) -> Outlook:
        """What is to be expected of an answer that begins now, and of this process after it."""
        most = LONGEST if self.context_shift else self.n_ctx - len(request.prompt)
        if request.n_predict is not None:
            most = min(most, request.n_predict)
        return self.learned.lengths.begin(most, endless=request.endless, answers=self.asked.answers)

    def take_stock(self, step: Step, length: int, outlook: Outlook | None) -> None:
        """Let the choice of a draft model follow from what `step` gave, and put it on record."""
        if self.staircase.depths and step.texts == 1:
            plain_ms = self.staircase.cost(1, length)
            self.learned.records.add(self.drafter_label, step, plain_ms)
        if self.draft_models is not None and outlook is not None:
            self.draft_models.after(step, length, outlook)

    def remember(self, request: Request, result: Result) -> None:
        """An answer is finished: later conversations may draft from it, and expect as long ones."""
        self.learned.remember(result.tokens)
        left = result.finish_reason == "cancelled"
        if left and not result.tokens:
            return  # nobody waited for it, which says nothing of how long it would have been
        if result.finish_reason != "error" and not request.endless:
            ended = left or result.finish_reason == "stop"
            self.learned.lengths.add(len(result.tokens), ended=ended)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session was closed", "open the model again")

    def close(self, *, free: bool = True) -> None:
        """Keep what was learned, and give the memory back unless the process ends at once."""
        self._closed = True
        try:
            if self.draft_models is not None:
                self.draft_models.close()
            self.learned.save_staircase(self.staircase)
            self.learned.lengths.save(whole=self.asked.answers is None)
            self.learned.save()
        finally:
            if free:
                with self._turns.between_steps():
                    self.model.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _special_text(self, token: int | None) -> str:
        return "" if token is None else self.vocab.piece(token, special=True).decode("utf-8", "replace")

    def measure_identity(self, progress: Callable[[float], None] = lambda _fraction: None) -> Identity:
        """Which batch shapes give bit-identical logits here, from the store or measured now."""
        identity = self.learned.load_identity()
        if identity is None or not identity.covers(self.n_ctx):
            self.forget_conversation()
            identity = measure_identity(self.cache, identity_text(self.vocab), progress=progress)
            self.learned.save_identity(identity)
        return identity


def load(model: str | Path, **asked: Any) -> Session:
    """Open a model, on this machine's best settings.

    Args:
        model: a GGUF file, or the name of a model that is on this machine (`specx show --list`).
        asked: what is not to be left open, by the names of `specx.engine.settings.Asked`: `n_ctx`, ...

    Raises:
        DoesNotFitError, ModelError: there is not enough memory for it, or it cannot be found or loaded.
        UsageError: there is no such setting, value of one, or drafter.
    """
    from specx.backends.hub.models import find_model
    from specx.engine.setup.values import check_values

    check_values(asked)
    return Session.open(Asked(model if isinstance(model, Path) else find_model(model), **asked))
