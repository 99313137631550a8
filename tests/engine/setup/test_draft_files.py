"""Draft models among the GGUF files of a machine: the one a person named, and what may be loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.file import read_gguf
from specx.backends.scripted import ScriptedModel
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.setup import draft_files
from specx.engine.setup.decide import decide
from specx.engine.setup.draft_files import DraftFiles, NamedDraft, named_draft
from specx.engine.setup.finder import Candidate, Unfit
from specx.engine.setup.here import Here

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_heads import write_eagle3


@pytest.fixture
def target(tmp_path, write_model):
    return read_gguf(write_model(tmp_path / "target.gguf", 64, layers=4))


def drafts_of(target, load=lambda _load: ScriptedModel(64), store=None, **options):
    asked = Asked(target.path, threads=3, n_ctx=512, kernels="stock", store=False, **options)
    here = Here.of(asked) if store is None else replace(Here.of(asked), store=store)
    return DraftFiles(decide(asked, here), here, load, None)


def test_a_named_model(target, tmp_path, write_model):
    small = write_model(tmp_path / "small.gguf", 16)
    settings = Asked(target.path, draft=AskedModel(small))
    named = named_draft(target, settings)
    assert named.candidate.path == small and named.candidate.shared == 64
    assert named.header.fingerprint == named.candidate.fingerprint
    assert named_draft(target, replace(settings, drafter="none")) is None
    assert named_draft(target, replace(settings, draft=AskedModel())) is None
    larger = replace(settings, draft=AskedModel(write_model(tmp_path / "larger.gguf", 96)))
    assert named_draft(target, larger).candidate.name == "larger"  # whoever names it gets it


def test_what_is_wrong_with_a_named_model(target, tmp_path, write_model):
    settings = Asked(target.path)
    truncated = write_model(tmp_path / "cut.gguf", 16)
    truncated.write_bytes(truncated.read_bytes()[:900])
    for path, reason in (
        (write_model(tmp_path / "r.gguf", 16, architecture="mamba", recurrent=True), "its recurrent state"),
        (write_model(tmp_path / "e.gguf", 16, architecture="t5"), "encoder"),
        (write_model(tmp_path / "q.gguf", 16, pooling=gguf.PoolingType.LAST), "embedding model"),
        (write_model(tmp_path / "k.gguf", 16, pooling=gguf.PoolingType.RANK), "reranker"),
        (write_model(tmp_path / "w.gguf", 16, tokenizer="bert"), r"its tokenizer \(WPM\) does not keep"),
        (truncated, "cut short"),
        (Path("missing.gguf"), "no file"),
    ):
        found = named_draft(target, replace(settings, draft=AskedModel(path)))
        assert isinstance(found, Unfit) and re.search(reason, found.reason), found


def test_a_named_model_of_another_vocabulary(target, tmp_path, write_model):
    foreign = write_model(tmp_path / "foreign.gguf", 16, tokens=[f"other{i}" for i in range(64)])
    found = named_draft(target, Asked(target.path, draft=AskedModel(foreign)))
    assert isinstance(found, NamedDraft) and found.candidate.translated


def test_decoding_goes_on_without_a_model_that_cannot_draft(target, tmp_path, write_model):
    told = []
    path = write_model(tmp_path / "w.gguf", 16, tokenizer="t5")
    asked = Asked(target.path, drafter="model", draft=AskedModel(path), kernels="stock", store=False)
    setup = decide(asked, Here.of(asked, notice=told.append))
    assert setup.draft is None and setup.drafter.value == "auto"
    assert "cannot draft" in setup.draft_model.why
    assert told == [
        "w.gguf cannot draft, and is left out: its tokenizer (UGM) does not keep a text byte by byte "
        "(`specx drafter list` names models that can)"
    ]


def wrong_models(folder, write_model, real):
    """Files that cannot draft, and what is said of each."""
    cut, text = folder / "cut.gguf", folder / "text.gguf"
    cut.write_bytes(real.read_bytes()[: real.stat().st_size // 2])
    text.write_text("no model at all")
    pooling = gguf.PoolingType
    yield write_model(folder / "recurrent.gguf", 16, architecture="mamba", recurrent=True), "recurrent state"
    yield write_model(folder / "encoder.gguf", 16, architecture="t5"), "encoder"
    yield write_model(folder / "embedding.gguf", 16, pooling=pooling.LAST), "an embedding model"
    yield write_model(folder / "reranker.gguf", 16, pooling=pooling.RANK), "a reranker"
    yield write_model(folder / "wpm.gguf", 16, tokenizer="bert"), r"its tokenizer \(WPM\)"
    yield cut, "cut short"
    yield text, "GGUF"
    yield folder / "missing.gguf", "no file"


def test_every_wrong_model_is_refused_by_name_and_decoding_goes_on(tmp_path, write_model, write_tiny):
    real = write_tiny(tmp_path / "real.gguf", "llama")
    asked = Asked(real, threads=1, n_ctx=256, kernels="stock", store=False, measure=False)

    def written(asked, told):
        with Session.open(asked, notice=told.append) as session:
            generation = session.generate("abc", SamplingSettings(seed=1, temperature=0.0), n_predict=8)
            list(generation)
            return generation.result.tokens

    plain = written(replace(asked, drafter="none"), [])
    assert len(plain) > 1
    for path, reason in wrong_models(tmp_path, write_model, real):
        for drafter in ("auto", "model"):
            told = []
            assert written(replace(asked, drafter=drafter, draft=AskedModel(path)), told) == plain
            [said] = [line for line in told if path.name in line]
            assert re.match(rf"{path.name} cannot draft, and is left out: .*{reason}", said), said
            assert "(`specx drafter list` names models that can)" in said


def test_how_it_is_loaded(target, tmp_path, write_model):
    seen = []
    drafts = drafts_of(
        target,
        lambda load: seen.append(load) or ScriptedModel(64),
        type_k="q8_0",
        drafter="model",
        draft=AskedModel(type_v="q8_0", threads=2, n_gpu_layers=0),
    )
    write_model(tmp_path / "small.gguf", 16)
    (candidate,) = [found for found in drafts.search() if isinstance(found, Candidate)]
    drafts.load(candidate)
    assert seen == [Load(candidate.path, 2, 2, n_ctx=512, n_gpu_layers=0, type_v="q8_0")]


@pytest.mark.parametrize(("free", "fits"), [(1 << 40, True), (1 << 20, False), (None, True)])
def test_memory_allows_it_or_not(target, tmp_path, write_model, monkeypatch, free, fits):
    monkeypatch.setattr(draft_files, "available_memory", lambda: free)
    candidate = named_draft(
        target, Asked(target.path, draft=AskedModel(write_model(tmp_path / "small.gguf", 16)))
    ).candidate
    reason = drafts_of(target).obstacle(candidate)
    assert (reason is None) == fits
    if reason:
        assert "of memory, and 1 MiB are free" in reason
    candidate.path.unlink()
    assert "no file" in drafts_of(target).obstacle(candidate)


OPENED = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from specx.backends.llama import last_words
from specx.backends.store import Store
from specx.engine.setup.opening import opening

last_words.before_the_end(lambda: None, lambda problem: None)
with opening(Store(Path(sys.argv[1])), sys.argv[2]):
    exec(sys.argv[3])
"""
GIVES_UP, CRASHES, FAILS = "last_words._end('an assertion')", "os.abort()", "raise OSError"


@pytest.mark.parametrize(
    ("happens", "left_out"),
    [
        ([GIVES_UP], True),
        ([CRASHES], False),  # it may have been killed
        ([CRASHES, CRASHES, CRASHES], True),
        ([CRASHES, CRASHES, "pass", CRASHES], False),
        ([FAILS] * 4, False),
    ],
)
def test_what_ended_specx_when_it_was_opened_is_not_opened_again(
    target, tmp_path, write_model, happens, left_out
):
    small = write_model(tmp_path / "small.gguf", 16)
    candidate = named_draft(target, Asked(target.path, draft=AskedModel(small))).candidate
    store = Store(tmp_path / "store")
    for what in happens:
        command = [sys.executable, "-P", "-c", OPENED, str(store.root), candidate.fingerprint, what]
        subprocess.run(command, check=False, capture_output=True)
    drafts = drafts_of(target, store=store)
    reason = drafts.obstacle(candidate)
    assert (reason is not None) == left_out
    if left_out:
        assert "gave up on it before" in reason
        store.clear("opening")
    drafts.load(candidate)
    assert drafts.obstacle(candidate) is None and store.load_json("opening", candidate.fingerprint) is None


HEAD_OPENED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from specx.backends.gguf.file import read_gguf
from specx.backends.llama import head, last_words
from specx.backends.scripted import ScriptedModel
from specx.backends.store import Store
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.setup.decide import decide
from specx.engine.setup.draft_files import DraftFiles
from specx.engine.setup.finder import check_candidate
from specx.engine.setup.here import Here
from dataclasses import replace

target, path, root = map(Path, sys.argv[1:4])
asked = Asked(target, threads=1, n_ctx=256, kernels="stock", store=False, draft=AskedModel(path))
here = replace(Here.of(asked), store=Store(root))
drafts = DraftFiles(decide(asked, here), here, lambda load: ScriptedModel(304), ScriptedModel(304))
candidate = check_candidate(read_gguf(target), path)
if sys.argv[4] == "gives up":
    last_words.before_the_end(lambda: None, lambda problem: None)
    head.LlamaHead.step = lambda *_: last_words._end("an assertion")
print(drafts.obstacle(candidate))
drafts.load_head(candidate).close()
print("loaded", drafts.obstacle(candidate))
"""


def test_a_head_that_gives_up_at_its_first_step_is_not_opened_again(tmp_path, write_tiny):
    target = write_tiny(tmp_path / "target.gguf", "llama")
    head = tmp_path / "head.gguf"
    write_eagle3(head, d_target=64, n_vocab=304, layers=(1, 3, 4), n_draft=96, tokens=target)

    def opened(how):
        command = [sys.executable, "-P", "-c", HEAD_OPENED, target, head, tmp_path / "store", how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines(), done.stderr

    assert opened("")[0] == ["None", "loaded None"]
    assert opened("gives up")[0] == ["None"]
    (said, *_), problem = opened("")
    assert "gave up on it before" in said, problem


def test_a_model_that_can_be_loaded_and_not_asked_does_not_stay_in_memory(target, write_model, tmp_path):
    small = write_model(tmp_path / "small.gguf", 16)
    candidate = named_draft(target, Asked(target.path, draft=AskedModel(small))).candidate

    class Broken(ScriptedModel):
        closed = False

        def open(self):
            raise ModelError("there is no memory for it", "free some")

        def close(self):
            self.closed = True

    broken = Broken(64)
    with pytest.raises(ModelError, match="no memory"):
        drafts_of(target, lambda _load: broken).load(candidate)
    assert broken.closed


@pytest.mark.parametrize("settles", [1, 3])
def test_on_a_gpu_heads_are_used_if_they_are_named_only(target, settles):
    drafts = drafts_of(target)
    drafts._target = ScriptedModel(64)
    drafts._target.facts = replace(drafts._target.facts, settles=settles)
    model, head = (
        Candidate(target.path, name, name, 64, 10, 10, layers) for name, layers in (("m", ()), ("h", (1,)))
    )
    drafts._finder = SimpleNamespace(search=lambda: iter([model, None, head]))
    found = list(drafts.search())
    assert found[:2] == [model, None]
    assert (found[2] == head) == (settles == 1)
    assert settles == 1 or (isinstance(found[2], Unfit) and "GPU" in found[2].reason)
