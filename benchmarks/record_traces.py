"""Record what a model does on real prompts, so that drafters can be tuned by replay without running it.

    python benchmarks/record_traces.py MODEL.gguf OUT_DIR PROMPTS.jsonl [PROMPTS.jsonl ...]

Prompts are in any format that specx.engine.bench.suites reads; of several turns, the first is answered.
The answers as text are in answers.jsonl, for `specx cache add`. Each trace is one .npz file:

    category: str
    prompt: (P,) int32, output: (N,) int32 greedy continuation
    ids: (P + N, 8) int32, logits: (P + N, 8) float32: the target's best tokens after each position
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import llama_cpp
import numpy as np

from specx.backends.errors import SpecxError
from specx.engine.bench.suites import Prompt, load_suite, sample

TOP = 8
CHUNK = 256  # prompt tokens a decode call; each of them returns a full row of logits


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes has no types for it
def _silence(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Drop libllama's messages: stdout and stderr are the reader's."""


class Recorder:
    """One model and one context, reused for every prompt."""

    def __init__(self, path: Path, n_ctx: int, threads: int) -> None:
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"error: {path} is not a model that libllama can load")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, CHUNK, CHUNK
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        buffer = ctypes.create_string_buffer(1 << 16)
        llama_cpp.llama_model_meta_val_str(self.model, b"tokenizer.chat_template", buffer, len(buffer))
        self.template = jinja2.Environment().from_string(buffer.value.decode())

    def tokenize(self, prompt: Prompt) -> np.ndarray:
        """A prompt, rendered with the model's own chat template if it is a conversation: (P,) int32."""
        rendered = prompt.text or self.template.render(
            messages=prompt.conversation(), add_generation_prompt=True
        )
        text = rendered.encode()
        tokens = (llama_cpp.llama_token * (len(text) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), tokens, len(tokens), False, True)
        return np.array(tokens[:n], np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """Of an answer, without special tokens."""
        ids, room = (llama_cpp.llama_token * len(tokens))(*tokens.tolist()), 64 * len(tokens) + 64
        buffer = ctypes.create_string_buffer(room)
        n = llama_cpp.llama_detokenize(self.vocab, ids, len(tokens), buffer, room, True, False)
        return buffer.raw[: max(n, 0)].decode("utf-8", "replace")

    def decode(self, tokens: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Commit tokens; the ids and logits (n, TOP) that follow each of them, best first."""
        n = len(tokens)
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i], batch.logits[i] = int(tokens[i]), position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise SystemExit(f"error: llama_decode returned {code}")
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(n, self.n_vocab))
        ids = np.argpartition(rows, -TOP, axis=1)[:, -TOP:]
        logits = np.take_along_axis(rows, ids, axis=1)
        order = np.lexsort((ids, -logits), axis=1)
        return (
            np.take_along_axis(ids, order, axis=1).astype(np.int32),
            np.take_along_axis(logits, order, axis=1).astype(np.float32),
        )

    def record(self, prompt: np.ndarray, n_tokens: int) -> dict[str, np.ndarray]:
        """Read the prompt, continue it greedily, and keep the best tokens of every position."""
        llama_cpp.llama_memory_clear(self.memory, True)
        rows = [self.decode(prompt[i : i + CHUNK], i) for i in range(0, len(prompt), CHUNK)]
        output: list[int] = []
        while len(output) < n_tokens:
            token = int(rows[-1][0][-1, 0])
            output.append(token)
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                break
            rows.append(self.decode(np.array([token], np.int32), len(prompt) + len(output) - 1))
        ids, logits = (np.concatenate(part) for part in zip(*rows, strict=True))
        n = len(prompt) + len(output)
        pad = ((0, n - len(ids)), (0, 0))  # nothing follows an end-of-generation token
        return {
            "prompt": prompt,
            "output": np.array(output, np.int32),
            "ids": np.pad(ids, pad),
            "logits": np.pad(logits, pad),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+")
    parser.add_argument("--per-category", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--max-prompt", type=int, default=3000, help="skip longer prompts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    try:
        prompts = [prompt for path in args.prompts for prompt in load_suite(path)]
    except SpecxError as error:
        raise SystemExit(f"error: {error}") from error
    chosen = sample(prompts, args.per_category, seed=0)
    recorder = Recorder(args.model, args.max_prompt + args.tokens + 8, args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    answers = []
    for prompt in chosen:
        tokens = recorder.tokenize(prompt)
        if len(tokens) > args.max_prompt:
            print(f"{prompt.id}: skipped, {len(tokens)} prompt tokens", file=sys.stderr)
            continue
        trace = recorder.record(tokens, args.tokens)
        name = prompt.id.replace("/", "_")
        arrays: dict[str, Any] = {"category": np.array(prompt.category), **trace}
        np.savez_compressed(args.out / f"{name}.npz", allow_pickle=False, **arrays)
        answers.append(json.dumps({"category": prompt.category, "answer": recorder.text(trace["output"])}))
        (args.out / "answers.jsonl").write_text("\n".join(answers) + "\n", encoding="utf-8")
        print(f"{prompt.id}: {len(tokens)} + {len(trace['output'])} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
