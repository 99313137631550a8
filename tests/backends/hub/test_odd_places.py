"""Whatever lies in the folders of other tools: it is passed over, and every model beside it is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specx.backends.errors import ModelError
from specx.backends.hub import models
from specx.backends.hub.models import find_model, list_models

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64  # a file of its own is listed under one name only
LAYER = {"mediaType": "application/vnd.ollama.image.model", "digest": OTHER}


def manifest(digest: str) -> bytes:
    return json.dumps({"layers": [LAYER | {"digest": digest}]}).encode()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory with one model of each tool."""
    for variable in ("SPECX_MODEL", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(models, "_PACKAGE", "specx_no_such_package")
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / ".ollama/models/blobs" / DIGEST.replace(":", "-"))
    put(tmp_path / ".ollama/models/manifests/registry.ollama.ai/library/good/1b", manifest(DIGEST))
    put(tmp_path / ".ollama/models/blobs" / OTHER.replace(":", "-"))
    put(tmp_path / ".cache/huggingface/hub/models--a--b/snapshots/c/good.gguf", b"hub")
    put(tmp_path / ".cache/llama.cpp/good.gguf", b"flat")
    put(tmp_path / ".lmstudio/models/a/b/good.gguf", b"studio")
    return tmp_path


GOOD = {"good:1b", "a/b/good.gguf", "good.gguf"}


def put(path: Path, data: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names() -> set[str]:
    return {model.name for model in list_models()}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(OTHER),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["layers", "mediaType", "digest", "x"]), inner, max_size=4)
        | st.builds(lambda value: {"layers": [LAYER | {"digest": value}]}, inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, depth=st.integers(0, 6))
def test_a_manifest_may_hold_any_json(home, value, depth):
    path = put(home.joinpath(".ollama/models/manifests", *"abcdef"[:depth], "file"))
    path.write_text(json.dumps(value))
    try:
        assert names() >= GOOD
    finally:
        path.unlink()


@pytest.mark.parametrize("below", [".", "registry.ollama.ai", "registry.ollama.ai/library", "a/b/c/d/e"])
@pytest.mark.parametrize(
    "data",
    [
        *(manifest(OTHER), b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"layers": ' + b"9" * 5000 + b"}"),
        json.dumps({"layers": [LAYER | {"digest": f"sha256:../../{'0' * 64}\0"}]}).encode(),
        json.dumps({"layers": [7, {}, {"mediaType": 7}, LAYER]}).encode(),
    ],
    ids=range(8),
)
def test_an_odd_manifest(home, below, data):
    put(home / ".ollama/models/manifests" / below / "odd", data)
    assert names() >= GOOD


PLACES = (
    *(".ollama/models/manifests", ".ollama/models/manifests/registry.ollama.ai/library"),
    *(".cache/huggingface/hub", ".cache/huggingface/hub/models--a--b"),
    *(".cache/huggingface/hub/models--a--b/refs", ".cache/huggingface/hub/models--a--b/snapshots"),
    *(".cache/llama.cpp", ".lmstudio/models", ".lmstudio/models/a"),
)


@pytest.mark.parametrize("place", PLACES)
def test_odd_things_in_a_folder(home, place):
    folder = home / place
    folder.mkdir(parents=True, exist_ok=True)
    for name in (b"odd", b"odd.gguf", b"models--odd", b"main", b"\xff\n\x1b.gguf", b"models--\xff"):
        for kind in ("folder", "fifo", "loop", "broken", "file"):
            path = os.path.join(os.fsencode(folder), kind.encode() + b"-" + name)
            if kind == "folder":
                os.mkdir(path)
                os.symlink(folder, os.path.join(path, b"up"))
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "file":
                Path(os.fsdecode(path)).write_bytes(b"x")
            else:
                os.symlink(path if kind == "loop" else b"nowhere", path)
    (folder / "main").mkdir(exist_ok=True)
    found = list_models()
    assert {model.name for model in found} >= GOOD
    assert all(model.path.is_file() for model in found)
    with pytest.raises(ModelError):
        find_model("nothing-like-it")


@pytest.mark.parametrize("kind", ["fifo", "folder", "large", "bytes"])
def test_a_reference_that_is_none(home, kind):
    main = home / ".cache/huggingface/hub/models--a--b/refs/main"
    main.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(main)
    elif kind == "folder":
        main.mkdir()
    else:
        main.write_bytes(b"\xff\0\n" if kind == "bytes" else b"")
        os.truncate(main, 1 << 40 if kind == "large" else 3)
    assert names() >= GOOD


def test_relative_and_impossible_variables(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "xdg/llama.cpp/other.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")  # which counts as unset
    for variable in ("LLAMA_CACHE", "HF_HOME", "OLLAMA_MODELS"):
        monkeypatch.setenv(variable, "~nobody-of-that-name/x" if variable == "HF_HOME" else "\udcff/" * 100)
    assert names() == GOOD
