"""Copies of GGUF files: byte for byte where nothing was changed, and readable by everyone."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from specx.backends.errors import FileError
from specx.backends.gguf.file import read_gguf
from specx.drafters.make.gguf_writing import Appendix, Source, int32s, made_entries, text, uint32, write_gguf

ROWS = np.array([0, 3, 4], np.int32)


@pytest.fixture
def small(tmp_path):
    """A model of one layer, with values of every kind and two quantized matrices."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_name("small")
    writer.add_token_list(["a", "bc", "\u00e9", "", "e"])
    writer.add_token_scores([0.5, 1.0, 1.5, 2.0, 2.5])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("odd", [True, False])
    rng = np.random.default_rng(3)
    for name, kind in (("token_embd.weight", "Q4_1"), ("blk.0.attn_q.weight", "Q8_0")):
        raw = gguf.quants.quantize(
            rng.standard_normal((5, 64)).astype(np.float32), gguf.GGMLQuantizationType[kind]
        )
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("output_norm.weight", rng.standard_normal(3).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(path):
    """What the gguf library reads: values by key, and types, shapes and bytes by tensor."""
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {
        t.name: (t.tensor_type.name, t.shape.tolist(), np.asarray(t.data).tobytes()) for t in reader.tensors
    }
    return values, tensors


def test_a_copy_has_everything(small, tmp_path):
    source = Source(read_gguf(small))
    write_gguf(tmp_path / "copy.gguf", source.entries, list(source.tensors.values()))
    assert contents(tmp_path / "copy.gguf") == contents(small)
    assert (tmp_path / "copy.gguf").stat().st_size == small.stat().st_size


def test_rows_values_and_an_appendix(small, tmp_path):
    path = tmp_path / "new.gguf"
    source = Source(read_gguf(small))
    table = source.tensors["token_embd.weight"]
    source.tensors["token_embd.weight"] = table.rows(ROWS)
    source.entries |= {"specx.ids": int32s(ROWS), "specx.word": text("\u00e9"), "specx.n": uint32(7)}
    write_gguf(path, source.entries, list(source.tensors.values()), Appendix("specx.table", table.data))
    (values, tensors), (_, before) = contents(path), contents(small)
    assert values["specx.ids"] == [0, 3, 4] and values["specx.word"] == "\u00e9" and values["specx.n"] == 7
    whole = np.frombuffer(before["token_embd.weight"][2], np.uint8).reshape(5, -1)
    assert tensors["token_embd.weight"] == ("Q4_1", [64, 3], whole[ROWS].tobytes())
    assert tensors["blk.0.attn_q.weight"] == before["blk.0.attn_q.weight"]
    at = values["specx.table"]
    assert at % 4096 == 0 and path.read_bytes()[at:] == whole.tobytes()
    assert [t.shape for t in read_gguf(path).tensors] == [(64, 3), (64, 5), (3,)]


def test_a_file_tells_what_it_was_made_from(small, tmp_path):
    info = read_gguf(small)
    source = Source(info)
    source.entries |= made_entries("trim", info, info, {"keep": 3, "layers": "auto"})
    write_gguf(tmp_path / "made.gguf", source.entries, list(source.tensors.values()))
    told = read_gguf(tmp_path / "made.gguf").metadata
    assert told["specx.made.from"] == "small.gguf" and told["specx.made.from_fingerprint"] == info.fingerprint
    assert told["specx.made.parameters"] == "keep=3 layers=auto" and told["specx.made.how"] == "trim"


def test_a_split_model_is_joined(small, tmp_path):
    whole = Source(read_gguf(small))
    first, *rest = whole.tensors.values()
    for i, tensors in enumerate(([first], rest)):
        entries = dict(whole.entries) if i == 0 else {}
        entries |= {"split.no": uint32(i), "split.count": uint32(2)}
        write_gguf(tmp_path / f"s-{i + 1:05d}-of-00002.gguf", entries, tensors)
    source = Source(read_gguf(tmp_path / "s-00001-of-00002.gguf"))
    write_gguf(tmp_path / "joined.gguf", source.entries, list(source.tensors.values()))
    assert contents(tmp_path / "joined.gguf") == contents(small)


def test_a_file_that_cannot_be_written_leaves_nothing(small, tmp_path):
    source = Source(read_gguf(small))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileError, match="nowhere"):
        write_gguf(tmp_path / "nowhere" / "x.gguf", source.entries, [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        write_gguf(tmp_path / "folder", source.entries, list(source.tensors.values()))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "folder"])
