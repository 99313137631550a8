"""Reading and checking GGUF headers, on small files written here."""

import os
import resource
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.errors import ModelError
from specx.backends.gguf import header
from specx.backends.gguf.file import read_gguf, shard_paths, type_bytes

LAYERS, WIDTH, TOKENS = 2, 64, 40


def write_model(
    path: Path, *, architecture="llama", kind=None, change=None, tensors=None, tokens=TOKENS, **split
):
    """A model with the right header and random weights; `change(writer)` adds to its metadata."""
    writer = gguf.GGUFWriter(path, architecture, **split)
    if kind:
        writer.add_type(kind)
    writer.add_name("Tiny Test")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([f"token {i}" for i in range(tokens)])
        writer.add_token_types([1] * tokens)
        writer.add_chat_template("{{ messages }}")
        writer.add_string("tokenizer.chat_template.tool_use", "{{ tools }}")
    if change:
        change(writer)
    if tensors is None:
        names = ("attn_q", "attn_k", "ffn_up")
        tensors = ["token_embd.weight", *(f"blk.{i}.{name}.weight" for i in range(LAYERS) for name in names)]
    for i, name in enumerate(tensors):
        data = np.random.default_rng(i).standard_normal((48, WIDTH), dtype=np.float32)
        if i % 2 == 0:
            data = gguf.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path):
    return write_model(tmp_path / "tiny.gguf")


def refusal(path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.message
    return caught.value


def test_everything_the_header_says(tiny):
    info = read_gguf(tiny)
    assert (info.path, info.parts, info.size) == (tiny, (tiny,), tiny.stat().st_size)
    assert (info.version, info.architecture, info.name, info.file_type) == (3, "llama", "Tiny Test", "Q8_0")
    assert (info.context_length, info.embedding_length, info.feed_forward_length) == (512, WIDTH, 96)
    assert (info.blocks, info.heads, info.kv_heads) == (LAYERS, 4, (2, 2))
    assert (info.key_length, info.value_length) == (16, 16)
    assert (info.vocabulary_size, info.tokenizer, info.pre_tokenizer) == (TOKENS, "gpt2", "smollm")
    assert info.chat_template == "{{ messages }}"
    assert info.tool_template == "{{ tools }}"
    assert info.state == "attention"
    assert info.plain_reason is None
    assert info.metadata["general.name"] == "Tiny Test"


def test_tensors_are_those_the_library_reads(tiny):
    theirs = gguf.GGUFReader(tiny).tensors
    ours = read_gguf(tiny)
    assert [(t.name, t.shape, t.type, t.nbytes) for t in ours.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes) for t in theirs
    ]
    assert ours.parameters == sum(int(t.n_elements) for t in theirs)
    assert ours.weight_bytes == sum(ours.bytes_by_type.values()) == sum(t.n_bytes for t in theirs)
    assert ours.main_type == "F32"


def test_a_real_model_reads_as_the_library_reads_it(smollm2):
    info = read_gguf(smollm2)
    assert (info.architecture, info.blocks, info.heads, set(info.kv_heads)) == ("llama", 30, 9, {3})
    assert (info.vocabulary_size, info.context_length, info.main_type) == (49152, 8192, "Q4_1")
    assert info.chat_template
    assert info.parameters == 134_515_008


def test_the_size_of_a_row():
    assert type_bytes("q8_0", 64) == type_bytes("Q8_0", 33) == 2 * 34
    with pytest.raises(ValueError, match="q3_z"):
        type_bytes("q3_z", 32)


def test_integers_of_the_architecture(tmp_path):
    def change(writer):
        writer.add_sliding_window_pattern([True, False])
        writer.add_ssm_inner_size(128)

    info = read_gguf(write_model(tmp_path / "m.gguf", change=change))
    assert info.integer("ssm.inner_size") == 128
    assert info.integer("attention.sliding_window_pattern") == 1
    assert info.integer("block_count") == LAYERS
    assert info.integer("ssm.state_size") == 0


def test_values_for_each_layer(tmp_path):
    def change(writer):
        del writer.kv_data[0]["llama.attention.head_count_kv"]
        writer.add_head_count_kv([1, 4])
        writer.add_key_length(32)
        writer.add_sliding_window(128)

    info = read_gguf(write_model(tmp_path / "m.gguf", change=change))
    assert info.kv_heads == (1, 4)
    assert (info.key_length, info.value_length, info.sliding_window) == (32, 16, 128)


@pytest.mark.parametrize(
    ("names", "state", "kv_heads"),
    [
        (["blk.0.ssm_in.weight", "blk.1.ssm_in.weight"], "recurrent", (0, 0)),
        (["blk.0.ssm_in.weight", "blk.1.attn_k.weight"], "hybrid", (0, 2)),
        (["blk.0.attn_qkv.weight", "blk.0.ssm_a.weight", "blk.1.attn_k.weight"], "hybrid", (0, 2)),
        (["blk.0.shortconv.conv.weight", "blk.1.attn_k.weight"], "hybrid", (0, 2)),
        (["blk.0.attn_qkv.weight", "blk.1.attn_qkv.weight"], "attention", (2, 2)),
    ],
)
def test_recurrent_layers_are_told_by_their_tensors(tmp_path, names, state, kv_heads):
    info = read_gguf(write_model(tmp_path / "m.gguf", tensors=names))
    assert (info.state, info.kv_heads) == (state, kv_heads)
    assert (info.plain_reason is None) == (state == "attention")


@pytest.mark.parametrize("architecture", ["eagle3", "dream", "t5"])
def test_what_cannot_continue_a_text_says_why(tmp_path, architecture):
    assert read_gguf(write_model(tmp_path / "m.gguf", architecture=architecture)).obstacle


def test_an_encoder_and_a_model_without_vocabulary_say_why(tmp_path):
    encoder = write_model(tmp_path / "e.gguf", change=lambda w: w.add_causal_attention(False))
    assert "encoder" in (read_gguf(encoder).obstacle or "")
    assert "vocabulary" in (read_gguf(write_model(tmp_path / "v.gguf", tokens=0)).obstacle or "")


def test_fingerprint_follows_content_and_not_the_name(tiny, tmp_path):
    first = read_gguf(tiny).fingerprint
    copy = tmp_path / "other name.bin"
    copy.write_bytes(tiny.read_bytes())
    assert read_gguf(copy).fingerprint == first
    data = bytearray(tiny.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert read_gguf(copy).fingerprint != first
    renamed = write_model(tmp_path / "renamed.gguf", change=lambda w: w.add_description("x"))
    assert read_gguf(renamed).fingerprint != first


def test_cut_anywhere(tiny, tmp_path):
    data = tiny.read_bytes()
    start = gguf.GGUFReader(tiny).data_offset
    cut = tmp_path / "cut.gguf"
    header = [*range(5, 64), *range(64, start, 37), start - 33]
    for length in [*header, start + 1, start + 1000, len(data) // 2, len(data) - 1]:
        cut.write_bytes(data[:length])
        error = refusal(cut)
        assert "cut short" in error.message, length
        assert "specx pull" in error.hint
        if length > start:
            assert f"{length:,} of {len(data):,} bytes" in error.message


def test_damage_is_not_taken_for_a_cut(tiny, tmp_path):
    """A length that cannot be in the header, and a tensor that lies where none can."""
    data = tiny.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    key = data.index(b"general.architecture")
    damaged.write_bytes(data[: key - 8] + struct.pack("<Q", 2**40) + data[key:])
    assert "is damaged" in refusal(damaged).message
    row = data.index(b"token_embd.weight") + len("token_embd.weight")
    dimensions = struct.unpack_from("<I", data, row)[0]
    offset = row + 4 + 8 * dimensions + 4
    damaged.write_bytes(data[:offset] + struct.pack("<Q", 2**33) + data[offset + 8 :])
    assert "is damaged: its tensors" in refusal(damaged).message


@settings(max_examples=300)
@given(st.data())
def test_damage_never_surprises(tmp_path_factory, data):
    """Whatever bytes are overwritten, the file is read or refused with a ModelError."""
    patterns = [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**62), struct.pack("<d", float("nan"))]
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.gguf"
    if not whole.exists():
        write_model(whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, 3000))
        content[at : at + 8] = data.draw(st.sampled_from(patterns))
    damaged = folder / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        read_gguf(damaged)
    except ModelError as error:
        assert error.message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (struct.pack("<Q", 80) + b'{"a":{"dtype":"F16","shape":[1]}}', "safetensors"),
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
        (b"\x80\x02}q\x00." * 4, "pickled"),
        (b"\x1f\x8b\x08" + b"x" * 40, "gzip"),
        (b"\xfd7zXZ\0" + b"x" * 40, "xz"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 40, "zstd"),
        (b"7z\xbc\xaf\x27\x1c" + b"x" * 40, "7-Zip"),
        (b"m.gguf".ljust(257, b"\0") + b"ustar" + b"\0" * 250, "tar archive"),
        (struct.pack("<Q", 2) + b"{}" + b" " * 40, "safetensors"),
        (b"tjgg" + b"\0" * 40, "2023"),
        (b"fmgg" + b"\0" * 40, "2023"),
        (b"algg" + b"\0" * 40, "2023"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0" * 4096, "zero bytes"),
        (bytes(range(7, 255)), "begin with GGUF"),
        (b"GG", "begin with GGUF"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, word):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    error = refusal(path)
    assert word in error.message
    assert error.hint


def test_a_packed_model_says_how_it_is_unpacked(tmp_path):
    path = tmp_path / "model.gguf.xz"
    path.write_bytes(b"\xfd7zXZ\0" + b"x" * 40)
    assert refusal(path).hint == "unpack it first: unxz model.gguf.xz"
    for inside, hint in (("m.gguf", "unpack it first: unzip model.zip"), ("archive/data.pkl", "convert it")):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            archive.writestr(inside, b"GGUF")
        error = refusal(tmp_path / "model.zip")
        assert "zip archive" in error.message and error.hint.startswith(hint)


def test_an_array_of_arrays_is_no_damage(tiny, tmp_path):
    data, nested = (
        tiny.read_bytes(),
        struct.pack("<Q3sIIQ", 3, b"x.y", 9, 9, 1) + struct.pack("<IQI", 4, 1, 7),
    )
    (values,) = struct.unpack_from("<Q", data, 16)
    path = tmp_path / "nested.gguf"
    path.write_bytes(data[:16] + struct.pack("<Q", values + 1) + nested + data[24:])
    with pytest.raises(ModelError, match=r"array of arrays under 'x\.y'") as refused:
        read_gguf(path)
    assert "without it" in refused.value.hint


def test_versions_and_byte_order(tiny, tmp_path):
    data = bytearray(tiny.read_bytes())
    path = tmp_path / "version.gguf"
    refused = {b"\1\0\0\0": "version 1", b"\x09\0\0\0": "version 9", b"\0\0\0\3": "big-endian"}
    for version, word in refused.items():
        data[4:8] = version
        path.write_bytes(data)
        assert word in refusal(path).message
    data[4:8] = b"\2\0\0\0"
    path.write_bytes(data)
    assert read_gguf(path).version == 2


def test_missing_directory_empty_link_pipe(tmp_path, tiny):
    assert "no file" in refusal(tmp_path / "absent.gguf").message
    assert "no file" in refusal(tiny / "below-a-file.gguf").message
    directory = refusal(tmp_path)
    assert "directory" in directory.message
    assert "tiny.gguf" in directory.hint
    (tmp_path / "empty.gguf").touch()
    assert "empty" in refusal(tmp_path / "empty.gguf").message
    (tmp_path / "link.gguf").symlink_to(tmp_path / "gone")
    assert "link" in refusal(tmp_path / "link.gguf").message
    import os

    os.mkfifo(tmp_path / "pipe.gguf")
    assert "regular" in refusal(tmp_path / "pipe.gguf").message
    with pytest.raises(ModelError):
        read_gguf("zero\0byte.gguf")
    with pytest.raises(ModelError):
        read_gguf("x" * 5000)


def test_a_file_that_may_not_be_read(tiny, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    assert "Permission denied" in refusal(tiny).message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"architecture": "clip"}, "projector"),
        ({"kind": gguf.GGUFType.MMPROJ}, "projector"),
        ({"kind": gguf.GGUFType.ADAPTER}, "LoRA"),
        ({"kind": gguf.GGUFType.IMATRIX}, "importance matrix"),
        ({"tensors": []}, "vocabulary only"),
        ({"change": lambda w: w.kv_data[0].pop("flux.block_count"), "architecture": "flux"}, "layer count"),
    ],
)
def test_what_is_no_language_model(tmp_path, options, word):
    path = write_model(tmp_path / "m.gguf", **options)
    error = refusal(path)
    assert word in error.message
    assert error.hint


def test_a_tensor_type_newer_than_the_library(tiny, tmp_path):
    data = bytearray(tiny.read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # the type follows the dimension count and two dimensions
    data[at : at + 4] = struct.pack("<I", 99)
    newer = tmp_path / "newer.gguf"
    newer.write_bytes(data)
    first, *rest = read_gguf(newer).tensors
    assert (first.type, first.nbytes) == ("type 99", read_gguf(tiny).tensors[0].nbytes)
    assert rest == list(read_gguf(tiny).tensors[1:])


def test_absurd_layer_count(tmp_path):
    def change(writer):
        writer.kv_data[0].pop("llama.block_count")
        writer.add_block_count(2**32 - 1)

    assert "layers" in refusal(write_model(tmp_path / "m.gguf", change=change)).message


@pytest.fixture
def split(tmp_path):
    write_model(tmp_path / "model.gguf", split_max_tensors=3)
    return sorted(tmp_path.glob("model-*.gguf"))


def test_any_part_of_a_split_model_is_the_model(split, tmp_path):
    assert len(split) == 3
    whole = read_gguf(write_model(tmp_path / "whole.gguf"))
    for part in split:
        info = read_gguf(part)
        assert info.path == split[0]
        assert info.parts == tuple(split)
        assert info.size == sum(p.stat().st_size for p in split)
        assert sorted(t.name for t in info.tensors) == sorted(t.name for t in whole.tensors)
        assert (info.parameters, info.vocabulary_size) == (whole.parameters, TOKENS)
    assert read_gguf(split[0]).fingerprint == read_gguf(split[2]).fingerprint
    assert shard_paths(split[1]) == split


def test_parts_that_are_missing_cut_or_renamed(split, tmp_path):
    data = split[1].read_bytes()
    split[1].write_bytes(data[:-10])
    with pytest.raises(ModelError, match="cut short") as cut:
        read_gguf(split[0])
    assert split[1].name in cut.value.message
    split[1].unlink()
    with pytest.raises(ModelError, match="missing") as missing:
        read_gguf(split[0])
    assert split[1].name in missing.value.message
    renamed = split[0].rename(tmp_path / "renamed.gguf")
    assert "00001-of-00003" in refusal(renamed).hint


def test_the_hint_names_the_repository_in_a_cache(tiny, tmp_path):
    folder = tmp_path / "models--org--some-repo" / "snapshots" / "abc" / "sub"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(tiny.read_bytes()[:-1])
    assert "specx pull org/some-repo/sub/m.gguf" in refusal(folder / "m.gguf").hint


def test_a_header_is_read_as_far_as_it_goes(tiny, monkeypatch):
    whole = read_gguf(tiny)
    monkeypatch.setattr(header, "_AT_ONCE", 16)
    assert read_gguf(tiny) == whole
    monkeypatch.setattr(header, "_MOST_HEADER", 256)
    assert "more than 256 bytes" in refusal(tiny).message


def sparse(path, *parts):
    """A file of 64 GB that holds nearly nothing."""
    path.write_bytes(b"".join(parts))
    with path.open("r+b") as file:
        file.truncate(64 << 30)
    return path


TEXTS = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 22)
LONG = struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, 1 << 29)
NUMBERS = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 29)


@pytest.mark.parametrize(
    "parts",
    [
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 40, 0),),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 40),),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1), TEXTS),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1), LONG),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1), NUMBERS),
    ],
    ids=["tensors", "values", "texts", "a long text", "numbers"],
)
def test_a_header_that_claims_much_costs_little(tmp_path, parts):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(sparse(tmp_path / "m.gguf", *parts))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_part_beyond_the_last_is_none(tmp_path):
    for name in ("m-00001-of-00000", "m-00003-of-00002", "m-00000-of-00002", "m-0000\u0661-of-0000\u0662"):
        path = tmp_path / f"{name}.gguf"
        assert shard_paths(path) == [path]


def test_texts_of_a_header_are_passed_over_once(smollm2, monkeypatch):
    arrays, native = [], header.end_of_texts

    def counted(data, start, count):
        arrays.append((start, count))
        return native(data, start, count)

    monkeypatch.setattr(header, "end_of_texts", counted)
    info = read_gguf(smollm2)
    assert info.vocabulary_size in [count for _, count in arrays]
    assert len(set(arrays)) == len(arrays)
