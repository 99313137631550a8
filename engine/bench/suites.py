"""Prompts to measure with: specx's own, the files that people have, and synthetic workloads.

The built-in prompts were written for specx. They lie in `engine/suite/`, one JSON Lines file per category.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from specx.backends.errors import FileError, UsageError, reading

__all__ = ["Prompt", "Workload", "load_suite", "parse_synthetic", "sample", "suite_names"]

Message = Mapping[str, Any]

SUITE = Path(__file__).with_name("suite")
MOST_BYTES = 1 << 28  # of a file of prompts

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""What the `from` of a row with `conversations` is called elsewhere; other names stay as they are."""

PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""SPEED-Bench leaves out what others hold the rights to, and says so where the prompt should be."""

FIELDS = '"messages", "conversations", "turns", "question", "prompt" or "text"'
HINT = 'write {"messages": [{"role": "user", "content": "..."}]} or {"turns": ["..."]}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation or text to continue: either `messages` or `text` is there.

    Attributes:
        id: unique in its suite.
        category: what kind of text it asks for.
        messages: the conversation, `role` and `content` each, for the model's chat template. Where two of the
            user's messages follow each other, the model's own answer to the first belongs between them.
        text: raw text, continued as it stands.
        tools: JSON schemas of the functions that the conversation may call.
    """

    id: str
    category: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Message, ...] = ()

    @property
    def n_turns(self) -> int:
        """How many answers the conversation asks for."""
        return 1 + sum(_unanswered(before, after) for before, after in pairwise(self.messages))

    def conversation(self, answers: Sequence[str] = ()) -> list[Message]:
        """The messages that come before answer number `len(answers)`, given the answers so far."""
        messages = list(self.messages[:1])
        left = iter(answers)
        for before, after in pairwise(self.messages):
            if _unanswered(before, after):
                answer = next(left, None)
                if answer is None:
                    break
                messages.append({"role": "assistant", "content": answer})
            messages.append(after)
        return messages


@dataclass(frozen=True, slots=True)
class Workload:
    """Work without a text: `n_prompt` tokens to read, then `n_predict` to write; one of them may be 0."""

    name: str
    n_prompt: int
    n_predict: int


def suite_names() -> list[str]:
    """The built-in suites: "default", which holds all the others, and one per category."""
    return ["default", *sorted(path.stem for path in SUITE.glob("*.jsonl"))]


def load_suite(
    name_or_path: str | Path,
    categories: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """The prompts of a built-in suite or of a file.

    A file is plain text (a user's message a line), JSON Lines, or one JSON array. Rows have `messages`
    (OpenAI), `conversations` (ShareGPT), `turns` (Spec-Bench and SPEED-Bench: a user's messages, which the
    model answers one after the other), `prompt` (raw text, or messages), `question` (a user's message), or
    `text` (raw text). The first of these that is there counts. Optional are `id` (or
    `question_id`, `task_id`; else the file's name and the line), `category` (else the file's name), and
    `tools`. An answer at the end of a conversation is left out: it is for the model to give.

    Args:
        name_or_path: one of `suite_names()`, a file (a Path, or `./code`, where it has the name of a suite),
            or "-" for standard input.
        categories: take these only.
        limit: take at most so many of each category.
        seed: decides which ones; a higher limit keeps those of a lower one.

    Raises:
        FileError: there is no such suite or file.
        UsageError: there is no such category, or the file holds something that is no prompt.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in (names := suite_names()):
        files = names[1:] if name == "default" else [name]
        prompts = [prompt for file in files for prompt in _read_file(SUITE / f"{file}.jsonl")]
    elif name == "-":
        with reading("standard input"):
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        prompts = _parse_file(data, "standard input", "stdin", "")
    else:
        prompts = _read_file(Path(name))
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} prompts leaves nothing", "take 1 or more of each category")
    if categories is not None:
        present = dict.fromkeys(prompt.category for prompt in prompts)
        if unknown := [category for category in categories if category not in present]:
            raise UsageError(f"{name} has no category {unknown[0]}", f"it has {', '.join(present)}")
        prompts = [prompt for prompt in prompts if prompt.category in categories]
    return sample(prompts, limit, seed)


def sample(prompts: Sequence[Prompt], per_category: int | None, seed: int) -> list[Prompt]:
    """At most `per_category` prompts of each category, in their order.

    Which ones depends on the seed and their ids only, so more prompts per category keep those of fewer.
    """
    if per_category is None:
        return list(prompts)
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)

    def order(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()

    # By identity: prompts of different files may have the same name.
    taken = {id(p) for group in by_category.values() for p in sorted(group, key=order)[:per_category]}
    return [prompt for prompt in prompts if id(prompt) in taken]


def parse_synthetic(workloads: str) -> list[Workload]:
    """Workloads in the notation of llama-bench, such as "pp512,tg128,pp512+tg128".

    Raises:
        UsageError: something else is written there, or it asks for no tokens.
    """
    hint = "write pp512, tg128 or pp512+tg128, with commas between"
    number = r"([1-9]\d{0,6})"
    found: dict[str, Workload] = {}
    for name in filter(None, (part.strip() for part in workloads.split(","))):
        match = re.fullmatch(rf"pp{number}(?:\+tg{number})?|tg{number}", name, re.ASCII)
        if match is None:
            raise UsageError(f"{name} is no workload", hint)
        found[name] = Workload(name, int(match[1] or 0), int(match[2] or match[3] or 0))
    if not found:
        raise UsageError("no workload is given", hint)
    return list(found.values())


def _unanswered(before: Message, after: Message) -> bool:
    return bool(before["role"] == after["role"] == "user")


def _read_file(path: Path) -> list[Prompt]:
    with reading(str(path)):
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError as problem:
            raise FileError(
                f"there is no suite and no file {path}", f"the suites are {', '.join(suite_names())}"
            ) from problem
    return _parse_file(data, str(path), path.stem, path.suffix.lower())


def _parse_file(data: bytes, name: str, stem: str, suffix: str) -> list[Prompt]:
    """The prompts of a file called `name`; `stem` goes into ids and categories that rows do not give."""
    if len(data) > MOST_BYTES:
        raise FileError(f"{name} has more than {MOST_BYTES:,} bytes", "take a part of it")
    prompts: dict[str, Prompt] = {}
    for number, where, row in _rows(_decode(data, name), name, suffix):
        try:
            prompt = _parse_row(row, f"{stem}:{number}", stem)
        except ValueError as problem:
            raise UsageError(f"{where} is no prompt: {problem}", HINT) from problem
        if prompts.setdefault(prompt.id, prompt) is not prompt:
            raise UsageError(f"{where}: the id {prompt.id} occurs twice", "give each row an id of its own")
    if not prompts:
        raise UsageError(f"{name} holds no prompts", "write one a line")
    return list(prompts.values())


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        if data.startswith(b"PAR1"):
            raise UsageError(f"{name} is a Parquet file", "convert it to JSON Lines first") from problem
        line = data.count(b"\n", 0, problem.start) + 1
        raise UsageError(
            f"line {line} of {name} is not valid UTF-8: byte 0x{data[problem.start]:02x}",
            "convert it first, for example with `iconv -t UTF-8`",
        ) from problem


def _rows(text: str, name: str, suffix: str) -> Iterator[tuple[int, str, Any]]:
    """(number, where it stands, row) of all that a file holds: what its JSON says, or lines as strings."""
    is_json = suffix in (".json", ".jsonl") or (suffix != ".txt" and re.match(r'\s*(\{|\[\s*[{"\]])', text))
    document = _document(text, name, suffix) if is_json else None
    if isinstance(document, list):
        yield from ((i, f"entry {i} of {name}", entry) for i, entry in enumerate(document, start=1))
    elif document is not None:
        yield 1, name, document
    else:
        # Not splitlines(): in JSON, strings may hold what it takes for the end of a line.
        for number, line in enumerate(text.split("\n"), start=1):
            where = f"line {number} of {name}"
            if line.strip():
                yield number, where, _parse_json(line, where) if is_json else line.strip()


def _document(text: str, name: str, suffix: str) -> Any:
    """The one JSON value that a file is, or None if it is JSON Lines."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        several = getattr(problem, "msg", None) == "Extra data"
        if not several and (suffix == ".json" or text.lstrip().startswith("[")):
            raise _not_json(f"line {getattr(problem, 'lineno', 1)} of {name}", problem) from problem
        return None


def _parse_json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise _not_json(where, problem) from problem


def _not_json(where: str, problem: Exception) -> UsageError:
    reason = getattr(problem, "msg", None) or problem
    return UsageError(f"{where} is not JSON: {reason}", "plain text goes into a file that ends in .txt")


def _parse_row(row: Any, name: str, category: str) -> Prompt:
    """The prompt of one row; `name` and `category` are what it is called if it does not say.

    Raises:
        ValueError: it has none.
    """
    if isinstance(row, str):
        row = {"question": row}
    if not isinstance(row, dict):
        raise ValueError("it is neither an object nor a string")
    messages, text = _content(row)
    if PLACEHOLDER in text or any(PLACEHOLDER in message["content"] for message in messages):
        raise ValueError("SPEED-Bench has left its text out; run the script that fetches it first")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("its tools are not a list of objects")
    # What UTF-8 cannot express, no tokenizer takes.
    json.dumps([messages, text, tools], ensure_ascii=False).encode()
    name = next((str(row[key]) for key in ("id", "question_id", "task_id") if row.get(key) is not None), name)
    return Prompt(name, str(row.get("category") or category), tuple(messages), text, tuple(tools))


def _content(row: dict[str, Any]) -> tuple[list[Message], str]:
    """The messages or the text of a row.

    Raises:
        ValueError: it has neither.
    """
    for key in ("messages", "conversations", "prompt"):
        if isinstance(row.get(key), list):
            return _messages(row[key], key), ""
    if isinstance(turns := row.get("turns"), list):
        return _messages([{"role": "user", "content": turn} for turn in turns], "turns"), ""
    for key in ("prompt", "question", "text"):
        if isinstance(value := row.get(key), str):
            if not value.strip():
                raise ValueError(f"its {key} is empty")
            return ([{"role": "user", "content": value}], "") if key == "question" else ([], value)
    raise ValueError(f"it has none of {FIELDS}")


def _messages(entries: Iterable[Any], key: str) -> list[Message]:
    """Messages with a role and a text each, up to the last that the model is to answer."""
    messages: list[Message] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"number {number} of its {key} is no object")
        role = entry.get("role", entry.get("from"))
        content = entry.get("content", entry.get("value"))
        if isinstance(content, list):  # the parts of OpenAI's format
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
        if content is None and entry.get("tool_calls"):
            content = ""
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"number {number} of its {key} has no role or no text")
        others = {k: v for k, v in entry.items() if k not in ("role", "from", "content", "value")}
        messages.append({"role": SHAREGPT_ROLES.get(role, role), "content": content, **others})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(message["content"].strip() for message in messages if message["role"] != "system"):
        raise ValueError(f"its {key} hold nothing to answer")
    return messages
