from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from specx.backends.bare import bare_package, gguf_types
bindings, types = bare_package("llama_cpp", "llama_cpp"), gguf_types()
names = ("llama_cpp.llama", "jinja2", "yaml", "gguf.vocab", "typing_extensions")
heavy = [n for n in names if n in sys.modules]
assert heavy == [], heavy
assert bindings.llama_cpp._lib and bindings.llama_decode and bindings.__file__.endswith("__init__.py")
import gguf
import llama_cpp
assert llama_cpp.Llama and llama_cpp.llama_decode is bindings.llama_decode
assert llama_cpp.llama_cpp is bindings.llama_cpp
assert gguf.GGUFReader and gguf.GGMLQuantizationType is types.GGMLQuantizationType
assert bare_package("llama_cpp", "llama_cpp") is llama_cpp
import typing_extensions
assert typing_extensions.__name__ == "typing_extensions"
"""


def test_a_part_of_a_package_and_later_all_of_it():
    done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_not_there():
    from specx.backends.bare import bare_package

    with pytest.raises(ModuleNotFoundError):
        bare_package("no_such_package", "part")


VERSION = """
import llama_cpp
from specx.backends.llama.libllama import _version
assert _version(llama_cpp) == llama_cpp.__version__
"""


def test_the_version_is_that_of_the_whole_package():
    """In a process of its own: the whole package gives llama.cpp a log of its own when it is imported."""
    done = subprocess.run([sys.executable, "-P", "-c", VERSION], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
