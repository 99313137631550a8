"""What benchmarks of whole processes have in common: prompts as token ids, programs, clients of a server."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specx.backends.llama.server import LlamaServer
from specx.engine.bench.cases import Case, CaseMaker, LeftOut
from specx.engine.bench.suites import Prompt, load_suite
from specx.engine.session import load

__all__ = [
    "Answer",
    "Spread",
    "answer",
    "cases_of",
    "completed",
    "drive",
    "llama_server",
    "prompt_texts",
    "specx",
    "specx_server",
]

LOOPBACK = "127.0.0.1"
ANSWER_S = 3600.0
SHOWN = 2000  # characters of what a program said before it failed


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gave.

    Attributes:
        tokens: how many were written.
        text: what they say.
        first_s: seconds until the first of it came, if it was streamed, else all of them.
        seconds: until it was complete.
        inside_s: the part of it that the program itself reports for prompt and text; 0 if it does not.
    """

    tokens: int
    text: str
    first_s: float
    seconds: float
    inside_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several values, and the least and the largest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of `values`, at least one."""
        ordered, middle = sorted(values), len(values) // 2
        median = ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        return cls(median, ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.least:.2f}, {self.most:.2f}]"

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"median": self.median, "least": self.least, "most": self.most}


def cases_of(
    model: Path, files: Sequence[str], *, most: int, n_predict: int, n_ctx: int, seed: int
) -> list[Case]:
    """At most `most` prompts of suites or files, first turns in the model's chat template.

    They are shuffled, so that any beginning is a sample of all of them. Those that do not fit a context of
    `n_ctx` tokens with their answer are left out.
    """
    prompts = [prompt for file in files for prompt in load_suite(file)]

    def order(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.category}:{prompt.id}".encode()).digest()

    found: list[Case] = []
    with load(model, n_ctx=n_ctx, drafter="none", store=False, measure=False) as session:
        maker = CaseMaker(session, n_predict, seed)
        for prompt in sorted(prompts, key=order):
            if len(found) == most:
                break
            try:
                found.append(maker.turn(prompt))
            except LeftOut as reason:
                print(f"left out: {reason}", file=sys.stderr)
    return found


def specx(*arguments: str) -> float:
    """Run `specx` as a process of its own; returns its seconds, from its start to its end.

    Raises:
        RuntimeError: it fails.
    """
    command = [sys.executable, "-P", "-m", "specx.cli", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(
            f"specx {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-SHOWN:]}"
        )
    return seconds


def prompt_texts(model: Path, cases: Sequence[Case]) -> list[str]:
    """The prompts as text, which gives the same tokens again."""
    with load(model, n_ctx=512, drafter="none", store=False, measure=False) as session:
        vocab = session.vocab
        texts = [b"".join(vocab.piece(token, special=True) for token in case.tokens) for case in cases]
    return [text.decode() for text in texts]


def completed(model: Path, prompt: str, n_predict: int, *more: str) -> Answer:
    """What `specx complete` answers in a process of its own, with the times it reports for prompt and text.

    Raises:
        RuntimeError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "prompt", Path(folder) / "answer"
        asked.write_text(prompt + "\n")  # the last line end of a file is no part of a prompt
        arguments = [str(model), "-f", str(asked), "-o", str(answered), "--json", "--temp", "0"]
        specx("complete", *arguments, "-n", str(n_predict), "--server", "no", *more)
        found = json.loads(answered.read_text())
    timings = found["timings"]
    seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
    return Answer(len(found["tokens"]), found["text"], timings["prompt_ms"] / 1e3, seconds, seconds)


def llama_server(program: Path, model: Path, threads: int, n_ctx: int, slots: int, *more: str) -> LlamaServer:
    """llama.cpp's server with so many slots, each with a context of `n_ctx` tokens."""
    arguments = ["-m", str(model), "-np", str(slots), "-c", str(slots * n_ctx), "-fa", "on", "--no-webui"]
    arguments += ["-t", str(threads), "-tb", str(threads), *more]
    return LlamaServer(program, arguments, frozenset())


def specx_server(model: Path, threads: int, n_ctx: int, *more: str) -> LlamaServer:
    """`specx serve`, started and stopped like llama.cpp's."""
    arguments = ["serve", str(model), "-c", str(n_ctx), "-t", str(threads), "-tb", str(threads), *more]
    return LlamaServer(Path(sys.executable).with_name("specx"), arguments, frozenset())


def answer(server: LlamaServer, tokens: Sequence[int], n_predict: int, *, stream: bool = False) -> Answer:
    """Ask an OpenAI-compatible server to continue `tokens`, greedily.

    Raises:
        RuntimeError: it refuses.
    """
    body: dict[str, Any] = {"prompt": list(tokens), "max_tokens": n_predict, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=ANSWER_S)
    start = time.perf_counter()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the server answered {response.status}: {response.read()[:SHOWN]!r}")
        if stream:
            return _streamed(response, start)
        reply = json.loads(response.read())
    finally:
        connection.close()
    seconds = time.perf_counter() - start
    return Answer(reply["usage"]["completion_tokens"], reply["choices"][0]["text"], seconds, seconds)


def _streamed(response: http.client.HTTPResponse, start: float) -> Answer:
    first, text, count, inside_s = None, "", 0, 0.0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: ") :])
        for choice in event["choices"]:
            text += choice["text"]
            if choice["text"] and first is None:
                first = time.perf_counter() - start
        if event.get("usage"):
            count = event["usage"]["completion_tokens"]
        if timings := event.get("timings"):
            inside_s = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
    seconds = time.perf_counter() - start
    return Answer(count, text, seconds if first is None else first, seconds, inside_s)


def drive(
    server: LlamaServer, cases: Sequence[Case], clients: int, *, stream: bool = False
) -> tuple[float, list[Answer]]:
    """Seconds until as many clients have had all cases answered, each asking the next as it is free."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = pool.map(lambda case: answer(server, case.tokens, case.n_predict, stream=stream), cases)
        found = list(answers)
    return time.perf_counter() - start, found
