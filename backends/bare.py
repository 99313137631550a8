"""One module of a package, without what the rest of the package imports.

The packages that read model files and bind llama.cpp import all they have at once: converters, tokenizers,
templates. A start needs a table of types and the bindings.
"""

from __future__ import annotations

import sys
import typing
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bare_package", "gguf_types"]


@cache
def gguf_types() -> Any:
    """The package `gguf`, or as much of it as knows types: `GGMLQuantizationType`, `LlamaFileType`, ..."""
    return bare_package("gguf", "constants")


def bare_package(name: str, module: str) -> Any:
    """A package with one of its modules, whose names are the package's; all of it if it is loaded already.

    Whoever imports the package later gets all of it, with the same module.

    Raises:
        ImportError: it cannot be imported.
    """
    if name in sys.modules:
        return sys.modules[name]
    if f"{name}.{module}" in sys.modules:
        return _package(name, module)
    with _standing_in("typing_extensions", typing):
        try:
            return _package(name, module)
        except ImportError:
            pass
    return _package(name, module)


def _package(name: str, module: str) -> ModuleType:
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no module named {name!r}", name=name)
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__file__, package.__spec__ = spec.origin, spec
    sys.modules[name] = package
    try:
        part = import_module(f"{name}.{module}")
    finally:
        del sys.modules[name]
    package.__dict__.update({key: value for key, value in vars(part).items() if not key.startswith("__")})
    package.__dict__[module] = part
    return package


@contextmanager
def _standing_in(name: str, module: ModuleType) -> Iterator[None]:
    """`module` in the place of one that is long to import and of which little is needed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
