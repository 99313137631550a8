"""Checkpoints of a training: whole or not there, whatever happens while one is written.

A file has a line of JSON, which holds a digest of the rest, and what `torch.save` writes. The one before
stays until the next is written, so that one that a disk has damaged costs the time since then and no more.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from specx.drafters.train.states import unwritable

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = "specx training 2"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one that is there becomes the one before.

    Raises:
        FileError: it cannot be written; the one that is there stays.
    """
    data = io.BytesIO()
    torch.save(dict(state), data)
    body = data.getvalue()
    head = {"format": FORMAT, "digest": _digest(body)}
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(before(path))
        Path(temporary).replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def load_checkpoint(path: Path, notice: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None if there is none.

    Args:
        path: as it was given to `save_checkpoint`.
        notice: told of one that is damaged.
    """
    for each in (path, before(path)):
        try:
            with each.open("rb") as file:
                head, body = file.readline(1 << 16), file.read()
            values = json.loads(head)
            if values != {"format": FORMAT, "digest": _digest(body)}:
                raise ValueError("its digest is another")
            state = torch.load(io.BytesIO(body), "cpu", weights_only=True)
            if isinstance(state, dict):
                return state
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
            notice(f"the checkpoint {each.name} is damaged and is left out")
    return None


def before(path: Path) -> Path:
    """Where the checkpoint before is."""
    return path.with_name(path.name + ".before")


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
