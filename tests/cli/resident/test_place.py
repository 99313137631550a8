from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest

from specx.backends.errors import SpecxError
from specx.cli.resident.place import PROCESS, Record, folder, place_of, records
from specx.engine.settings import Asked, AskedModel

OTHER = {
    "n_ctx": 512,
    "n_batch": 64,
    "n_ubatch": 32,
    "threads": 2,
    "threads_batch": 2,
    "n_gpu_layers": 3,
    "flash_attn": "off",
    "kernels": "stock",
    "type_k": "q8_0",
    "type_v": "q8_0",
    "mmap": False,
    "mlock": True,
    "swa_full": True,
    "drafter": "none",
    "draft_max": 3,
    "draft": AskedModel(threads=2),
    "exact": True,
    "context_shift": True,
    "store": False,
    "rpc": ("127.0.0.1:50052",),
    "parse_special": True,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Asked) if field.name not in PROCESS])
def test_whoever_asks_for_anything_else_looks_elsewhere(runtime, model, tmp_path, name):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    value = other if name == "model" else OTHER[name]
    assert place_of(replace(Asked(model), **{name: value}), make=True) != place_of(Asked(model))


def test_what_a_process_does_with_it_changes_nothing(runtime, model):
    same = Asked(model, answers=1, texts=8, measure=False, verbose=True, log="-", idle=True)
    assert place_of(same, make=True) == place_of(Asked(model))


def test_another_file_in_its_place_is_another_model(runtime, model, monkeypatch, tmp_path):
    before = place_of(Asked(model), make=True)
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    assert place_of(Asked(link)) == before
    os.utime(model, ns=(1, 1))
    assert place_of(Asked(model)) != before
    before = place_of(Asked(model))
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "elsewhere"))
    assert place_of(Asked(model)) != before


def test_the_folder_is_for_its_user_alone(runtime):
    assert folder() is None  # nothing is made by looking
    made = folder(make=True)
    assert made == runtime / "specx" and made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert folder() is None
    with pytest.raises(SpecxError, match="is open to others") as raised:
        folder(make=True)
    assert raised.value.hint.startswith("chmod 700")


def test_a_link_in_its_place_is_not_followed(runtime, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (runtime / "specx").symlink_to(tmp_path / "mine")
    assert folder() is None
    with pytest.raises(SpecxError):
        folder(make=True)


def test_a_path_that_is_too_long_for_a_socket(monkeypatch, tmp_path, model):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 90)))
    found = place_of(Asked(model), make=True)
    assert found is not None and len(os.fsencode(found.socket)) < 104
    assert found.folder.stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_directory_there_is_one(monkeypatch, model):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    place_of(Asked(model))  # and platformdirs warns nobody of it


def test_without_any_directory_there_is_no_place(monkeypatch, model):
    """A full disk has none that is temporary, and whoever only looks for a server goes on without."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")

    def none(*_args, **_options):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("platformdirs.user_runtime_dir", none)
    assert folder() is None and place_of(Asked(model)) is None and records() == []
    with pytest.raises(SpecxError, match="no folder for the socket of a server: No usable temporary"):
        folder(make=True)


def test_what_a_server_says_of_itself(place, model):
    record = Record(place, 123, model, "serve --background", place.log, 60.0)
    record.write()
    assert place.record.stat().st_mode & 0o777 == 0o600
    assert records() == [record]
    for damaged in ("", "[]", "{}", '{"pid": "x"}'):
        place.record.write_text(damaged)
        assert records() == []
