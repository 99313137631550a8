"""How many texts there is room for: by what steps cost, and by memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.llama.memory import predict_memory
from specx.backends.store import Store
from specx.engine.settings import Asked
from specx.engine.setup import keys
from specx.engine.setup.decide import decide
from specx.engine.setup.fit import SLACK, Room
from specx.engine.setup.here import Here
from specx.engine.setup.texts import UNTIMED, choose_texts
from specx.engine.setup.wanted import draft_load, wanted_load

PLENTY = Room(1 << 45, 1 << 45, 1 << 45)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)


@pytest.fixture
def info(tmp_path, write_model):
    return read_gguf(write_model(tmp_path / "target.gguf", 64, layers=4))


def chosen(info, here, room=PLENTY, **options):
    asked = Asked(info.path, **{"texts": None, "threads": 2, "kernels": "stock", "n_ctx": 512, **options})
    return choose_texts(info, asked, wanted_load(info, asked), here, room)


def timed(info, tmp_path, cost, kernels="stock"):
    """Where steps of n tokens took `cost(n)` milliseconds."""
    here = Here(Store(tmp_path / "store"))
    load = wanted_load(info, Asked(info.path, threads=2, n_ctx=512))
    steps = {str(n): cost(n) for n in WIDTHS}
    key = keys.cost_key(info, load, kernels)
    here.store.save_json("staircase", key, {"steps": {"0": steps, "288": steps}})
    return here


@pytest.mark.parametrize(
    ("cost", "texts"),
    [
        (lambda n: 10.0, 64),  # the more the better
        (lambda n: 10.0 * n, 1),  # nothing is gained
        (lambda n: 10.0 if n <= 8 else 10.0 * n / 8, 8),
        (lambda n: 10.0 + n, 48),  # 64 would gain 4% more
    ],
)
def test_the_number_follows_from_what_steps_cost(info, tmp_path, cost, texts):
    choice = chosen(info, timed(info, tmp_path, cost))
    assert choice.value == texts
    assert "as measured" in choice.why


def test_until_steps_are_timed_it_is_a_moderate_number(info):
    choice = chosen(info, Here(Store(None)))
    assert (choice.value, choice.why) == (UNTIMED, "until steps have been timed here")


def test_memory_bounds_it(info, tmp_path):
    here = timed(info, tmp_path, lambda n: 10.0)
    load = wanted_load(info, Asked(info.path, threads=2, kernels="stock", n_ctx=512))
    need = predict_memory(info, replace(load, texts=5))
    room = Room(round(need.working / SLACK) + 1000, 1 << 45, 1 << 45)
    choice = chosen(info, here, room)
    assert 2 <= choice.value <= 6
    assert choice.why == "there is no memory for more that have a context of 512"
    assert chosen(info, here, Room(1, 1 << 45, 1 << 45)).value == 1


def test_a_draft_model_that_was_named_is_not_crowded_out(info, tmp_path):
    here = timed(info, tmp_path, lambda n: 10.0)
    asked = Asked(info.path, texts=None, threads=2, kernels="stock", n_ctx=512)
    load = wanted_load(info, asked)

    def need(texts, draft):
        both = replace(load, texts=texts)
        beside = (info, draft_load(asked, info.path, both)) if draft else None
        return predict_memory(info, both, draft=beside).working

    room = Room(round(need(4, draft=True) / SLACK) + 1000, 1 << 45, 1 << 45)
    alone = choose_texts(info, asked, load, here, room).value
    beside = choose_texts(info, asked, load, here, room, draft=info).value
    assert 2 <= beside < alone
    assert need(beside, draft=True) <= SLACK * room.available < need(alone, draft=True)
    tight = Room(round(need(1, draft=True) / SLACK) - 1000, 1 << 45, 1 << 45)  # it will be left out
    assert choose_texts(info, asked, load, here, tight, draft=info) == choose_texts(
        info, asked, load, here, tight
    )


def test_no_more_than_there_are(info, tmp_path):
    here = timed(info, tmp_path, lambda n: 10.0)
    assert chosen(info, here, answers=3).value == 3


@pytest.mark.parametrize(
    ("kernels", "classes", "texts", "why"),
    [
        ("stock", [list(WIDTHS)], 1, "share a cache"),
        ("specx", None, 1, "until it was measured"),
        ("specx", [[1, 2, 4], [8, 16]], 1, "only the batch widths 1, 2, 4"),
        ("specx", [list(WIDTHS)], 64, "as measured"),
    ],
)
def test_exact_texts_have_company_where_every_width_is_bit_identical(
    info, tmp_path, kernels, classes, texts, why
):
    here = timed(info, tmp_path, lambda n: 10.0, kernels)
    if classes is not None:
        load = wanted_load(info, Asked(info.path, threads=2, n_ctx=512))
        known = {"classes": classes, "branches": True, "difference": 0.0, "depths": [64, 640]}
        here.store.save_json("identity", keys.cost_key(info, load, kernels), known)
    choice = chosen(info, here, exact=True, kernels=kernels)
    assert choice.value == texts
    assert why in choice.why


def test_what_is_decided_is_loaded(info):
    asked = Asked(info.path, texts=None, n_ctx=512)
    setup = decide(asked, Here(Store(None)))
    assert setup.load.texts == setup.texts.value > 1
    assert asked.texts is None
    assert f"{setup.texts.value}, {setup.texts.why}" == setup.told()["texts"]
    alone = decide(replace(asked, texts=1), Here(Store(None)))
    assert setup.cost_key("stock") == alone.cost_key("stock")  # one staircase serves both
