"""Tiny models with random weights: the architectures that backends treat differently, a millisecond a step.

Their weights are 32-bit floats, so that the same context gives the same logits to five digits whatever the
shape of the batches it was computed in, while one token more or less in view changes every logit.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

VOCAB = 3 + 256 + 61  # unknown, begin, end, bytes, words
WIDTH, HEADS, KV_HEADS, HEAD, FEED = 64, 4, 2, 16, 96
WINDOW = 24  # of the sliding attention


class TinyModel:
    """Writes one GGUF file."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.writer = gguf.GGUFWriter(path, architecture)
        self.rng = np.random.default_rng(17)
        self.writer.add_context_length(8192)
        self.writer.add_embedding_length(WIDTH)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self._vocabulary()
        self.add("token_embd.weight", VOCAB, WIDTH, scale=1.0)
        self.ones("output_norm.weight", WIDTH)
        self.add("output.weight", VOCAB, WIDTH, scale=0.3)

    def _vocabulary(self):
        words = [f"\u2581w{i}" for i in range(VOCAB - 259)]
        kinds = gguf.TokenType
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
        self.writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words))])
        types = [
            kinds.UNKNOWN,
            kinds.CONTROL,
            kinds.CONTROL,
            *[kinds.BYTE] * 256,
            *[kinds.NORMAL] * len(words),
        ]
        self.writer.add_token_types(types)
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)

    def add(self, name, *shape, scale=None):
        data = self.rng.standard_normal(shape) * (scale or 1.5 / np.sqrt(shape[-1]))
        self.writer.add_tensor(name, data.astype(np.float32))

    def ones(self, name, n):
        self.writer.add_tensor(name, np.ones(n, np.float32))

    def attention(self, layers, *, post_norms=False):
        self.writer.add_block_count(layers)
        self.writer.add_feed_forward_length(FEED)
        self.writer.add_head_count(HEADS)
        self.writer.add_head_count_kv(KV_HEADS)
        for i in range(layers):
            block = f"blk.{i}."
            self.ones(block + "attn_norm.weight", WIDTH)
            self.ones(block + "ffn_norm.weight", WIDTH)
            self.add(block + "attn_q.weight", HEADS * HEAD, WIDTH)
            self.add(block + "attn_k.weight", KV_HEADS * HEAD, WIDTH)
            self.add(block + "attn_v.weight", KV_HEADS * HEAD, WIDTH)
            self.add(block + "attn_output.weight", WIDTH, HEADS * HEAD)
            self.add(block + "ffn_gate.weight", FEED, WIDTH)
            self.add(block + "ffn_up.weight", FEED, WIDTH)
            self.add(block + "ffn_down.weight", WIDTH, FEED)
            if post_norms:
                self.ones(block + "attn_q_norm.weight", HEAD)
                self.ones(block + "attn_k_norm.weight", HEAD)
                self.ones(block + "post_attention_norm.weight", WIDTH)
                self.ones(block + "post_ffw_norm.weight", WIDTH)

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _llama(path):
    model = TinyModel(path, "llama")
    model.writer.add_rope_dimension_count(HEAD)
    model.attention(3)
    model.close()


def _gemma3(path):
    model = TinyModel(path, "gemma3")
    model.writer.add_key_length(HEAD)
    model.writer.add_value_length(HEAD)
    model.writer.add_sliding_window(WINDOW)
    model.attention(6, post_norms=True)  # every sixth layer sees everything
    model.close()


def _mamba(path):
    model, inner, state, rank = TinyModel(path, "mamba"), 2 * WIDTH, 8, 4
    model.writer.add_block_count(2)
    model.writer.add_ssm_conv_kernel(4)
    model.writer.add_ssm_inner_size(inner)
    model.writer.add_ssm_state_size(state)
    model.writer.add_ssm_time_step_rank(rank)
    for i in range(2):
        block = f"blk.{i}."
        model.ones(block + "attn_norm.weight", WIDTH)
        model.add(block + "ssm_in.weight", 2 * inner, WIDTH)
        model.add(block + "ssm_conv1d.weight", inner, 4)
        model.add(block + "ssm_conv1d.bias", inner)
        model.add(block + "ssm_x.weight", rank + 2 * state, inner)
        model.add(block + "ssm_dt.weight", inner, rank)
        model.add(block + "ssm_dt.bias", inner)
        model.writer.add_tensor(block + "ssm_a", np.full((inner, state), -0.5, np.float32))
        model.ones(block + "ssm_d", inner)
        model.add(block + "ssm_out.weight", WIDTH, inner)
    model.close()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Name -> Path: "full" attention, "sliding" attention (five layers in six see 24 tokens), "recurrent"."""
    folder = tmp_path_factory.mktemp("tiny")
    makers = {"full": _llama, "sliding": _gemma3, "recurrent": _mamba}
    for name, make in makers.items():
        make(folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in makers}
