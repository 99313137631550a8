"""One file on its way into the cache: cut connections are taken up again, and what arrived is checked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from specx.backends.errors import DownloadError
from specx.backends.hub.names import HubName
from specx.backends.hub.trust import Listed, fault

__all__ = ["CHECKING", "Hub", "PullProgress", "Told", "Transfer", "in_time", "patiently"]

PullProgress = Callable[[str, int, int], None]
"""Called with (file name, bytes done, bytes in all) while a model is fetched, all its parts counted. CHECKING
stands before the name while a part is compared with its sum."""

CHECKING = "checking "

_WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)
"""Seconds before a cut connection is taken up again, while nothing more arrives."""

_MUCH = 1 << 20
"""Bytes that have to arrive for a connection to count as one that works."""


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used here."""

    def model_info(self, repo_id: str, *, revision: str | None, timeout: float, files_metadata: bool) -> Any:
        """Commit (`sha`) and files (`siblings`, each `rfilename` and `size`) of a repository."""

    def hf_hub_download(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None,
        cache_dir: Path,
        force_download: bool,
        tqdm_class: type[Any],
    ) -> Any:
        """Fetch one file into the cache, unless it is there, and return its path."""


def patiently(call: Callable[[], Any], works: Callable[[], bool] = lambda: False) -> Any:
    """The result of `call`, which is tried again where a connection is cut, but not where there is none.

    Args:
        call: what to do.
        works: whether much has arrived since it was asked the last time.
    """
    waits = list(_WAITS)
    while True:
        try:
            return call()
        except Exception as error:
            waits = list(_WAITS) if works() else waits
            if not waits or not _is_cut(error):
                raise
            time.sleep(waits.pop(0))


def in_time(call: Callable[[], Any], seconds: float) -> Any:
    """The result of `call`, which may never return: it is left behind in a thread then.

    Raises:
        DownloadError: it takes longer.
    """
    ended: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as problem:  # noqa: BLE001 -- raised where it is waited for
            ended.put((None, problem))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, problem = ended.get(timeout=seconds)
    except queue.Empty:
        raise DownloadError(
            f"the hub has not come to the end of an answer within {seconds:.0f} s",
            "check the network, then try again",
        ) from None
    if problem is not None:
        raise problem
    return result


class Told:
    """Passes on what arrives of one part of a model.

    Args:
        progress: who is told, if anybody.
        part: name of the file.
        before: bytes of the parts before it.
        whole: bytes of all parts.
    """

    def __init__(self, progress: PullProgress | None, part: str, before: int, whole: int) -> None:
        self._progress, self._part, self._before, self._whole = progress, part, before, whole
        self._checked = self._seen = 0
        self.arrived = 0

    def has(self, done: int) -> None:
        """So many bytes of it are here."""
        if self._progress is not None:
            self._progress(self._part, self._before + done, self._whole)

    def checked(self, more: int) -> None:
        """So many more bytes of it were read to compare them."""
        self._checked += more
        if self._progress is not None:
            self._progress(CHECKING + self._part, self._before + self._checked, self._whole)

    def works(self) -> bool:
        """Whether much has arrived since this was asked the last time."""
        much = self.arrived - self._seen >= _MUCH
        self._seen = self.arrived
        return much


class _SpoiledError(Exception):
    """What arrives is not what the hub listed."""


class Transfer:
    """One file on its way into the cache."""

    def __init__(self, hub: Hub, name: HubName, part: str, listed: Listed, cache: Path, told: Told) -> None:
        self._hub, self._name, self._part = hub, name, part
        self._listed, self._cache, self._told = listed, cache, told
        self._anew = False  # what is there of it is not to be gone on with

    def path(self) -> Path:
        """Where the file lies once it is there, as the hub lists it.

        Raises:
            DownloadError: what arrives is something else, however often it is fetched.
        """
        problem = ""
        for _ in range(2):
            try:
                path: Path = patiently(self._arrived, self._told.works)
            except _SpoiledError as error:
                problem, self._anew = str(error), True
                continue
            found = fault(path, self._listed, self._told.checked)
            if found is None:
                return path
            problem = found
            for spoiled in (path.resolve(), path):  # what the link points to, and the link
                spoiled.unlink(missing_ok=True)
        raise DownloadError(
            f"{self._part} did not arrive as {self._name.repository} lists it: {problem}",
            "a proxy or a login page of the network may have answered instead; try again later",
        )

    def _arrived(self) -> Path:
        anew, self._anew = self._anew, False  # if this is cut off, what it brought is gone on with
        try:
            found = self._hub.hf_hub_download(
                self._name.repository,
                self._part,
                revision=self._name.revision,
                cache_dir=self._cache,
                force_download=anew,
                tqdm_class=_bar(self._told, self._listed.size),
            )
        except Exception as error:
            if _status(error) == 416:  # more is there than there should be
                raise _SpoiledError("it is longer here than there") from error
            if isinstance(error, OSError) and "Consistency check failed" in str(error):
                raise _SpoiledError("it ended early") from error
            raise
        return Path(found)


def _bar(told: Told, most: int) -> type[Any]:
    """A class with tqdm's interface that passes on what arrives of a file of `most` bytes, 0 if unknown."""

    class Bar:
        def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object) -> None:
            self.total = total
            self.n = initial
            told.has(self.n)

        def update(self, n: float | None = 1) -> None:
            more = int(n or 0)
            self.n += more
            told.arrived += more
            if self.n > most > 0:  # an answer without end would fill the disk
                raise _SpoiledError(f"more than the {most:,} bytes that were listed arrived")
            told.has(self.n)

        def ignore(self, *_: object, **__: object) -> None:
            """Bytes on the wire and labels are not shown; `update` has the bytes on the disk."""

        update_transfer = set_transfer_postfix_str = set_postfix_str = set_description = ignore
        refresh = close = __exit__ = ignore

        def __enter__(self) -> Bar:
            return self

    return Bar


def _is_cut(error: Exception) -> bool:
    """Whether a connection that stood has ended before its time, or nothing comes any more."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "RemoteProtocolError" in names:  # an answer that is none stays so
        return any(word in str(error) for word in ("disconnected", "closed", "terminated"))
    return bool(names & {"ReadError", "TimeoutException"}) and "ConnectTimeout" not in names


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
