"""Draft models on this machine for a given target: found, checked, and ranked by what they promise.

A draft model has the target's vocabulary, or one that its bytes can be translated from. Whether one is worth
asking is for its expected rate to say. What a file is does not change, so the answer for every pair is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError, unexpected
from specx.backends.gguf.checks import check_runnable
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.gguf.heads import HEADS, check_head, head_of
from specx.backends.gguf.mtp import has_mtp, mtp_bytes, mtp_layer
from specx.backends.gguf.vocab_match import match_vocabularies
from specx.backends.hub.models import FoundModel, list_models, models_in, real_path
from specx.backends.store import Store
from specx.engine.cost.rate import Chain, chain_rate
from specx.engine.setup.layers import step_bytes

__all__ = [
    "ADAPTED",
    "MTP_NAME",
    "Candidate",
    "Finder",
    "Forecast",
    "Unfit",
    "adapted_path",
    "check_adapted",
    "check_candidate",
    "own_candidate",
]

EXACT = frozenset({"llama", "gpt2", "gemma4"})  # tokenizers whose tokens are the bytes of the text
LOSSY = {"bert": "WPM", "t5": "UGM"}
RANKS = 4  # pooling type of GGUF
MTP_NAME = "MTP layers"
ADAPTED = "adapted"  # kind of the store: heads that learned from a person's texts
RULES = 5  # by which a file can draft or not; what was found by others is looked at again
EXAMINED = 64  # files that are opened in one session; the others' turn comes in later ones


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that can draft for the target.

    Attributes:
        path: its GGUF file.
        name: what to call it.
        fingerprint: of the file.
        shared: how many tokens, from id 0 on, it shares with the target; 0 if its vocabulary is another one.
        step_bytes: bytes of weights that it reads for a token.
        size: bytes of the file.
        layers: of the target, whose inputs it reads, if it is a draft head.
        trial: of the first, second and further tokens of its drafts, how many were right and how often all
            before were, on text that was held back when it was trained; empty if its file does not say.
    """

    path: Path
    name: str
    fingerprint: str
    shared: int
    step_bytes: int
    size: int
    layers: tuple[int, ...] = ()
    trial: tuple[tuple[int, int], ...] = ()

    @property
    def is_head(self) -> bool:
        """Whether it reads the target's hidden states."""
        return bool(self.layers)

    @property
    def translated(self) -> bool:
        """Whether its vocabulary is not the target's."""
        return self.shared == 0


@dataclass(frozen=True, slots=True)
class Unfit:
    """A model that cannot draft for the target.

    Attributes:
        path: its GGUF file.
        name: what to call it.
        reason: why it cannot (one clause).
    """

    path: Path
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a candidate promises.

    Attributes:
        candidate: the model.
        acceptance: probability that each further token is right.
        token_ms: milliseconds to draft one.
        chain: the step of the highest rate.
        plain_rate: expected tokens per millisecond without drafts.
        remembered: tokens that the acceptance was counted on; 0 for a guess.
    """

    candidate: Candidate
    acceptance: float
    token_ms: float
    chain: Chain
    plain_rate: float
    remembered: int

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond at the best length of drafts."""
        return self.chain.rate

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        costs: NDArray[np.float64],
        acceptance: float,
        token_ms: float,
        remembered: int = 0,
        by_step: Sequence[float] = (),
    ) -> Forecast:
        """The objective for drafts of a constant acceptance, or of one for each token.

        Args:
            candidate: the model.
            costs: (W + 1,) milliseconds of a step of the target by its tokens.
            acceptance, token_ms, remembered: see the class.
            by_step: of the first, second and further tokens, where that is known.
        """
        chain = chain_rate(costs, draft_ms=token_ms, acceptance=by_step or acceptance)
        return cls(candidate, acceptance, token_ms, chain, 1 / float(costs[1]), remembered)

    def explained(self) -> str:
        """The numbers, in words."""
        known = f"counted on {self.remembered} tokens" if self.remembered else "assumed"
        another = " (another vocabulary)" if self.candidate.translated else ""
        another = " (a draft head)" if self.candidate.is_head else another
        return (
            f"{self.candidate.name}{another}: {self.token_ms:.1f} ms a token, {self.acceptance:.0%} right "
            f"({known}), {self.rate / self.plain_rate:.2f}x the speed of plain decoding expected"
        )


def check_candidate(target: GGUFInfo, path: Path, name: str | None = None) -> Candidate | Unfit:
    """Whether the GGUF file `path` can draft for `target`, whatever that may bring."""
    name = name or path.stem
    try:
        info = read_gguf(path)
        if info.architecture in HEADS:
            return _check_head(target, info, name)
        check_runnable(info, drafting=True)
        if reason := info.obstacle or info.state_reason:  # drafts are written, and taken back, one by one
            return Unfit(path, name, reason)
        for reason in _unsuitable(target, info):
            return Unfit(path, name, reason)
        match = match_vocabularies(target, info)
    except (ModelError, OSError) as error:
        return Unfit(path, name, getattr(error, "message", str(error)))
    except Exception as error:  # noqa: BLE001 - whatever lies beside a model, it does not end an answer
        return Unfit(path, name, unexpected(error, "").message)
    return Candidate(info.path, name, info.fingerprint, match.shared, step_bytes(info), info.size)


def _check_head(target: GGUFInfo, info: GGUFInfo, name: str) -> Candidate | Unfit:
    """Whether a draft head goes with the target.

    Raises:
        ModelError, OSError: it is damaged, or a file cannot be read any more.
    """
    head = head_of(info)
    if reason := target.plain_reason or check_head(head, target):
        return Unfit(info.path, name, reason)
    shared = target.vocabulary_size
    nbytes, layers, trial = head.step_bytes, head.layers, head.trial
    return Candidate(info.path, name, info.fingerprint, shared, nbytes, info.size, layers, trial)


def _unsuitable(target: GGUFInfo, draft: GGUFInfo) -> Iterator[str]:
    """Why a model that writes text cannot draft, one clause each."""
    if pooling := draft.integer("pooling_type"):
        kind = "a reranker" if pooling == RANKS else "an embedding model"
        yield f"it is {kind}, which writes no text"
    for info, whose in ((draft, "its"), (target, "the target's")):
        if info.tokenizer not in EXACT:
            name = LOSSY.get(info.tokenizer, info.tokenizer or "none")
            yield f"{whose} tokenizer ({name}) does not keep a text byte by byte"


def own_candidate(target: GGUFInfo) -> Candidate | None:
    """The target's own layers that only draft, if it has some that can be run."""
    if target.plain_reason or not has_mtp(target):
        return None
    fingerprint = f"{target.fingerprint}-mtp"
    shared, nbytes = target.vocabulary_size, mtp_bytes(target)
    return Candidate(target.path, MTP_NAME, fingerprint, shared, nbytes, 0, (mtp_layer(target),))


def adapted_path(store: Store, target: GGUFInfo, head: Candidate) -> Path | None:
    """Where a head lies once it has learned from a person's texts; None if nothing is kept. Of one that did,
    it is the head itself."""
    path = store.place(ADAPTED, f"{target.fingerprint}-{head.fingerprint}-{head.path.stem}.gguf")
    return head.path if path is not None and head.path.parent == path.parent else path


def check_adapted(target: GGUFInfo, path: Path) -> Candidate | None:
    """The head at an `adapted_path`, if it is one that can draft."""
    found = check_candidate(target, path, adapted_name(path)) if path.is_file() else None
    return found if isinstance(found, Candidate) and found.is_head else None


def adapted_name(path: Path) -> str:
    """What to call the head at an `adapted_path`."""
    return f"{path.stem.split('-', 2)[-1]}, adapted"


class Finder:
    """Looks for candidates, one file at a time, so that it can be interleaved with other work.

    Args:
        target: the model to draft for.
        store: where it is kept what files are.
        models: lists the models of this machine.
    """

    def __init__(
        self, target: GGUFInfo, store: Store, models: Callable[[], Sequence[FoundModel]] = list_models
    ) -> None:
        self._target = target
        self._store = store
        self._models = models

    def search(self) -> Iterator[Candidate | Unfit | None]:
        """What is found, as it is found; None comes before a file is looked into, which takes a moment."""
        known = self._load()
        kept: dict[str, dict[str, Any]] = {}
        opened, whole, adapted = 0, False, self._adapted()
        replaced: set[str] = set()  # heads that have learned since
        try:
            for model in [*adapted, *self._files()]:
                stamp = _stamp(model.path)
                if stamp is None:  # it is gone since it was listed
                    continue
                data = known.get(str(model.path), {})
                found = _finding(model, data) if data.get("stamp") == stamp else None
                if found is None:
                    if opened >= EXAMINED:
                        continue
                    opened += 1
                    yield None
                    found = check_candidate(self._target, model.path, model.name)
                    data = _plain(found, stamp)
                kept[str(model.path)] = data
                if model in adapted and isinstance(found, Candidate):
                    if not found.is_head:
                        continue
                    replaced.add(model.path.name.split("-", 2)[1])
                if isinstance(found, Unfit) or found.fingerprint not in replaced:
                    yield found
            whole = True
        finally:  # the process may end before all were looked at: the others are what they were
            files = kept if whole else {**known, **kept}
            if opened or files.keys() != known.keys():
                self._store.save_json(
                    "candidates", self._target.fingerprint, {"rules": RULES, "files": files}
                )

    def _adapted(self) -> list[FoundModel]:
        """Heads that have learned from a person's texts; each takes the place of what it was."""
        folder = self._store.place(ADAPTED, "")
        return [
            replace(model, name=adapted_name(model.path))
            for model in (models_in(folder, "adapted") if folder is not None else ())
            if model.path.name.startswith(f"{self._target.fingerprint}-")
        ]

    def _files(self) -> list[FoundModel]:
        """Models other than the target that are small enough, in the places known and beside the target."""
        own = {real_path(path) for path in self._target.parts}
        found: dict[Path, FoundModel] = {}
        for model in [*models_in(self._target.path.parent, "beside the target"), *self._models()]:
            real = real_path(model.path)
            if real not in own and model.size < self._target.size:
                found.setdefault(real, model)
        return list(found.values())

    def _load(self) -> dict[str, dict[str, Any]]:
        data = self._store.load_json("candidates", self._target.fingerprint) or {}
        files = data.get("files")
        if not isinstance(files, dict) or data.get("rules") != RULES:
            return {}
        return {path: value for path, value in files.items() if isinstance(value, dict)}


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _plain(found: Candidate | Unfit, stamp: list[int]) -> dict[str, Any]:
    return {**asdict(found), "path": str(found.path), "stamp": stamp}


def _finding(model: FoundModel, data: dict[str, Any]) -> Candidate | Unfit | None:
    """What `_plain` was made of; None if `data` is damaged."""
    try:
        if "reason" in data:
            return Unfit(model.path, model.name, str(data["reason"]))
        shared, step_bytes, size = (int(data[key]) for key in ("shared", "step_bytes", "size"))
        layers = tuple(int(layer) for layer in data["layers"])
        trial = tuple((int(right), int(reached)) for right, reached in data["trial"])
        path, fingerprint = Path(data["path"]), str(data["fingerprint"])
        return Candidate(path, model.name, fingerprint, shared, step_bytes, size, layers, trial)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
