"""What the native module is used as is what it was built to, or it is told."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import specx.kernels
from specx.kernels import _native

STUB = Path(specx.kernels.__file__).with_name("_native.pyi")

STALE = """
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
class Older(MetaPathFinder, Loader):
    def find_spec(self, name, path, target=None):
        return spec_from_loader(name, self) if name == "specx.kernels._native" else None
    def exec_module(self, module):  # with nothing in it: no INTERFACE, as before there was one
        pass
sys.meta_path.insert(0, Older())
from specx.cli.app import run
sys.exit(run(["show", sys.argv[1]]))
"""


def exported(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """Every name that a stub declares, those of classes behind theirs."""
    names = []
    for node in body:
        match node:
            case ast.ClassDef():
                names += [prefix + node.name, *exported(node.body, f"{prefix}{node.name}.")]
            case ast.FunctionDef():
                names.append(prefix + node.name)
            case ast.AnnAssign(target=ast.Name()):
                names.append(prefix + node.target.id)
    return names


def test_the_module_has_what_its_stub_declares():
    names = exported(ast.parse(STUB.read_text()).body)
    assert {"INTERFACE", "Foresight", "Draft.of_chain"} <= set(names)
    for name in names:
        found = _native
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)


def test_a_module_of_another_version_is_refused(tmp_path):
    specx.kernels.check(_native.INTERFACE, STUB)
    updated = tmp_path / "_native.pyi"
    updated.write_text(STUB.read_text() + "\ndef added() -> None: ...\n")
    for built, interface in ((_native.INTERFACE, updated), (None, STUB)):
        with pytest.raises(ImportError, match="another version") as caught:
            specx.kernels.check(built, interface)
        assert caught.value.name == "specx.kernels._native"


def test_where_nothing_says_what_it_is_used_as_nothing_is_refused(tmp_path):
    specx.kernels.check(_native.INTERFACE, tmp_path / "_native.pyi")
    specx.kernels.check(None, tmp_path / "_native.pyi")


def test_commands_say_how_to_build_it_again(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    ended = subprocess.run(
        [sys.executable, "-P", "-c", STALE, tmp_path / "model.gguf"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: specx's native code cannot be used: it was built from another version\n"
        f"hint: build it again: pip install -e {STUB.parents[1]}\n"
    )
