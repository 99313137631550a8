"""Trimmed draft models: at the rows that were kept, the logits of the whole model, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.trimmed import ARCHITECTURES
from specx.backends.settings import Load
from specx.drafters.make.trim import write_trimmed

VOCAB, HEADS, KV_HEADS, LAYERS = 320, 4, 2, 4
TOKENS = np.array([1, 300, 17, 17, 4, 280, 319, 0, 99, 5, 6, 7], np.int32)
IDS = np.sort(np.random.default_rng(5).permutation(VOCAB)[:144]).astype(np.int32)  # as whole groups of rows
TIED_ONLY = {"gemma", "gemma2"}
CASES = [
    (name, tied, kind) for name in sorted(ARCHITECTURES) for tied, kind in ((True, "Q8_0"), (False, "Q4_0"))
]
CASES = [case for case in CASES if case[1] or case[0] not in TIED_ONLY]
CASES += [("gemma3", True, kind) for kind in ("F32", "F16", "BF16", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q4_K")]


class Tiny:
    """A model of random weights, with the keys and tensors of a real one of its architecture.

    Types that work in blocks of 256 have no quantizer in Python: random bytes with small scales stand for
    what they would give.
    """

    def __init__(self, path, architecture, *, tied, kind):
        self.rng = np.random.default_rng(11)
        self.kind = gguf.GGMLQuantizationType[kind]
        self.width = 256 if kind.endswith("_K") else 64
        self.head = self.width // HEADS
        self.writer = gguf.GGUFWriter(path, architecture)
        self.keys(architecture)
        self.vocabulary()
        self.matrix("token_embd", VOCAB, self.width)
        if not tied:
            self.matrix("output", VOCAB, self.width)
        self.norm("output_norm", self.width)
        for i in range(LAYERS):
            self.layer(f"blk.{i}.", architecture)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()

    def keys(self, architecture):
        writer = self.writer
        writer.add_context_length(2048)
        writer.add_embedding_length(self.width)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(2 * self.width)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(self.head)
        writer.add_value_length(self.head)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(self.head)
        if architecture in ("gemma2", "gemma3"):
            writer.add_sliding_window(8)
        if architecture == "gemma2":
            writer.add_attn_logit_softcapping(50.0)
            writer.add_final_logit_softcapping(30.0)
        if architecture == "phi3":
            writer.add_rope_scaling_orig_ctx_len(2048)
        if architecture == "granite":
            writer.add_embedding_scale(12.0)
            writer.add_residual_scale(0.22)
            writer.add_logit_scale(8.0)
            writer.add_attention_scale(0.1)

    def vocabulary(self):
        writer, kinds = self.writer, gguf.TokenType
        words = [f"\u2581w{i}" for i in range(VOCAB - 259)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
        writer.add_token_scores([-float(i) for i in range(VOCAB)])
        writer.add_token_types(
            [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(words)]
        )
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    def matrix(self, name, rows, columns):
        block, nbytes = gguf.GGML_QUANT_SIZES[self.kind]
        if block == 256:
            data = self.rng.integers(0, 256, (rows, columns // block, nbytes), np.uint8)
            scale = np.array([2e-4], np.float16).view(np.uint8)
            for at in (0, 2) if self.kind.name == "Q4_K" else (nbytes - 2,):
                data[..., at : at + 2] = scale
            data = data.reshape(rows, -1)
        else:
            values = self.rng.standard_normal((rows, columns)) / np.sqrt(columns)
            data = gguf.quants.quantize(values.astype(np.float32), self.kind)
        self.writer.add_tensor(f"{name}.weight", data, raw_dtype=self.kind)

    def norm(self, name, n):
        self.writer.add_tensor(f"{name}.weight", self.rng.uniform(0.5, 1.5, n).astype(np.float32))

    def layer(self, block, architecture):
        width, queries, keys = self.width, HEADS * self.head, KV_HEADS * self.head
        self.norm(block + "attn_norm", width)
        self.norm(block + "ffn_norm", width)
        if architecture == "phi3":
            self.matrix(block + "attn_qkv", queries + 2 * keys, width)
            self.matrix(block + "ffn_up", 4 * width, width)
        else:
            for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                self.matrix(block + name, rows, width)
                if architecture == "qwen2":
                    bias = self.rng.standard_normal(rows).astype(np.float32)
                    self.writer.add_tensor(f"{block}{name}.bias", bias)
            self.matrix(block + "ffn_gate", 2 * width, width)
            self.matrix(block + "ffn_up", 2 * width, width)
        self.matrix(block + "attn_output", width, queries)
        self.matrix(block + "ffn_down", width, 2 * width)
        if architecture in ("qwen3", "gemma3"):
            self.norm(block + "attn_q_norm", self.head)
            self.norm(block + "attn_k_norm", self.head)
        if architecture in ("gemma2", "gemma3"):
            self.norm(block + "post_attention_norm", width)
            self.norm(block + "post_ffw_norm", width)


def load(path, **options):
    """Not rearranged for this processor: what llama.cpp makes of a matrix may depend on its number of rows
    there, and so may its bits (with AMX it does)."""
    loaded = Load(path, **{"n_ctx": 256, "threads": 1, "threads_batch": 1, **options})
    return LlamaModel(loaded, repack=False)


def trimmed(source, path, ids=IDS):
    info = read_gguf(source)
    write_trimmed(path, info, ids, info, {"keep": len(ids)})
    return path


def logits(path):
    """Tokens of the columns (None for all) and logits of single tokens, of a chain, and after a prompt."""
    model = load(path)
    cache = model.open()
    found = []

    def computed(tokens):
        n = len(tokens)
        rows = cache.forward(np.array(tokens, np.int32), np.arange(-1, n - 1, dtype=np.int32)).logits
        found.append((model.facts.head, rows.copy()))
        cache.keep(range(n))

    for token in TOKENS[:3]:
        computed([token])
    cache.prefill([3] * 40, rows=lambda _tokens, rows: found.append((model.facts.head, rows.copy())))
    computed(TOKENS)
    model.close()
    return found


@pytest.mark.parametrize(("architecture", "tied", "kind"), CASES)
def test_the_logits_are_those_of_the_whole_model(tmp_path, architecture, tied, kind):
    whole = tmp_path / "whole.gguf"
    Tiny(whole, architecture, tied=tied, kind=kind)
    small = trimmed(whole, tmp_path / "trimmed.gguf")
    compare(logits(whole), logits(small), IDS, tied=tied)


def compare(every, some, ids, *, tied, close=1e-3):
    """Bit for bit at the rows that were kept. At those of the context ggml's sums are in another order."""
    for (_, before), (head, after) in zip(every, some, strict=True):
        assert np.isfinite(before).all() and np.ptp(before) > 0
        assert head.tolist() == sorted(set(head.tolist())) and set(ids.tolist()) <= set(head.tolist())
        kept = np.isin(head, ids)
        assert np.array_equal(before[:, ids], after[:, kept])
        further = after[:, ~kept]
        if len(before) == 40:  # of a prompt, where nobody asks for them
            assert np.isneginf(further).all()
        else:
            assert np.abs(before[:, head[~kept]] - further).max(initial=0) < close * np.ptp(before)
    seen = set(TOKENS.tolist()) | {3}
    assert set(head.tolist()) == (set(ids.tolist()) | seen if tied else set(ids.tolist()))


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_real_models(tmp_path, request, model):
    whole = request.getfixturevalue(model)
    ids = np.sort(np.random.default_rng(3).permutation(49152)[:2048]).astype(np.int32)
    small = trimmed(whole, tmp_path / "trimmed.gguf", ids)
    compare(logits(whole), logits(small), ids, tied=True)


def test_rows_of_the_context_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr("specx.backends.llama.context_rows.MOST", 2)
    whole = tmp_path / "whole.gguf"
    Tiny(whole, "llama", tied=True, kind="Q8_0")
    strange = [token for token in range(VOCAB) if token not in IDS]
    with_room = load(trimmed(whole, tmp_path / "trimmed.gguf"))
    cache = with_room.open()
    for first, expected in ((0, strange[:1]), (1, strange[:2]), (2, strange[1:3]), (1, strange[1:3])):
        token = np.array([strange[first]], np.int32)
        rows = cache.forward(token, np.array([-1], np.int32)).logits
        cache.keep([0])
        assert sorted(set(with_room.facts.head.tolist()) - set(IDS.tolist())) == expected
        assert rows.shape == (1, len(IDS) + len(expected)) and np.isfinite(rows).all()
    with_room.close()


def test_a_token_that_does_not_exist_is_refused(tmp_path):
    whole = tmp_path / "whole.gguf"
    Tiny(whole, "llama", tied=True, kind="Q8_0")
    model = load(trimmed(whole, tmp_path / "trimmed.gguf"))
    cache = model.open()
    with pytest.raises(ValueError, match="token 320 is not in a vocabulary of 320"):
        cache.forward(np.array([320], np.int32), np.array([-1], np.int32))
    assert cache.length == 0
    cache.prefill([1, 2, 3])
    assert model.vocab.size == VOCAB and model.vocab.piece(300) == b" w41"
    model.close()
    model.close()
