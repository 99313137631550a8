"""A head computes the same in torch and, exported, in llama.cpp."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.head_target import HEAD_TARGET, head_target
from specx.backends.llama.libllama import lib

torch = pytest.importorskip("torch")

from specx.drafters.train.export import target_matrix, write_head  # noqa: E402
from specx.drafters.train.head import Head, Keys  # noqa: E402
from specx.drafters.train.shape import HeadShape  # noqa: E402

TESTS = Path(__file__).parents[2]
ROWS = np.arange(3, 303, 2, dtype=np.int32)


def llama_head(path, **options):
    spec = importlib.util.spec_from_file_location("llama_head", TESTS / "llama_head.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LlamaHead(lib(), path, **options)


def random_head(info, **others):
    torch.manual_seed(3)
    embedding = torch.from_numpy(target_matrix(info, "token_embd.weight").copy())
    shape = HeadShape.of_target(info, len(ROWS), **others)
    head = Head(shape, embedding, torch.randn(len(ROWS), shape.width) * 0.3)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return head


def weights_of(head):
    return {name: p.detach().numpy() for name, p in head.named_parameters()}


@pytest.mark.parametrize("before_fc", [False, True])
@pytest.mark.parametrize("before_residual", [False, True])
def test_torch_and_llama_cpp_agree(write_tiny, tmp_path, before_fc, before_residual):
    info = read_gguf(write_tiny(tmp_path / "target.gguf", "llama"))
    head = random_head(info, norm_before_fc=before_fc, norm_before_residual=before_residual)
    path = tmp_path / "head.gguf"
    write_head(
        path, weights_of(head), head.shape, ROWS, info,
        trained={"tokens": 0}, embedding="F32", matrices="F16", output="F16",
    )  # fmt: skip
    rng = np.random.default_rng(7)
    features = rng.standard_normal((12, head.shape.features)).astype(np.float32)
    tokens = rng.integers(0, info.vocabulary_size, 16).astype(np.int32)
    run = llama_head(path)
    hidden = run.encode(features)
    with torch.no_grad():
        ours = head.encode(torch.from_numpy(features)[None])
        assert np.abs(ours[0].numpy() - hidden).max() < 0.01
        known, starts = Keys(), torch.arange(12)
        state = head.step(torch.from_numpy(tokens[None, 1:13]).long(), ours, known, starts)
        logits, states = run.step(tokens[1:13], hidden, 0)
        same(head.logits(state)[0].numpy(), logits, head, state, states)
        for k in (1, 2):  # the chain that starts at the last position
            given = torch.from_numpy(tokens[None, 12 + k : 13 + k]).long()
            state = head.step(given, state[:, -1:], known_of(known, 11), starts[-1:])
            logits, states = run.step(tokens[12 + k : 13 + k], states[-1:], 11 + k)
            same(head.logits(state)[0].numpy(), logits, head, state, states)
    run.close()


def known_of(known, start):
    """What the chain of one start sees of the steps after the first, which is all positions'."""
    for i in range(1, len(known.keys)):
        known.keys[i], known.values[i] = known.keys[i][:, :, -1:], known.values[i][:, :, -1:]
    return known


def same(ours, theirs, head, state, states):
    assert np.abs(state[0].numpy() - states).max() < 0.03
    assert np.abs(ours - theirs[:, ROWS]).max() < 0.03
    others = np.setdiff1d(np.arange(theirs.shape[1]), ROWS)
    assert np.isneginf(theirs[:, others]).all()
    best = np.sort(ours, 1)
    clear = best[:, -1] - best[:, -2] > 0.06  # twice what the logits may differ by
    assert clear.any()
    assert (ROWS[ours.argmax(1)] == theirs.argmax(1))[clear].all()


def test_a_head_says_what_it_is_for(write_tiny, tmp_path):
    info = read_gguf(write_tiny(tmp_path / "target.gguf", "llama"))
    other = read_gguf(write_tiny(tmp_path / "other.gguf", "llama", blocks=7))
    head = random_head(info)
    write_head(
        tmp_path / "head.gguf",
        weights_of(head),
        head.shape,
        ROWS,
        info,
        trained={"tokens": 5, "by_step": [0.5]},
    )
    made = read_gguf(tmp_path / "head.gguf")
    assert made.architecture == "eagle3"
    assert made.metadata[HEAD_TARGET] == head_target(info) != head_target(other)
    assert made.metadata["specx.made.how"] == "train"
    assert made.metadata["specx.made.parameters"] == "tokens=5"  # what is listed in one line
    assert "token_embd.weight" not in {tensor.name for tensor in made.tensors}
