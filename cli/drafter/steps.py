"""One progress bar after the other, for what is done in several steps."""

from __future__ import annotations

from specx.cli.terminal.console import Progress

__all__ = ["Steps"]


class Steps:
    """Shows the step that is being done. A context manager.

    Args:
        remaining: show the time that is left, too.
    """

    def __init__(self, *, remaining: bool = False) -> None:
        self._remaining = remaining
        self._what = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. Safe to call twice."""
        if self._bar is not None:
            self._bar.close()

    def update(self, what: str, fraction: float, detail: str = "") -> None:
        """`fraction` of `what` is done, of which `detail` is to be said."""
        if what != self._what or self._bar is None:
            if self._bar is not None:
                self._bar.close()
            self._what, self._bar = what, Progress(what, remaining=self._remaining)
        self._bar.update(min(fraction, 1.0), f"{what}: {detail}" if detail else None)
