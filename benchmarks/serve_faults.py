"""What a server makes of clients that send nonsense and of clients that leave, while others are answered.

    python -P benchmarks/serve_faults.py [MODEL] [--malformed 1000] [--disconnects 200] [--url URL]

Without --url a server of its own is started; options that are not known here are for that. Honest clients ask
all the while, and each of their answers must be what it was before. Afterwards nothing may be in work, and
the server must be as good as new. Ends with one line of JSON, and with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 120.0
HONEST = 4

VALID: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}],
    "prompt": "Once upon a time",
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "seed": 1,
    "n": 1,
    "stop": ["\n\n"],
    "stream": False,
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": 1.0},
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "response_format": {"type": "text"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "logprobs": None,
    "user": "u",
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 1e300, -1e300, 2**63, 10**40, "", "x", "\ud800", "\0", "a" * 5000,
    [], {}, [[]], [None], [{}], {"": None}, {"type": "json_schema"}, [{"role": "user"}], ["a", 1],
    {"type": "json_object", "schema": {"$ref": "#"}}, {"type": "grammar"}, [[1, 2], "x"], [-1], [10**9],
)  # fmt: skip


@dataclass
class Report:
    """What was done, and what was wrong.

    Attributes:
        statuses: of the answers to nonsense; 0 where the server only closed the connection.
        left: requests that were left in the middle.
        honest: answers to honest clients that were right.
        wrong: one sentence each.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    left: int = 0
    honest: int = 0
    wrong: list[str] = field(default_factory=list)


def request_of(body: bytes, path: str, *headers: str) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def nonsense(dice: random.Random) -> bytes:
    """Bytes that are no request, or one that cannot be answered, or that just can."""
    kind = dice.randrange(8)
    path = dice.choice(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
    good = request_of(json.dumps(VALID).encode(), path)
    if kind == 0:
        return dice.randbytes(dice.randrange(1, 3000))
    if kind == 1:  # cut anywhere
        return good[: dice.randrange(1, len(good))]
    if kind == 2:  # some bytes are others
        data = bytearray(good)
        for _ in range(dice.randrange(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data)
    if kind == 3:
        method = dice.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "GET", "X" * 300])
        target = dice.choice(
            ["/", "*", "/v1/completions", "//", "/%00", "/../..", "http://a/b", "/" + "a" * 9000]
        )
        return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    if kind == 4:
        header = dice.choice(
            ["Content-Length: x", "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: upgrade",
             "Upgrade: websocket", "X: " + "y" * 70_000, "Content-Type: " + "z" * 900, "Host: b", ": :"]
        )  # fmt: skip
        return request_of(b"{}", path, header)
    if kind == 5:
        body = dice.choice(
            [b"", b"[", b"[" * 50_000, b"\xff\xfe{", b'{"a":1}{', b"NaN", b"9" * 5000, b'"' + b"x" * 100_000]
        )
        return request_of(body, path)
    fields = dict(VALID)  # one or some are something else
    for name in dice.sample(sorted(fields), dice.randrange(1, 4)):
        fields[name] = dice.choice([value for value in VALUES if name != "max_tokens" or value is not None])
    return request_of(json.dumps(fields).encode(), path)


class Abuse:
    """Clients of all kinds against one server.

    Args:
        url: of the server.
        seed: of everything that is random.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._place = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._url, self._seed = url, seed
        self.report = Report()
        self._over = threading.Event()

    def run(self, malformed: int, disconnects: int, clients: int = 4) -> Report:
        """Send so many requests of each kind, from several clients at once."""
        expected = [self._ask(number) for number in range(HONEST)]
        honest = [threading.Thread(target=self._be_honest, args=(expected, i)) for i in range(2)]
        jobs: list[Callable[[random.Random], None]] = [self._send_nonsense] * malformed
        jobs += [self._leave] * disconnects
        random.Random(self._seed).shuffle(jobs)
        shares = [jobs[i::clients] for i in range(clients)]
        abusers = [threading.Thread(target=self._work, args=(share, i)) for i, share in enumerate(shares)]
        for thread in (*honest, *abusers):
            thread.start()
        for thread in abusers:
            thread.join()
        self._over.set()
        for thread in honest:
            thread.join()
        self._look_after()
        for number, answer in enumerate(expected):
            if self._ask(number) != answer:
                self._complain(f"honest request {number} is answered differently afterwards")
        return self.report

    def _work(self, jobs: list[Callable[[random.Random], None]], number: int) -> None:
        dice = random.Random(f"{self._seed} {number}")
        for job in jobs:
            try:
                job(dice)
            except OSError:
                self.report.statuses[0] += 1

    def _complain(self, text: str) -> None:
        self.report.wrong.append(text)

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._place, timeout=PATIENCE_S)

    def _send_nonsense(self, dice: random.Random) -> None:
        data = nonsense(dice)
        with self._connect() as connection:
            connection.sendall(data)
            connection.settimeout(0.3)  # what waits for more says nothing
            try:
                received = connection.recv(1 << 16)
            except TimeoutError:
                received = b""
        parts = received.split(b" ", 2)
        status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
        self.report.statuses[status] += 1
        if status >= 500 and status not in (501, 503):
            self._complain(f"{status} to {data[:2000]!r}")

    def _leave(self, dice: random.Random) -> None:
        body = {
            "prompt": "The history of the town begins " * dice.choice([1, 1, 40, 120]),
            "max_tokens": 400,
            "ignore_eos": True,
            "n": dice.choice([1, 1, 2, 3]),
            "stream": dice.random() < 0.7,
            "seed": dice.randrange(1000),
        }
        data = request_of(json.dumps(body).encode(), "/v1/completions")
        connection = self._connect()
        try:
            if dice.random() < 0.2:
                data = data[: dice.randrange(1, len(data))]
            connection.sendall(data)
            if dice.random() < 0.5:
                time.sleep(dice.expovariate(10))
            else:
                connection.settimeout(0.5)
                for _ in range(dice.randrange(1, 12)):
                    connection.recv(dice.randrange(1, 2000))
        except TimeoutError:
            pass
        finally:
            if dice.random() < 0.5:  # a reset instead of an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        self.report.left += 1

    def _be_honest(self, expected: list[Any], number: int) -> None:
        dice = random.Random(f"{self._seed} honest {number}")
        while not self._over.is_set():
            asked = dice.randrange(len(expected))
            try:
                answer = self._ask(asked)
            except (OSError, ValueError) as problem:
                self._complain(f"an honest request was lost: {problem}")
                continue
            if answer == expected[asked]:
                self.report.honest += 1
            else:
                self._complain(f"honest request {asked}: {answer} instead of {expected[asked]}")

    def _ask(self, number: int) -> Any:
        """The choices of an honest request."""
        body = {
            "prompt": f"Story number {number}: once upon a time",
            "max_tokens": 8 + 4 * number,
            "temperature": 0.8,
            "seed": number,
            "n": 1 + number % 2,
        }
        return self._json("/v1/completions", body)["choices"]

    def _json(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(self._url + path, data, timeout=PATIENCE_S) as response:
            return json.load(response)

    def _look_after(self) -> None:
        """Nothing may be left in work."""
        end = time.monotonic() + PATIENCE_S
        while any(slot["is_processing"] for slot in self._json("/slots")):
            if time.monotonic() > end:
                self._complain("room is still taken although nobody waits")
                break
            time.sleep(0.1)
        with urllib.request.urlopen(self._url + "/metrics", timeout=PATIENCE_S) as response:
            text = response.read().decode()
        for name in ("requests_processing", "requests_deferred"):
            if f"\nllamacpp:{name} 0\n" not in text:
                self._complain(f"{name} is not 0")


@contextmanager
def served(arguments: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of its own and its address, once it is ready."""
    command = [sys.executable, "-P", "-m", "specx.cli", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        while process.poll() is None:
            try:
                urllib.request.urlopen(url + "/health", timeout=PATIENCE_S).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--disconnects", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="of a server that runs already")
    asked, arguments = parser.parse_known_args()  # what is not known is for `specx serve`
    if asked.url:
        report = Abuse(asked.url, asked.seed).run(asked.malformed, asked.disconnects, asked.clients)
    else:
        with served(arguments) as (url, process):
            report = Abuse(url, asked.seed).run(asked.malformed, asked.disconnects, asked.clients)
            if process.poll() is not None:
                report.wrong.append(f"the server ended with {process.returncode}")
        if process.returncode:
            report.wrong.append(f"the server ended with {process.returncode} when it was told to stop")
    for text in report.wrong:
        print(text, file=sys.stderr)
    counts = {"statuses": dict(report.statuses), "left": report.left, "honest": report.honest}
    print(json.dumps({**counts, "wrong": len(report.wrong)}))
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
