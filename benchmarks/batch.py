"""Tokens per second of many prompts: `specx batch` against other ways, measured from outside the processes.

    python benchmarks/batch.py MODEL [--prompts FILE...] [--limit 200] [--llama-server PATH] [--rounds 2]
    python benchmarks/batch.py MODEL --near-duplicates FILE    what the caches that texts share are worth

The ways take turns on the same prompts, in pieces and rounds, so that a machine that becomes slower meanwhile
does so for all of them:

    auto         specx batch --parallel auto
    sequential   specx batch --parallel 1
    plain        specx batch --parallel 1 --drafter none: one after the other without drafts
    server N     llama-server -np N, with as many clients as slots, each asking for the next as it is free

All get the same token ids, read with a context of the same size for each text, decode greedily with the same
number of threads, and end where the model ends. Tokens are those that were written. What it takes to start is
told apart: of specx it is the median time of three processes that write one token, of the server that until
it is ready.
What specx times once on a machine is timed before; of texts, each run begins knowing nothing. By default it
drafts from text alone, because a draft model that lies beside MODEL would not be everybody's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from traffic import Spread, cases_of, drive, llama_server, specx

from specx.drafters.base import Drafter, Drafting, Text
from specx.drafters.calibration.free import Calibration
from specx.drafters.free import FreeDrafter
from specx.engine.bench.cases import Case
from specx.engine.session import load
from specx.engine.settings import SamplingSettings

LIMIT, NEAR = 200, 50  # prompts
STARTS = 3  # that are timed: all turns of an arm are told without their median


@dataclass
class Arm:
    """One way to have prompts answered.

    Attributes:
        name: what to call it.
        run: answers some; returns seconds, tokens, and a text for each.
        start_s: seconds before it can begin, which are in none of the others.
        turns: (seconds, tokens) of every turn.
        texts: by the prompt's id, as last written.
    """

    name: str
    run: Callable[[Sequence[Case]], tuple[float, int, list[str]]]
    start_s: float = 0.0
    turns: list[tuple[float, int]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def take_turn(self, cases: Sequence[Case]) -> None:
        """Have `cases` answered, and put it on record."""
        seconds, tokens, texts = self.run(cases)
        self.turns.append((seconds, tokens))
        self.texts |= {case.id: text for case, text in zip(cases, texts, strict=True)}
        print(f"{self.name}: {tokens} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of every turn."""
        return [tokens / seconds for seconds, tokens in self.turns]


class _Store:
    """A store of measurements that begins empty, and forgets what each run adds to it once it was kept.

    Args:
        folder: to put it in.
    """

    def __init__(self, folder: Path) -> None:
        self._used, self._kept = folder / "used", folder / "kept"
        os.environ["SPECX_CACHE"] = str(self._used)

    def keep(self) -> None:
        """What is in it now is what each run begins with, but for texts."""
        shutil.rmtree(self._kept, ignore_errors=True)
        if self._used.exists():
            shutil.copytree(self._used, self._kept)

    @contextmanager
    def as_kept(self) -> Iterator[None]:
        """For one run."""
        shutil.rmtree(self._used, ignore_errors=True)
        if self._kept.exists():
            shutil.copytree(self._kept, self._used)
        yield


class Batch:
    """`specx batch` on one model."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, store: _Store) -> None:
        self._model = str(arguments.model)
        self._folder = folder
        self._store = store
        threads = str(arguments.threads)
        self._common = ["-c", str(arguments.ctx_size), "-t", threads, "-tb", threads, "--temp", "0"]
        self._drafter = arguments.drafter

    def arm(self, name: str, *more: str) -> Arm:
        """A way to run it, timed and warmed up."""
        arm = Arm(name, lambda cases: self._answer(cases, more, arm.start_s))
        one = [Case("start", "", [1], 1)]
        self._answer(one, more, 0.0)
        self._store.keep()  # what is measured once was measured
        arm.start_s = statistics.median(self._answer(one, more, 0.0)[0] for _ in range(STARTS))
        return arm

    def _answer(
        self, cases: Sequence[Case], more: Sequence[str], start_s: float
    ) -> tuple[float, int, list[str]]:
        asked, answered = self._folder / "asked.jsonl", self._folder / "answered.jsonl"
        answered.unlink(missing_ok=True)
        asked.write_text("".join(json.dumps(_line(case)) + "\n" for case in cases))
        drafter = () if "--drafter" in more else ("--drafter", self._drafter)
        arguments = [self._model, str(asked), "-o", str(answered), *self._common, *drafter, *more]
        with self._store.as_kept():
            seconds = specx("batch", *arguments) - start_s
        bodies = {
            row["custom_id"]: row["response"]["body"]
            for row in map(json.loads, answered.read_text().splitlines())
        }
        texts = [str(bodies[case.id]["choices"][0]["text"]) for case in cases]
        return seconds, sum(body["usage"]["completion_tokens"] for body in bodies.values()), texts


def _line(case: Case) -> dict[str, Any]:
    """A line of OpenAI's batch files."""
    body = {"prompt": case.tokens, "max_tokens": case.n_predict}
    return {"custom_id": case.id, "method": "POST", "url": "/v1/completions", "body": body}


def _server_arm(arguments: argparse.Namespace, slots: int) -> Arm:
    def run(cases: Sequence[Case]) -> tuple[float, int, list[str]]:
        more = arguments.server_arguments.split()
        with llama_server(
            arguments.llama_server, arguments.model, arguments.threads, arguments.ctx_size, slots, *more
        ) as server:
            arm.start_s = server.load_s
            drive(server, cases[:1], 1)  # a warm-up
            seconds, answers = drive(server, cases, slots)
        return seconds, sum(each.tokens for each in answers), [each.text for each in answers]

    arm = Arm(f"server {slots}", run)
    return arm


class Apart(Drafter):
    """Drafts as a free drafter does of which every text is the first: texts share no caches.

    What was found out about how often guesses are right is shared all the same.

    Args:
        vocab_size: of the model.
    """

    name, source_names = "free", FreeDrafter.source_names

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._calibration = Calibration()

    def start(self, text: Text) -> Drafting:
        """Follow a text."""
        return FreeDrafter(self._vocab_size, self._calibration).start(text)


def _work(arguments: argparse.Namespace) -> None:
    """Have the prompts of standard input answered together, for `_near_arm`."""
    asked, threads = json.load(sys.stdin), arguments.threads
    with load(
        arguments.model,
        n_ctx=arguments.ctx_size,
        threads=threads,
        threads_batch=threads,
        drafter="free",
        texts=arguments.texts,
    ) as session:
        if arguments.work == "apart":
            session.drafter = Apart(session.vocab.size)
        greedy = SamplingSettings(temperature=0)
        list(session.generate([1], greedy, n_predict=1))  # what is measured once is measured before
        answers = [session.generate(tokens, greedy, n_predict=arguments.n_predict) for tokens in asked]
        start = time.perf_counter()
        for _ in session.together(answers):
            pass
        seconds = time.perf_counter() - start
    results = [answer.result for answer in answers]
    tokens = sum(len(result.tokens) for result in results)
    json.dump([seconds, tokens, [result.text for result in results]], sys.stdout)


def _near_arm(arguments: argparse.Namespace, store: _Store, name: str) -> Arm:
    """Near-duplicates with the caches that texts share, or without; both in a process like this one."""
    command = [sys.executable, __file__, str(arguments.model), "--work", name]
    for option in ("threads", "ctx_size", "n_predict", "texts"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]

    def run(cases: Sequence[Case]) -> tuple[float, int, list[str]]:
        asked = json.dumps([case.tokens for case in cases])
        with store.as_kept():
            done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        seconds, tokens, texts = json.loads(done.stdout)
        return seconds, tokens, texts

    return Arm(name, run)


def _beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def near_duplicates(cases: Sequence[Case], count: int) -> list[Case]:
    """The `count` cases that share most of their beginning with their neighbours in order."""
    ordered = sorted(cases, key=lambda case: case.tokens)

    def shared(i: int) -> int:
        return sum(
            _beginning(ordered[i].tokens, ordered[j].tokens) for j in (i - 1, i + 1) if 0 <= j < len(ordered)
        )

    best = sorted(range(len(ordered)), key=shared, reverse=True)[:count]
    return [ordered[i] for i in sorted(best)]


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.work:
        _work(arguments)
        return
    near = arguments.near_duplicates is not None
    files = [arguments.near_duplicates] if near else arguments.prompts
    cases = cases_of(
        arguments.model,
        files,
        most=sys.maxsize if near else arguments.limit,
        n_predict=arguments.n_predict,
        n_ctx=arguments.ctx_size,
        seed=arguments.seed,
    )
    if near:
        cases = near_duplicates(cases, arguments.limit if arguments.limit != LIMIT else NEAR)
    with tempfile.TemporaryDirectory() as folder:
        store = _Store(Path(folder))
        if near:
            arms = [_near_arm(arguments, store, name) for name in ("shared", "apart")]
            arms[0].run(cases[:1])
            store.keep()
        else:
            arms = _batch_arms(arguments, Path(folder), store)
        _take_turns(arms, cases, arguments.rounds, arguments.pieces)
    _report(arms, arguments, len(cases), base="apart" if near else "plain")


def _batch_arms(arguments: argparse.Namespace, folder: Path, store: _Store) -> list[Arm]:
    batch = Batch(arguments, folder, store)
    ways = {
        "auto": ("--parallel", "auto"),
        "sequential": ("--parallel", "1"),
        "plain": ("--parallel", "1", "--drafter", "none"),
    }
    arms = [batch.arm(name, *more) for name, more in ways.items()]
    if arguments.llama_server is not None:
        arms += [_server_arm(arguments, slots) for slots in arguments.slots]
    return arms


def _take_turns(arms: Sequence[Arm], cases: Sequence[Case], rounds: int, pieces: int) -> None:
    for turn in range(rounds * pieces):
        piece = cases[turn % pieces :: pieces]
        first = turn % len(arms)  # nobody is always the first
        for arm in (*arms[first:], *arms[:first]):
            arm.take_turn(piece)


def _report(arms: Sequence[Arm], arguments: argparse.Namespace, count: int, *, base: str) -> None:
    """A table, and the same as a line of JSON."""
    by_name = {arm.name: arm for arm in arms}
    servers = [arm for arm in arms if arm.name.startswith("server")]
    against = [by_name[base]]
    if servers:  # the best of them over all turns
        against.append(max(servers, key=lambda arm: Spread.of(arm.rates).median))
    rows: list[Mapping[str, Any]] = []
    print(f"{arguments.model.name}: {count} prompts, at most {arguments.n_predict} tokens each")
    heads = "".join(f"{'x ' + each.name:>22}" for each in against)
    print(f"{'':<14}{'tokens/s':>24}{heads}{'tokens':>9}{'start, s':>10}{'same text':>11}")
    for arm in arms:
        rates = Spread.of(arm.rates)
        ratios = {
            each.name: Spread.of([a / b for a, b in zip(arm.rates, each.rates, strict=True)])
            for each in against
        }
        same = sum(text == arms[0].texts[name] for name, text in arm.texts.items())
        tokens = sum(tokens for _, tokens in arm.turns)
        columns = "".join(f"{ratio!s:>22}" for ratio in ratios.values())
        print(f"{arm.name:<14}{rates!s:>24}{columns}{tokens:>9}{arm.start_s:>10.2f}{same:>11}")
        rows.append(
            {
                "name": arm.name,
                "tokens_per_s": rates.to_json(),
                "ratios": {name: ratio.to_json() for name, ratio in ratios.items()},
                "tokens": tokens,
                "start_s": arm.start_s,
                "same_text": same,
            }
        )
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "work"}
    print(json.dumps({"settings": settings, "prompts": count, "arms": rows}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path)
    add("--prompts", nargs="+", default=["default"], help="suites or files (the built-in suite)")
    add("--near-duplicates", metavar="FILE", help="prompts of which those are taken that begin alike")
    add("--limit", type=int, default=LIMIT, help=f"prompts ({LIMIT}; near-duplicates {NEAR})")
    add("--n-predict", type=int, default=96, help="most tokens of an answer")
    add("--ctx-size", type=int, default=1024, help="tokens of context of each text")
    add("--threads", type=int, default=2)
    add("--drafter", default="free", help="of specx batch")
    add("--llama-server", type=Path, help="llama.cpp's server (scripts/build_peers.sh)")
    add("--server-arguments", default="", help="further ones, in one string")
    add("--slots", type=lambda text: [int(n) for n in text.split(",")], default=[4, 8, 16, 32])
    add("--rounds", type=int, default=2, help="how often all prompts are answered")
    add("--pieces", type=int, default=1, help="in how many turns they are, each time")
    add("--seed", type=int, default=0, help="decides which prompts are taken, and their order")
    add("--texts", type=int, default=8, help="near-duplicates that are answered at once")
    add("--work", choices=("shared", "apart"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
