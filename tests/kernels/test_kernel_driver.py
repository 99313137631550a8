"""The kernels and their threads under sanitizers, and on Arm under emulation.

Built by this file's own CMake project, incrementally, under build/kernel_driver. Skipped without the tools.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("kernel_driver")
BUILD = Path(__file__).resolve().parents[2] / "build" / "kernel_driver"
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

NATIVE = ("-DCMAKE_CXX_FLAGS=-O1 -g1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all",)
THREADS = ("-DCMAKE_CXX_FLAGS=-O1 -g1 -Wall -Wextra -fsanitize=thread",)
ARM = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={CROSS}",
    "-DCMAKE_CXX_FLAGS=-O2 -Wall -Wextra -Wno-psabi",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def driver(name: str, options: tuple[str, ...]) -> str:
    """Build the program, if it is not up to date, and return its path."""
    if shutil.which("cmake") is None or not (shutil.which("ninja") or shutil.which("make")):
        pytest.skip("no CMake to build with")
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    folder = BUILD / name
    run("cmake", "-S", str(SOURCE), "-B", str(folder), "-G", generator, *options)
    run("cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1))
    return str(folder / "kernel_driver")


@pytest.fixture(scope="module")
def native() -> tuple[list[str], str]:
    """The instruction sets and the digest of a run on this machine, with sanitizers."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    names, digest = run(driver("native", NATIVE)).splitlines()
    return names.split(), digest


def test_sanitizers_find_nothing(native):
    names, _ = native
    assert "generic" in names


def test_threads_do_not_race(native):
    program = driver("threads", THREADS)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not know this system's address space")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[1] == native[1]


def test_results_on_arm_are_the_same_bits(native):
    if EMULATOR is None or shutil.which(CROSS) is None:
        pytest.skip("no cross compiler or emulator for Arm")
    names, digest = run(EMULATOR, "-cpu", "max", driver("aarch64", ARM)).splitlines()
    assert {"neon_dotprod", "neon_i8mm"} <= set(names.split())
    assert digest == native[1]
