"""What a run is predicted to take, against llama.cpp's own figures and against real processes."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.cache_size import state_bytes
from specx.backends.gguf.file import read_gguf
from specx.backends.llama.kernels import ATTENTION, KERNELS, SPECX, STOCK, unavailable
from specx.backends.llama.libllama import set_log, system_info
from specx.backends.llama.memory import (
    DRIVER_BYTES,
    PACKED,
    predict_memory,
    repacked_types,
    translation_bytes,
    wanted_context,
)
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

MIB = 1 << 20
TEXT = Path(__file__).resolve().parents[3] / "docs" / "kernels.md"
RUN = """
import sys
from pathlib import Path
from specx.backends.machine.peak_memory import peak_memory
from specx.cli.app import run
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

model, n_ctx, cache, kernels, text = sys.argv[1:]
run(["complete", "--help"])  # what a command imports belongs to it
asked = Asked(
    Path(model), n_ctx=int(n_ctx), type_k=cache, type_v=cache, kernels=kernels, store=False
)
with Session.open(asked) as session:
    prompt = session.tokenize(Path(text).read_text(), add_special=True, parse_special=False)
    prompt = prompt[: asked.n_ctx - 64]  # it ends in a piece long enough for all the logits there can be
    assert len(prompt) == asked.n_ctx - 64
    for _ in session.generate(prompt, SamplingSettings(temperature=0), n_predict=8):
        pass
    pages, counts = 0, False
    for line in open("/proc/self/smaps"):
        if line[0].islower() or line[0].isdigit():  # a mapping, from here on
            counts = line.rstrip().endswith(Path(model).name)
        elif counts and line.startswith("Rss:"):
            pages += int(line.split()[1]) * 1024
print("peak", peak_memory(), pages)
"""


TOGETHER = """
import sys
from pathlib import Path
from specx.backends.machine.peak_memory import peak_memory
from specx.cli.app import run
from specx.engine.offers import Asking, Reason
from specx.engine.plan import Plan
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings

target, draft, text = sys.argv[1:]
run(["complete", "--help"])  # what a command imports belongs to it

class Always(Asking):
    def weigh(self, terms, drafts, i, offer, best):
        return 1.0, None if len(drafts[i]) else Reason.GAIN

asked = Asked(
    Path(target), n_ctx=512, kernels="stock", store=False, measure=False, drafter="model",
    draft=AskedModel(Path(draft)),
)
with Session.open(asked) as session:
    prompt = session.tokenize(Path(text).read_text(), add_special=True, parse_special=False)[:448]
    session.plan = Plan(session.staircase, asking=Always)
    session.measure_staircase = lambda *_given: None
    chunks = list(session.generate(prompt, SamplingSettings(temperature=0), n_predict=8))
    assert any(chunk.step is not None and chunk.step.spent is not None for chunk in chunks)
    need = session.setup.need
print("peak", peak_memory(), need.total)
"""


@pytest.fixture
def full(tiny_models):
    return read_gguf(tiny_models["full"])


def settings(info, **options) -> Load:
    n_ctx = wanted_context(options.pop("n_ctx", None), info.context_length)
    return Load(info.path, 1, 1, n_ctx=n_ctx, **options)


def test_the_parts_make_the_whole(full):
    need = predict_memory(full, settings(full), kernels=STOCK)
    parts = need.weights + need.kv + need.compute + need.logits + need.drafter + need.base + need.repack
    assert need.total == parts
    assert (need.draft, need.gpu, need.n_ctx) == (0, 0, 4096)
    data = need.to_json()
    assert data["total"] == need.total
    assert data["required"] == need.working - need.mapped
    assert data["kv"] == need.kv


def test_the_context_is_the_one_that_would_be_loaded(full):
    def n_ctx(info, wanted):
        return predict_memory(info, settings(info, n_ctx=wanted)).n_ctx

    assert [n_ctx(full, wanted) for wanted in (None, 0, 700)] == [4096, 8192, 768]
    assert n_ctx(replace(full, context_length=1000), None) == 1024  # rounded up, as llama.cpp does
    assert n_ctx(replace(full, context_length=0), None) == 4096


def test_more_context_takes_more_of_the_cache_alone(full):
    small, large = (predict_memory(full, settings(full, n_ctx=n), kernels=STOCK) for n in (1024, 4096))
    assert large.kv == 4 * small.kv
    assert large.compute > small.compute
    assert (large.base, large.logits) == (small.base, small.logits)


def test_nothing_is_set_aside_for_drafts_that_are_not_made(full, tiny_models):
    plain = predict_memory(full, settings(full), drafting=False)
    drafting = predict_memory(full, settings(full))
    assert plain.drafter == 0
    assert plain.logits < drafting.logits
    recurrent = read_gguf(tiny_models["recurrent"])
    assert predict_memory(recurrent, settings(recurrent)).drafter == 0


def test_earlier_answers_are_counted_where_they_are_kept(full):
    kept, forgotten = (predict_memory(full, settings(full), history=h).drafter for h in (True, False))
    assert kept > forgotten > 0


def of_type(info, name):
    """The same model with all its matrices as another type, as large as they are."""
    return replace(
        info,
        tensors=tuple(replace(t, type=name) if len(t.shape) > 1 else t for t in info.tensors),
    )


def test_repacked_weights_are_counted_once_in_ours_and_with_their_pages_in_llama_cpps(full):
    info = of_type(full, "Q4_0")
    ours = predict_memory(info, settings(info), kernels=SPECX)
    theirs = predict_memory(info, settings(info), kernels=STOCK, repacked={"Q4_0": 1.0})
    in_place = predict_memory(info, settings(info), kernels=STOCK)
    assert ours.weights >= theirs.weights
    assert ours.repack == 0  # what is resident while loading is less than what is afterwards
    assert theirs.repack == info.size - theirs.mapped
    assert in_place.mapped == in_place.weights > theirs.mapped
    assert predict_memory(info, settings(info), kernels=ATTENTION).weights == in_place.weights


def test_what_llama_cpp_repacks_beside_our_kernels_keeps_its_pages(full):
    small = of_type(full, "Q4_0")
    (head,) = (t for t in small.tensors if t.name == "output.weight")
    size = 1 << 30
    mixed = replace(
        small,
        size=small.size + size,
        tensors=(*(t for t in small.tensors if t != head), replace(head, type="IQ4_XS", nbytes=size)),
    )
    assert predict_memory(mixed, settings(mixed), kernels=SPECX, repacked={"IQ4_XS": 1.0}).repack == size
    in_place = predict_memory(mixed, settings(mixed), kernels=SPECX)
    assert in_place.mapped > size > in_place.repack


def test_matrices_of_16_bits_are_copied_by_our_kernels(full):
    info = of_type(full, "BF16")
    ours, theirs = (predict_memory(info, settings(info), kernels=k) for k in (SPECX, STOCK))
    assert ours.working >= theirs.working
    assert ours.required > theirs.required


def test_a_tied_embedding_is_there_twice_where_it_is_packed(full):
    info = of_type(full, "Q8_0")
    tied = replace(info, tensors=tuple(t for t in info.tensors if t.name != "output.weight"))
    (head,) = (t for t in info.tensors if t.name == "output.weight")
    packed, packed_tied = (predict_memory(i, settings(i), kernels=SPECX).weights for i in (info, tied))
    assert packed_tied == packed  # the head's place is taken by a copy of the embedding
    stock, stock_tied = (predict_memory(i, settings(i), kernels=STOCK).weights for i in (info, tied))
    assert stock - stock_tied == head.nbytes


def test_packed_rows_come_in_groups(full):
    info = of_type(full, "Q4_0")
    rows = 16 * 3 + 1
    odd = replace(info, tensors=tuple(replace(t, shape=(t.shape[0], rows)) for t in info.tensors[-1:]))
    (tensor,) = odd.tensors
    assert predict_memory(odd, settings(odd), kernels=SPECX).weights == tensor.nbytes * 64 // rows


def test_without_a_mapping_everything_is_the_processs_own(full):
    read = predict_memory(full, settings(full, mmap=False), kernels=STOCK)
    assert (read.mapped, read.required) == (0, read.working)
    assert read.weights >= predict_memory(full, settings(full), kernels=STOCK).weights
    locked = predict_memory(full, settings(full, mlock=True), kernels=STOCK)
    assert locked.required == locked.total


def test_layers_are_counted_where_they_are(full):
    def needs(**options):
        return predict_memory(full, settings(full, **options), kernels=STOCK, gpus=1)

    everything = needs()
    assert everything == needs(n_gpu_layers=-1) == needs(n_gpu_layers=99)
    assert everything.kv == 0
    nothing = needs(n_gpu_layers=0)
    without = predict_memory(full, settings(full), kernels=STOCK)
    assert (nothing.gpu, nothing) == (0, replace(without, base=without.base + DRIVER_BYTES))
    head, two = needs(n_gpu_layers=1), needs(n_gpu_layers=2)
    (output,) = (t for t in full.tensors if t.name == "output.weight")
    (norm,) = (t for t in full.tensors if t.name == "output_norm.weight")
    assert (head.gpu_weights, head.gpu_kv) == (output.nbytes + norm.nbytes, 0)
    assert two.gpu_kv == nothing.kv // 3
    assert two.gpu_kv + two.kv == nothing.kv
    assert needs(offload=(("GPU0", 2),)) == two
    assert predict_memory(full, settings(full), gpus=0).gpu == 0


def test_a_draft_model_comes_with_a_cache_of_its_own(full):
    alone = predict_memory(full, settings(full), kernels=STOCK)
    both = predict_memory(full, settings(full), kernels=STOCK, draft=(full, settings(full)))
    its = predict_memory(full, settings(full), kernels=STOCK, drafting=False)
    assert both.draft > its.weights + its.kv + its.compute
    assert both.working == alone.working + both.draft
    assert both.draft < its.working  # there is one process
    quantized = (full, settings(full, type_k="q8_0", type_v="q8_0"))
    assert predict_memory(full, settings(full), kernels=STOCK, draft=quantized).draft < both.draft


def test_each_text_has_a_cache_of_its_own(full):
    one, four = (predict_memory(full, settings(full, texts=n), kernels=STOCK) for n in (1, 4))
    assert four.kv == 4 * one.kv
    assert (four.weights, four.base) == (one.weights, one.base)


def test_an_unknown_type_of_cache_is_refused(full):
    with pytest.raises(ModelError, match="q9") as caught:
        predict_memory(full, settings(full, type_v="q9"))
    assert "q8_0" in caught.value.hint


def test_all_parts_of_a_split_model_are_counted(full, tmp_path):
    parts = tuple(tmp_path / f"{i}.gguf" for i in range(2))
    split = replace(full, parts=parts, size=3 * full.size)
    one, more = (predict_memory(i, settings(i), kernels=STOCK, repacked={"F32": 1.0}) for i in (full, split))
    assert more.total - one.total == 2 * full.size


def test_which_types_llama_cpp_repacks():
    assert repacked_types("CPU : SSE3 = 1 | LLAMAFILE = 1") == {}
    assert repacked_types("CPU : AVX2 = 1 | REPACK = 1").keys() >= {"Q4_0", "Q4_K"}
    assert "Q8_0" not in repacked_types("CPU : AVX2 = 1 | REPACK = 1")
    assert repacked_types("CPU : AVX2 = 1 | AMX_INT8 = 1 | REPACK = 1")["Q8_0"] > 1  # with sums of its rows
    assert "Q8_0" in repacked_types("CPU : NEON = 1 | DOTPROD = 1 | REPACK = 1")


def test_what_is_packed_here_is_what_the_kernels_pack():
    from specx.kernels.reference.matmul import TYPES

    assert {name for name, *_ in TYPES.values()} == PACKED


def reported(loaded: Load, capsys: pytest.CaptureFixture[str]) -> int:
    """Bytes of the compute buffer that llama.cpp reports."""
    capsys.readouterr()
    LlamaModel(replace(loaded, log="-"), repack=False).close()
    set_log("")
    lines = [line for line in capsys.readouterr().err.splitlines() if "compute buffer size" in line]
    return round(max(float(re.search(r"([\d.]+) MiB", line)[1]) for line in lines) * MIB)


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 512},
        {"n_ctx": 8192},
        {"n_ctx": 8192, "n_ubatch": 64},
        {"n_ctx": 8192, "n_ubatch": 2048},
        {"n_ctx": 8192, "flash_attn": "off"},
    ],
)
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_the_compute_buffer_is_what_llama_cpp_reports(request, capsys, model, options):
    info = read_gguf(request.getfixturevalue(model))
    loaded = settings(info, **options)
    assert predict_memory(info, loaded).compute == pytest.approx(reported(loaded, capsys), rel=0.06)


@pytest.mark.parametrize("name", ["qwen35", "nemotron_h"])
def test_so_is_that_of_states_that_are_kept(tiny_hybrids, capsys, name):
    info = read_gguf(tiny_hybrids[name])
    for options in ({"texts": 8}, {"texts": 8, "n_ubatch": 64}, {"n_ctx": 2048}):
        one, kept = (settings(info, **{"n_ctx": 512, **options}, snapshots=n) for n in (0, 7))
        grown = reported(kept, capsys) - reported(one, capsys)
        predicted = predict_memory(info, kept).compute - predict_memory(info, one).compute
        assert predicted == pytest.approx(grown, abs=0.1 * reported(kept, capsys))


def test_states_are_counted_for_each_text_and_copied_once(tiny_hybrids):
    info = read_gguf(tiny_hybrids["qwen35"])
    bare, kept, many = (
        predict_memory(info, settings(info, n_ctx=512, snapshots=n, texts=texts))
        for n, texts in ((0, 1), (7, 1), (7, 16))
    )
    assert kept.kv - bare.kv == 7 * state_bytes(info)
    keys = bare.kv - 2 * state_bytes(info)
    assert many.kv == 16 * (keys + (1 + 3 + 1) * state_bytes(info))  # 64 rows of a call are 4 for each


def peak(model: Path, n_ctx: int, cache: str, kernels: str) -> tuple[int, int]:
    """Bytes of a process of its own that reads a prompt as long as the context, and writes a little; and how
    many of them are pages of the model's file."""
    arguments = [str(model), str(n_ctx), cache, kernels, str(TEXT)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, pages = done.stdout.rsplit("peak ", 1)[1].split()
    return int(whole), int(pages)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident pages are counted on Linux")
@pytest.mark.parametrize(
    ("model", "n_ctx", "cache", "kernels"),
    [
        ("smollm2", 512, "q8_0", "stock"),
        ("smollm2", 4096, "q8_0", "specx"),
        ("smollm2", 2048, "f16", "stock"),
        ("gemma3", 512, "f16", "stock"),
        ("gemma3", 4096, "q8_0", "specx"),
    ],
)
def test_a_real_run_takes_what_was_predicted(request, model, n_ctx, cache, kernels):
    if kernels == "specx" and (reason := unavailable()):
        pytest.skip(reason)
    info = read_gguf(request.getfixturevalue(model))
    load = settings(info, n_ctx=n_ctx, type_k=cache, type_v=cache)
    need = predict_memory(
        info, load, kernels=KERNELS[kernels], repacked=repacked_types(system_info()), history=False
    )
    whole, pages = peak(info.path, n_ctx, cache, kernels)
    assert need.total - need.mapped - need.repack == pytest.approx(whole - pages, rel=0.1)
    if kernels == "stock":
        assert need.total == pytest.approx(whole, rel=0.1)
    else:  # rows of an embedding: with each page the system maps as many neighbours as it has at hand
        assert need.mapped <= pages + 0.1 * whole and need.total <= 1.1 * whole


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident pages are counted on Linux")
@pytest.mark.parametrize(("target", "draft"), [("smollm2", "gemma3"), ("gemma3", "smollm2")])
def test_a_target_and_a_draft_model_of_another_family_take_what_was_predicted(request, target, draft):
    arguments = [str(request.getfixturevalue(name)) for name in (target, draft)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", TOGETHER, *arguments, str(TEXT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    whole, predicted = done.stdout.rsplit("peak ", 1)[1].split()
    assert int(predicted) == pytest.approx(int(whole), rel=0.1)


def test_another_vocabulary_takes_tables_of_both_and_the_tokenizer_of_a_trimmed_model(full):
    load = settings(full, n_ctx=256)

    def beside(draft):
        return predict_memory(full, load, kernels=STOCK, draft=(draft, replace(load, path=draft.path)))

    same, other = beside(full), beside(replace(full, tokenizer="spm"))
    tables = translation_bytes(full, full)
    assert tables > 50 * 2 * full.vocabulary_size
    assert other.draft == same.draft + tables
    assert other.required == same.required + tables
    assert other.total <= same.total + tables  # pages of the file are given back before that
    padded = replace(full, vocabulary_size=full.vocabulary_size + 1)
    assert beside(padded).draft - same.draft < tables
