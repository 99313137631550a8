"""Fetching models from Hugging Face into the cache that other tools share.

The transfer itself is huggingface_hub's (1.3 or newer); `backends.hub.transfer` checks what comes of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

from specx.backends.errors import DownloadError, SpecxError, UsageError
from specx.backends.gguf.file import shard_paths
from specx.backends.hub.models import cached_files, hub_cache
from specx.backends.hub.names import HubName, choose, first_parts, parse_hub_name, quantization
from specx.backends.hub.transfer import CHECKING, Hub, PullProgress, Told, Transfer, in_time, patiently
from specx.backends.hub.trust import guard_client, is_plain_name, listed_files

__all__ = ["CHECKING", "Hub", "PullProgress", "pull"]

_TIMEOUT = 10.0
"""Seconds to wait for the first answer of the hub, and for each piece of it."""

_TOKEN = re.compile(r"[!-~]+")  # what can be seen, of ASCII

LONGEST_S = 60.0
"""Seconds within which a listing has to be whole: a hub may send a byte now and then for ever."""


def pull(
    spec: str,
    *,
    file: str | None = None,
    quant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: PullProgress | None = None,
    hub: Hub | None = None,
) -> Path:
    """Fetch a model and return its GGUF file (the first part of a split one).

    Args:
        spec: `org/repo`, `org/repo:QUANT`, `org/repo/file.gguf`, `hf.co/...` or the address of a file.
        file: a file of the repository, instead of the one that would be chosen.
        quant: a quantization; without one the first there is of `model_names.PREFERRED`.
        revision: a branch, tag or commit; the main branch without one.
        token: access token; HF_TOKEN or the saved login without one.
        offline: only look in the cache.
        progress: told of every piece that arrives.
        hub: what answers instead of huggingface.co.

    Raises:
        UsageError: `spec` names no model, `file` and `quant` contradict it or each other, or `token` is none.
        DownloadError: nothing fits, several files do, or it cannot be fetched.
    """
    name = _wanted(spec, file, quant, revision)
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return _from_cache(name)
    cache = hub_cache()
    hub = hub or _hugging_face(token)
    try:
        return _fetch(hub, name, cache, progress)
    except SpecxError:
        raise
    except Exception as error:
        raise _explained(error, name, cache) from error


def _fetch(hub: Hub, name: HubName, cache: Path, progress: PullProgress | None) -> Path:
    """Fetch every part of the model that is not whole in the cache yet; the path of the first."""

    def listing() -> Any:
        return hub.model_info(name.repository, revision=name.revision, timeout=_TIMEOUT, files_metadata=True)

    info = patiently(lambda: in_time(listing, LONGEST_S))
    files = listed_files(info)
    parts = {part: files[part] for part in _parts(name, list(files))}
    snapshot = cache / f"models--{name.repository.replace('/', '--')}" / "snapshots" / str(info.sha)
    kept = {part: _size(snapshot / part) for part in parts}
    _check_room(cache, {part: listed.size for part, listed in parts.items() if kept[part] != listed.size})
    paths, before, whole = [], 0, sum(listed.size for listed in parts.values())
    for part, listed in parts.items():
        transfer = Transfer(hub, name, part, listed, cache, Told(progress, part, before, whole))
        paths.append(transfer.path())
        before += listed.size
    return paths[0]


def _hugging_face(token: str | None) -> Hub:
    """The hub, asked with `token`, or else with HF_TOKEN or the saved login.

    Raises:
        UsageError: what is taken cannot be a token, as it cannot be sent in a header.
    """
    from logging import ERROR, getLogger

    from huggingface_hub import HfApi, get_token

    if (taken := token or get_token()) and not _TOKEN.fullmatch(taken):
        raise UsageError(
            "the access token has characters that no token has",
            f"check {'--token' if token else 'HF_TOKEN, or log in again'}: it begins with hf_",
        )
    guard_client()
    getLogger("huggingface_hub").setLevel(ERROR)  # its retries are reported once, as the error they end in
    api: Hub = HfApi(token=token, library_name="specx")
    return api


def _wanted(spec: str, file: str | None, quant: str | None, revision: str | None) -> HubName:
    name = parse_hub_name(spec)
    if name is None:
        raise UsageError(
            f"{spec!r} does not name a model on Hugging Face",
            "write ORG/REPO, ORG/REPO:QUANT, ORG/REPO/FILE.gguf or the https address of a file there",
        )
    for given, said, option in ((file, name.file, "--file"), (quant, name.quantization, "--quant")):
        if given and said and given != said:
            raise UsageError(f"{spec!r} says {said!r} and {option} says {given!r}", "leave one of them out")
    file, quant = file or name.file, quant or name.quantization
    if file and quant:
        raise UsageError("a file and a quantization were both asked for", "leave one of them out")
    revision = revision or name.revision
    if revision is not None and not is_plain_name(revision):
        raise UsageError(f"{revision!r} is no revision", "give a branch, a tag or a commit")
    return HubName(name.repository, file, quant, revision)


def _parts(name: HubName, files: list[str]) -> list[str]:
    """Every part of the one model among `files` that `name` means."""
    models = [f for f in files if f.lower().endswith(".gguf")]
    if not models:
        hint = f"conversions often lie in repositories of their own: {_conversions(name)}"
        raise DownloadError(f"{name.repository} has no GGUF file", hint)
    if name.file is not None:
        fitting = [f for f in models if f == name.file]
    else:
        fitting = choose(models, name.quantization)
    if len(fitting) != 1:
        raise _not_one(name, fitting, models)
    parts = [path.as_posix() for path in shard_paths(Path(fitting[0]))]
    if missing := [part for part in parts if part not in models]:
        others = [f for f in first_parts(models) if f not in parts]
        raise DownloadError(
            f"{name.repository} lacks {len(missing)} of the {len(parts)} parts of {fitting[0]}",
            f"choose another file: {_listed(others)}" if others else _elsewhere(name),
        )
    return parts


def _not_one(name: HubName, fitting: list[str], models: list[str]) -> DownloadError:
    whole = first_parts(models)
    if not whole:
        return DownloadError(
            f"{name.repository} has only later parts of split models: {_listed(models)}", _elsewhere(name)
        )
    if fitting:
        return DownloadError(
            f"{name.repository} has several files that fit: {_listed(fitting)}",
            f"say which: specx pull {name.repository}/{fitting[0]}",
        )
    if name.file is not None:
        return DownloadError(f"{name.repository} has no file {name.file}", f"it has {_listed(whole)}")
    kinds = sorted({quantization(f) for f in whole} - {""})
    return DownloadError(
        f"{name.repository} has no {name.quantization}",
        f"it has {', '.join(kinds)}" if kinds else f"it has {_listed(whole)}",
    )


def _conversions(name: HubName) -> str:
    """Address of a search for other conversions of the model."""
    return f"https://huggingface.co/models?search={name.repository.split('/')[1]}+gguf"


def _elsewhere(name: HubName) -> str:
    return f"another repository may have it whole: {_conversions(name)}"


def _listed(files: list[str], most: int = 12) -> str:
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(files[:most]) + more


def _from_cache(name: HubName) -> Path:
    files = cached_files(name.repository, name.revision)
    if not files:
        which = "" if name.revision is None else f"revision {name.revision} of "
        raise DownloadError(
            f"{which}{name.repository} is not downloaded, and specx is offline",
            "leave --offline and HF_HUB_OFFLINE out",
        )
    return files[_parts(name, list(files))[0]]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _check_room(cache: Path, sizes: dict[str, int]) -> None:
    """Raise before anything is fetched if the disk cannot hold the files of `sizes`."""
    missing = sum(sizes.values())
    folder = next(f for f in (cache.absolute(), *cache.absolute().parents) if f.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DownloadError(
            f"{next(iter(sizes))} needs {missing / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "set HF_HOME to a folder with more room, or take a smaller quantization with --quant",
        )


def _explained(error: Exception, name: HubName, cache: Path) -> DownloadError:
    """The one sentence and the hint for whatever went wrong on the way."""
    from httpx import InvalidURL, TooManyRedirects
    from huggingface_hub import errors

    repository = name.repository
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
        (
            errors.GatedRepoError,
            f"{repository} is gated: its terms have to be accepted first",
            f"accept them at https://huggingface.co/{repository}, then set HF_TOKEN or give --token",
        ),
        (
            errors.RepositoryNotFoundError,
            f"there is no repository {repository} on Hugging Face, or it is private",
            "check the spelling; for a private one set HF_TOKEN or give --token",
        ),
        (
            errors.RevisionNotFoundError,
            f"{repository} has no revision {name.revision}",
            "leave --revision out",
        ),
        (errors.RemoteEntryNotFoundError, f"a file of {repository} is gone", "try again"),
        (errors.HFValidationError, f"{repository!r} is no repository name", "write ORG/REPO"),
        (TooManyRedirects, f"the hub redirects without end for {repository}", "try again later"),
        (
            # huggingface_hub takes what comes
            (ValueError, TypeError, LookupError, AttributeError, RecursionError, InvalidURL),
            f"what answers for {repository} is not Hugging Face",
            "log in to the network, or check HF_ENDPOINT and the proxy",
        ),
    )
    for kind, message, hint in kinds:
        if isinstance(error, kind):
            return DownloadError(message, hint)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DownloadError(f"the disk of {cache} is full", "make room, or set HF_HOME to another folder")
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return DownloadError(
            f"{cache} cannot be written: {error.strerror}", "set HF_HOME to a folder of yours"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error.response.status_code, repository)
    if _is_network(error):
        hint = "check the network, then try again"
        if files := cached_files(repository):
            hint += f"; already here: specx chat {repository}/{next(iter(files))}"
        return DownloadError(f"Hugging Face cannot be reached for {repository}", hint)
    # What moves large files, hf_xet, has errors of no kind of its own, whose texts tell.
    named = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    told = f"{repository} could not be fetched: {named}{error}", "try again"
    if isinstance(error, OSError) and error.strerror:  # a folder where a file is to be, and the like
        told = f"{cache} cannot be used: {error.strerror}", "set HF_HOME to another folder"
    return DownloadError(*told)


def _refused(status: int, repository: str) -> DownloadError:
    reasons = {
        401: ("the access token was not accepted", "check HF_TOKEN, or leave it out for a public model"),
        404: ("it knows no such address", "check the spelling and HF_ENDPOINT"),
        403: ("the access token may not read it", "use a token that has read access"),
        429: ("too many requests", "wait a little; a token (HF_TOKEN) raises the limit"),
    }
    reason, hint = reasons.get(status, ("it had a failure of its own", "try again later"))
    return DownloadError(f"Hugging Face refused {repository} (HTTP {status}): {reason}", hint)


def _is_network(error: Exception) -> bool:
    """Whether the hub could not be reached; httpx and requests have no base class in common."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"TransportError", "ConnectionError", "Timeout", "TimeoutError", "LocalEntryNotFoundError"}
    )
