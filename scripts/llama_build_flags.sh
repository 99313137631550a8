#!/bin/sh
# Prints the CMAKE_ARGS that compiling llama.cpp needs on this machine; normally nothing.
#
# On CPUs with AMX, llama.cpp describes its matrix tiles in a 64-byte struct on the stack and hands it to
# _tile_loadconfig. In some releases of GCC (12 among them) that intrinsic is an inline assembly whose operand
# covers only the first 8 bytes, so the last dead store elimination deletes the stores to the rest, and the
# first multiplication dies of SIGSEGV. Rather than guess from version numbers, this compiles the same few
# lines with the compiler that CMake will take, runs them, and tries the remedies in order of what they cost.
set -u

CXX=${CXX:-c++}

[ "$(uname -sm)" = "Linux x86_64" ] && grep -qw amx_int8 /proc/cpuinfo || exit 0

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cat >"$work/tiles.cpp" <<'CODE'
#include <cstdint>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

struct Tiles {
    std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

__attribute__((noinline)) void configure() {
    alignas(64) Tiles wanted = {};
    wanted.palette = 1;
    for (int i = 0; i < 8; i++) {
        wanted.rows[i] = 16;
        wanted.row_bytes[i] = 64;
    }
    _tile_loadconfig(&wanted);
}

int main() {
    const long request_permission = 0x1023, tile_data = 18;
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return 0;  // then llama.cpp has no AMX either
    configure();
    alignas(64) volatile unsigned char loaded[64];
    asm volatile("sttilecfg %0" : "=m"(loaded));
    _tile_release();
    for (int i = 0; i < 8; i++)
        if (loaded[16 + 2 * i] != 64 || loaded[48 + i] != 16) return 1;
}
CODE

# An optimized native build, with further flags if any are given.
build() {
    $CXX -std=c++17 -O3 -march=native "$@" "$work/tiles.cpp" -o "$work/tiles" 2>/dev/null
}

# Whether the tiles were configured as written.
works() {
    (ulimit -c 0; "$work/tiles") >/dev/null 2>&1
}

build || exit 0  # a compiler that knows no AMX writes none
works && exit 0
if build -fno-dse && works; then
    flag=-fno-dse  # keeps the stores
else
    flag=-mno-amx-int8  # does without AMX; prompts are then read at about half the speed
fi
echo "-DCMAKE_C_FLAGS=$flag -DCMAKE_CXX_FLAGS=$flag"
