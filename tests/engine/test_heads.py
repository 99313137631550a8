"""Real heads on real models: asked at every step, and the text is the same to the last token.

Heads of random weights are never right for long, so the calibration is made to believe in them.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from specx.backends.gguf.head_target import HEAD_TARGET
from specx.backends.llama import block_head as block_module
from specx.backends.llama import extraction
from specx.backends.llama import head as head_module
from specx.backends.llama.kernels import unavailable
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import Guess
from specx.drafters.head import HeadGuesser
from specx.engine import drafting
from specx.engine.generation import Generation
from specx.engine.offers import Asking, Reason
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from steady import steadied
from tiny_heads import write_dflash, write_eagle3

BASE = [1, *range(259, 299)]
PROMPTS = [BASE, [*BASE, *range(270, 300)], BASE[:20], [*BASE[:30], 260, 261]]
STEPS = {"1": 10.0, "2": 10.2, "4": 10.5, "8": 11.0, "16": 14.0, "32": 20.0, "64": 40.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, write_tiny):
    """Architecture -> a target and a head for it, in a folder of their own."""
    made = {}

    def pair(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            target = write_tiny(folder / "target.gguf", architecture)
            head = folder / "head.gguf"
            write_eagle3(head, d_target=64, n_vocab=304, layers=(1, 3, 4), n_draft=128, tokens=target)
            made[architecture] = target, head
        return made[architecture]

    return pair


@pytest.fixture
def believed(monkeypatch):
    """Up to three tokens of a head are asked for at every step, whatever the clock says, and counted."""
    asked, turns, seen = [], Counter(), {}

    def weigh(_asking, terms, _drafts, i, _offer, _best):
        text = terms.jobs[i].text
        seen[id(text)] = text  # which stays, or another one could have its id
        turns[id(text), len(text.tokens)] += 1
        return (1.0, Reason.GAIN) if turns[id(text), len(text.tokens)] <= 3 else (0.0, None)

    monkeypatch.setattr(Asking, "weigh", weigh)
    begin = ModelCalibration.__init__

    def sure(calibration):
        begin(calibration)
        for counts in (calibration.cells, calibration.margins, calibration.forecasts, calibration.all):
            counts[...] = 0.9e12, 1e12

    monkeypatch.setattr(ModelCalibration, "__init__", sure)
    monkeypatch.setattr(drafting, "REMEMBERED", 1 << 30)
    step = head_module.LlamaHead.step

    def counted(self, slot, tokens, hidden, position):
        asked.append((slot, len(tokens)))
        return step(self, slot, tokens, hidden, position)

    monkeypatch.setattr(head_module.LlamaHead, "step", counted)
    draft = block_module.LlamaBlockHead.draft

    def counted_block(self, slot, token, position):
        asked.append((slot, self.size))
        return draft(self, slot, token, position)

    monkeypatch.setattr(block_module.LlamaBlockHead, "draft", counted_block)
    return asked


def opened(target, head=None, notices=None, **options):
    if reason := unavailable():
        pytest.skip(reason)
    asked = Asked(
        target,
        **{
            "n_ctx": 256, "threads": 1, "kernels": "specx", "store": False, "measure": False,
            "context_shift": True, "drafter": "none", **options,
        },
    )  # fmt: skip
    if head is not None:
        drafter = options.get("drafter", "model")
        asked = replace(asked, drafter=drafter, draft=AskedModel(model=head))
    session = Session.open(asked, notice=(notices if notices is not None else []).append)
    return steadied(session, {"0": STEPS, "288": STEPS})


def texts(session, temperature, at_once=1):
    """What is written to prompts that go on from each other, go back, and fill the context."""
    sampling = SamplingSettings(temperature=temperature, seed=11)
    found = [
        session.generate(prompt, sampling, n_predict=n, ignore_eos=True)
        for prompt, n in zip(PROMPTS, (40, 40, 330, 20), strict=True)
    ]
    if at_once == 1:
        for generation in found:
            for _ in generation:
                pass
    else:
        for _ in session.together(found, at_once):
            pass
    return [generation.result.tokens for generation in found]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_texts_are_the_same_with_a_head(architecture, temperature, pairs, believed):
    target, head = pairs(architecture)
    with opened(target) as session:
        plain = texts(session, temperature)
    with opened(target, head) as session:
        assert texts(session, temperature) == plain
        assert session.draft_models.name == "head"
    assert len(believed) > 100 and max(n for _, n in believed) > 30


BLOCKS = {
    "dflash": {"size": 5},
    "dflash, of some tokens": {"size": 3, "n_draft": 128, "causal": True},
    "dspark": {"size": 3, "markov": 8, "n_draft": 128},
    "dspark, after the anchor": {"size": 4, "markov": 8, "from_anchor": False},
    "dflash, with the target's matrices": {"size": 5, "own_embeddings": False, "own_output": False},
}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("form", BLOCKS)
def test_texts_are_the_same_with_a_head_that_drafts_a_block(form, temperature, pairs, believed, tmp_path):
    target, _ = pairs("llama")
    head, notices = tmp_path / "block.gguf", []
    write_dflash(head, n_vocab=304, layers=(1, 3, 4, 2), tokens=target, **BLOCKS[form])
    with opened(target) as session:
        plain = texts(session, temperature)
    with opened(target, head, notices) as session:
        assert texts(session, temperature) == plain
        assert session.draft_models.name == "block", notices
    assert len(believed) > 40  # a block a step, until it is seen that none is right
    assert {n for _, n in believed} == {BLOCKS[form]["size"]}


def test_texts_are_the_same_all_at_once(pairs, believed):
    target, head = pairs("llama")
    with opened(target, texts=3) as session:
        plain = texts(session, 0.7, 3)
    with opened(target, head, texts=3) as session:
        assert texts(session, 0.7, 3) == plain
    assert len({slot for slot, _ in believed}) == 3


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_trees_are_drafted_with_llama_cpp_s_kernels(pairs, believed, monkeypatch, temperature):
    """Where a text may differ at a near tie only: weights and caches of 32 bits have none here.

    Runners-up stand beside the chain, and the second is mostly what comes next.
    """
    target, head = pairs("llama")
    following, accepted = {}, []
    choice, take = HeadGuesser._choice, Generation.take

    def led(self, row, chain):
        guess = choice(self, row, chain)
        right = following.get((*self._text.tokens, *chain), guess.token)
        if right == guess.token:
            return guess
        return Guess(guess.token, guess.margin, ((right, 0.1), *guess.others[:1]))

    def counted(self, step):
        parents = step.draft.parents.tolist()
        accepted.append(any(parents.index(parents[node]) < node for node in step.accepted))
        return take(self, step)

    monkeypatch.setattr(HeadGuesser, "_choice", led)
    monkeypatch.setattr(Generation, "take", counted)
    precise = {"kernels": "stock", "type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    with opened(target, **precise) as session:
        plain = texts(session, temperature)
    for prompt, text in zip(PROMPTS, plain, strict=True):
        whole = [*prompt, *text]
        following.update({tuple(whole[:i]): whole[i] for i in range(len(prompt), len(whole))})
    accepted.clear()
    with opened(target, head, drafter="model", **precise) as session:
        assert texts(session, temperature) == plain
    assert believed and sum(accepted) > 30


def test_a_head_that_reads_its_target_s_matrices(pairs, believed, tmp_path):
    target, _ = pairs("llama")
    head = tmp_path / "lends.gguf"
    write_eagle3(
        head, d_target=64, n_vocab=304, layers=(1, 2, 3), tokens=target,
        own_embeddings=False, own_output=False,
    )  # fmt: skip
    with opened(target) as session:
        plain = texts(session, 0.0)
    with opened(target, head) as session:
        assert texts(session, 0.0) == plain
    assert believed


def test_a_head_beside_its_target_is_found(pairs, believed):
    target, _ = pairs("llama")
    notices = []
    with opened(target, drafter="auto", notices=notices) as session:
        found = [*session.draft_models._source.search()]
    assert "head" in [each.name for each in found if each is not None and getattr(each, "layers", ())]


def test_a_head_for_another_target_is_refused_and_decoding_goes_on(pairs, tmp_path, believed):
    target, _ = pairs("llama")
    head, notices = tmp_path / "stranger.gguf", []
    other = ((HEAD_TARGET, "0" * 32, gguf.GGUFValueType.STRING),)
    write_eagle3(head, d_target=64, n_vocab=304, layers=(1, 2, 3), tokens=target, extra=other)
    with opened(target) as session:
        plain = texts(session, 0.0)
    with opened(target, head, notices, drafter="auto") as session:
        assert texts(session, 0.0) == plain
    assert any("stranger.gguf cannot draft" in told and "another model" in told for told in notices)
    assert not believed


@pytest.mark.parametrize("missing", ["head", "target"])
def test_a_build_without_heads_says_so_once_and_decodes(missing, pairs, monkeypatch, believed):
    target, head = pairs("llama")
    with opened(target) as session:
        plain = texts(session, 0.0)
    if missing == "head":
        monkeypatch.setattr(head_module, "nextn_functions", lambda: None)
    else:
        monkeypatch.setattr(extraction, "cxx_function", lambda *_: None)
    notices = []
    with opened(target, head, notices) as session:
        assert texts(session, 0.0) == plain
    told = [notice for notice in notices if "head" in notice]
    assert len(told) == 1, notices
    assert ("not available in this build" in told[0]) == (missing == "head")
