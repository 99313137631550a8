"""Trimming a draft model for a target: text is written and read, rows are chosen, the file is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.llama.model import LlamaModel
from specx.backends.machine.machine import this_cpu
from specx.backends.settings import Load
from specx.drafters.make.trim import check_trimmable, kept_rows, least_bytes, row_scores, write_trimmed
from specx.engine.making.output import check_output
from specx.engine.making.samples import AT_ONCE, Sample, write_samples
from specx.engine.session import Session
from specx.engine.settings import Asked
from specx.engine.setup.here import Here
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.load import repack_works

__all__ = ["TrimReport", "Trimming", "Wanted", "default_output", "trim"]

N_CTX = 512  # tokens; a prompt and an answer fit


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.

    Attributes:
        keep: rows of the head.
        tokens: how much text the target is to write, about.
        texts: more text to count tokens in, such as a person's own.
        output: the file to write; None for one beside the draft model.
        force: replace a file that is there.
    """

    keep: int = 16384
    tokens: int = 6000
    texts: Sequence[str] = ()
    output: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TrimReport:
    """What was made.

    Attributes:
        path: the file.
        rows, vocabulary: tokens that it scores, and all there are.
        counted: tokens of the text by which they were chosen.
        step_bytes, whole_step_bytes: of weights that a token reads, and that it read before.
    """

    path: Path
    rows: int
    vocabulary: int
    counted: int
    step_bytes: int
    whole_step_bytes: int

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Trimming:
    """Who is told meanwhile.

    Attributes:
        progress: what is being done, and the finished fraction of it.
        notice: what a person should know.
    """

    progress: Callable[[str, float], None] = lambda _what, _fraction: None
    notice: Callable[[str], None] = lambda _text: None


def default_output(draft: Path, keep: int) -> Path:
    """Where a trimmed model goes if nobody says: beside the draft model, where `auto` finds it."""
    rows = f"{keep // 1024}k" if keep % 1024 == 0 else str(keep)
    return draft.with_name(f"{draft.stem}.trim{rows}.gguf")


def trim(draft: Path, target: Path, wanted: Wanted, told: Trimming) -> TrimReport:
    """Make a draft model for `target` whose head has fewer rows than `draft` has.

    Raises:
        UsageError: what is wanted makes no sense.
        FileError: the file is there already, or cannot be written.
        ModelError: the draft model cannot be trimmed, or one of the models cannot be loaded.
    """
    info, its_target = read_gguf(draft), read_runnable(target)
    check_trimmable(info, wanted.keep)
    info = read_runnable(draft)
    output = wanted.output or default_output(info.path, wanted.keep)
    check_output(output, (info, its_target), force=wanted.force, least=least_bytes(info))
    samples = _samples(target, wanted.tokens, told)
    with_ids = match_vocabularies(its_target, info).difference is None
    with _Scorer(info) as scorer:
        texts = scorer.read(samples, with_ids=with_ids) + [scorer.tokens(text) for text in wanted.texts]
        scores = row_scores(
            scorer.model,
            texts,
            info.vocabulary_size,
            lambda done, total: told.progress("ranking tokens", done / total),
        )
    ids = kept_rows(info, scores, wanted.keep)
    parameters = {"keep": len(ids), "tokens": wanted.tokens, "texts": len(wanted.texts)}
    write_trimmed(output, info, ids, its_target, parameters)
    made = read_runnable(output, drafting=True)
    counted = sum(map(len, texts))
    return TrimReport(output, len(ids), info.vocabulary_size, counted, step_bytes(made), step_bytes(info))


def _samples(target: Path, tokens: int, told: Trimming) -> list[Sample]:
    asked = Asked(target, n_ctx=N_CTX, texts=AT_ONCE, drafter="none", store=False, measure=False)
    with Session.open(
        asked,
        notice=told.notice,
        progress=lambda done, what=None: told.progress(what or f"loading {target.name}", done),
    ) as session:
        return write_samples(session, tokens, lambda done: told.progress("writing text", done))


class _Scorer:
    """The whole draft model, which reads text."""

    def __init__(self, info: GGUFInfo) -> None:
        threads = this_cpu().default_threads
        load = Load(info.path, threads, threads, n_ctx=N_CTX)
        self.model = LlamaModel(load, repack=repack_works(load, Here.of(Asked(info.path))))

    def __enter__(self) -> _Scorer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.model.close()

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.model.vocab.tokenize(text.encode(), add_special=True, parse_special=False)

    def read(self, samples: Sequence[Sample], *, with_ids: bool) -> list[list[int]]:
        """Samples as the draft model reads them: by their ids if these mean the same to it."""
        if with_ids:
            return [[*sample.prompt, *sample.answer] for sample in samples]
        return [self.tokens(f"{sample.question}\n{sample.text}") for sample in samples]
