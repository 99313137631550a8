"""`python -m specx.backends.llama.selftest MODEL [plain]`: one small batch, in a process that may crash.

With `plain`, llama.cpp does not rearrange weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Load the model and decode four tokens."""
    from specx.backends.llama.model import LlamaModel
    from specx.backends.machine.machine import this_cpu
    from specx.backends.settings import Load

    threads = this_cpu().default_threads
    model = LlamaModel(
        Load(Path(sys.argv[1]), threads, threads, n_ctx=64), repack="plain" not in sys.argv[2:]
    )
    model.open().forward(np.arange(4, dtype=np.int32), np.arange(-1, 3, dtype=np.int32))


if __name__ == "__main__":
    main()
