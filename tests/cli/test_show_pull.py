"""`specx show` and `specx pull` as they are typed: what goes to which stream."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from specx.backends.errors import DownloadError, ModelError, SpecxError, UsageError
from specx.backends.hub import download, models
from specx.cli import pull, show


@pytest.fixture
def app():
    app = typer.Typer()
    show.register(app)
    pull.register(app)
    return app


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for variable in (
        "SPECX_MODEL",
        "LLAMA_CACHE",
        "HF_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(models, "_PACKAGE", "specx_no_such_package")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "a folder with a rather long name so that lines do not fit" / "tiny.gguf")


def write_model(path: Path, template: str | None = "{{ messages }}", window: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny [bold]Test")
    writer.add_context_length(8192)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    if window:
        writer.add_sliding_window(window)
    if template:
        writer.add_chat_template(template)
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.attn_k.weight", np.ones((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(app, *arguments):
    """The result of a command that must succeed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def lines(result) -> dict[str, str]:
    return {line[:15].strip(): line[15:] for line in result.stdout.splitlines()}


def test_the_summary_says_what_the_file_is(app, model):
    shown = lines(run(app, "show", model))
    assert shown["file"].startswith(f"{model} (")
    assert shown["name"] == "Tiny [bold]Test"
    assert shown["quantization"] == "unknown (F32 100.0%)"
    assert shown["attention"] == "4 heads sharing 2 keys of 16"
    assert shown["context"] == "8,192 tokens"
    assert shown["vocabulary"] == "2 tokens (gpt2)"
    assert shown["chat template"] == "14 characters"
    assert shown["speculation"].startswith("yes")
    assert "at 4,096 tokens" in shown["memory"]


def test_memory_follows_the_context_and_the_cache_types(app, model):
    def memory(*options):
        return json.loads(run(app, "show", "-m", model, "--json", *options).stdout)["memory"]

    token, weights = 2 * 2 * (16 + 16) * 2, 2 * 32 * 64 * 4
    shown = memory()
    assert (shown["n_ctx"], shown["weights"], shown["kv"]) == (4096, weights, 4096 * token)
    assert shown["total"] >= shown["working"] > weights + 4096 * token
    assert memory("-c", "0")["kv"] == 8192 * token
    assert memory("-c", "100")["kv"] == 256 * token  # llama.cpp rounds up
    assert memory("-c", "100", "-ctk", "f32", "-ctv", "f32")["kv"] == 512 * token
    with pytest.raises(UsageError, match="q9"):
        memory("-ctk", "q9")


def test_json_has_everything_and_nothing_else(app, model):
    record = json.loads(run(app, "show", model, "--json").stdout)
    assert record["path"] == str(model)
    assert record["architecture"] == "llama"
    assert record["chat_template"] == "{{ messages }}"
    assert record["speculation"] == {"possible": True, "reason": None}
    assert "tensors" not in record
    record = json.loads(run(app, "show", model, "--json", "--tensors").stdout)
    assert record["tensors"][1] == {
        "name": "blk.1.attn_k.weight",
        "shape": [64, 32],
        "type": "F32",
        "bytes": 8192,
    }


def test_tensors_and_template(app, model, tmp_path):
    assert "blk.1.attn_k.weight  64 x 32  F32   8 KiB" in run(app, "show", model, "--tensors").stdout
    assert run(app, "show", model, "--template").stdout == "{{ messages }}\n"
    plain = write_model(tmp_path / "plain.gguf", template=None, window=64)
    with pytest.raises(ModelError, match="no chat template"):
        run(app, "show", plain, "--template")
    shown = lines(run(app, "show", plain))
    assert shown["window"].startswith("64 tokens")
    assert "chains" in shown["speculation"]


def test_list_names_what_was_downloaded(app, tmp_path, monkeypatch):
    with pytest.raises(ModelError) as caught:
        run(app, "show", "--list")
    assert "specx pull" in caught.value.hint
    assert json.loads(run(app, "show", "--list", "--json").stdout) == []
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    path = write_model(tmp_path / "hf/hub/models--org--m/snapshots/abc/m-Q4_0.gguf")
    header, row = run(app, "show", "--list").stdout.splitlines()
    assert header.split() == ["name", "size", "where", "path"]
    assert row.startswith("org/m/m-Q4_0.gguf  ")
    assert row.endswith(str(path))
    (record,) = json.loads(run(app, "show", "--list", "--json").stdout)
    assert (record["name"], record["path"]) == ("org/m/m-Q4_0.gguf", str(path))
    assert lines(run(app, "show", record["name"]))["file"].startswith(str(path))


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["absent.gguf"], ModelError),
        ([], ModelError),
        (["a", "-m", "b"], UsageError),
        (["a", "--list"], UsageError),
        (["--template", "--tensors"], UsageError),
    ],
)
def test_mistakes_are_errors_with_hints(app, arguments, kind):
    with pytest.raises(kind) as caught:
        run(app, "show", *arguments)
    assert caught.value.hint


def test_pull_prints_the_path_and_nothing_else_on_stdout(app, monkeypatch):
    seen = {}

    def fake(spec, *, progress, **options):
        seen.update(options, spec=spec)
        for file in ("m-1.gguf", "m-2.gguf"):
            progress(file, 5, 10)
            progress(file, 10, 10)
        return Path("/cache/m-1.gguf")

    monkeypatch.setattr(download, "pull", fake)
    result = run(app, "pull", "org/m", "--quant", "Q8_0", "--token", "t", "--revision", "v1", "--offline")
    assert result.stdout == "/cache/m-1.gguf\n"
    assert result.stderr.splitlines() == [
        "fetching m-1.gguf (10 bytes in all)",
        "fetching m-2.gguf (10 bytes in all)",
    ]
    assert seen == {
        "spec": "org/m",
        "file": None,
        "quant": "Q8_0",
        "revision": "v1",
        "token": "t",
        "offline": True,
    }


def test_pull_fails_with_what_to_do_and_an_empty_stdout(app):
    result = CliRunner().invoke(app, ["pull", "org/m", "--offline"])
    assert isinstance(result.exception, DownloadError)
    assert isinstance(result.exception, SpecxError)
    assert result.exception.hint
    assert result.stdout == ""
