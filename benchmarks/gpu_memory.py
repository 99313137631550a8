"""Memory that a model takes of a GPU and of the machine, predicted and measured.

Every case loads the model in a process of its own, reads a prompt of several pieces and computes steps of all
widths. Measured is what is then missing of the GPU's free memory, which other programs must leave alone
meanwhile, and the most that was resident of the process.

    python benchmarks/gpu_memory.py MODEL.gguf [--layers all,16,0] [--contexts 4096,16384]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specx.backends.gguf.file import read_gguf
from specx.backends.llama.devices import Device, list_devices
from specx.backends.llama.kernels import STOCK
from specx.backends.llama.libllama import lib, system_info
from specx.backends.llama.memory import predict_memory, repacked_types
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import ALL_LAYERS, Load
from specx.engine.cost.timing import powers

PROMPT = 1536  # tokens: three pieces of the usual size
MIB = 1 << 20
CASE_S = 120.0
Sizes = dict[str, int]


def main() -> int:
    """Measure every case, and print a table; or one of them, for the process that asked."""
    arguments = parse(sys.argv[1:])
    if arguments.measure:
        layers, context = arguments.measure
        print(json.dumps(measure(wanted(arguments.model, layers, context))))
        return 0
    print("layers  context   GPU: weights    cache computing      all measured    off    host    RSS")
    for layers in arguments.layers:
        for context in arguments.contexts:
            sizes = predicted(wanted(arguments.model, layers, context))
            print(line(layers, context, sizes), end="", flush=True)
            print(compared(sizes, in_child(arguments.model, layers, context)), flush=True)
    return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=listed, default=[ALL_LAYERS, 16, 0], help="-1 or all is all of them")
    parser.add_argument("--contexts", type=listed, default=[4096, 16384])
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def listed(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [ALL_LAYERS if word == "all" else int(word) for word in text.split(",")]


def wanted(model: Path, layers: int, context: int) -> Load:
    """How the model is loaded: with so many of its last layers on the GPU."""
    return Load(model, 8, 8, n_ctx=context, n_gpu_layers=layers)


def predicted(load: Load) -> Sizes:
    """Bytes that are predicted, by what they are for."""
    repacked = repacked_types(system_info())
    need = predict_memory(
        read_gguf(load.path), load, kernels=STOCK, repacked=repacked, gpus=1, drafting=False
    )
    return {
        "weights": need.gpu_weights,
        "cache": need.gpu_kv,
        "computing": need.gpu_compute,
        "gpu": need.gpu,
        "host": need.total,
    }


def in_child(model: Path, layers: int, context: int) -> Sizes:
    """What another process measures."""
    command = [sys.executable, __file__, str(model), "--measure", str(layers), str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_S, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: Sizes = json.loads(done.stdout)
    return found


def measure(load: Load) -> Sizes:
    """Bytes of the GPU that are missing once the model was used, and the most that was resident."""
    lib()
    before = free_bytes()
    model = LlamaModel(load)
    loaded = free_bytes()
    cache = model.open()
    rng = np.random.default_rng(0)
    cache.prefill(rng.integers(0, model.vocab.size, min(PROMPT, load.n_ctx // 2)).tolist())
    for width in powers(model.facts.max_width):
        tokens = rng.integers(0, model.vocab.size, width).astype(np.int32)
        cache.forward(tokens, np.arange(-1, width - 1, dtype=np.int32))
        cache.keep([0])
    used = before - free_bytes()
    model.close()
    return {"loaded": before - loaded, "used": used, "resident": most_resident()}


def free_bytes() -> int:
    """Free memory of all GPUs."""
    return sum(device.memory_free or 0 for device in gpus())


def gpus() -> list[Device]:
    """The GPUs with memory of their own."""
    return [device for device in list_devices() if device.is_gpu and not device.unified]


def most_resident() -> int:
    """The most bytes of this process that were in main memory at once (Linux)."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("VmHWM:"):
            return int(row.split()[1]) << 10
    raise RuntimeError("/proc says nothing of it")


def line(layers: int, context: int, sizes: Sizes) -> str:
    """The first half of a row: what is predicted of the GPU, in MiB."""
    cells = "".join(f"{sizes[name] / MIB:10.0f}" for name in ("weights", "cache", "computing", "gpu"))
    return f"{'all' if layers == ALL_LAYERS else layers:>6}{context:9}     {cells}"


def compared(sizes: Sizes, found: Sizes) -> str:
    """The second half: what was measured, in MiB, and how far off the prediction is."""
    off = f"{sizes['gpu'] / found['used'] - 1:7.1%}" if found["used"] else f"{'':7}"
    return f"{found['used'] / MIB:9.0f}{off}{sizes['host'] / MIB:8.0f}{found['resident'] / MIB:7.0f}"


if __name__ == "__main__":
    sys.exit(main())
