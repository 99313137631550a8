"""Added texts: indexed once, found by every run, and never a reason to fail or to write something else."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from specx.backends.errors import FileError, StoreError, UsageError
from specx.backends.scripted import ScriptedModel, ScriptedVocab
from specx.backends.store import Store
from specx.drafters.base import Room, Text
from specx.engine.learned import corpora as module
from specx.engine.learned.corpora import Corpora, all_texts
from specx.engine.learned.corpus_files import PIECE, read_texts, tokens_of
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

V = 64
SCRIPT = [int(token) for token in np.random.default_rng(7).integers(1, 28, 40)]
GREEDY = SamplingSettings(seed=5, temperature=0.0)
WARM = SamplingSettings(seed=6, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
FLAT = {"0": {str(n): 10.0 + n / 100 for n in range(1, 65)}}


def ints(values):
    return np.array(values, np.int32)


@pytest.fixture
def notices():
    return []


@pytest.fixture
def store(tmp_path, notices):
    return Store(tmp_path / "cache", notices.append)


def test_texts_are_added_listed_replaced_and_removed(store, notices):
    corpora = Corpora(store, "model")
    assert (corpora.texts(), corpora.open(V)) == ([], None)
    corpora.add([("a", ints([1, 2, 3, -1])), ("b", ints([4, 5, -1]))], "Model", clock=lambda: 7.0)
    assert [(t.name, t.tokens, t.size, t.added, t.model) for t in corpora.texts()] == [
        ("a", 4, 32, 7.0, "Model"),
        ("b", 3, 24, 7.0, "Model"),
    ]
    assert corpora.open(V).match([1, 2]) == (2, 1, [(3, 1.0)])
    corpora.add([("a", ints([1, 2, 9, -1]))], "Model")
    assert [text.name for text in corpora.texts()] == ["b", "a"]
    assert corpora.open(V).match([1, 2]) == (2, 1, [(9, 1.0)])
    Corpora(store, "other").add([("c", ints([1]))], "Other")
    assert [(key, text.name) for key, text in all_texts(store)] == [
        ("model", "b"),
        ("model", "a"),
        ("other", "c"),
    ]
    assert corpora.remove("a") and not corpora.remove("a")
    assert corpora.open(V).match([1, 2]) == (0, 0, [])
    assert corpora.remove("b")
    assert (corpora.texts(), corpora.open(V)) == ([], None)
    assert [entry.key for entry in store.entries()] == ["other"]
    assert notices == []


def test_only_the_user_can_read_an_index_and_other_entries_do_not_push_it_out(store, monkeypatch):
    Corpora(store, "model").add([("a", ints(range(60)))], "Model")
    [entry] = store.entries()
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    monkeypatch.setattr("specx.backends.store.MAX_BYTES", 10)
    store.save_json("record", "x", {})
    assert [entry.kind for entry in store.entries()] == ["corpus"]


def test_an_open_index_survives_its_replacement(store):
    corpora = Corpora(store, "model")
    corpora.add([("a", ints([1, 2, 3, -1]))], "Model")
    before = corpora.open(V)
    corpora.remove("a")
    assert before.match([1, 2]) == (2, 1, [(3, 1.0)])


def cut(data):
    return data[:-4]


def without_head(data):
    return b"x" * 200 + data[200:]


def wild_rows(data):
    return data[:-80] + np.full(20, 1 << 30, np.int32).tobytes()


def other_texts(data):
    return data.replace(b'"tokens": 20', b'"tokens": 21')


def long_head(data):
    return data[:8] + b"\xff\xff\xff\xff" + data[12:]


@pytest.mark.parametrize(
    "damage", [cut, without_head, wild_rows, other_texts, long_head, lambda data: b"", lambda data: data[:9]]
)
def test_a_damaged_index_is_set_aside(store, notices, damage):
    corpora = Corpora(store, "model")
    corpora.add([("a", ints(range(20)))], "Model")
    [entry] = store.entries()
    entry.path.write_bytes(damage(entry.path.read_bytes()))
    assert corpora.open(V) is None
    [entry] = store.entries()
    assert entry.damaged
    assert len(notices) == 1
    corpora.add([("a", ints(range(20)))], "Model")
    assert corpora.open(V) is not None


@pytest.mark.parametrize("token", [-5, 1 << 24, 1 << 30, (1 << 31) - 1])
@pytest.mark.parametrize("remove", [False, True])
def test_tokens_that_are_none_are_not_indexed_again(store, notices, token, remove):
    corpora = Corpora(store, "model")
    corpora.add([("a", ints(range(1000))), ("b", ints(range(9)))], "Model")
    [entry] = store.entries()
    data = bytearray(entry.path.read_bytes())
    data[4 * 500 - 8 * 1009 : 4 * 501 - 8 * 1009] = ints([token]).tobytes()
    entry.path.write_bytes(data)
    if remove:
        assert corpora.remove("b")
        assert corpora.texts() == []
    else:
        corpora.add([("c", ints(range(10)))], "Model")
        assert [text.name for text in corpora.texts()] == ["c"]
        assert corpora.open(V).match([3, 4]) == (2, 1, [(5, 1.0)])
    assert len(notices) == 1 and "set aside" in notices[0]


def test_an_index_of_a_larger_vocabulary_is_set_aside(store):
    corpora = Corpora(store, "model")
    corpora.add([("a", ints([V, 1, 2]))], "Model")
    assert corpora.open(V) is None
    assert corpora.texts() == []


def test_an_index_is_bounded_and_not_empty(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 10)
    corpora = Corpora(store, "model")
    corpora.add([("a", ints(range(8)))], "Model")
    with pytest.raises(UsageError, match="12 tokens together, 10 is the most"):
        corpora.add([("b", ints(range(4)))], "Model")
    with pytest.raises(UsageError, match="no text in b"):
        corpora.add([("b", ints([]))], "Model")
    assert [text.name for text in corpora.texts()] == ["a"]
    corpora.add([("a", ints(range(10)))], "Model")  # in the place of the other one


def test_a_store_that_cannot_be_written_is_an_error_here(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(StoreError):
        Corpora(Store(tmp_path / "cache"), "model").add([("a", ints([1]))], "Model")


def test_text_of_files(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert read_texts(plain) == ["one\ntwo\n"]
    rows = [
        {"id": 7, "prompt": "p", "answer": "a", "score": 1.5},
        {"messages": [{"role": "user", "content": "c"}, {"role": "x", "content": [{"text": "d"}]}]},
        {"conversations": [{"from": "human", "value": "e"}], "turns": ["f", "g"]},
        "h",
    ]
    lines = tmp_path / "b.JSONL"
    lines.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_texts(lines) == list("pacdefgh")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"", "there is no text"),
        ("a.txt", b" \n ", "there is no text"),
        ("a.jsonl", b'{"id": "x"}\n', "there is no text"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2 of .* is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is not JSON"),
        ("a.txt", b"abc\xff", "byte 0xff at offset 3"),
        ("a.bin", b"abc\0def", "NUL"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_texts(tmp_path / name)


def test_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "none", tmp_path, Path("a\0b")):
        with pytest.raises(FileError, match="cannot read"):
            read_texts(path)
    (tmp_path / "large.txt").write_text("x" * 100)
    monkeypatch.setattr("specx.engine.learned.corpus_files.MAX_BYTES", 99)
    endless = [Path("/dev/zero")] if Path("/dev/zero").exists() else []
    for path in (tmp_path / "large.txt", *endless):
        with pytest.raises(UsageError, match="is too large"):
            read_texts(path)


def test_long_text_is_tokenized_in_parts_and_stays_one_text(monkeypatch):
    vocab = ScriptedVocab(400)
    line = "abc de\n"
    text = line * (2 * PIECE // len(line))
    told = []
    tokens = tokens_of([text, "x\ud800"], vocab, told.append)
    one = vocab.tokenize(line.encode(), add_special=False, parse_special=False)
    n = len(one) * (len(text) // len(line))
    assert tokens[:n].tolist() == one * (len(text) // len(line))
    assert tokens[n] == tokens[-1] == -1
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 2
    monkeypatch.setattr("specx.engine.learned.corpus_files.MAX_TOKENS", 100)
    with pytest.raises(UsageError, match="more than 100 tokens"):
        tokens_of([text], vocab)


def learned_in(store):
    return Learned(store, model_key="model", cost_key="cost")


def test_drafts_come_from_the_corpus(store):
    Corpora(store, "model").add([("a", ints([*SCRIPT, -1]))], "Model")
    drafter = learned_in(store).free_drafter(V, ("suffix", "recycle"))
    drafting = drafter.start(Text([50, *SCRIPT[3:6]]))
    draft = drafting.propose(Room(4, 1))
    assert draft.tokens.tolist() == SCRIPT[6:10]
    assert {drafter.source_names[source] for source in draft.sources} == {"corpus"}
    alone = learned_in(store).free_drafter(V, ("recycle",))
    assert len(alone.start(Text([50, *SCRIPT[3:6]])).propose(Room(4, 1))) == 0


def answer(store, sampling, drafter="free"):
    model = ScriptedModel(vocab_size=V, script=SCRIPT, peak=0.9)
    asked = Asked(Path("scripted.gguf"), drafter=drafter)
    with Session(model, asked, learned_in(store), name="scripted") as session:
        session.staircase.load_json(FLAT)
        generation = session.generate([50, *SCRIPT[:4]], sampling, n_predict=60, ignore_eos=True)
        assert list(generation)
        return generation.result.tokens, generation.result.timings.steps


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_a_corpus_changes_the_steps_and_not_the_text(tmp_path, sampling):
    filled = Store(tmp_path / "filled")
    Corpora(filled, "model").add([("a", ints([*SCRIPT, *SCRIPT, -1]))], "Model")
    plain = answer(Store(tmp_path / "plain"), sampling, "none")
    without = answer(Store(tmp_path / "empty"), sampling)
    with_it = answer(filled, sampling)
    assert plain[0] == without[0] == with_it[0]
    assert with_it[1] < without[1]
