"""Drafters by name: those that come with specx, and those of other packages."""

from __future__ import annotations

import importlib
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.base import Want
from specx.backends.errors import UsageError
from specx.backends.scripted import ScriptedModel, ScriptedVocab
from specx.drafters import registry
from specx.drafters.base import Drafter, Room, Text
from specx.drafters.free import FreeDrafter
from specx.drafters.none import NoDrafter

BUILT_IN = ("auto", "none", "free", "suffix", "recycle", "model")


class Known:
    """What drafters start from, of a model of which nothing was learned."""

    def __init__(self):
        self.vocab = ScriptedVocab(64)
        self.asked = []

    def free(self, sources):
        self.asked.append(tuple(sources))
        return FreeDrafter(self.vocab.size, sources=sources)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path that registers drafters: name -> object reference, and its code."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def make(points, code):
        info = tmp_path / "othersdrafters-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: othersdrafters\nVersion: 1.0\n")
        lines = "".join(f"{name} = {reference}\n" for name, reference in points.items())
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{lines}")
        (tmp_path / "othersdrafters.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()

    yield make
    for name in set(sys.modules) - before:
        if name == "othersdrafters":
            del sys.modules[name]


ECHO = """
    from specx.drafters.base import Draft, Drafter, Drafting

    class Echo(Drafter):
        source_names = ("echo",)

        def __init__(self, vocab):
            self.size = vocab.size

        def start(self, text):
            return Following(text)

    class Following(Drafting):
        def __init__(self, text):
            self.text = text

        def propose(self, room):
            return Draft.of_chain(self.text.tokens[-1:] * room.limit, [0.5] * room.limit)

    def nothing(vocab):
        return None

    class Nameless(Drafter):
        def __init__(self, vocab):
            pass
"""


def test_those_that_come_with_specx():
    assert registry.names()[: len(BUILT_IN)] == BUILT_IN
    sources = {"auto": ("suffix", "recycle"), "free": ("suffix", "recycle")}
    sources |= {"suffix": ("suffix",), "recycle": ("recycle",)}
    for name in BUILT_IN:
        known = Known()
        drafter = registry.find(name).build(known)
        assert isinstance(drafter, FreeDrafter if name in sources else NoDrafter)
        assert known.asked == ([sources[name]] if name in sources else [])
        assert drafter.source_names
    assert [name for name in BUILT_IN if registry.find(name).guessers] == ["auto", "model"]
    assert [name for name in BUILT_IN if registry.find(name).named] == ["model"]


def test_a_drafter_of_another_package(install):
    install({"echo": "othersdrafters:Echo"}, ECHO)
    assert registry.names() == (*BUILT_IN, "echo")
    entry = registry.find("echo")
    assert not entry.guessers and not entry.named
    known = Known()
    drafter = entry.build(known)
    assert drafter.size == known.vocab.size
    text = Text([4, 5])
    draft = drafter.start(text).propose(Room(3, 1))
    assert draft.tokens.tolist() == [5, 5, 5]


def test_the_drafter_of_another_package_drafts_for_a_model(install):
    from specx.backends.store import Store
    from specx.engine.cost.timing import unwatched
    from specx.engine.learned.knowledge import Learned
    from specx.engine.session import Session
    from specx.engine.settings import Asked, SamplingSettings

    install({"echo": "othersdrafters:Echo"}, ECHO)
    texts = []
    for name in ("none", "echo"):
        model = ScriptedModel(64, script=[5, 5, 5, 5, 5, 6], peak=0.95, order=6)
        learned = Learned(Store(None), model_key="m", cost_key="c")
        with Session(model, Asked(Path("scripted"), drafter=name), learned, name="scripted") as session:
            session.staircase.watch = unwatched
            session.staircase.load_json({"0": {str(n): 10 + n / 10 for n in range(1, 33)}})
            generation = session.generate([5], SamplingSettings(seed=3, temperature=0.8), n_predict=40)
            list(generation)
            texts.append(generation.result.tokens)
            assert session.drafter_name == name and name in session.drafters
    assert texts[0] == texts[1]


def test_a_name_that_comes_with_specx_is_not_taken_over(install):
    install({"free": "othersdrafters:Echo", "echo": "othersdrafters:Echo"}, ECHO)
    assert registry.names() == (*BUILT_IN, "echo")
    assert isinstance(registry.find("free").build(Known()), FreeDrafter)


def test_unknown_names_are_refused(install):
    install({"echo": "othersdrafters:Echo"}, ECHO)
    with pytest.raises(UsageError, match="there is no drafter 'magic'") as error:
        registry.find("magic")
    assert error.value.hint == f"choose one of {', '.join((*BUILT_IN, 'echo'))}"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("othersdrafters:Missing", ECHO),
        ("othersdrafters:Echo", "import a_package_that_nobody_has"),
        ("othersdrafters:Echo", "1 / 0"),
        ("no_such_package_at_all:Echo", ECHO),
    ],
)
def test_a_package_that_cannot_be_imported(install, reference, code):
    install({"echo": reference}, code)
    with pytest.raises(UsageError, match=r"'echo' of .* cannot be loaded") as error:
        registry.find("echo")
    assert "update or remove" in error.value.hint


@pytest.mark.parametrize("what", ["nothing", "Nameless"])
def test_what_is_no_drafter_is_refused(install, what):
    install({"odd": f"othersdrafters:{what}"}, ECHO)
    with pytest.raises(UsageError, match="'odd' is no `Drafter`") as error:
        registry.find("odd").build(Known())
    assert "docs/extending.md" in error.value.hint


def test_hidden_states_are_given_where_a_drafter_says_of_which_layers():
    class Reader(Drafter):
        source_names = ("reader",)
        needs = Want.LOGITS | Want.HIDDEN
        layers = (1, 3)

    model = ScriptedModel(64)
    assert registry.extract_for(NoDrafter(), model) is None
    assert registry.extract_for(Reader(), model) is None
    with pytest.raises(ValueError, match="given already"):
        model.extract([2])
    others = Reader()
    others.layers = (2,)
    assert "given already" in registry.extract_for(others, model)
    others.layers = ()
    assert registry.extract_for(others, model) == "it does not say of which layers"
    model.facts = replace(model.facts, extractable=Want.LOGITS)
    assert registry.extract_for(Reader(), model) == "this model does not give them"
