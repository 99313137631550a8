#!/bin/sh
# Builds llama.cpp's own programs out of the version that specx uses, with the flags it is compiled with, to be
# measured beside it: llama-server, llama-completion, llama-batched-bench and ggml's rpc-server.
#
#   scripts/build_peers.sh DIR    DIR/bin gets the programs with the libraries they need, DIR/VERSION what was built
#
# Only the source package is downloaded (by pip): the server is built without its web page. Takes ten minutes on two
# cores and half a gigabyte in DIR/build, which may be deleted afterwards.
#
#   SOURCES  a folder with llama.cpp's sources, instead of the source package
#   JOBS     how many files are compiled at once (as many as there are cores)
#   PYTHON   the Python whose pip downloads (python3)
set -eu

[ $# -eq 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1/build" "$1/bin"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
JOBS=${JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
PYTHON=${PYTHON:-python3}
wanted=$(sed -n 's/.*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
version=${wanted#*==}

sources=${SOURCES:-}
if [ -z "$sources" ]; then
    package=llama_cpp_python-$version
    sources=$out/build/$package/vendor/llama.cpp
    if [ ! -f "$sources/CMakeLists.txt" ]; then
        "$PYTHON" -m pip --disable-pip-version-check download -q --no-deps --no-binary llama-cpp-python \
            -d "$out/build" "$wanted"
        tar -xzf "$out/build/$package.tar.gz" -C "$out/build" "$package/vendor/llama.cpp"
    fi
fi

flags=$(sh scripts/llama_build_flags.sh)
command -v ninja >/dev/null && set -- -G Ninja || set --
# shellcheck disable=SC2086 -- several flags
cmake "$@" -S "$sources" -B "$out/build/made" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON $flags \
    -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON '-DCMAKE_BUILD_RPATH=$ORIGIN' \
    -DGGML_RPC=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
cmake --build "$out/build/made" -j "$JOBS" \
    --target llama-server llama-completion llama-batched-bench ggml-rpc-server
cp -a "$out"/build/made/bin/. "$out/bin/"
{
    echo "$wanted"
    echo "flags: ${flags:-none}"
} >"$out/VERSION"
"$out/bin/llama-server" --version
