"""What a hub says and sends is checked: names before they become paths, headers, and what arrived.

A login page of the network, a proxy that ends early or a hub that is none can answer instead of Hugging Face,
and huggingface_hub takes what comes: an ETag becomes the name of a file, a short answer the beginning of one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.backends.errors import DownloadError

if TYPE_CHECKING:
    import httpx

__all__ = ["Listed", "fault", "guard_client", "is_plain_name", "listed_files"]

MOST_REDIRECTS = 10  # from one address of the hub to the next; huggingface_hub itself follows without end
MOST_LISTED = 1 << 26
"""Bytes of what is listed of a repository: those with ten thousand files have two million."""
_CHUNK = 1 << 20  # bytes that are written at once: what has arrived of them is lost where a connection is cut
_PLAIN_WORD = re.compile(r"(?!\.+$)[A-Za-z0-9._+=-]{1,200}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\\]")
_INSTEAD = "a proxy or a login page of the network may have answered instead"


@dataclass(frozen=True, slots=True)
class Listed:
    """What the hub says of a file.

    Attributes:
        size: in bytes; 0 if it does not say.
        sha256: hex digest of the content; empty if it does not say.
        git_sha1: hex digest that git names the content by, of a file that is in git itself; else empty.
    """

    size: int
    sha256: str = ""
    git_sha1: str = ""


def is_plain_name(name: str) -> bool:
    """Whether the name of a file in a repository stays below the repository, wherever it is put."""
    parts = name.split("/")
    return not _CONTROLS.search(name) and all(
        part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts
    )


def listed_files(info: Any) -> dict[str, Listed]:
    """The files of a repository with a name that can be used, by that name.

    Args:
        info: as `huggingface_hub.HfApi.model_info` gives it.

    Raises:
        DownloadError: the commit is named by what is no name.
    """
    if not _PLAIN_WORD.fullmatch(str(info.sha)):
        raise DownloadError(f"the hub names its commit {str(info.sha)[:80]!r}, which is no name", _INSTEAD)
    files = {}
    for each in info.siblings or ():
        if isinstance(each.rfilename, str) and is_plain_name(each.rfilename):
            files[each.rfilename] = _listed(each)
    return files


def _listed(sibling: Any) -> Listed:
    size, lfs = getattr(sibling, "size", None), getattr(sibling, "lfs", None)
    size = size if isinstance(size, int) and size > 0 else 0
    if lfs is not None:
        return Listed(size, sha256=_hex(getattr(lfs, "sha256", None), 64))
    return Listed(size, git_sha1=_hex(getattr(sibling, "blob_id", None), 40))


def _hex(value: object, digits: int) -> str:
    """A digest as the hub says it; empty if it is none."""
    return value if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) else ""


def fault(path: Path, listed: Listed, read: Callable[[int], None]) -> str | None:
    """What is wrong with a file that was fetched (one clause), or None if it is what the hub listed.

    Args:
        path: the file.
        listed: what the hub says of it.
        read: told of the bytes as they are read.
    """
    size = path.stat().st_size
    if listed.size and size != listed.size:
        return f"it has {size:,} bytes, and {listed.size:,} were listed"
    digest: Any = None
    if listed.sha256:
        digest, expected, kind = hashlib.sha256(), listed.sha256, "SHA-256"
    elif listed.git_sha1:
        digest, expected, kind = hashlib.sha1(b"blob %d\0" % size), listed.git_sha1, "git"
    with path.open("rb") as file:
        if digest is None:
            return None if file.read(4) == b"GGUF" else "it does not begin as a GGUF file does"
        while piece := file.read(_CHUNK):
            digest.update(piece)
            read(len(piece))
    found = digest.hexdigest()
    return (
        None if found == expected else f"its {kind} sum is {found[:12]}..., and {expected[:12]}... was listed"
    )


@cache
def guard_client() -> None:
    """Let every answer be looked at that huggingface_hub gets in this process, before it uses it."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        made: httpx.Client = default_client_factory()
        made.event_hooks["response"].append(_Guard())
        return made

    set_client_factory(client)
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK


class _Guard:
    """Raises on an answer that must not be followed, or whose headers must not become names of files."""

    def __init__(self) -> None:
        self._redirects = 0
        self._lists = False  # whether what was asked for is a listing, and not a file

    def __call__(self, response: httpx.Response) -> None:
        import httpx

        if not self._redirects:
            self._lists = response.request.url.path.startswith("/api/")
        self._redirects = self._redirects + 1 if response.has_redirect_location else 0
        if self._redirects > MOST_REDIRECTS:
            raise httpx.TooManyRedirects("it redirects without end", request=response.request)
        for header in ("ETag", "X-Linked-Etag", "X-Repo-Commit"):
            value = response.headers.get(header)
            word = (value or "").removeprefix("W/").strip('"')
            if value and response.request.method == "HEAD" and not _PLAIN_WORD.fullmatch(word):
                raise DownloadError(
                    f"the hub answers with {header} {value[:80]!r}, which is no name", _INSTEAD
                )
        if self._lists:
            _read(response)


def _read(response: httpx.Response) -> None:
    """Read a listing, which may be without end, or come to gigabytes when it is unpacked.

    Raises:
        DownloadError: it is longer than any.
    """
    pieces, length = [], 0
    for piece in response.iter_bytes():
        length += len(piece)
        if length > MOST_LISTED:
            raise DownloadError(f"what the hub lists has more than {MOST_LISTED:,} bytes", _INSTEAD)
        pieces.append(piece)
    response._content = b"".join(pieces)  # as its own `read` does
