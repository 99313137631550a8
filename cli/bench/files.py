"""Results of `specx bench` on disk: kept under a name or in a file, and read again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specx.backends.errors import FileError, SpecxError, UsageError
from specx.backends.places import NO_HOME, expanded
from specx.cli.terminal.files import read_text, write_atomically
from specx.engine.bench.records import Answer, Run

__all__ = ["answer_line", "end_line", "header_line", "read_run", "result_path", "save_run"]


def result_path(name: str) -> Path:
    """Where a result is kept: the file itself if the name ends in .json or .jsonl, else a place of its own.

    Raises:
        UsageError: it cannot be the name of a file.
        FileError: there is no place of its own, because there is no home directory.
    """
    if name.endswith((".json", ".jsonl")):
        return expanded(Path(name))
    if not re.fullmatch(r"[\w.+-]{1,100}", name) or name.startswith((".", "-")):
        raise UsageError(
            f"{name!r} cannot name a result", "use letters, digits, . - _ and +, or a file ending in .json"
        )
    folder = _folder()
    if folder is None:
        raise FileError(f"{name} has no place: {NO_HOME}", "give a file ending in .json")
    return folder / f"{name}.json"


def save_run(run: Run, path: Path) -> None:
    """Keep a run, whole or not at all.

    Raises:
        SpecxError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SpecxError(f"cannot write {path}: {problem.strerror}", "choose another place") from problem
    write_atomically(path, json.dumps(run.to_json()) + "\n")


def read_run(name: str) -> Run:
    """The run of a name or a file: what `save_run`, `-o json` or `-o jsonl` wrote, the last cut short or not.

    Raises:
        FileError: there is none.
        UsageError: it is something else.
    """
    path = result_path(name)
    if not path.is_file():
        folder = _folder()
        kept = sorted(each.stem for each in folder.glob("*.json")) if folder else []
        hint = f"there are {', '.join(kept)}" if kept else "specx bench --save NAME keeps one"
        raise FileError(f"there is no result {name}", hint)
    text = read_text(path)
    try:
        run = Run.from_json(_lines(text) if '"header"' in text.partition("\n")[0] else json.loads(text))
    except (ValueError, RecursionError) as problem:
        raise UsageError(
            f"{path} is no result of specx bench: {problem}", "make one with -o json, -o jsonl or --save"
        ) from problem
    if not run.answers:
        raise UsageError(f"{path} holds no answers", "its run was interrupted before the first one")
    return run


def header_line(run: Run) -> str:
    """The first of the lines of `-o jsonl`: what is known before the first answer."""
    return _line("header", _without_answers(run))


def answer_line(answer: Answer) -> str:
    """One answer, as it comes."""
    return _line("answer", asdict(answer))


def end_line(run: Run, report: dict[str, Any]) -> str:
    """The last line: everything that is not an answer. A run that was killed leaves none."""
    return _line("end", {**_without_answers(run), **report})


def _line(kind: str, value: dict[str, Any]) -> str:
    return json.dumps({kind: value}) + "\n"


def _without_answers(run: Run) -> dict[str, Any]:
    data = run.to_json()
    del data["answers"]
    return data


def _lines(text: str) -> dict[str, Any]:
    """The object that JSON lines add up to."""
    whole: dict[str, Any] = {}
    answers: list[Any] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):  # cut short
                break
            raise
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        if "answer" in row:
            answers.append(row["answer"])
        else:
            whole |= row.get("header", {}) | row.get("end", {})
            whole["partial"] = bool(row.get("end", {}).get("partial", True))
    return {**whole, "answers": answers}


def _folder() -> Path | None:
    from specx.backends.store import cache_dir

    root = cache_dir()
    return None if root is None else root / "bench"
