"""Damaged GGUF files: a header taken apart, what can be wrong with it, and what comes of each.

`python damage.py MODEL PART OF` runs `specx complete` on every OF-th damaged copy of MODEL and prints a
line of JSON for each. The processes are forked, because starting Python takes longer than all the rest.
"""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
LIMIT_S = 60


def scalar(kind, value):
    return struct.pack("<I" + SCALARS[kind], kind, value)


def string(text):
    return struct.pack("<IQ", STRING, len(text)) + text


def array(kind, values):
    body = b"".join(
        struct.pack("<Q", len(v)) + v if kind == STRING else struct.pack("<" + SCALARS[kind], v)
        for v in values
    )
    return struct.pack("<IIQ", ARRAY, kind, len(values)) + body


@dataclass(frozen=True)
class Tensor:
    name: bytes
    shape: tuple
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """A GGUF file: its values as they are written, its tensors and its data."""

    values: dict
    tensors: tuple
    data: bytes

    def written(self):
        out = [struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.values))]
        for key, value in self.values.items():
            out.append(struct.pack("<Q", len(key)) + key + value)
        for t in self.tensors:
            out.append(struct.pack("<Q", len(t.name)) + t.name + struct.pack("<I", len(t.shape)))
            out.append(struct.pack(f"<{len(t.shape)}QIQ", *t.shape, t.kind, t.offset))
        head = b"".join(out)
        return head + bytes(-len(head) % 32) + self.data


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def text(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def element(self, kind):
        return self.text() if kind == STRING else self.take(SCALARS[kind])

    def value(self):
        kind = self.take("I")
        if kind != ARRAY:
            return kind, self.element(kind)
        kind, count = self.take("I"), self.take("Q")
        return ARRAY, (kind, [self.element(kind) for _ in range(count)])


def parsed(data):
    reader, values = Reader(data), {}
    _, _, n_tensors, n_values = reader.take("4sIQQ")
    for _ in range(n_values):
        key, start = reader.text(), reader.at
        reader.value()
        values[key] = data[start : reader.at]
    tensors = []
    for _ in range(n_tensors):
        name, n = reader.text(), reader.take("I")
        shape = tuple(reader.take("Q") for _ in range(n))
        tensors.append(Tensor(name, shape, *reader.take("IQ")))
    return Header(values, tuple(tensors), data[-(-reader.at // 32) * 32 :])


ANY = {
    "u32 0": scalar(UINT32, 0),
    "u32 1": scalar(UINT32, 1),
    "i32 -1": scalar(INT32, -1),
    "f32 1.5": scalar(FLOAT32, 1.5),
    "bool": scalar(BOOL, True),
    "u64 huge": scalar(UINT64, 1 << 62),
    "string": string(b"x"),
    "[]": array(UINT32, []),
    "[u32]": array(UINT32, [1]),
    "[string]": array(STRING, [b"a"]),
    "[f32 nan]": array(FLOAT32, [float("nan")]),
}
MISSING = (
    "sliding_window",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "expert_count",
    "expert_used_count",
    "expert_group_count",
    "expert_group_used_count",
    "nextn_predict_layers",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.freq_base",
    "rope.dimension_count",
    "attention.key_length",
    "attention.value_length",
    "attention.clamp_kqv",
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.shared_kv_layers",
    "attention.layer_norm_epsilon",
    "logit_scale",
    "vocab_size",
    "pooling_type",
    "expert_feed_forward_length",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "rope.dimension_sections",
)
TOKENIZER = (
    "tokenizer.ggml.pre",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.padding_token_id",
    "general.alignment",
    "tokenizer.chat_template",
    "split.count",
    "split.no",
    "split.tensors.count",
    "general.type",
    "general.file_type",
)


TOKENIZERS = (
    b"none",
    b"llama",
    b"gpt2",
    b"bert",
    b"t5",
    b"rwkv",
    b"plamo2",
    b"gemma4",
    b"whitespace",
    b"test",
)


def wrong_values(raw):
    """What a value may be instead: (name, bytes)."""
    yield from ANY.items()
    kind, value = Reader(raw).value()
    if kind in (0, 1, 2, 3, 4, 5, 10, 11):
        top = (1 << (8 * struct.calcsize(SCALARS[kind]) - (kind in (1, 3, 5, 11)))) - 1
        for other in (2, 3, value + 1, value * 2, value // 2, top, top // 2):
            if 0 <= other <= top:
                yield f"= {other}", scalar(kind, other)
    elif kind in (FLOAT32, 12):
        for other in (0.0, -1.0, float("nan"), float("inf"), 1e-38, 1e38):
            yield f"= {other}", scalar(kind, other)
    elif kind == STRING:
        for other in (b"", b"\xff\xfe", b"x" * 5000, b"\x1b[31m\n", *TOKENIZERS):
            yield f"= {other[:9]!r}", string(other)
    elif kind == ARRAY:
        of, items = value
        if items:
            yield "shorter", array(of, items[:-1])
            yield "longer", array(of, [*items, items[-1]])
            yield "all the same", array(of, [items[0]] * len(items))
            yield "reversed", array(of, items[::-1])
        if of == STRING:
            yield "empty texts", array(of, [b""] * len(items))
            yield "no UTF-8", array(of, [b"\xff" + item for item in items])
        else:
            for other in (0, 1, 3, 6, 77):
                yield f"all {other}", array(of, [other] * len(items))


def wrong_tensors(tensors):
    """What one tensor may be instead: (name, tensors)."""
    for i in sorted({0, 1, 2, 3, 4, 5, len(tensors) // 2, len(tensors) - 1}):
        t = tensors[i]
        if not t.shape:  # it was damaged before
            continue
        others = {
            "name": replace(t, name=t.name + b"x"),
            "no name": replace(t, name=b""),
            "long name": replace(t, name=b"n" * 100),
            "name as another": replace(t, name=tensors[i - 1].name),
            "reversed shape": replace(t, shape=t.shape[::-1]),
            "no shape": replace(t, shape=()),
            "zero": replace(t, shape=(0, *t.shape[1:])),
            "one more": replace(t, shape=(sum(t.shape[:1]) + 1, *t.shape[1:])),  # it may have none
            "half": replace(t, shape=(sum(t.shape[:1]) // 2, *t.shape[1:])),
            "huge": replace(t, shape=(1 << 62, *t.shape[1:])),
            "overflow": replace(t, shape=(1 << 32, 1 << 32)),
            "four": replace(t, shape=(*t.shape, 1, 1, 1)[:4]),
            "offset 1": replace(t, offset=t.offset + 1),
            "offset 32": replace(t, offset=t.offset + 32),
            "offset huge": replace(t, offset=(1 << 63) - 32),
        }
        others |= {f"type {k}": replace(t, kind=k) for k in (1, 2, 4, 8, 12, 24, 30, 31, 36, 41, 77)}
        for what, other in others.items():
            yield f"{t.name.decode()}: {what}", (*tensors[:i], other, *tensors[i + 1 :])
        yield f"{t.name.decode()}: left out", (*tensors[:i], *tensors[i + 1 :])
        yield f"{t.name.decode()}: twice", (*tensors, t)


def damaged(header) -> Iterator:
    """(what is wrong, the header with it)."""
    architecture = Reader(header.values[b"general.architecture"]).value()[1]
    for key, raw in header.values.items():
        left = {k: v for k, v in header.values.items() if k != key}
        yield f"{key.decode()}: left out", replace(header, values=left)
        for what, value in wrong_values(raw):
            yield f"{key.decode()}: {what}", replace(header, values={**header.values, key: value})
    for name in MISSING:
        yield from _added(header, architecture + b"." + name.encode())
    for name in TOKENIZER:
        yield from _added(header, name.encode())
    for what, tensors in wrong_tensors(header.tensors):
        yield what, replace(header, tensors=tensors)


def _added(header, key):
    if key in header.values:
        return
    for what, value in {**ANY, "u32 2": scalar(UINT32, 2), "f32 nan": scalar(FLOAT32, float("nan"))}.items():
        yield f"{key.decode()}: + {what}", replace(header, values={**header.values, key: value})


def outcome(arguments, folder):
    """Exit code (negative for a signal), stdout and stderr of `specx` in a fork of this process."""
    out, err = Path(folder, "out"), Path(folder, "err")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            signal.alarm(LIMIT_S)
            from specx.cli.app import run

            code = run(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    texts = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err)]
    return os.waitstatus_to_exitcode(status), *texts


def main():
    # What is imported here need not be imported in each fork.
    import llama_cpp  # noqa: F401
    import numpy.ma  # noqa: F401

    import specx.engine.session
    import specx.engine.setup.open  # noqa: F401
    from specx.cli.app import run

    model, part, of = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    arguments = ["complete", "-q", "--no-cache", "-t", "1", "-n", "2", "--temp", "0", "--kernels", "stock"]
    arguments += ["-c", "64", "-p", "hi you", *sys.argv[4:]]
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stderr(io.StringIO()),
        redirect_stdout(io.StringIO()),
    ):
        run(["show", str(model)])  # what is imported once need not be imported in each
        run([*arguments, str(Path(folder, "none.gguf"))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.gguf")
        for number, (what, header) in enumerate(damaged(parsed(model.read_bytes()))):
            if number % of == part:
                path.write_bytes(header.written())
                code, out, err = outcome([*arguments, str(path)], folder)
                print(json.dumps({"what": what, "code": code, "out": out, "err": err}), flush=True)


if __name__ == "__main__":
    main()
