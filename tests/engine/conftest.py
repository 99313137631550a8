"""Model files that are large enough to be read, not to be run."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

WORDS = [f"word{i}" for i in range(64)]
LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write(path, width, *, tokens=WORDS, layers=1, architecture="llama", recurrent=False):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_head_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), width), np.float32))
    writer.add_tensor("output.weight", np.zeros((len(tokens), width), np.float32))
    for i in range(layers):
        for name in ("ssm_in", "ssm_out") if recurrent else LAYER:
            writer.add_tensor(f"blk.{i}.{name}.weight", np.zeros((width, width), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@pytest.fixture
def write_model():
    """Writes a GGUF file of some layers of zeros, `width` wide; returns its path."""
    return write
