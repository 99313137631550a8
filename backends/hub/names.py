"""Names of models: on Hugging Face, by quantization, and as parts of a split model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["LATEST", "PREFERRED", "HubName", "choose", "first_parts", "parse_hub_name", "quantization"]

PREFERRED = (
    *("Q4_K_M", "Q4_0", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1"),
    *("Q6_K", "Q8_0", "MXFP4", "Q3_K_M", "Q3_K_L", "BF16", "F16", "F32"),
)
"""Quantizations in the order they are taken when none is asked for: small ones of good quality first."""

LATEST = "latest"
"""The tag of a name without one, in llama.cpp, Ollama and Docker: no quantization."""

_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_COMPANION = re.compile(r"mmproj|imatrix|(?:^|/)(?:mtp|eagle3|dflash|dspark)-[^/]*$", re.IGNORECASE)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})


@dataclass(frozen=True, slots=True)
class HubName:
    """What is wanted from Hugging Face: a repository, and optionally a file of it, or a quantization."""

    repository: str
    file: str | None = None
    quantization: str | None = None
    revision: str | None = None


def parse_hub_name(text: str) -> HubName | None:
    """Read `org/repo`, `org/repo:QUANT`, `org/repo/file.gguf`, `hf.co/...` or the address of a file.

    Returns None for anything else.
    """
    from urllib.parse import unquote, urlsplit

    text = text.strip()
    has_scheme = "://" in text
    try:
        url = urlsplit(text if has_scheme else f"https://{text}")
    except ValueError:  # brackets that are no IPv6 address
        return None
    host = url.netloc.lower()
    if url.scheme == "hf":
        path = f"{url.netloc}{url.path}"
    elif host and host in {*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()}:
        path = url.path
    elif has_scheme:
        return None
    else:
        path = text
    return _parse_path(unquote(path).strip("/"))


def _parse_path(path: str) -> HubName | None:
    parts = path.split("/")
    if len(parts) < 2:
        return None
    name, _, tag = parts[1].partition(":")
    repository = f"{parts[0]}/{name}"
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        return None
    rest = parts[2:]
    revision = None
    if len(rest) >= 2 and rest[0] in {"resolve", "blob", "raw", "tree"}:
        revision, rest = rest[1], rest[2:]
    if not rest and name.lower().endswith(".gguf"):  # a file in a folder, far more often than a repository
        return None
    if not rest:
        return HubName(repository, None, None if tag.lower() in {"", LATEST} else tag, revision)
    file = "/".join(rest)
    if tag or not file.lower().endswith(".gguf") or ".." in rest or "" in rest:
        return None
    return HubName(repository, file, None, revision)


def quantization(file: str) -> str:
    """The quantization a file name says, in capitals ("Q4_K_M", "UD-Q4_K_XL"), or "" if it says none."""
    found = _QUANTIZATION.findall(file)
    return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else ""


def first_parts(files: Iterable[str]) -> list[str]:
    """One file for each model in `files`: no later parts, and no projectors or other companions."""
    first = [
        f for f in files if f.lower().endswith(".gguf") and ((m := _PART.search(f)) is None or int(m[1]) == 1)
    ]
    return [f for f in first if not _COMPANION.search(f)] or first


def choose(files: Sequence[str], wanted: str | None) -> list[str]:
    """The files that fit: one is the answer, none or several are for the caller to report.

    Args:
        files: names of GGUF files, split models by all their parts.
        wanted: a quantization; None takes the first of `PREFERRED` that there is.
    """
    models = first_parts(files)
    if wanted is not None:
        tag = wanted.upper()
        exact = [f for f in models if quantization(f) == tag]
        return exact or [f for f in models if quantization(f).removeprefix("UD-") == tag]
    for tag in PREFERRED:
        fitting = [f for f in models if quantization(f) == tag]
        if fitting:
            return fitting
    return models
