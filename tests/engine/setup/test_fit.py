"""Fitting a model into memory: what is tried, in which order, what is told, and what is refused."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from specx.backends.errors import DoesNotFitError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.header import Tensor
from specx.backends.llama.kernels import STOCK
from specx.backends.llama.memory import NOTHING, MemoryNeed, predict_memory
from specx.backends.machine.machine import Memory
from specx.backends.store import Store
from specx.engine.settings import Asked
from specx.engine.setup import fit as fit_module
from specx.engine.setup.fit import LEAST_CONTEXT, SLACK, Room, fit, fit_here
from specx.engine.setup.here import Here
from specx.engine.setup.wanted import draft_load, wanted_load

MIB, GIB = 1 << 20, 1 << 30
LAYERS = 10
UNLIMITED = 1 << 50
CGROUP = Path("/sys/fs/cgroup/memory")


def model(layer: int = 400 * MIB, name: str = "model") -> GGUFInfo:
    """Ten layers of one matrix each that is used where it lies in the file; 64 KiB of cache a token."""
    shape = (1024, layer // 2048)
    tensors = (
        Tensor("token_embd.weight", (1024, 1000), "F16", 1000 * 2048),
        Tensor("output.weight", (1024, 1000), "F16", 1000 * 2048),
        *(Tensor(f"blk.{i}.ffn_up.weight", shape, "F16", layer) for i in range(LAYERS)),
    )
    return GGUFInfo(
        path=Path(f"{name}.gguf"),
        parts=(Path(f"{name}.gguf"),),
        size=sum(t.nbytes for t in tensors),
        version=3,
        architecture="llama",
        name=name,
        file_type="F16",
        parameters=0,
        context_length=32768,
        embedding_length=1024,
        blocks=LAYERS,
        heads=16,
        kv_heads=(16,) * LAYERS,
        key_length=100,
        value_length=100,
        feed_forward_length=2048,
        vocabulary_size=1000,
        tokenizer="llama",
        pre_tokenizer="",
        chat_template=None,
        tool_template=None,
        sliding_window=0,
        state="attention",
        experts=0,
        experts_used=0,
        nextn_layers=0,
        tensors=tensors,
        metadata={},
        fingerprint="",
    )


INFO = model()
DRAFT = model(20 * MIB, "draft")
ASKED = Asked(INFO.path, kernels="stock")


WANTED = wanted_load(INFO, ASKED)


def need(draft: GGUFInfo | None = None, gpus: int = 0, repacked=NOTHING, **options) -> MemoryNeed:
    load = replace(WANTED, **options)
    both = None if draft is None else (draft, draft_load(ASKED, draft.path, load))
    return predict_memory(INFO, load, kernels=STOCK, draft=both, gpus=gpus, repacked=repacked)


def fitted(asked, there: Room, draft: GGUFInfo | None = None, repacked=NOTHING):
    return fit(INFO, asked, wanted_load(INFO, asked), there, draft=draft, repacked=repacked)


def room(nbytes: float, *, bearable: int | None = None, ceiling: int = UNLIMITED, gpus=()) -> Room:
    available = round(nbytes)
    return Room(available, available if bearable is None else bearable, ceiling, tuple(gpus))


def just(needed: MemoryNeed) -> int:
    """Bytes that must be available for it."""
    return round(needed.working / SLACK) + 2


def test_what_fits_is_left_alone():
    found = fitted(ASKED, room(just(need())))
    assert (found.load, found.changes) == (WANTED, ())
    assert found.need == need()


def test_where_nothing_can_be_read_nothing_is_changed():
    found = fitted(ASKED, Room(None, None, None), draft=DRAFT)
    assert (found.load, found.draft, found.changes) == (WANTED, DRAFT, ())


def test_the_draft_model_goes_first():
    both = need(DRAFT)
    found = fitted(ASKED, room(just(both)), draft=DRAFT)
    assert (found.draft, found.changes) == (DRAFT, ())
    found = fitted(ASKED, room(just(both) - 10 * MIB), draft=DRAFT)
    assert (found.load, found.draft) == (WANTED, None)
    (told,) = found.changes
    assert told.startswith("the draft model draft.gguf is left out: ")
    assert "GiB would be needed" in told


def test_then_the_context_shrinks_as_little_as_needed():
    found = fitted(ASKED, room(just(need(n_ctx=2048))), draft=DRAFT)
    assert found.load == replace(WANTED, n_ctx=2048)
    assert found.draft is None
    left_out, smaller = found.changes
    assert "draft.gguf" in left_out
    assert smaller.startswith("the context is 2048 tokens: with 4096, ")


def test_a_context_that_was_asked_for_stays():
    asked = replace(ASKED, n_ctx=4096)
    with pytest.raises(DoesNotFitError) as caught:
        fitted(asked, room(100 * MIB))
    assert "model.gguf needs 4.2 GiB" in caught.value.message
    assert "weights 3.9 GiB" in caught.value.message
    assert "cache for a context of 4096 250 MiB" in caught.value.message
    assert caught.value.message.endswith("; 100 MiB are available")


def test_the_hint_is_what_would_fit():
    asked = replace(ASKED, n_ctx=30000)
    enough = room(just(need(n_ctx=8192)), ceiling=just(need(n_ctx=8192)))
    with pytest.raises(DoesNotFitError, match="is all there is") as caught:
        fitted(asked, enough)
    assert caught.value.hint.endswith("-c 8192")
    with pytest.raises(DoesNotFitError) as caught:  # not more than the model was trained for
        fitted(replace(asked, n_ctx=10**8), room(just(need(n_ctx=10**6))))
    assert caught.value.hint.endswith(f"-c {INFO.context_length}")
    assert fitted(replace(asked, n_ctx=8192), enough).changes == ()
    with pytest.raises(DoesNotFitError) as caught:
        fitted(asked, room(10 * MIB))
    assert "a smaller quantization" in caught.value.hint


@pytest.mark.parametrize(
    ("heads", "flash_attn", "smaller", "flags"),
    [
        ((128, 128), None, {"type_k": "q8_0", "type_v": "q8_0"}, "-ctk q8_0 -ctv q8_0"),
        ((128, 128), "off", {"type_k": "q8_0"}, "-ctk q8_0"),
        ((128, 100), None, {"type_k": "q8_0"}, "-ctk q8_0"),
        ((100, 128), None, {"type_v": "q8_0"}, "-ctv q8_0"),
        ((100, 100), None, {"type_k": "q8_0", "type_v": "q8_0"}, ""),
    ],
)
def test_a_smaller_cache_is_proposed_if_it_is_one_that_is_taken(heads, flash_attn, smaller, flags):
    """Where even the least context is too much."""
    info = replace(INFO, key_length=heads[0], value_length=heads[1])
    asked = replace(ASKED, n_ctx=30000, flash_attn=flash_attn)
    wanted = wanted_load(info, asked)
    little = just(predict_memory(info, replace(wanted, n_ctx=512, **smaller), kernels=STOCK))
    with pytest.raises(DoesNotFitError) as caught:
        fit(info, asked, wanted, room(little, bearable=100 * MIB))
    assert caught.value.hint.endswith(f"-c 512 {flags}" if flags else "or close other programs")


@pytest.mark.parametrize(
    ("used", "said"),
    [(9 << 30, "or close other programs"), (12 << 30, "allow it more than 12.0 GiB: ulimit -v")],
)
def test_what_a_limit_takes_no_other_program_gives_back(used, said):
    memory = Memory(32 << 30, MIB, limit=12 << 30, used=used)
    with pytest.raises(DoesNotFitError) as caught:
        fit(INFO, ASKED, wanted_load(INFO, ASKED), Room.of(memory))
    assert said in caught.value.hint


def test_between_available_and_all_there_is_a_person_is_warned():
    found = fitted(ASKED, room(2 * GIB, ceiling=8 * GIB), draft=DRAFT)
    assert (found.load, found.draft) == (WANTED, None)  # a smaller context would change nothing much
    left_out, slow = found.changes
    assert "draft.gguf is left out" in left_out
    assert slow.startswith("model.gguf needs 4.2 GiB, and 2.0 GiB are available: it will be slow")


def test_the_context_shrinks_so_that_no_process_is_ended():
    bearable = need(n_ctx=1024).required
    found = fitted(ASKED, room(bearable, ceiling=8 * GIB))
    assert found.load.n_ctx == 1024
    assert "it will be slow" in found.changes[-1]


def test_what_only_just_fits_may_be_slow():
    """Predictions are right to a few percent: within that margin nobody is told that it fits, nor refused."""
    working = need(n_ctx=4096).working
    found = fitted(replace(ASKED, n_ctx=4096), room(working + 1))
    assert found.load.n_ctx == 4096
    (told,) = found.changes
    assert "it may be slow unless" in told
    assert told.startswith("model.gguf needs 4.2 GiB, and 95% of the 4.2 GiB available may be taken: ")
    (told,) = fitted(ASKED, room(working / 0.97)).changes
    assert "with 4096, 4.2 GiB would be needed, and 95% of the 4.4 GiB available may be taken (-c" in told


def test_what_is_larger_than_the_machine_is_refused():
    with pytest.raises(DoesNotFitError, match=r"3\.0 GiB is all there is"):
        fitted(ASKED, room(2 * GIB, ceiling=3 * GIB))


def test_fewer_layers_go_to_the_gpu():
    free = need(gpus=1, n_gpu_layers=6).gpu
    found = fitted(ASKED, room(64 * GIB, gpus=[free // 2, free - free // 2 - 1]))
    two = need(gpus=2, n_gpu_layers=5)
    assert found.load == replace(WANTED, n_gpu_layers=5)
    assert found.need == two
    (told,) = found.changes
    assert told.startswith("5 layers are on the GPU: otherwise ")
    assert "of GPU memory would be needed" in told


def test_a_smaller_context_comes_before_fewer_layers():
    found = fitted(ASKED, room(64 * GIB, gpus=[need(gpus=1, n_ctx=1024).gpu]))
    assert found.load == replace(WANTED, n_ctx=1024)
    found = fitted(replace(ASKED, n_ctx=4096), room(64 * GIB, gpus=[need(gpus=1, n_ctx=1024).gpu]))
    assert found.load == replace(WANTED, n_ctx=4096, n_gpu_layers=LAYERS)


def test_layers_that_leave_the_gpu_need_main_memory():
    gpu = need(gpus=1, n_gpu_layers=6).gpu
    main = just(need(gpus=1, n_gpu_layers=6, n_ctx=1024))
    found = fitted(ASKED, room(main, gpus=[gpu]))
    assert (found.load.n_gpu_layers, found.load.n_ctx) == (6, 1024)
    assert len(found.changes) == 2


def test_swap_helps_unless_a_control_group_has_a_limit():
    memory = Memory(total=8 * GIB, available=2 * GIB, swap_total=4 * GIB, swap_free=3 * GIB)
    assert Room.of(memory) == Room(2 * GIB, 5 * GIB, 8 * GIB)
    limited = replace(memory, limit=4 * GIB, used=3 * GIB, available=1 * GIB)
    assert Room.of(limited, (GIB,)) == Room(1 * GIB, 1 * GIB, 4 * GIB, (GIB,), limit=4 * GIB)
    assert Room.of(Memory()) == Room(None, None, None)


@given(
    available=st.integers(0, 12 * GIB),
    more=st.integers(0, 12 * GIB),
    n_ctx=st.sampled_from([None, 0, 512, 4096, 20000]),
    gpu=st.none() | st.integers(0, 6 * GIB),
    drafted=st.booleans(),
    mlock=st.booleans(),
    repacked=st.sampled_from([NOTHING, {"F16": 1.0}]),
)
@example(
    available=6 * GIB, more=6 * GIB, n_ctx=None, gpu=None, drafted=False, mlock=True, repacked={"F16": 1.0}
)
def test_what_is_loaded_is_always_bearable(available, more, n_ctx, gpu, drafted, mlock, repacked):
    there = room(available, ceiling=available + more, gpus=[] if gpu is None else [gpu])
    asked = replace(ASKED, n_ctx=n_ctx, mlock=mlock)
    try:
        found = fitted(asked, there, draft=DRAFT if drafted else None, repacked=repacked)
    except DoesNotFitError as error:
        assert error.hint
        n_ctx = wanted_load(INFO, asked).n_ctx
        assert not there.is_bearable(need(None, len(there.gpus), repacked, n_ctx=n_ctx, mlock=mlock))
        return
    taken = {"n_ctx": found.load.n_ctx, "n_gpu_layers": found.load.n_gpu_layers, "mlock": mlock}
    assert found.need == need(found.draft, len(there.gpus), repacked, **taken)
    assert there.is_bearable(found.need)
    assert there.is_enough(found.need) or "be slow unless" in found.changes[-1]
    if found.load != wanted_load(INFO, asked) or (drafted and found.draft is None):
        assert found.changes
    if n_ctx is None:
        assert LEAST_CONTEXT <= found.load.n_ctx <= 4096
    else:
        assert found.load.n_ctx == wanted_load(INFO, asked).n_ctx


def test_what_is_locked_has_to_fit_as_a_whole():
    """Weights that were rearranged lie in memory beside the pages of the file that they came from."""
    locked = replace(ASKED, mlock=True)
    both = need(repacked={"F16": 1.0}, mlock=True)
    assert both.required > 1.9 * both.working
    with pytest.raises(DoesNotFitError, match=r"what else of the file is locked 3\.9 GiB.*; 6\.0 GiB are"):
        fitted(locked, room(6 * GIB), repacked={"F16": 1.0})
    assert fitted(ASKED, room(6 * GIB), repacked={"F16": 1.0}).changes == ()
    assert fitted(locked, room(both.required / SLACK + 2), repacked={"F16": 1.0}).changes == ()


def test_on_this_machine_changes_are_told_and_the_rest_explained(monkeypatch):
    told, explained = [], []
    monkeypatch.setattr(fit_module, "read_room", lambda: room(just(need(n_ctx=2048))))
    found = fit_here(INFO, ASKED, WANTED, Here(Store(None), told.append, explained.append))
    assert told == list(found.changes)
    assert len(told) == 1
    beyond = []
    monkeypatch.setattr(fit_module, "read_room", lambda: room(UNLIMITED))
    for n_ctx in (INFO.context_length, INFO.context_length + 1):
        asked = replace(ASKED, n_ctx=n_ctx)
        fit_here(INFO, asked, wanted_load(INFO, asked), Here(Store(None), beyond.append))
        if n_ctx == INFO.context_length:
            assert beyond == []
    assert sum("trained for 32768 tokens" in text for text in beyond) == 1
    (text,) = explained
    assert text.startswith("memory: 4.1 GiB (weights 3.9 GiB, cache for a context of 2048 125 MiB, ")


@contextmanager
def limited_group(nbytes: int):
    """A control group with `nbytes` of memory, as a path; skips where none can be made."""
    group = CGROUP / f"specx-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
        yield group
    finally:
        group.rmdir()


def complete_within(nbytes: int, path: Path) -> subprocess.CompletedProcess[str]:
    """A `specx complete` in a control group of its own, of a text that might get long and does not."""
    command = ["complete", str(path), "-p", "Once upon a time", "-n", "4000", "--stop", " there"]
    command += ["--temp", "0", "--no-cache", "--kernels", "specx"]
    enter = "import os, sys; open(sys.argv.pop(1), 'w').write(str(os.getpid()))\n"
    run = "from specx.cli.app import run; sys.exit(run(sys.argv[1:]))"
    with limited_group(nbytes) as group:
        return subprocess.run(
            [sys.executable, "-P", "-c", enter + run, str(group / "cgroup.procs"), *command],
            capture_output=True,
            text=True,
            check=False,
        )


def test_a_real_limit_ends_no_process(smollm2):
    done = complete_within(280 * MIB, smollm2)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout
    assert "the context is" in done.stderr
    done = complete_within(150 * MIB, smollm2)
    assert (done.returncode, done.stdout) == (1, "")
    assert "MiB are available" in done.stderr
    assert "hint: take a smaller quantization" in done.stderr


def stateful(info: GGUFInfo) -> GGUFInfo:
    """The same model where half of the layers keep a state of 64 MiB."""
    tensors = tuple(
        Tensor(f"blk.{i}.ssm_conv1d.weight", (4, 1024), "F32", 16384) for i in range(0, LAYERS, 2)
    )
    sizes = {"inner_size": 1 << 17, "state_size": 128, "group_count": 1, "conv_kernel": 4}
    return replace(
        info,
        architecture="qwen35",
        state="hybrid",
        tensors=info.tensors + tensors,
        metadata={f"qwen35.ssm.{key}": value for key, value in sizes.items()},
    )


def test_states_to_go_back_to_go_before_the_context():
    info = stateful(INFO)
    wanted = wanted_load(info, ASKED)
    assert wanted.snapshots > 2

    def needs(**options):
        return predict_memory(info, replace(wanted, **options), kernels=STOCK)

    def found(nbytes):
        return fit(info, ASKED, wanted, room(nbytes))

    assert found(just(needs())).load == wanted
    fewer = found(just(needs(snapshots=2)))
    assert (fewer.load.snapshots, fewer.load.n_ctx) == (2, wanted.n_ctx)
    assert fewer.changes[0].startswith("2 earlier states of its recurrent layers are kept: with ")
    none = found(just(needs(snapshots=0, n_ctx=1024)))
    assert (none.load.snapshots, none.load.n_ctx) == (0, 1024)
    assert none.changes[0].startswith("nothing is drafted")
    assert none.changes[1].startswith("the context is 1024 tokens")
