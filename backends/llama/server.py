"""llama.cpp's own server, as something to be compared with."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from specx.backends.errors import PeerError
from specx.backends.machine.peak_memory import peak_memory

__all__ = ["Completion", "LlamaServer", "speculation_arguments"]

LOOPBACK = "127.0.0.1"
START_S = 300
ANSWER_S = 1800
STOP_S = 10
SHOWN = 400  # characters of its last words


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, with the times that the server itself reports.

    Its clock for writing starts after the first token.

    Attributes:
        prompt_n, prompt_ms: tokens of the prompt, and milliseconds to read them and choose the first token.
        predicted_n, predicted_ms: tokens written, and milliseconds to write all but the first.
        draft_n, draft_n_accepted: drafted tokens, and those that were right.
        tokens: ids, without the one that ends the answer.
    """

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int
    draft_n_accepted: int
    tokens: list[int]


class LlamaServer:
    """A llama-server process that answers one request at a time and waits in between. A context manager.

    A server whose drafter remembers earlier answers forgets them only by a restart.

    Args:
        program: the binary.
        arguments: its options, but for the place where it listens.
        eog: tokens that end an answer, to be cut off from it.
        forgetful: start it anew before an answer if it has given one before.

    Attributes:
        load_s: seconds of its latest start.
        port: where it listens.
    """

    def __init__(
        self, program: Path, arguments: Sequence[str], eog: frozenset[int], *, forgetful: bool = False
    ) -> None:
        self.load_s = 0.0
        self._eog = eog
        self._forgetful = forgetful
        self._fresh = False
        self.port = _free_port()
        found = shutil.which(program)
        if found is None:
            raise PeerError(f"{program} is no program that can be run", "name the llama-server binary")
        self.command = [str(found), *arguments, "--host", LOOPBACK, "--port", str(self.port)]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
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

    @property
    def peak_bytes(self) -> int | None:
        """The most memory it has had resident since its latest start."""
        return None if self._process is None else peak_memory(self._process.pid)

    def complete(
        self,
        prompt: Sequence[int],
        n_predict: int,
        sampling: Mapping[str, Any],
        *,
        ignore_eos: bool = False,
    ) -> Completion:
        """Continue `prompt`.

        Args:
            prompt: token ids.
            n_predict: most tokens to write.
            sampling: fields of the request, under the server's own names.
            ignore_eos: go on after the model's end of text.

        Raises:
            PeerError: it refuses, has died, or read another prompt than it was sent.
        """
        if self._forgetful and not self._fresh:
            self._stop()
            self._start()
        self._fresh = False
        request = {
            **sampling,
            "prompt": list(prompt),
            "n_predict": n_predict,
            "ignore_eos": ignore_eos,
            "cache_prompt": False,
            "return_tokens": True,
        }
        status, reply = self._ask("POST", "/completion", request)
        try:
            if status != http.HTTPStatus.OK:
                raise PeerError(f"llama-server answered {status}: {str(reply)[:SHOWN]}")
            return self._read(reply, len(prompt))
        except (KeyError, TypeError, AttributeError) as problem:
            raise PeerError(
                f"llama-server's answer has no {problem}", "compare with a recent build of llama.cpp"
            ) from problem

    def _read(self, reply: Mapping[str, Any], sent: int) -> Completion:
        timings = reply["timings"]
        if timings["prompt_n"] != sent:
            raise PeerError(f"llama-server read {timings['prompt_n']} tokens of {sent}")
        tokens = list(reply["tokens"])
        while tokens and tokens[-1] in self._eog:
            tokens.pop()
        return Completion(
            prompt_n=timings["prompt_n"],
            prompt_ms=timings["prompt_ms"],
            predicted_n=timings["predicted_n"],
            predicted_ms=timings["predicted_ms"],
            draft_n=timings.get("draft_n", 0),
            draft_n_accepted=timings.get("draft_n_accepted", 0),
            tokens=tokens,
        )

    def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER_S)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as problem:
            if self._process is not None and _ended(self._process):
                raise PeerError(f"llama-server has ended: {self._last_words()}") from problem
            raise PeerError(f"llama-server does not answer: {problem}") from problem
        finally:
            connection.close()

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
        begun = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
            self._wait()
        except OSError as problem:
            raise PeerError(f"{self.command[0]} cannot be started: {problem.strerror}") from problem
        except BaseException:
            self._stop()
            raise
        self.load_s = time.perf_counter() - begun
        self._fresh = True

    def _wait(self) -> None:
        """Until the model is loaded."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(
                    f"llama-server has ended: {self._last_words()}", "see whether it runs with these options"
                )
            with contextlib.suppress(PeerError):
                if self._ask("GET", "/health")[0] == http.HTTPStatus.OK:
                    return
            time.sleep(0.1)
        raise PeerError(f"llama-server did not start in {START_S} s: {self._last_words()}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return " / ".join(lines[-3:])[-SHOWN:] or "it said nothing"


def speculation_arguments(spec: str) -> list[str]:
    """The options of a kind of speculation.

    "" is plain decoding; "ngram-simple:size-n=4:size-m=16" is `--spec-type ngram-simple
    --spec-ngram-simple-size-n 4 --spec-ngram-simple-size-m 16`.
    """
    kind, _, options = spec.partition(":")
    arguments = ["--spec-type", kind] if kind else []
    for option in filter(None, options.split(":")):
        key, _, value = option.partition("=")
        arguments += [f"--spec-{kind}-{key}", value]
    return arguments


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, or does so in a moment: its connection closes before it is gone."""
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
