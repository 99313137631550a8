"""Another quantization of a model, made by llama.cpp in a process of its own, which can be ended."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from specx.backends.errors import ModelError

__all__ = ["QUANTIZATIONS", "requantize"]

QUANTIZATIONS = (
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q4_0",
    "Q4_1",
    "Q4_K_S",
    "Q4_K_M",
    "IQ4_NL",
    "Q5_0",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
)
"""Names of llama.cpp that a model can be quantized as without knowing which weights matter most."""


def requantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Write `source` as `kind`, whatever it was quantized as before.

    Args:
        source: a GGUF file.
        target: the file to write.
        kind: one of `QUANTIZATIONS`.
        threads: CPU threads.

    Raises:
        ModelError: llama.cpp cannot do it.
    """
    command = [sys.executable, "-P", "-m", __name__, str(source), str(target), kind, str(threads)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise ModelError(
            f"llama.cpp cannot quantize {source.name} as {kind}: {reason}", "take another one with --quant"
        )


def main() -> int:
    """The process of its own: what llama.cpp calls an error goes to stderr."""
    import gguf

    from specx.backends.llama.libllama import lib, recent_errors

    source, target, kind, threads = sys.argv[1:]
    module = lib()
    parameters = module.llama_model_quantize_default_params()
    parameters.ftype = int(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    parameters.allow_requantize = True
    parameters.nthread = int(threads)
    code = int(
        module.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    )
    if code:
        sys.stderr.write((recent_errors() or ["no reason given"])[-1] + "\n")
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
