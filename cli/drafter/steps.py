"""One progress bar after the other, for what is done in several steps."""

from __future__ import annotations

from specx.cli.terminal.console import Progress

__all__ = ["Steps"]


class Steps:
    """Shows the step that is being done. A context manager."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, what: str, fraction: float) -> None:
        """`fraction` of `what` is done."""
        if what != self._what or self._bar is None:
            if self._bar is not None:
                self._bar.close()
            self._what, self._bar = what, Progress(what)
        self._bar.update(min(fraction, 1.0))
