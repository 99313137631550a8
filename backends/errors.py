"""The one exception tree. Whatever a person can cause ends in a SpecxError with a hint.

SpecxError
|- UsageError        the command line asks for something that makes no sense (exit code 2)
|  `- GrammarError     a grammar or JSON schema cannot be used
|- FileError         a file that was named cannot be read or written
|- ModelError        a model file cannot be found, read or run
|  `- DoesNotFitError  it takes more memory than there is
|- ContextFullError  the prompt or the conversation no longer fits the context
|- RollbackError     the KV cache could not be brought back to an earlier length
|- DownloadError     a model could not be fetched
|- TemplateError     the model's chat template cannot be used
|- ClusterError      a Ray cluster cannot be reached, or cannot do what it was asked
|- PeerError         another program, which specx is compared with, cannot be run
`- StoreError        the store under the cache directory cannot be used (never fatal to decoding)

What only one part of specx raises stands beside it, and is a SpecxError as well: RequestError (engine/api),
BusyError and StoppedError (engine/service.py), ListenError (cli/serve), UnavailableError (cli/resident).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ClusterError",
    "ContextFullError",
    "DoesNotFitError",
    "DownloadError",
    "FileError",
    "GrammarError",
    "ModelError",
    "PeerError",
    "RollbackError",
    "SpecxError",
    "StoreError",
    "TemplateError",
    "UsageError",
    "reading",
    "unexpected",
]


class SpecxError(Exception):
    """Something a person can act on.

    Args:
        message: one sentence, what is wrong with which input.
        hint: what to type or change next; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def unexpected(problem: Exception, hint: str) -> SpecxError:
    """What a person is told of an exception that nobody has foreseen."""
    return SpecxError(f"unexpected {type(problem).__name__}: {str(problem).strip() or 'no message'}", hint)


class UsageError(SpecxError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class GrammarError(UsageError):
    """A grammar or JSON schema cannot be used."""


class FileError(SpecxError):
    """A file that was named, other than a model, is missing, or cannot be read or written."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Inside, what a person calls `name` is read.

    Raises:
        FileError: it cannot be.
    """
    try:
        yield
    except (OSError, ValueError) as problem:  # ValueError: a name with a NUL character
        reason = getattr(problem, "strerror", None) or problem
        if getattr(problem, "errno", None) == errno.EBADF:
            reason = "it was opened for writing"
        raise FileError(f"cannot read {name}: {reason}", "check its name") from problem


class ModelError(SpecxError):
    """A model file cannot be found, read or run."""


class DoesNotFitError(ModelError):
    """A model takes more memory than there is."""


class ContextFullError(SpecxError):
    """The prompt or the conversation no longer fits the context."""

    @classmethod
    def of_prompt(
        cls, tokens: int, n_ctx: int, trained: int = 0, seconds: float | None = None
    ) -> ContextFullError:
        """A prompt of so many `tokens` is too long for a context of `n_ctx`.

        Args:
            tokens, n_ctx: of the prompt, and of the context.
            trained: the largest context that the model was trained for; 0 if that is unknown.
            seconds: how long reading it takes; None if that is unknown.
        """
        room = -(-(tokens + 256) // 1024) * 1024
        if trained:
            room = min(room, trained)
        time = "" if seconds is None else f" (reading it takes about {_time(seconds)})"
        fits = max(room, n_ctx) if room <= tokens else n_ctx
        share = f"its first {max(fits - 256, fits // 2) * 100 // tokens}%"
        if room > tokens:
            hint = f"give it more room with -c {room}{time}, or shorten it to {share}"
        elif trained > n_ctx:
            hint = f"shorten it to {share} and use -c {trained}, all that the model was trained for"
        else:
            hint = f"shorten it to {share}: the model was trained for {trained} tokens of context"
        return cls(f"the prompt has {tokens} tokens and the context holds {n_ctx}", hint)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class RollbackError(SpecxError):
    """The KV cache could not be brought back to an earlier length."""


class DownloadError(SpecxError):
    """A model could not be fetched."""


class TemplateError(SpecxError):
    """The model's chat template is missing or cannot be rendered."""


class ClusterError(SpecxError):
    """A Ray cluster cannot be reached, or cannot do what it was asked."""


class PeerError(SpecxError):
    """Another program, which specx is compared with, cannot be run."""


class StoreError(SpecxError):
    """The store under the cache directory cannot be used."""
