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

    def matrix(self, name, *shape, zero=False, scale=1.0):
        data = self.rng.standard_normal(shape) * scale / np.sqrt(shape[-1])
        self.tensor(name, 0 * data if zero else data)

    def tensor(self, name, data):
        self.writer.add_tensor(name, data.astype(np.float32))

    def norm(self, name, *shape):
        self.tensor(name, self.rng.uniform(0.5, 1.5, shape))

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


STATE, GROUPS, STATE_HEADS, KERNEL, EXPERTS = 16, 2, 4, 4, 4
INNER = STATE * STATE_HEADS
HYBRIDS = ("qwen35", "qwen35moe", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe")
LAYERS = {
    "qwen35": "rrra",
    "lfm2": "rarra",
    "nemotron_h": "rfrafr",  # a layer is one of the three there
}
"""By family, what each layer is: recurrent, attention, or a feed-forward part alone."""


class Hybrid(Writer):
    """A model of which some layers keep a recurrent state, and some may predict tokens beyond the next.

    Args:
        nextn: layers that predict further tokens (MTP).
        layers: what each layer is, as in `LAYERS`.
        quantized: whether matrices are of type Q8_0, in which a row is of blocks of 32.
    """

    def __init__(self, path, architecture, *, nextn=0, layers=None, quantized=False):
        self.family = architecture.removesuffix("_moe").removesuffix("moe")
        self.moe, self.nextn, self.quantized = architecture.endswith("moe"), nextn, quantized
        self.kinds = (layers or LAYERS[self.family]) + "n" * nextn
        super().__init__(path, architecture, len(self.kinds))
        self.matrix("output.weight", VOCAB, WIDTH, scale=3.0)  # tied, it would say the same token for ever
        if self.family == "lfm2":
            self.norm("token_embd_norm.weight", WIDTH)

    def matrix(self, name, *shape, zero=False, scale=1.0):
        if not self.quantized:
            super().matrix(name, *shape, zero=zero, scale=scale)
            return
        data = (self.rng.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        self.writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    def norm(self, name, *shape):
        if name != "output_norm.weight" or self.family != "lfm2":
            super().norm(name, *shape)

    def keys(self):
        writer, key = self.writer, self.arch
        writer.add_context_length(4096)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(self.blocks)
        writer.add_head_count(HEADS)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(HEAD)
        if self.nextn:
            writer.add_uint32(f"{key}.nextn_predict_layers", self.nextn)
        if self.moe:
            writer.add_expert_count(EXPERTS)
            writer.add_expert_used_count(2)
            writer.add_expert_feed_forward_length(FEED // 3 * 2)
        getattr(self, f"_{self.family}_keys")(writer, key)

    def _qwen35_keys(self, writer, key):
        writer.add_feed_forward_length(FEED)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_array(f"{key}.rope.dimension_sections", [4, 2, 2, 0])
        writer.add_uint32(f"{key}.full_attention_interval", 4)
        if self.moe:
            writer.add_expert_shared_feed_forward_length(32)
        self._state_keys(writer)

    def _lfm2_keys(self, writer, key):
        writer.add_head_count_kv([0 if kind == "r" else KV_HEADS for kind in self.kinds])
        writer.add_feed_forward_length(FEED)
        writer.add_uint32(f"{key}.shortconv.l_cache", 3)
        if self.moe:
            writer.add_leading_dense_block_count(1)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)

    def _nemotron_h_keys(self, writer, key):
        writer.add_head_count_kv([KV_HEADS if kind in "an" else 0 for kind in self.kinds])
        writer.add_feed_forward_length([FEED if kind in "fn" else 0 for kind in self.kinds])
        writer.add_layer_norm_eps(1e-5)
        if self.moe:
            writer.add_expert_shared_feed_forward_length(32)
            writer.add_expert_shared_count(1)
            writer.add_expert_weights_norm(True)
            writer.add_expert_weights_scale(1.5)
        self._state_keys(writer)

    def _state_keys(self, writer):
        writer.add_ssm_conv_kernel(KERNEL)
        writer.add_ssm_inner_size(INNER)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_time_step_rank(STATE_HEADS)
        writer.add_ssm_group_count(GROUPS)

    def block(self, i, *, silent=False):
        block, kind = f"blk.{i}.", self.kinds[i]
        self.norm(block + "attn_norm.weight", WIDTH)
        getattr(self, f"_{self.family}_block")(block, kind, i)
        if kind == "n":
            self.norm(block + "nextn.enorm.weight", WIDTH)
            self.norm(block + "nextn.hnorm.weight", WIDTH)
            self.norm(block + "nextn.shared_head_norm.weight", WIDTH)
            self.matrix(block + "nextn.eh_proj.weight", WIDTH, 2 * WIDTH)

    def _qwen35_block(self, block, kind, _i):
        self.norm(block + "post_attention_norm.weight", WIDTH)
        if kind == "r":
            convolved = 2 * GROUPS * STATE + INNER
            self.matrix(block + "attn_qkv.weight", convolved, WIDTH)
            self.matrix(block + "attn_gate.weight", INNER, WIDTH)
            self._convolution(block + "ssm_conv1d.weight", convolved, KERNEL)
            self.norm(block + "ssm_dt.bias", STATE_HEADS)
            self.tensor(block + "ssm_a", -self.rng.uniform(0.05, 0.5, STATE_HEADS))
            self.matrix(block + "ssm_beta.weight", STATE_HEADS, WIDTH)
            self.matrix(block + "ssm_alpha.weight", STATE_HEADS, WIDTH)
            self.norm(block + "ssm_norm.weight", STATE)
            self.matrix(block + "ssm_out.weight", WIDTH, INNER)
        else:
            self._attention(block, normed=True, gated=True)
        if self.moe:
            self._experts(block, gates=True)
            self.matrix(block + "ffn_gate_shexp.weight", 32, WIDTH)
            self.tensor(block + "ffn_gate_inp_shexp.weight", self.rng.standard_normal(WIDTH))
            self._shared_experts(block)
        else:
            self._feed_forward(block)

    def _lfm2_block(self, block, kind, i):
        self.norm(block + "ffn_norm.weight", WIDTH)
        if kind == "r":
            self._convolution(block + "shortconv.conv.weight", WIDTH, 3)
            self.matrix(block + "shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            self.matrix(block + "shortconv.out_proj.weight", WIDTH, WIDTH)
        else:
            self._attention(block, normed=True)
        if self.moe and i:
            self._experts(block, gates=True)
            self.tensor(block + "exp_probs_b.bias", self.rng.standard_normal(EXPERTS) * 0.1)
        else:
            self._feed_forward(block)

    def _nemotron_h_block(self, block, kind, _i):
        if kind == "r":
            convolved = INNER + 2 * GROUPS * STATE
            self.matrix(block + "ssm_in.weight", INNER + convolved + STATE_HEADS, WIDTH)
            self._convolution(block + "ssm_conv1d.weight", convolved, KERNEL)
            self.norm(block + "ssm_conv1d.bias", convolved)
            self.norm(block + "ssm_dt.bias", STATE_HEADS)
            self.tensor(block + "ssm_a", -self.rng.uniform(0.05, 0.5, (STATE_HEADS, 1)))
            self.norm(block + "ssm_d", STATE_HEADS, 1)
            self.norm(block + "ssm_norm.weight", GROUPS, INNER // GROUPS)
            self.matrix(block + "ssm_out.weight", WIDTH, INNER)
        if kind in "an":
            self._attention(block)
        if kind == "n":
            self.norm(block + "post_attention_norm.weight", WIDTH)
        if kind in "fn" and self.moe:
            self._experts(block, gates=False)
            self.tensor(block + "exp_probs_b.bias", self.rng.standard_normal(EXPERTS) * 0.1)
            self._shared_experts(block)
        elif kind in "fn":
            self.matrix(block + "ffn_up.weight", FEED, WIDTH)
            self.matrix(block + "ffn_down.weight", WIDTH, FEED)

    def _attention(self, block, *, normed=False, gated=False):
        queries, keys = HEADS * HEAD, KV_HEADS * HEAD
        for name, rows in (("q", (1 + gated) * queries), ("k", keys), ("v", keys)):
            self.matrix(f"{block}attn_{name}.weight", rows, WIDTH, scale=1.5)
        for name in ("attn_q_norm", "attn_k_norm") if normed else ():
            self.norm(f"{block}{name}.weight", HEAD)
        self.matrix(block + "attn_output.weight", WIDTH, queries)

    def _feed_forward(self, block):
        for name, shape in (("gate", (FEED, WIDTH)), ("up", (FEED, WIDTH)), ("down", (WIDTH, FEED))):
            self.matrix(f"{block}ffn_{name}.weight", *shape)

    def _experts(self, block, *, gates):
        rows = FEED // 3 * 2
        self.tensor(block + "ffn_gate_inp.weight", self.rng.standard_normal((EXPERTS, WIDTH)) / 8)
        for name in ("gate", "up") if gates else ("up",):
            self.matrix(f"{block}ffn_{name}_exps.weight", EXPERTS, rows, WIDTH)
        self.matrix(block + "ffn_down_exps.weight", EXPERTS, WIDTH, rows)

    def _shared_experts(self, block):
        self.matrix(block + "ffn_up_shexp.weight", 32, WIDTH)
        self.matrix(block + "ffn_down_shexp.weight", WIDTH, 32)

    def _convolution(self, name, channels, length):
        self.tensor(name, self.rng.standard_normal((channels, length)) / np.sqrt(length))


def write_hybrid(path, architecture, **options):
    """A model of one of `HYBRIDS`; options as in `Hybrid`."""
    writer = Hybrid(path, architecture, **options)
    for i in range(writer.blocks):
        writer.block(i)
    writer.close()
    return path
