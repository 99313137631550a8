#!/bin/sh
# Builds ggml's RPC backend against the installed llama.cpp, as a library that it can load: a process on this
# machine then serves as a second, real device, so that placement can be tried without a GPU.
#
#   sh scripts/rpc_device.sh [LLAMA_CPP]    LLAMA_CPP is a folder with the sources of the installed version;
#                                           without it they are fetched as llama-cpp-python's source package
#
# The result is build/rpc/libggml-rpc.so; tests/engine/setup/test_rpc_device.py and benchmarks/placement.py use
# it. With GGML_BACKEND_PATH set to it, `specx --rpc` works where llama.cpp was built without RPC.
set -eu

CXX=${CXX:-c++}
PYTHON=${PYTHON:-.venv/bin/python}
cd "$(dirname "$0")/.."
out=build/rpc
mkdir -p "$out"

version=$("$PYTHON" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
libraries=$("$PYTHON" -c 'import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib")')

sources=${1:-}
if [ -z "$sources" ]; then
    sources=$out/llama_cpp_python-$version/vendor/llama.cpp
    if [ ! -d "$sources" ]; then
        "$PYTHON" -m pip download -q --no-deps --no-build-isolation --no-binary llama-cpp-python \
            -d "$out" "llama-cpp-python==$version"
        tar -xzf "$out/llama_cpp_python-$version.tar.gz" -C "$out" \
            "llama_cpp_python-$version/vendor/llama.cpp/ggml"
    fi
fi

# As CMake builds it with -DGGML_RPC=ON -DGGML_BACKEND_DL=ON: two files that need nothing but ggml's base.
"$CXX" -std=c++17 -O2 -fPIC -shared \
    -DGGML_BACKEND_DL -DGGML_BACKEND_BUILD -DGGML_BACKEND_SHARED -DGGML_SHARED \
    -I"$sources/ggml/include" -I"$sources/ggml/src" \
    "$sources/ggml/src/ggml-rpc/ggml-rpc.cpp" "$sources/ggml/src/ggml-rpc/transport.cpp" \
    -L"$libraries" -l:libggml-base.so.0 -Wl,-rpath,"$libraries" -o "$out/libggml-rpc.so"
echo "$out/libggml-rpc.so"
