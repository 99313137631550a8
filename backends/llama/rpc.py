"""Devices of other machines: llama.cpp's RPC servers, made known to ggml before its devices are listed.

ggml ends the process where a server cannot be reached or is something else, and waits for ever where one is
busy with another program. So each is greeted from here first, as ggml does it, with an end to the waiting.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from specx.backends.errors import ModelError
from specx.backends.llama.libllama import forget_log, lib, recent_errors

__all__ = ["add_servers", "endpoint_problem"]

ANSWER_S = 10.0
REGISTRY = "RPC"  # what ggml calls its backend for them
LIBRARIES = ("libggml-rpc.so", "libggml-rpc.dylib", "ggml-rpc.dll")
BUILD_HINT = (
    'build it in: CMAKE_ARGS="-DGGML_RPC=ON" pip install --force-reinstall --no-cache-dir --no-deps '
    "llama-cpp-python==0.3.36; or name the backend's own library: GGML_BACKEND_PATH=libggml-rpc.so"
)

# Every version of the protocol begins so: a command of one byte, the size and the bytes of what is said.
GREETING = 14
SAID_BYTES, ANSWERED_BYTES = 24, 28

_added: list[str] = []  # a device stays registered as long as the process lives


def endpoint_problem(endpoint: str) -> str:
    """What is wrong with HOST:PORT, as ggml reads it; "" if nothing is."""
    host, colon, port = endpoint.partition(":")
    if not host or not colon:
        return "it is not HOST:PORT"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        return f"{port!r} is no port"
    return ""


def add_servers(endpoints: Sequence[str]) -> None:
    """Make the devices of RPC servers some of llama.cpp's in this process.

    Args:
        endpoints: HOST:PORT each; those that were added before stay as they are.

    Raises:
        ModelError: this llama.cpp has no RPC, or a server cannot be used.
    """
    for endpoint in endpoints:
        if endpoint in _added:
            continue
        add = _add_server()
        _greet(endpoint)
        forget_log()
        registry = add(endpoint.encode())
        if not registry:
            raise ModelError(
                f"the RPC server {endpoint} offers no device: {(recent_errors() or ['no reason given'])[-1]}",
                "see what it says on its own machine",
            )
        _ggml().ggml_backend_register(registry)
        _added.append(endpoint)


def _greet(endpoint: str) -> None:
    """Raises ModelError unless an RPC server answers there."""
    import socket

    host, _, port = endpoint.partition(":")
    start = f"start one there: rpc-server -H 0.0.0.0 -p {port} (in a network that can be trusted)"
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
            connection.sendall(struct.pack("<BQ", GREETING, SAID_BYTES) + bytes(SAID_BYTES))
            with connection.makefile("rb") as answers:
                answer = answers.read(8)
    except TimeoutError as problem:
        raise ModelError(
            f"the RPC server {endpoint} does not answer within {ANSWER_S:.0f} s",
            "it serves one program at a time: end the other one, or see whether it can be reached",
        ) from problem
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ModelError(f"the RPC server {endpoint} cannot be reached: {reason}", start) from problem
    if answer != struct.pack("<Q", ANSWERED_BYTES):
        raise ModelError(
            f"what listens at {endpoint} is no RPC server, or one of another version of llama.cpp",
            f"build it from the sources that this llama.cpp was built from, and {start}",
        )


def _add_server() -> ctypes._CFunctionType:
    """ggml_backend_rpc_add_server.

    Raises:
        ModelError: this llama.cpp has no RPC, and its library does not lie beside it or where it was named.
    """
    ggml = _ggml()
    registry = ggml.ggml_backend_reg_by_name(REGISTRY.encode())
    for library in () if registry else _libraries():
        registry = registry or ggml.ggml_backend_load(os.fsencode(library))
    if not registry:
        raise ModelError("this llama.cpp was built without RPC", BUILD_HINT)
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
    if not address:
        raise ModelError("RPC servers cannot be added to this llama.cpp", BUILD_HINT)
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)


def _libraries() -> list[Path]:
    """Where the backend may lie as a library of its own: where ggml's variable says, or with the others."""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(lib().__file__).parent / "lib")
    named = os.environ.get("GGML_BACKEND_PATH")
    places = [*([Path(named)] if named else []), *(folder / name for name in LIBRARIES)]
    return [place for place in places if place.is_file()]


def _ggml() -> ctypes.CDLL:
    """ggml's functions, through libllama's handle (kernels.py says why), with their types."""
    handle: ctypes.CDLL = lib().llama_cpp._lib
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_backend_reg_by_name", pointer, (ctypes.c_char_p,)),
        ("ggml_backend_load", pointer, (ctypes.c_char_p,)),
        ("ggml_backend_reg_get_proc_address", pointer, (pointer, ctypes.c_char_p)),
        ("ggml_backend_register", None, (pointer,)),
    ):
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    return handle
