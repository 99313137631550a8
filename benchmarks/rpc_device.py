"""A second device on a machine without a GPU: ggml's RPC backend, served by another process of this machine.

`scripts/rpc_device.sh` builds the backend. The device is llama.cpp's own CPU code with as many threads as the
server is given, behind a socket: slower or faster than the host, with memory and a hand-over of its own.

    python benchmarks/rpc_device.py PORT THREADS    serve until the process is ended

`GGML_BACKEND_PATH` tells the process that is to use the device where the backend lies (`LIBRARY`).
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specx.backends.llama.libllama import lib

__all__ = ["LIBRARY", "NAME", "served"]

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "rpc" / "libggml-rpc.so"
NAME = "RPC0"  # of the first device that is registered
START_S = 60.0
CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


@contextmanager
def served(threads: int) -> Iterator[str]:
    """A server process with one device of `threads` threads; its endpoint, "127.0.0.1:PORT"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", __file__, str(port), str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the RPC server did not start") from None
            time.sleep(0.05)


def _serve(port: int, threads: int) -> None:
    ggml: ctypes.CDLL = lib().llama_cpp._lib
    pointer, count = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments in (
        ("ggml_backend_load", (ctypes.c_char_p,)),
        ("ggml_backend_reg_get_proc_address", (pointer, ctypes.c_char_p)),
        ("ggml_backend_dev_by_type", (ctypes.c_int,)),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = pointer, arguments
    registry = ggml.ggml_backend_load(os.fsencode(LIBRARY))
    if not registry:
        raise RuntimeError(f"{LIBRARY} cannot be loaded: run scripts/rpc_device.sh")
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_start_server")
    start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, count, count, ctypes.POINTER(pointer))
    devices = (pointer * 1)(ggml.ggml_backend_dev_by_type(CPU))
    start(address)(f"127.0.0.1:{port}".encode(), None, threads, 1, devices)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
