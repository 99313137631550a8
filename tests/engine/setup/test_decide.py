"""What follows from what was asked: every value with its reason, and what was asked stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specx.backends.errors import UsageError
from specx.backends.gguf.file import Tensor, read_gguf
from specx.backends.llama.devices import Device, devices_fingerprint
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine.report import staircase
from specx.engine.report.staircase import probe_staircases
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel
from specx.engine.setup import fit as fit_module
from specx.engine.setup import offloading
from specx.engine.setup.decide import decide
from specx.engine.setup.devices import DeviceCost
from specx.engine.setup.fit import Room
from specx.engine.setup.here import Here
from specx.engine.setup.layers import model_layers, step_bytes
from specx.engine.setup.snapshots import best_snapshots


@pytest.fixture
def path(tmp_path, write_model):
    return write_model(tmp_path / "target.gguf", 64, layers=4)


def train(monkeypatch, path, n_ctx):
    """Let the header say that the model was trained for a context of `n_ctx`."""
    info = replace(read_gguf(path), context_length=n_ctx)
    monkeypatch.setattr("specx.engine.setup.decide.read_runnable", lambda _path: info)


def decided(asked, notices=None):
    return decide(asked, Here(Store(None), (lambda _text: None) if notices is None else notices.append))


@pytest.mark.parametrize(
    ("n_ctx", "trained", "context"),
    [
        (None, 0, (4096, "the default (-c sets it)")),
        (None, 128, (256, "what the model was trained for, rounded up to a multiple of 256")),
        (None, 1024, (1024, "what the model was trained for")),
        (None, 8192, (4096, "the default (-c sets it)")),
        (0, 8192, (8192, "what the model was trained for")),
        (512, 8192, (512, "as asked")),
        (300, 8192, (512, "as asked, rounded up to a multiple of 256")),
    ],
)
def test_the_context_and_why(path, monkeypatch, n_ctx, trained, context):
    train(monkeypatch, path, trained)
    setup = decided(Asked(path, n_ctx=n_ctx))
    assert (setup.context.value, setup.context.why) == context
    assert setup.load.n_ctx == setup.need.n_ctx == context[0]


@pytest.mark.parametrize(
    ("n_ctx", "longest", "context"),
    [
        (None, 20, (512, "enough for all that can be written")),
        (None, 513, (768, "enough for all that can be written")),
        (None, 2048, (2048, "what the model was trained for")),
        (None, 100_000, (2048, "what the model was trained for")),
        (1024, 20, (1024, "as asked")),
        (0, 20, (2048, "what the model was trained for")),
    ],
)
def test_no_more_context_than_can_be_filled(path, monkeypatch, n_ctx, longest, context):
    train(monkeypatch, path, 2048)
    setup = decided(Asked(path, n_ctx=n_ctx, longest=longest))
    assert (setup.context.value, setup.context.why) == context
    assert setup.load.n_ctx == setup.need.n_ctx == context[0]


def test_nothing_is_written_into_what_was_asked(path):
    asked = Asked(path, drafter="suffix", threads_batch=3)
    before = replace(asked)
    setup = decided(asked)
    assert setup.asked is asked and asked == before
    assert (asked.threads, asked.n_ctx, asked.kernels) == (None, None, "auto")
    assert setup.load == Load(path, setup.threads.value, 3, n_ctx=setup.context.value, n_gpu_layers=0)


def test_what_is_told_is_what_is_loaded(path):
    asked = Asked(path, threads=2, type_v="q8_0", flash_attn="off", kernels="stock", texts=3)
    setup = decided(replace(asked, n_batch=64, n_ubatch=128))
    assert (setup.load.n_batch, setup.load.n_ubatch) == (64, 64)  # a call is never narrower than a graph
    told = setup.told()
    assert told["threads"] == "2, as asked" and setup.load.threads == 2
    assert told["threads batch"] == "2, as many as for one token" and setup.load.threads_batch == 2
    assert told["cache type k"] == "f16, the default" and setup.load.type_k == "f16"
    assert told["cache type v"] == "q8_0, as asked" and setup.load.type_v == "q8_0"
    assert told["flash attn"] == "off, as asked" and setup.load.flash_attn == "off"
    assert told["texts"] == "3, as asked" and setup.load.texts == 3
    assert told["kernels"] == "stock, as asked"
    assert setup.to_json()["threads"] == {"value": 2, "why": "as asked"}


def test_a_smaller_context_and_a_draft_model_that_is_left_out(path, tmp_path, write_model, monkeypatch):
    train(monkeypatch, path, 8192)
    draft = AskedModel(write_model(tmp_path / "small.gguf", 16))
    asked = Asked(path, draft=draft, drafter="model", kernels="stock")
    whole = decided(asked)
    assert (whole.draft_model.value, whole.draft_model.why) == ("small", "as asked")
    assert whole.draft.path == draft.model and whole.drafter.value == "model"
    least = decided(replace(asked, n_ctx=1024, draft=AskedModel())).need
    available = round(least.working / fit_module.SLACK) + 2
    monkeypatch.setattr(fit_module, "read_room", lambda: Room(available, available, 1 << 40))
    notices = []
    setup = decided(asked, notices)
    assert setup.draft is None and setup.draft_model.value is None
    assert setup.draft_model.why == "small does not fit into memory"
    assert setup.drafter.value == "auto"
    assert (setup.context.value, setup.context.why) == (1024, "the largest that fits")
    assert setup.changes == tuple(notices)
    assert "nothing but speed" in notices[0] and "the context is 1024 tokens" in notices[1]


def test_a_model_that_decodes_plainly(tmp_path, write_model):
    path = write_model(tmp_path / "r.gguf", 16, architecture="mamba", recurrent=True)
    setup = decided(Asked(path, kernels="stock"))
    assert (setup.drafter.value, setup.drafter.why) == ("none", setup.info.plain_reason)
    assert setup.draft_model.value is None


def test_a_model_of_which_earlier_states_can_be_kept(tiny_hybrids):
    for name, path in tiny_hybrids.items():
        setup = decided(Asked(path, kernels="stock", n_ctx=512))
        assert setup.drafter.value == "auto"
        assert setup.load.snapshots == setup.snapshots.value == best_snapshots(setup.info) > 3
        assert "the most that pay" in setup.told()["snapshots"]
        assert setup.load.snapshots == decided(Asked(path, kernels="stock", drafter="none")).load.snapshots
        many = decided(Asked(path, kernels="stock", n_ctx=512, texts=16))
        assert (many.snapshots.value, many.drafter.value) == (3, "auto"), name
    crowd = decided(Asked(path, kernels="stock", n_ctx=512, texts=40))
    assert (crowd.snapshots.value, crowd.drafter.value) == (0, "none")
    assert crowd.drafter.why == "no earlier states of its recurrent layers are kept of 40 texts at once"


def test_large_states_are_kept_of_fewer_tokens(tiny_hybrids):
    info = read_gguf(tiny_hybrids["qwen35"])
    weights = tuple(replace(t, nbytes=50 * t.nbytes) for t in info.tensors)
    large = replace(info, metadata={**info.metadata, "qwen35.ssm.inner_size": 1 << 16})
    assert best_snapshots(large) < best_snapshots(info) < best_snapshots(replace(info, tensors=weights))
    assert best_snapshots(replace(info, architecture="mamba")) == 0


def test_of_experts_a_token_reads_those_it_uses(path):
    info = read_gguf(path)
    experts = Tensor("blk.0.ffn_up_exps.weight", (8, 8, 8), "F32", 8 * 8 * 8 * 4)
    mixed = replace(info, experts=8, experts_used=2, tensors=(*info.tensors, experts))
    assert step_bytes(mixed) == step_bytes(info) + experts.nbytes // 4
    drafting = replace(info, nextn_layers=1)  # the last of the four layers only drafts
    assert step_bytes(info) - step_bytes(drafting) == 7 * 64 * 64 * 4


def test_every_screen_counts_the_same_bytes(smollm2):
    asked = Asked(smollm2, n_ctx=256, threads=1, kernels="stock", store=False)
    probed = probe_staircases(asked, [0], widths=(1,))
    assert probed.weight_bytes == step_bytes(read_gguf(smollm2))


def test_steps_are_timed_at_the_depth_that_was_asked_for_or_not_at_all(path):
    with pytest.raises(UsageError, match="after 300 need a context of 301, and it has 256") as caught:
        probe_staircases(Asked(path, n_ctx=256), [0, 300], widths=(1,))
    assert "-c 301" in caught.value.hint and "at most 255" in caught.value.hint
    here = Here(Store(None))
    assert staircase._with_room(Asked(path, n_ctx=512), 300, 32, here).load.n_ctx == 512
    assert staircase._with_room(Asked(path), 200, 32, here).load.n_ctx == 256
    assert staircase._with_room(Asked(path), 5000, 32, here).load.n_ctx == 5120


def test_what_was_decided_is_what_runs(smollm2):
    asked = Asked(
        smollm2, n_ctx=300, threads=1, threads_batch=2, kernels="stock", drafter="none", store=False
    )
    told = []
    with Session.open(replace(asked, verbose=True), notice=told.append) as session:
        setup, model = session.setup, session.model
        assert model.facts.n_ctx == session.n_ctx == setup.context.value == 512
        assert (model.n_threads, model.n_threads_batch) == (1, 2)
        assert (setup.threads.value, setup.threads_batch.value) == (1, 2)
        assert model.kernels.name == setup.kernels.value == "stock"
        assert session.drafter_name == setup.drafter.value == "none"
        assert {f"{name}: {text}" for name, text in setup.told().items()} <= set(told)


@pytest.mark.parametrize("whole", [False, True])
def test_kernels_that_devices_were_timed_with(path, tmp_path, monkeypatch, whole):
    """They are measured, not asked for; where no layer is on the CPU, they are of no use."""
    layers = model_layers(read_gguf(path), decided(Asked(path, kernels="stock")).load)
    room = layers.needed(0, 5) if whole else layers.needed(1, 5)
    devices = [
        Device(name, "", name, free, 1 << 34, unified=False)
        for name, free in (("CPU", 1 << 34), ("GPU", room))
    ]
    monkeypatch.setattr(offloading, "usable_devices", lambda: devices)
    monkeypatch.setattr("specx.backends.llama.kernels.unavailable", lambda: None)
    here = Here(Store(tmp_path / "store"))

    def keep(setup):
        costs = [
            DeviceCost(name, 0, {1: ms, 8: ms}, 10**6).to_json() for name, ms in (("CPU", 9.0), ("GPU", 1.0))
        ]
        data = {"devices": costs, "kernels": "attention"}
        here.store.save_json(offloading.KIND, f"{setup.devices_key}-{devices_fingerprint(devices)}", data)

    auto = "stock, no layer is on the CPU" if whole else "attention, as measured"
    for kernels, said in (("auto", auto), ("specx", "specx, as asked")):
        asked = Asked(path, kernels=kernels)
        before = decide(asked, here, timing=False)
        assert str(before.placement) == "all on CPU, the GPUs were not timed with this model"
        keep(before)
        setup = decide(asked, here, timing=False)
        assert str(setup.kernels) == said and asked.kernels == kernels
        where = "all on GPU" if whole else "1 of 5 layers on CPU, 4 of 5 layers on GPU"
        assert str(setup.placement) == f"{where}, as measured"
        assert setup.load.offload == (("GPU", 4 + whole),) and setup.load.n_gpu_layers == 4 + whole
