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
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rpc_device
from specx.backends.llama.devices import list_devices, measure_transfer
from specx.backends.llama.libllama import recent_log
from specx.engine.settings import Asked
from specx.engine.settings import SamplingSettings
from specx.engine.session import Session

def answer(**settings):
    told = []
    # One thread: with such a device registered, llama.cpp's OpenMP threads wait seconds for each other.
    wanted = Asked(Path(sys.argv[2]), n_ctx=512, drafter="none", threads=1, **settings)
    with Session.open(wanted, notice=told.append) as session:
        buffers = [line for line in recent_log("compute buffer size") if "RPC0" in line]
        prompt = session.tokenize("Once upon a time", add_special=True, parse_special=False)
        generation = session.generate(prompt, SamplingSettings(temperature=0), n_predict=8)
        list(generation)
        load = session.setup.load
        return {"tokens": generation.result.tokens, "offload": load.offload, "layers": load.n_gpu_layers,
                "kernels": session.setup.kernels.value, "told": told, "buffers": len(buffers)}

out = {}
with rpc_device.served(1) as endpoint:
    rpc_device.register(endpoint)
    out["devices"] = [(d.name, d.type, d.is_gpu) for d in list_devices()]
    out["transfer"] = measure_transfer("RPC0", 1 << 20).bytes_per_s
    out["host"] = answer(n_gpu_layers=0, kernels="stock")
    out["part"] = answer(n_gpu_layers=5, kernels="stock")
    out["all"] = answer(n_gpu_layers=-1, kernels="stock")
    out["auto"] = answer(verbose=True, kernels="stock")
    out["again"] = answer(verbose=True, kernels="stock")
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def found(smollm2, tmp_path_factory):
    command = [sys.executable, "-P", "-c", USE, str(BENCHMARKS), str(smollm2)]
    environment = {**os.environ, "SPECX_CACHE": str(tmp_path_factory.mktemp("cache"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_listed_as_a_gpu_and_takes_data(found):
    assert ["RPC0", "GPU", True] in found["devices"]
    assert found["transfer"] > 0


def test_layers_go_where_they_are_sent(found):
    assert found["host"]["buffers"] == 0
    assert found["part"]["buffers"] == found["all"]["buffers"] == 1
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
