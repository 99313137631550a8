"""`specx serve` measured from outside: one client against `specx complete`, several, and who waits how long.

    python benchmarks/serve.py MODEL [--llama-server PATH] [--rounds 3]

1. One stream: seconds of an answer from the server, from the request to its end, against `specx complete` on
   the same prompt: the time that it reports for prompt and text, without its start. They take turns. The
   server's own report tells how much of a difference lies in writing, and how much in the way to the client.
2. Tokens per second of 1, 2, 4 and 8 clients, each asking for the next answer as it is free. In a round all
   numbers of clients get the same prompts, each from a server that was just started; texts that depend on
   the number are counted.
3. Milliseconds until the first token of a short request alone, and beside seven of long prompts and answers.

With --llama-server, 2. and 3. are also done with llama.cpp's server of as many slots, on the same token ids;
in 2. both take turns.
Prompts are read anew each time: none is asked twice of one server, which would know the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from traffic import Spread, answer, cases_of, completed, drive, llama_server, prompt_texts, specx_server

from specx.backends.llama.server import LlamaServer
from specx.engine.bench.cases import Case

CLIENTS = (1, 2, 4, 8)
LONG = 7  # requests beside the short one
LONG_PROMPT, SHORT_PROMPT = 700, 24  # tokens
LONG_ANSWER, SHORT_ANSWER = 200, 16
SETTLED_S = 2.0  # so long the long ones have been there when the short one comes


Servers = Mapping[str, Callable[[], LlamaServer]]


class Prompts:
    """Token ids that no prompt before began with.

    Args:
        cases: what they are cut from.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._tokens = [token for case in cases for token in case.tokens]
        self._at = 0

    def take(self, length: int) -> list[int]:
        """The next `length` tokens; from the beginning again, one further on, where they end."""
        if self._at + length > len(self._tokens):
            self._at = self._at % 97 + 1
        self._at += length
        return self._tokens[self._at - length : self._at]


def one_stream(server: LlamaServer, cases: Sequence[Case], arguments: argparse.Namespace) -> dict[str, Any]:
    """The rate of the server over that of `specx complete`, and the number of equal texts."""
    threads = str(arguments.threads)
    more = ["-c", str(arguments.ctx_size), "-t", threads, "-tb", threads, "--drafter", arguments.drafter]
    ratios, inside, beyond_ms, same = [], [], [], 0
    for case, text in zip(cases, prompt_texts(arguments.model, cases), strict=True):
        alone = completed(arguments.model, text, case.n_predict, *more)
        streamed = answer(server, case.tokens, case.n_predict, stream=True)
        ratios.append((streamed.tokens / streamed.seconds) / (alone.tokens / alone.seconds))
        inside.append((streamed.tokens / streamed.inside_s) / (alone.tokens / alone.seconds))
        beyond_ms.append((streamed.seconds - streamed.inside_s) * 1e3)
        same += alone.text == streamed.text
    return {
        "server over complete": Spread.of(ratios),
        "by its own report": Spread.of(inside),
        "beyond that, ms": Spread.of(beyond_ms),
        "same text": same,
        "of": len(ratios),
    }


def throughput(servers: Servers, cases: Sequence[Case], rounds: int) -> dict[str, dict[str, Any]]:
    """Of each server: tokens per second by number of clients, times that of one, and how many texts are the
    same whatever the number. A round has the same prompts for all."""
    rates: dict[tuple[str, int], list[float]] = {(name, n): [] for name in servers for n in CLIENTS}
    same, share = dict.fromkeys(servers, 0), len(cases) // rounds
    for number in range(rounds):
        asked = cases[number * share : (number + 1) * share]
        texts: dict[str, list[list[str]]] = {name: [] for name in servers}
        for name, clients in list(rates)[:: -1 if number % 2 else 1]:
            with servers[name]() as server:
                answer(server, [1, 2, 3], 1)
                seconds, answers = drive(server, asked, clients)
            rates[name, clients].append(sum(each.tokens for each in answers) / seconds)
            texts[name].append([each.text for each in answers])
        for name, found in texts.items():
            same[name] += sum(len(set(of_one)) == 1 for of_one in zip(*found, strict=True))
    return {name: _by_clients(name, rates, same[name], rounds * share) for name in servers}


def _by_clients(
    name: str, rates: Mapping[tuple[str, int], Sequence[float]], same: int, of: int
) -> dict[str, Any]:
    """What `throughput` tells of a server."""
    found: dict[str, Any] = {str(n): Spread.of(rates[name, n]) for n in CLIENTS}
    for n in CLIENTS[1:]:
        paired = [many / one for many, one in zip(rates[name, n], rates[name, CLIENTS[0]], strict=True)]
        found[f"{n} over 1"] = Spread.of(paired)
    return {**found, "same text": same, "of": of}


def first_token(server: LlamaServer, prompts: Prompts, rounds: int) -> dict[str, Spread]:
    """Milliseconds until the first token of a short request, alone and beside long ones; their ratio."""
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(answer(server, prompts.take(SHORT_PROMPT), SHORT_ANSWER, stream=True).first_s * 1e3)
        long = [
            threading.Thread(target=answer, args=(server, prompts.take(LONG_PROMPT), LONG_ANSWER))
            for _ in range(LONG)
        ]
        for thread in long:
            thread.start()
        time.sleep(SETTLED_S)
        beside.append(answer(server, prompts.take(SHORT_PROMPT), SHORT_ANSWER, stream=True).first_s * 1e3)
        if not any(thread.is_alive() for thread in long):
            print("the long ones were finished before the short one: take a larger model", file=sys.stderr)
        for thread in long:
            thread.join()
    ratios = [late / early for late, early in zip(beside, alone, strict=True)]
    return {"alone_ms": Spread.of(alone), "beside_ms": Spread.of(beside), "ratio": Spread.of(ratios)}


def main() -> None:
    arguments = _parser().parse_args()
    rounds, n_ctx, threads = arguments.rounds, arguments.ctx_size, arguments.threads
    wanted = rounds * (1 + arguments.share)
    cases = cases_of(
        arguments.model,
        arguments.prompts,
        most=wanted,
        n_predict=arguments.n_predict,
        n_ctx=n_ctx,
        seed=arguments.seed,
    )
    if len(cases) < wanted:
        sys.exit(
            f"{wanted} prompts are needed, and there are {len(cases)}: name more, or take fewer --rounds"
        )
    alone, rest = cases[:rounds], cases[rounds:]
    found: dict[str, Any] = {}

    def show(title: str, values: Mapping[Any, Any]) -> None:
        found[title] = values
        print(title)
        for name, value in values.items():
            print(f"  {name!s:<22}{value!s:>24}", flush=True)

    model, peer, slots = arguments.model, arguments.llama_server, max(CLIENTS)
    more = ("--drafter", arguments.drafter, "--parallel", str(slots))
    with specx_server(model, threads, n_ctx, *more) as server:
        answer(server, [1, 2, 3], 1)  # what is measured once was measured
        show("one stream", one_stream(server, alone, arguments))
        show("first token", first_token(server, Prompts(cases), rounds))
    servers = {"specx": lambda: specx_server(model, threads, n_ctx, *more)}
    if peer is not None:
        servers["llama-server"] = lambda: llama_server(peer, model, threads, n_ctx, slots)
    for name, by_clients in throughput(servers, rest, rounds).items():
        show(f"{name}, tokens per second by clients", by_clients)
    if peer is not None:
        with llama_server(peer, model, threads, n_ctx, slots) as server:
            answer(server, [1, 2, 3], 1)
            show("llama-server, first token", first_token(server, Prompts(cases), rounds))
    settings = {key: str(value) for key, value in vars(arguments).items()}
    print(json.dumps({"settings": settings, **found}, default=Spread.to_json))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path)
    add("--prompts", nargs="+", default=["default"], help="suites or files (the built-in suite)")
    add("--n-predict", type=int, default=96, help="most tokens of an answer")
    add("--ctx-size", type=int, default=1024, help="tokens of context of each text")
    add("--threads", type=int, default=2)
    add("--drafter", default="free", help="of specx")
    add("--llama-server", type=Path, help="llama.cpp's server (scripts/build_peers.sh)")
    add("--rounds", type=int, default=3)
    add("--share", type=int, default=8, help="prompts of a round")
    add("--seed", type=int, default=0, help="decides which prompts are taken, and their order")
    return parser


if __name__ == "__main__":
    main()
