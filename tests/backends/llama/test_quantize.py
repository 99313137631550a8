"""Another quantization, and models whose layers are skipped: what is refused, and what comes of it."""

from __future__ import annotations

import gguf
import pytest

from specx.backends.errors import ContextFullError, ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.llama.quantize import QUANTIZATIONS, requantize
from specx.backends.llama.skipping import SkippingModel
from specx.backends.settings import Load


@pytest.fixture
def tiny(tmp_path, write_tiny):
    return write_tiny(tmp_path / "tiny.gguf", "llama")


def test_matrices_are_quantized(tiny, tmp_path):
    requantize(tiny, tmp_path / "small.gguf", "Q8_0", 1)
    small = read_runnable(tmp_path / "small.gguf")
    assert small.file_type == "Q8_0" and small.main_type == "Q8_0"
    assert small.blocks == read_runnable(tiny).blocks


def test_what_is_no_model_is_told(tmp_path):
    (tmp_path / "odd.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"cannot quantize odd.gguf as Q4_0: .") as told:
        requantize(tmp_path / "odd.gguf", tmp_path / "small.gguf", "Q4_0", 1)
    assert "--quant" in told.value.hint


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_llama_cpp_knows_the_names(name):
    assert gguf.LlamaFileType[f"MOSTLY_{name}"] >= 0


def test_a_text_that_is_too_long_to_skip_layers_in(tiny):
    model = SkippingModel(Load(tiny, 1, 1, n_ctx=256))
    with pytest.raises(ContextFullError):
        model.predictions([5] * 257, frozenset())
    assert len(model.predictions([5] * 256, frozenset({1}))) == 256
    model.close()
    model.close()


def test_a_file_that_cannot_be_loaded(tmp_path):
    (tmp_path / "odd.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"odd\.gguf"):
        SkippingModel(Load(tmp_path / "odd.gguf", 1, 1, n_ctx=256))
