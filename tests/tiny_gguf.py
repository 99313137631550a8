"""Tiny GGUF files of random weights, with the keys and tensors that converters write, by architecture."""

from __future__ import annotations

import gguf
import numpy as np

WORDS = 45
WIDTH, HEADS, KV_HEADS, HEAD, FEED, VOCAB = 64, 4, 2, 16, 96, 3 + 256 + WORDS
WINDOW = 24
BLOCKS = {"smollm3": 12}
OTHERWISE = 6
NORMS = {"gemma2": ("post_attention_norm", "post_ffw_norm")}
NORMS["gemma3"] = (*NORMS["gemma2"], "attn_q_norm", "attn_k_norm")
NORMS["qwen3"] = ("attn_q_norm", "attn_k_norm")


class Writer:
    """One file of random weights, with the keys and tensors that converters write."""

    def __init__(self, path, architecture, blocks):
        self.writer, self.rng, self.arch, self.blocks = (
            gguf.GGUFWriter(path, architecture),
            np.random.default_rng(5),
            architecture,
            blocks,
        )
        self.keys()
        self.vocabulary()
        self.matrix("token_embd.weight", VOCAB, WIDTH)
        self.norm("output_norm.weight", WIDTH)

    def keys(self):
        writer = self.writer
        writer.add_context_length(512)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(self.blocks)
        writer.add_feed_forward_length(FEED)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(HEAD)
        if self.arch.startswith("gemma"):
            writer.add_key_length(HEAD)
            writer.add_value_length(HEAD)
            writer.add_sliding_window(WINDOW)
        if self.arch == "granite":
            writer.add_logit_scale(2.0)
            writer.add_residual_scale(0.5)
            writer.add_embedding_scale(3.0)

    def vocabulary(self):
        kinds = gguf.TokenType
        self.writer.add_tokenizer_model("llama")
        words = ["\u2581", *(f"\u2581w{i}" for i in range(1, WORDS))]
        self.writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
        self.writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(WORDS)])
        self.writer.add_token_types(
            [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * WORDS]
        )
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)

    def matrix(self, name, *shape, zero=False):
        data = self.rng.standard_normal(shape) / np.sqrt(shape[-1])
        self.writer.add_tensor(name, (0 * data if zero else data).astype(np.float32))

    def norm(self, name, n):
        self.writer.add_tensor(name, self.rng.uniform(0.5, 1.5, n).astype(np.float32))

    def block(self, i, *, silent):
        block = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm", *NORMS.get(self.arch, ())):
            self.norm(f"{block}{name}.weight", HEAD if name in ("attn_q_norm", "attn_k_norm") else WIDTH)
        queries, keys = HEADS * HEAD, KV_HEADS * HEAD
        if self.arch == "phi3":
            self.matrix(block + "attn_qkv.weight", queries + 2 * keys, WIDTH)
            self.matrix(block + "ffn_up.weight", 2 * FEED, WIDTH)
        else:
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                self.matrix(f"{block}attn_{name}.weight", rows, WIDTH)
                if self.arch == "qwen2":
                    self.norm(f"{block}attn_{name}.bias", rows)
            self.matrix(block + "ffn_gate.weight", FEED, WIDTH)
            self.matrix(block + "ffn_up.weight", FEED, WIDTH)
        self.matrix(block + "attn_output.weight", WIDTH, queries, zero=silent)
        self.matrix(block + "ffn_down.weight", WIDTH, FEED, zero=silent)

    def close(self):
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(self.writer, step)()


def write(path, architecture, silent=frozenset(), blocks=None, extra=lambda writer: None):
    """A model; in the layers of `silent` nothing is added to what comes in."""
    writer = Writer(path, architecture, blocks or BLOCKS.get(architecture, OTHERWISE))
    extra(writer.writer)
    for i in range(writer.blocks):
        writer.block(i, silent=i in silent)
    writer.close()
    return path
