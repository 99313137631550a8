"""The most memory that a process has had resident."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_memory"]


def peak_memory(pid: int | None = None) -> int | None:
    """Bytes; of this process if `pid` is None, of another one on Linux only. None if it cannot be read."""
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        pass
    if pid is not None:
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
