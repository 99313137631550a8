"""Predicted and measured times of a model's steps, for several divisions of its layers among two devices.

The second device is the first GPU, or without one another process of this machine (`rpc_device.py`). Both are
timed as `-ngl auto` does, then the model is loaded once for each division and the same widths are timed.

    sh scripts/rpc_device.sh    # without a GPU
    python benchmarks/placement.py MODEL.gguf [--threads 1] [--device-threads 1] [--layers 0,8,16,24,31]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import rpc_device

from specx.backends.gguf.file import read_gguf
from specx.backends.llama.kernels import KERNELS, Kernels
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.rpc import add_servers
from specx.backends.settings import Load
from specx.engine.cost.staircase import Staircase
from specx.engine.setup.devices import measure_devices
from specx.engine.setup.layers import Division, model_layers
from specx.engine.setup.offloading import FREE_DRAFTS, usable_devices
from specx.engine.setup.placement import Placed, place

WIDTHS = (1, 4, 8)


def main() -> int:
    arguments = _parser().parse_args()
    wanted = Load(arguments.model, arguments.threads, arguments.threads, n_ctx=1024)
    kernels = KERNELS[arguments.kernels]
    if len(usable_devices()) > 1:
        _compare(wanted, kernels, arguments.layers, repack=arguments.repack)
        return 0
    with rpc_device.served(arguments.device_threads) as endpoint:
        os.environ["GGML_BACKEND_PATH"] = str(rpc_device.LIBRARY)
        add_servers([endpoint])
        _compare(wanted, kernels, arguments.layers, repack=arguments.repack)
    return 0


def _compare(wanted: Load, kernels: Kernels, layers: Sequence[int], *, repack: bool) -> None:
    target = model_layers(read_gguf(wanted.path), wanted)
    devices = usable_devices()[:2]

    def load(division: Division) -> LlamaModel:
        offload = tuple((name, count) for name, count in division if name != devices[0].name)
        count = sum(count for _, count in offload)
        placed = replace(wanted, offload=offload, n_gpu_layers=count)
        return LlamaModel(placed, kernels=kernels, repack=repack)

    costs, disturbed = measure_devices(target, devices, load, host_rate=lambda: 1e15)
    host, other = costs
    print(f"{other.name}: {other.handing_over_ms:.3f} ms to hand over a row, {other.transfer / 1e9:.2f} GB/s")
    print("layers there  " + "".join(f"{f'{n} predicted':>14}{'measured':>10}{'off':>7}" for n in WIDTHS))
    for count in layers:
        divided = ((host.name, len(target) - count), (other.name, count))
        model = load(tuple((name, n) for name, n in divided if n))
        staircase = Staircase(max(WIDTHS))
        staircase.measure(model.open())
        model.close()
        line = f"{count:<14}"
        for n in WIDTHS:
            share = sum(target.read[len(target) - count :])
            predicted = host.reading_ms(n, sum(target.read) - share) + other.reading_ms(n, share)
            predicted += other.handing_ms(n, target.row_bytes) if count else 0.0
            measured = staircase.steps(0).get(n, float("nan"))  # there is a limit to its time
            line += f"{predicted:14.2f}{measured:10.2f}{predicted / measured - 1:7.0%}"
        print(line + (" (disturbed)" if staircase.disturbed else ""), flush=True)
    _show(place(target, [FREE_DRAFTS], costs))
    if disturbed:
        print("something else kept the machine busy when the devices were timed", file=sys.stderr)


def _show(placed: Placed) -> None:
    print()
    for option in placed.alternatives:
        print(f"{option.described()}: {option.rate:.1f} tokens/s {placed.reason(option)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device-threads", type=int, default=1)
    parser.add_argument("--no-repack", dest="repack", action="store_false", help="make the host slower")
    parser.add_argument("--kernels", default="stock", choices=list(KERNELS))
    parser.add_argument(
        "--layers", type=lambda text: [int(n) for n in text.split(",")], default=[0, 8, 16, 24]
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
