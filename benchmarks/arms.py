"""Who answers: specx in this process, and llama.cpp's own server in its stock configurations."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

from specx.engine.settings import SamplingSettings

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = ["Answer", "Arm", "ServerArm", "SpecxArm", "server_arguments"]

LOOPBACK = "127.0.0.1"
START_SECONDS = 300
ANSWER_SECONDS = 1800
PASSED_ON = (
    "HOME",
    "PATH",
    "TMPDIR",
    "LANG",
    "OMP_NUM_THREADS",
)  # no LLAMA_ARG_ variable may change a server


@dataclass(frozen=True, slots=True)
class Answer:
    """What one arm wrote and how long it took; the fields are those of `results.Measurement`."""

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    decode_ms: float
    steps: int
    draft_n: int
    draft_n_accepted: int
    host_ms: float | None
    tokens: list[int]
    text: str


class Arm(Protocol):
    """Answers prompts greedily, from a cold start each time."""

    @property
    def name(self) -> str:
        """As given on the command line."""

    def answer(self, prompt: Sequence[int], n_predict: int) -> Answer:
        """Continue `prompt` by at most `n_predict` tokens."""


class SpecxArm:
    """specx with one drafter. Several arms share a session, which forgets everything before each answer.

    Args:
        name: as given on the command line.
        drafter: a name that `Session.set_drafter` knows.
        session: opened without a store.
    """

    def __init__(self, name: str, drafter: str, session: Session) -> None:
        self.name = name
        self._drafter = drafter
        self._session = session

    def answer(self, prompt: Sequence[int], n_predict: int) -> Answer:
        """Continue `prompt`. Decoding is timed from outside, so that making text of tokens counts too.

        An answer during which the staircase was measured, once per model and context range, is done again.
        """
        while True:
            known = len(self._session.staircase.depths)
            answer = self._answer(prompt, n_predict)
            if len(self._session.staircase.depths) == known:
                return answer

    def _answer(self, prompt: Sequence[int], n_predict: int) -> Answer:
        self._session.reset()
        self._session.set_drafter(self._drafter)
        greedy = SamplingSettings(temperature=0.0, seed=1)
        start = time.perf_counter()
        generation = self._session.generate(prompt, greedy, n_predict=n_predict)
        for _chunk in generation:
            pass
        elapsed = (time.perf_counter() - start) * 1e3
        result, timings = generation.result, generation.result.timings
        return Answer(
            prompt_n=timings.prompt_n,
            prompt_ms=timings.prompt_ms,
            predicted_n=timings.predicted_n,
            decode_ms=elapsed - timings.prompt_ms,
            steps=timings.steps,
            draft_n=timings.draft_n,
            draft_n_accepted=timings.draft_n_accepted,
            host_ms=timings.host_ms,
            tokens=result.tokens,
            text=result.text,
        )


class ServerArm:
    """A llama-server of its own, which sleeps while others answer. A context manager.

    Its prompt cache is off. Its n-gram drafters remember earlier answers, and nothing but a restart makes
    them forget, so a server that speculates is started anew for each answer.

    Args:
        name: "server", "server:TYPE" or "server:TYPE:option=value,..." (see `server_arguments`).
        program: the llama-server binary.
        arguments: the options common to all servers.
        eog: tokens that end an answer, to be cut off from it.
    """

    def __init__(self, name: str, program: Path, arguments: Sequence[str], eog: frozenset[int]) -> None:
        self.name = name
        self._eog = eog
        self._port = _free_port()
        place = ["--host", LOOPBACK, "--port", str(self._port)]
        self._command = [str(program), *arguments, *place, *server_arguments(name)]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        self._process: subprocess.Popen[bytes] | None = None
        self._remembers = ":" in name
        self._fresh = False

    def __enter__(self) -> ServerArm:
        try:
            self._start()
        except BaseException:
            self._log.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._log.close()

    def answer(self, prompt: Sequence[int], n_predict: int) -> Answer:
        """Continue `prompt`, with the times that the server itself reports.

        Raises:
            RuntimeError: the server refuses, has died, or read another prompt than it was sent.
        """
        if self._remembers and not self._fresh:
            self._stop()
            self._start()
        self._fresh = False
        request = {
            "prompt": list(prompt),
            "n_predict": n_predict,
            "temperature": 0.0,
            "top_k": 1,
            "seed": 1,
            "cache_prompt": False,
            "return_tokens": True,
        }
        status, reply = self._ask("POST", "/completion", request)
        if status != http.HTTPStatus.OK:
            raise RuntimeError(f"{self.name} answered {status}: {reply}")
        timings = reply["timings"]
        if timings["prompt_n"] != len(prompt):
            raise RuntimeError(f"{self.name} read {timings['prompt_n']} tokens of {len(prompt)}")
        tokens = reply["tokens"]
        while tokens and tokens[-1] in self._eog:
            tokens.pop()
        accepted = timings.get("draft_n_accepted", 0)
        return Answer(
            prompt_n=timings["prompt_n"],
            prompt_ms=timings["prompt_ms"],
            predicted_n=timings["predicted_n"],
            decode_ms=timings["predicted_ms"],
            steps=timings["predicted_n"] - accepted,  # each step adds one token beyond the accepted ones
            draft_n=timings.get("draft_n", 0),
            draft_n_accepted=accepted,
            host_ms=None,
            tokens=tokens,
            text=reply["content"],
        )

    def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=ANSWER_SECONDS)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException) as error:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"{self.name} has died: {self._last_words()}") from error
            raise
        finally:
            connection.close()

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k in PASSED_ON}
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        self._fresh = True

    def _wait(self) -> None:
        """Until the model is loaded."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if self._ask("GET", "/health")[0] == http.HTTPStatus.OK:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start in {START_SECONDS} s: {self._last_words()}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-1500:]


def server_arguments(name: str) -> list[str]:
    """The speculation options that an arm's name stands for.

    "server" is plain decoding; "server:ngram-simple:size-n=4,size-m=16" is `--spec-type ngram-simple
    --spec-ngram-simple-size-n 4 --spec-ngram-simple-size-m 16`.
    """
    _, _, rest = name.partition(":")
    kind, _, options = rest.partition(":")
    arguments = ["--spec-type", kind] if kind else []
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        arguments += [f"--spec-{kind}-{key}", value]
    return arguments


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
