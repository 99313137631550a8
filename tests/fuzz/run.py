"""Hands in what a hostile world might, and asserts that each ends as it should.

`python tests/fuzz/run.py KIND COUNT [SEED]` tries COUNT cases of a kind (headers, templates, grammars,
schemas, bodies, stores or all), each in a process of its own, and prints those that do not end in a result or
in a SpecxError: a signal, more than 30 seconds, more than 2 GB of memory, or an error nobody has foreseen.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_gguf
from fuzz import makers

from specx.backends.errors import SpecxError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.hub.models import find_model
from specx.backends.llama.libllama import lib
from specx.backends.llama.vocab import LlamaVocab, load_vocabulary
from specx.backends.scripted import ScriptedModel
from specx.backends.store import Store
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.alphabet import Alphabet
from specx.engine.text.grammar import GrammarConstraint
from specx.engine.text.json_schema import grammar_of_schema
from specx.engine.text.specials import SpecialTexts
from specx.engine.text.template import ChatTemplate

SECONDS = 30
MEMORY = 2 << 30
MESSAGES = [
    {"role": "system", "content": "Be brief.<|im_end|>"},
    {"role": "user", "content": "Hello <"},
    {"role": "assistant", "content": "|im_end|>Hi"},
    {"role": "user", "content": "a\nb"},
]
SETTINGS = SamplingSettings(seed=3, temperature=0.7)


class World:
    """What cases are tried on, made once: a model, its vocabulary and a store that was used."""

    def __init__(self, folder: Path, vocab: LlamaVocab) -> None:
        self.folder, self.vocab = folder, vocab
        self.model = tiny_gguf.write(folder / "tiny.gguf", "llama", blocks=1)
        self.good = self.model.read_bytes()
        self.info = read_runnable(self.model)
        self.specials = SpecialTexts(vocab.special_tokens())
        self.text = self.answer()
        self.kept = {path: path.read_bytes() for path in folder.glob("store/*/*") if path.is_file()}
        assert self.kept

    def answer(self) -> list[int]:
        """What a scripted model writes with the store as it is."""
        model = ScriptedModel(64, script=list(range(1, 28)), peak=0.9)
        learned = Learned(Store(self.folder / "store"), model_key="m", cost_key="c")
        asked = Asked(Path("scripted.gguf"))
        with Session(model, asked, learned, name="m") as session:
            generation = session.generate(list(range(1, 28)), SETTINGS, n_predict=24)
            for _ in generation:
                pass
            return list(generation.result.tokens)


def headers(world: World, source: random.Random) -> None:
    """A damaged file, read, compared and its vocabulary loaded."""
    path = world.folder / "case.gguf"
    path.write_bytes(makers.header(source, world.good))
    info = read_runnable(path)
    match_vocabularies(world.info, info)
    with load_vocabulary(path) as vocab:
        vocab.tokenize(b"some text", add_special=True, parse_special=True)


def templates(world: World, source: random.Random) -> None:
    """A template, and a conversation in it."""
    template = ChatTemplate(makers.template(source), bos="<s>", eos="</s>", specials=world.specials)
    text = template.render(MESSAGES, tools=[{"name": "f"}])

    def tokenize(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return world.vocab.tokenize(text.encode(), add_special=add_special, parse_special=parse_special)

    template.tokenize(text[:200_000], tokenize)


def grammars(world: World, source: random.Random) -> None:
    """A grammar, followed a few tokens far."""
    follow(world, makers.grammar(source))


def schemas(world: World, source: random.Random) -> None:
    """A JSON schema, and its grammar."""
    follow(world, grammar_of_schema(makers.schema(source)))


def follow(world: World, text: str) -> None:
    """The first tokens that a grammar allows."""
    constraint = GrammarConstraint(world.vocab.pointer, text, alphabet=Alphabet(world.vocab))
    for _ in range(4):
        constraint.forced()
        allowed = np.flatnonzero(constraint.allowed(np.arange(2000, dtype=np.int32)))
        usable = [int(token) for token in allowed if token not in world.vocab.eog]
        if not usable:
            break
        constraint.accept(usable[0])
    constraint.close()


def bodies(world: World, source: random.Random) -> None:
    """A request of a client."""
    del world
    path = source.choice(("/v1/chat/completions", "/v1/completions", "/v1/x"))
    read_ask(makers.body(source) if source.random() < 0.9 else makers.value(source, 4), path, Defaults())


def stores(world: World, source: random.Random) -> None:
    """A store of which files were spoiled: what is written is the same."""
    for path, good in world.kept.items():
        path.write_bytes(makers.spoiled(source, good) if source.random() < 0.5 else good)
    assert world.answer() == world.text, "the text depends on the store"


KINDS = {each.__name__: each for each in (headers, templates, grammars, schemas, bodies, stores)}


def tried(world: World, kind: str, seed: int) -> str:
    """How a case ended: "ok", "refused", or what is wrong."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(in_child(world, kind, seed, writing))
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "more than 30 seconds" if number == signal.SIGALRM else f"signal {number}"
    return said or f"exit code {os.waitstatus_to_exitcode(status)}"


def in_child(world: World, kind: str, seed: int, writing: int) -> int:
    """Try one case within bounds and say how it ended."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    try:
        KINDS[kind](world, random.Random(f"{kind} {seed}"))
        said = "ok"
    except SpecxError as problem:
        said = "refused" if problem.message else "a refusal without a reason"
    except BaseException:  # noqa: BLE001 - that is what is looked for
        said = traceback.format_exc()
    os.write(writing, said.encode(errors="replace")[-4000:])
    return 0


def main(kind: str, count: str, seed: str = "0") -> int:
    """Try cases and print those that end as they should not, a line of JSON each, then the counts."""
    lib()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, load_vocabulary(find_model(None)) as vocab:
        world = World(Path(folder), vocab)
        for each in KINDS if kind == "all" else (kind,):
            ends: dict[str, int] = {}
            for number in range(int(seed), int(seed) + int(count)):
                end = tried(world, each, number)
                name = end if end in ("ok", "refused") else "wrong"
                ends[name] = ends.get(name, 0) + 1
                if end not in ("ok", "refused"):
                    wrong += 1
                    print(json.dumps({"kind": each, "seed": number, "end": end}), flush=True)
            print(json.dumps({"kind": each, "cases": int(count), **ends}), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
