"""Placement on a second device that is real: llama.cpp's RPC backend, served by another process.

Skipped unless scripts/rpc_device.sh has built it. What uses the device runs in a process of its own, because
a device stays registered as long as the process lives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
LIBRARY = BENCHMARKS.parent / "build" / "rpc" / "libggml-rpc.so"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="scripts/rpc_device.sh has not been run")

USE = """
import json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rpc_device
from specx.backends.errors import DoesNotFitError
from specx.backends.llama.devices import list_devices, measure_transfer
from specx.backends.llama.libllama import recent_log
from specx.engine.setup import fit, offloading
from specx.engine.settings import Asked
from specx.engine.settings import SamplingSettings
from specx.engine.session import Session

ROOM = int(sys.argv[3])

def answer(*servers, **settings):
    told = []
    # One thread: with such a device registered, llama.cpp's OpenMP threads wait seconds for each other.
    wanted = Asked(Path(sys.argv[2]), n_ctx=512, drafter="none", threads=1, rpc=servers, **settings)
    with Session.open(wanted, notice=told.append) as session:
        buffers = [any(server in line for line in recent_log("compute buffer size =")) for server in servers]
        prompt = session.tokenize("Once upon a time", add_special=True, parse_special=False)
        generation = session.generate(prompt, SamplingSettings(temperature=0), n_predict=8)
        list(generation)
        load = session.setup.load
        return {"tokens": generation.result.tokens, "offload": load.offload, "layers": load.n_gpu_layers,
                "kernels": session.setup.kernels.value, "told": told, "buffers": buffers}

out = {}
with rpc_device.served(1) as first, rpc_device.served(1) as second:
    out["host"] = answer(first, n_gpu_layers=0, kernels="stock")
    out["devices"] = [(d.name, d.type, d.is_gpu) for d in list_devices()]
    out["transfer"] = measure_transfer("RPC0", 1 << 20).bytes_per_s
    out["part"] = answer(first, n_gpu_layers=5, kernels="stock")
    out["all"] = answer(first, n_gpu_layers=-1, kernels="stock")
    out["auto"] = answer(first, verbose=True, kernels="stock")
    out["again"] = answer(first, verbose=True, kernels="stock")
    out["two"] = answer(first, second, n_gpu_layers=-1, kernels="stock")
    # As if this machine had room for the process and the embedding, and little else.
    offloading.available_memory = lambda: ROOM
    memory = fit.read_memory
    fit.read_memory = lambda: replace(memory(), available=ROOM, total=ROOM, swap_free=0)
    try:
        out["alone"] = answer(n_gpu_layers=0, kernels="stock")
    except DoesNotFitError as error:
        out["alone"] = error.message
    out["too large"] = answer(first, second, kernels="stock")
    out["both"] = [d.description for d in list_devices() if d.is_gpu] == [first, second]
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def found(smollm2, tmp_path_factory):
    command = [sys.executable, "-P", "-c", USE, str(BENCHMARKS), str(smollm2), str(310 << 20)]
    environment = {**os.environ, "SPECX_CACHE": str(tmp_path_factory.mktemp("cache"))}
    environment["GGML_BACKEND_PATH"] = str(LIBRARY)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_listed_as_a_gpu_and_takes_data(found):
    assert ["RPC0", "GPU", True] in found["devices"]
    assert found["transfer"] > 0


def test_layers_go_where_they_are_sent(found):
    assert not any(found["host"]["buffers"])
    assert found["part"]["buffers"] == found["all"]["buffers"] == [True]
    assert all(len(found[arm]["tokens"]) == 8 for arm in ("host", "part", "all"))  # ties fall as they may


def test_auto_measures_once_and_places_the_layers(found):
    auto, again = found["auto"], found["again"]
    assert auto["layers"] == sum(count for _, count in auto["offload"])
    assert all(name == "RPC0" for name, _ in auto["offload"])
    assert any(text.startswith("timed this model's layers") for text in auto["told"])
    assert any(text.startswith("placement: all on CPU") for text in auto["told"])
    assert any(text.startswith("placement: all on RPC0") for text in auto["told"])
    same = auto["offload"] == again["offload"]  # which is nearly as good as another can change
    assert not same or auto["tokens"] == again["tokens"]
    disturbed = any("measured again next time" in text for text in auto["told"])
    assert disturbed or not any(text.startswith("timed this model's layers") for text in again["told"])


def test_layers_are_divided_among_several_servers(found):
    assert found["both"]
    assert found["two"]["buffers"] == [True, True]
    assert len(found["two"]["tokens"]) == 8


def test_a_model_that_this_machine_has_no_room_for_runs_on_others(found):
    assert "are available" in found["alone"] or "is all there is" in found["alone"]
    assert found["too large"]["layers"] > 0
    assert len(found["too large"]["tokens"]) == 8


def test_a_server_that_ends_ends_the_command_with_a_sentence(smollm2, tmp_path):
    """And no traceback, whatever llama.cpp is doing at that moment."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import rpc_device
from specx.backends.llama.rpc import add_servers
from specx.cli.app import run
with rpc_device.served(1) as server:
    add_servers([server])
sys.exit(run(["complete", sys.argv[2], "-p", "x", "-n", "2", "-ngl", "all", "--rpc", server, "-c", "512"]))
"""
    command = [sys.executable, "-P", "-c", script, str(BENCHMARKS), str(smollm2)]
    environment = {**os.environ, "GGML_BACKEND_PATH": str(LIBRARY)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 1
    assert "error: an RPC server can be used no more: " in done.stderr
    assert "Traceback" not in done.stderr
