"""specx with a session that needs no model. Run as a script it is the `specx` command with that session."""

from __future__ import annotations

import itertools
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

from specx.backends.errors import ContextFullError, GrammarError, UsageError
from specx.engine.text.stream import StopMatcher

WORDS = ("Hello", " wörld", ",", " how", " are", " you", "?")


@dataclass
class Chunk:
    text: str
    tokens: list[int]
    drafted: int = 3
    accepted: int = 1
    seconds: float = 0.01


@dataclass
class Timings:
    prompt_n: int = 0
    prompt_ms: float = 1.0
    prompt_per_second: float = 1000.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 100.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    steps: int = 0
    host_ms: float = 0.5
    draft_ms: float = 0.0
    explored_ms: float = 0.0
    overhead_ms: float = 0.0

    def as_dict(self):
        return asdict(self)


@dataclass
class Result:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "cancelled"
    seed: int = 0
    timings: Timings = field(default_factory=Timings)


class Generation:
    def __init__(self, session, prompt, sampling, n_predict, stop):
        self.session, self.n_predict = session, n_predict
        self.result = Result(seed=77 if sampling.seed is None else sampling.seed)
        self.result.timings.prompt_n = len(prompt)
        self.matcher = StopMatcher(stop)
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    def __iter__(self):
        words = (os.environ["FAKE_WORDS"],) if "FAKE_WORDS" in os.environ else WORDS
        words = itertools.cycle(words) if self.session.endless else words
        for number, word in enumerate(words):
            if self.session.fails_at == number:
                raise self.session.failure
            if self.cancelled:
                return
            if number == self.n_predict:
                self.result.finish_reason = "length"
                return
            text, stopped = self.matcher.feed(word)
            self.result.text += text
            self.result.tokens.append(number)
            timings = self.result.timings
            timings.predicted_n += 1
            timings.predicted_ms += 10.0
            timings.steps += 1
            timings.draft_n += 3
            timings.draft_n_accepted += 1
            yield Chunk(text, [number])
            time.sleep(self.session.delay)
            if stopped:
                self.result.finish_reason = "stop"
                return
        self.result.finish_reason = self.session.finish_reason


class Session:
    model_name = "fake"
    bos_text, eos_text = "<s>", "</s>"
    special_texts = None
    plain_reason = None
    setup = None

    def __init__(self, settings=None):
        self.settings = settings
        self.vocab = SimpleNamespace(size=1000)
        self.n_ctx = 4096
        self.chat_template = (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
        )
        self.drafter_name = settings.drafter if settings else "auto"
        self.drafter_label = self.drafter_name
        self.endless = bool(os.environ.get("FAKE_ENDLESS"))
        self.delay = float(os.environ.get("FAKE_DELAY", "0"))
        self.finish_reason = "stop"
        self.fails_at, self.failure = -1, None
        self.prompts, self.samplings, self.requests = [], [], []
        self.closed = False

    @classmethod
    def open(cls, settings, *, progress, notice):
        if os.environ.get("FAKE_BUG"):
            raise RuntimeError("a bug")
        print("loading", file=sys.stderr, flush=True)
        progress(0.5)
        time.sleep(float(os.environ.get("FAKE_LOADING", "0")))
        notice("loaded")
        return cls(settings)

    def tokenize(self, text, *, add_special, parse_special):
        assert parse_special
        return list(("<s>" + text if add_special else text).encode())

    def grammar(self, text):
        if "root" not in text:
            raise GrammarError("the grammar has no root")
        return text

    def generate(self, prompt, sampling, **request):
        if len(prompt) >= self.n_ctx:
            raise ContextFullError("too long")
        if request["progress"] is not None:
            request["progress"](len(prompt), len(prompt))
        self.prompts.append(bytes(prompt).decode())
        self.samplings.append(sampling)
        self.requests.append(request)
        return Generation(self, prompt, sampling, request["n_predict"], request["stop"])

    def set_drafter(self, name):
        if name not in ("auto", "none", "suffix", "recycle"):
            raise UsageError(f"unknown drafter {name!r}")
        self.drafter_name = name

    def summary(self):
        return ", ".join(filter(None, (f"fake, drafter {self.drafter_name}", os.environ.get("FAKE_LABEL"))))

    def close(self, *, free=True):
        self.closed, self.freed = True, free
        if "FAKE_CLOSED" in os.environ:
            Path(os.environ["FAKE_CLOSED"]).touch()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


def main():
    from specx.cli.app import main

    module = ModuleType("specx.engine.session")
    module.Session = Session
    sys.modules[module.__name__] = module
    main()


if __name__ == "__main__":
    main()
