"""Layers left out of a file: llama.cpp computes what the others compute, in every architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.cache_size import windowed_layers
from specx.backends.gguf.checks import read_runnable
from specx.backends.llama.skipping import SkippingModel
from specx.backends.settings import Load
from specx.drafters.make.shrink import Stage, backward_search, check_dropped, droppable, prune

TEXT = [1, *range(40, 110)]  # more than one call of 64
DROPPED = {"smollm3": frozenset(range(1, 9)), "gemma3": frozenset({2, 4})}
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "granite")


def dropped_of(architecture):
    return DROPPED.get(architecture, frozenset({1, 3, 4}))


@pytest.fixture
def tiny(write_tiny, tmp_path):
    """Writes a model; in the layers of `silent` nothing is added to what comes in."""

    def write(architecture, silent=frozenset(), **more):
        path = write_tiny(tmp_path / f"{architecture}-{len(silent)}.gguf", architecture, silent, **more)
        return read_runnable(path)

    return write


def logits(path, skipped=frozenset()):
    model = SkippingModel(Load(path, 1, 1, n_ctx=256))
    try:
        return np.concatenate(model.logits(TEXT, skipped))
    finally:
        model.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_added_nothing_is_not_missed(architecture, tiny, tmp_path):
    dropped = dropped_of(architecture)
    info = tiny(architecture, silent=dropped)
    prune(info, dropped, tmp_path / "pruned.gguf", {})
    assert read_runnable(tmp_path / "pruned.gguf").blocks == info.blocks - len(dropped)
    assert np.array_equal(logits(tmp_path / "pruned.gguf"), logits(info.path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trial_computes_what_the_file_will(architecture, tiny, tmp_path):
    info, dropped = tiny(architecture), dropped_of(architecture)
    prune(info, dropped, tmp_path / "pruned.gguf", {})
    tried = logits(info.path, dropped)
    assert np.array_equal(tried, logits(tmp_path / "pruned.gguf"))
    assert not np.allclose(tried, logits(info.path))


def test_predictions_are_the_most_likely_tokens(tiny):
    info = tiny("llama")
    model = SkippingModel(Load(info.path, 1, 1, n_ctx=256))
    predicted = model.predictions(TEXT, frozenset({2}))
    model.close()
    assert predicted.tolist() == logits(info.path, frozenset({2})).argmax(axis=1).tolist()


def test_what_comes_by_layer_goes_with_it(tiny, tmp_path):
    def by_layer(writer):
        writer.add_array("llama.attention.head_count_kv", [2, 2, 2, 2, 1, 2])
        writer.add_array("llama.rope.dimension_sections", [1, 2, 3, 4])

    def one_head(writer):
        writer.kv_data[-1].pop("llama.attention.head_count_kv")
        by_layer(writer)

    info = tiny("llama", extra=one_head)
    made = {"specx.made.how": gguf_text("shrink")}
    prune(info, frozenset({1, 3}), tmp_path / "pruned.gguf", made)
    found = read_runnable(tmp_path / "pruned.gguf")
    assert found.metadata["llama.attention.head_count_kv"] == (2, 2, 1, 2)
    assert found.metadata["llama.rope.dimension_sections"] == (1, 2, 3, 4)
    assert found.metadata["specx.made.how"] == "shrink"
    names = {tensor.name.split(".")[1] for tensor in found.tensors if tensor.name.startswith("blk.")}
    assert names == {"0", "1", "2", "3"}


def gguf_text(value):
    from specx.drafters.make.gguf_writing import text

    return text(value)


def test_windows_stay_with_their_layers(tiny, tmp_path):
    info = tiny("gemma2")  # every second layer sees everything
    prune(info, frozenset({1, 2}), tmp_path / "pruned.gguf", {})
    found = read_runnable(tmp_path / "pruned.gguf")
    assert windowed_layers(info) == {0, 2, 4} and windowed_layers(found) == {0, 2}
    assert check_dropped(info, frozenset({2, 4})) and not check_dropped(info, frozenset({0, 2, 4}))


def test_neither_the_first_nor_the_last_layer_goes(tiny):
    assert droppable(tiny("llama")) == [(1,), (2,), (3,), (4,)]


def test_runs_of_four_where_each_fourth_layer_differs(tiny):
    assert droppable(tiny("smollm3")) == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_layers_that_take_pictures_stay(tiny):
    info = tiny("granite", extra=lambda w: w.add_array("granite.deepstack_mapping", [-1, 0, -1, 1, -1, -1]))
    assert droppable(info) == [(2,), (4,)]


@pytest.mark.parametrize(
    ("architecture", "blocks", "said"),
    [
        ("gemma3n", 6, "'gemma3n'"),
        ("gemma4", 6, "'gemma4'"),
        ("mamba", 6, "'mamba'"),
        ("gemma3", 62, "62"),
        ("gemma2", 46, "46"),
        ("llama", 2, "no layer"),
        ("smollm3", 5, "no layer"),
    ],
)
def test_what_is_not_known_to_work_is_refused(tiny, architecture, blocks, said):
    info = replace(tiny("llama"), architecture=architecture, blocks=blocks)
    with pytest.raises(ModelError, match=said) as refused:
        droppable(info)
    assert refused.value.hint


def test_a_value_by_layer_that_is_unknown_is_refused(tiny):
    info = tiny("llama", extra=lambda writer: writer.add_array("llama.mystery", [1, 2, 3, 4, 5, 6]))
    with pytest.raises(ModelError, match="mystery"):
        droppable(info)


# --- the search ---------------------------------------------------------------------------------------------


WORTH = {1: 0.30, 2: 0.02, 3: 0.10, 4: 0.05}


def agreement(dropped):
    return 1 - sum(WORTH[layer] for layer in dropped)


def test_the_least_loss_goes_first():
    stages = list(backward_search([(layer,) for layer in WORTH], agreement))
    assert [sorted(stage.dropped) for stage in stages] == [[], [2], [2, 4], [2, 3, 4], [1, 2, 3, 4]]
    assert stages[2] == Stage(frozenset({2, 4}), agreement({2, 4}))


def test_a_loss_that_has_grown_is_seen():
    """Layers 2 and 4 do the same: each can be spared while the other is there."""

    def measured(dropped):
        return agreement(dropped) - 0.5 * ({2, 4} <= dropped)

    stages = list(backward_search([(layer,) for layer in WORTH], measured))
    assert [sorted(stage.dropped) for stage in stages[:4]] == [[], [2], [2, 3], [1, 2, 3]]


def test_most_units_are_not_tried_again():
    tried = []

    def counted(dropped):
        tried.append(dropped)
        return 1 - sum(0.01 * layer for layer in dropped)

    units = [(layer,) for layer in range(1, 21)]
    assert len(list(backward_search(units, lambda _dropped: 0.5, counted))) == 21
    assert len(tried) < 60  # trying all of them each time would take 211


def test_what_is_not_allowed_is_not_tried():
    stages = list(
        backward_search(
            [(1,), (2,), (3,)], lambda dropped: 1 - 0.1 * len(dropped), allowed=lambda d: len(d) < 3
        )
    )
    assert [len(stage.dropped) for stage in stages] == [0, 1, 2]


def test_what_ranks_decides_and_what_measures_is_told():
    measured = []

    def measure(dropped):
        measured.append(sorted(dropped))
        return 0.5

    stages = list(backward_search([(layer,) for layer in WORTH], measure, agreement))
    assert (
        measured == [sorted(stage.dropped) for stage in stages] == [[], [2], [2, 4], [2, 3, 4], [1, 2, 3, 4]]
    )
    assert {stage.agreement for stage in stages} == {0.5}
