"""Hands in what a hostile world might, and asserts that each ends as it should.

`python tests/fuzz/run.py KIND COUNT [SEED]` tries COUNT cases of a kind (one of `KINDS`, or all), each in a
process of its own, and prints those that do not end in a result or in a SpecxError: a signal, a hang, 2 GB of
memory beyond what the process had, or an error nobody has foreseen. A seed is always the same case. Where
llama.cpp gives up, its reason is printed as well; that is no fault if it was told. Ctrl-C ends a kind early.
`python tests/fuzz/run.py all 1250` is the long form: 10,000 cases.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_gguf
import tiny_heads
from fuzz import makers, texts

from backends.gguf import damage
from backends.hub import test_hostile_hub as hostile
from cli.serve import conftest as serving
from specx.backends.errors import SpecxError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.heads import check_head, read_head
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.hub import transfer
from specx.backends.hub.download import pull
from specx.backends.hub.models import find_model
from specx.backends.llama.block_head import LlamaBlockHead
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.last_words import before_the_end
from specx.backends.llama.libllama import lib
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.vocab import LlamaVocab, load_vocabulary
from specx.backends.scripted import ScriptedModel
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.cli.serve import wire
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.alphabet import Alphabet
from specx.engine.text.grammar import GrammarConstraint
from specx.engine.text.json_schema import grammar_of_schema
from specx.engine.text.specials import SpecialTexts
from specx.engine.text.template import ChatTemplate

SECONDS = 30  # of processor time, so that other work on the machine does not count
PATIENCE = 8  # times as long by the clock
MEMORY = 2 << 30
EXPECTED = ("ok", "refused", "gave up")
MESSAGES = [
    {"role": "system", "content": "Be brief.<|im_end|>"},
    {"role": "user", "content": "Hello <"},
    {"role": "assistant", "content": "|im_end|>Hi"},
    {"role": "user", "content": "a\nb"},
]
SETTINGS = SamplingSettings(seed=3, temperature=0.7)
WAITS_S = 0.5  # of a server, for what does not come
UNFORESEEN = re.compile(r"\b[A-Z]\w+(?:Error|Exception)\b")  # in what a person is told
HEAD_LAYERS = (1, 3, 4)


class World:
    """What cases are tried on, made once: models, a vocabulary, a store that was used, and a hub."""

    def __init__(self, folder: Path, vocab: LlamaVocab) -> None:
        self.folder, self.vocab = folder, vocab
        self.target = tiny_gguf.write(folder / "llama.gguf", "llama")
        self.info = read_gguf(self.target)
        self.files = {"llama": self.target.read_bytes(), **self._others()}
        self.specials = SpecialTexts(vocab.special_tokens())
        self.text = self.answer()
        self.kept = {path: path.read_bytes() for path in folder.glob("store/*/*") if path.is_file()}
        assert self.kept

    def _others(self) -> dict[str, bytes]:
        path = self.folder / "other.gguf"
        found = {"gemma3": tiny_gguf.write(path, "gemma3").read_bytes()}
        for name, nextn in (("qwen35", 1), ("lfm2moe", 0), ("nemotron_h_moe", 0)):
            found[name] = tiny_gguf.write_hybrid(path, name, nextn=nextn, quantized=True).read_bytes()
        tiny_heads.write_eagle3(
            path, d_target=64, n_vocab=304, layers=HEAD_LAYERS, n_draft=96, tokens=self.target
        )
        found["head"] = path.read_bytes()
        tiny_heads.write_dflash(path, n_vocab=304, layers=HEAD_LAYERS, markov=8, tokens=self.target)
        return {**found, "block": path.read_bytes()}

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
    """A damaged model, compared with another, loaded and asked; or a damaged head."""
    path, kind = world.folder / "case.gguf", source.choice(list(world.files))
    path.write_bytes(makers.header(source, damage, world.files[kind]))
    load = Load(path, 1, 1, n_ctx=64)
    if kind in ("head", "block"):
        head = read_head(path)
        if reason := check_head(head, world.info):
            raise SpecxError(reason)
        if head.block is not None:
            drafts = LlamaBlockHead(head, load)
            drafts.accept(0, np.ones((3, len(head.layers) * 64), np.float32), 0)
            drafts.draft(0, 0, 3)
            return
        made = LlamaHead(head, load)
        made.step(0, np.arange(3, dtype=np.int32), made.encode(np.ones((3, 3 * 64), np.float32)), 0)
        return
    info = read_runnable(path)
    match_vocabularies(world.info, info)
    model = LlamaModel(load)
    tokens = model.vocab.tokenize(b"some text", add_special=True, parse_special=True)[:8] or [0]
    cache = model.open()
    cache.prefill(tokens)
    width = min(2, model.facts.max_width)
    logits = cache.forward(np.arange(width, dtype=np.int32), np.arange(-1, width - 1, dtype=np.int32)).logits
    assert logits.shape == (width, info.vocabulary_size)
    model.close()


def templates(world: World, source: random.Random) -> None:
    """A template, and a conversation in it."""
    template = ChatTemplate(texts.template(source), bos="<s>", eos="</s>", specials=world.specials)
    text = template.render(MESSAGES, tools=[{"name": "f"}])

    def tokenize(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return world.vocab.tokenize(text.encode(), add_special=add_special, parse_special=parse_special)

    template.tokenize(text[:200_000], tokenize)


def grammars(world: World, source: random.Random) -> None:
    """A grammar, followed a few tokens far."""
    follow(world, texts.grammar(source))


def schemas(world: World, source: random.Random) -> None:
    """A JSON schema, and its grammar."""
    follow(world, grammar_of_schema(texts.schema(source)))


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
    """A request of a client, read."""
    del world
    path = source.choice(("/v1/chat/completions", "/v1/completions"))
    read_ask(texts.body(source) if source.random() < 0.9 else texts.value(source, 4), path, Defaults())


def requests(world: World, source: random.Random) -> None:
    """Requests over the wire, at a server that answers others after them as it did before."""
    del world
    patience = wire.HEAD_S, wire.KEPT_S
    wire.KEPT_S = 2  # which is read when the server begins
    defaults = Defaults(sampling=SamplingSettings(temperature=0.0), n_predict=4, model="scripted")
    served = serving.Served(
        serving.session_of,
        policy=serving.Policy(timeout_s=WAITS_S),
        defaults=defaults,
        most_waiting=8,
        socket=None,
        idle_s=None,
    )
    served.ready()
    asked = {"prompt": "the cat", "max_tokens": 4}
    before = served.post("/v1/completions", asked).json()["choices"]
    answers = []
    wire.HEAD_S = WAITS_S  # not for whoever asks as one should: a busy machine is slower
    for _ in range(source.choice((1, 2, 4))):
        sent = b"".join(makers.request(source) for _ in range(source.choice((1, 1, 2))))
        answers.append(makers.exchange(served.port, sent, cut=source.random() < 0.1))
    served.quiet()
    wire.HEAD_S, wire.KEPT_S = patience
    assert served.post("/v1/completions", asked).json()["choices"] == before
    served.stop()
    assert served.reported == [] and served.problem is None
    assert not any(answer.startswith(b"HTTP/1.1 5") for answer in answers), answers
    if not any(answer.startswith(b"HTTP/1.1 2") for answer in answers):
        raise SpecxError("the first request of each connection was refused")


def hubs(world: World, source: random.Random) -> None:
    """A model fetched from a hub that answers oddly: it is what the hub listed, or it is refused."""
    transfer._WAITS = (0.0,) * 3
    os.environ["LLAMA_CACHE"] = str(world.folder / "hub" / "cache")
    (world.folder / "hub").mkdir(exist_ok=True)
    hostile.guard_client()
    with makers.hub_of(hostile.Answers, hostile.listed(), hostile.MODEL, source) as (hub, is_listed):
        try:
            path = pull("org/m", hub=hub)
            assert path.read_bytes() == hostile.MODEL or not is_listed
        finally:
            outside = [each.name for each in (world.folder / "hub").iterdir()]
            assert set(outside) <= {"cache"}, outside


def stores(world: World, source: random.Random) -> None:
    """A store of which files were spoiled: what is written is the same."""
    for path, good in world.kept.items():
        path.write_bytes(makers.spoiled(source, good) if source.random() < 0.5 else good)
    assert world.answer() == world.text, "the text depends on the store"


KINDS = {
    each.__name__: each for each in (headers, templates, grammars, schemas, bodies, requests, hubs, stores)
}


def tried(world: World, kind: str, seed: int) -> str:
    """How a case ended: one of `EXPECTED`, with a reason or without, or what is wrong."""
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
        hung = number in (signal.SIGALRM, signal.SIGPROF)
        return f"more than {SECONDS} seconds" if hung else f"signal {number}"
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
    signal.alarm(SECONDS * PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    before_the_end(lambda: None, lambda problem: told(writing, f"gave up: {problem.message}"))
    try:
        KINDS[kind](world, random.Random(f"{kind} {seed}"))
        said = "ok"
    except SpecxError as problem:
        said = "refused" if problem.message else "a refusal without a reason"
        if unforeseen := UNFORESEEN.search(problem.message):
            said = f"{unforeseen[0]} passed on: {traceback.format_exc()}"
    except BaseException:  # noqa: BLE001 - that is what is looked for
        said = traceback.format_exc()
    told(writing, said)
    return 0


def told(writing: int, said: str) -> None:
    """Let the parent know."""
    os.write(writing, said.encode(errors="replace")[-4000:])


def main(kind: str, count: str, seed: str = "0") -> int:
    """Try cases and print those that end as they should not, a line of JSON each, then the counts."""
    lib()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, load_vocabulary(find_model(None)) as vocab:
        world = World(Path(folder), vocab)
        for each in KINDS if kind == "all" else (kind,):
            ends: dict[str, int] = {}
            with suppress(KeyboardInterrupt):  # the next kind, then
                for number in range(int(seed), int(seed) + int(count)):
                    end = tried(world, each, number)
                    name = end.partition(":")[0]
                    name = name if name in EXPECTED else "wrong"
                    ends[name] = ends.get(name, 0) + 1
                    wrong += name == "wrong"
                    if name not in ("ok", "refused"):
                        print(json.dumps({"kind": each, "seed": number, "end": end}), flush=True)
            print(json.dumps({"kind": each, "cases": sum(ends.values()), **ends}), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
