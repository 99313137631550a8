"""Split models: how their parts are named."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["SHARD", "shard_paths"]

SHARD = re.compile(r"(?P<stem>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.gguf)", re.IGNORECASE)
"""Name of a part."""


def shard_paths(path: Path) -> list[Path]:
    """Every part of the split model that `path` is named as a part of, else [path]. Nothing is opened.

    A part beyond the last one, or one of none, is no part.
    """
    match = SHARD.fullmatch(path.name)
    if match is None or not 1 <= int(match["part"]) <= int(match["count"]):
        return [path]
    stem, count, suffix = match["stem"], int(match["count"]), match["suffix"]
    return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}{suffix}") for i in range(1, count + 1)]
