"""specx as a library: the names of the package, and the example of the documentation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

DOC = Path(__file__).resolve().parents[1] / "docs" / "library.md"
LIGHT = """
import sys, specx
assert not {"numpy", "llama_cpp"} & set(sys.modules)  # until something is used
assert specx.__version__
for name in specx.__all__:
    assert getattr(specx, name).__doc__, name
try:
    specx.telepathy
except AttributeError as problem:
    assert "telepathy" in str(problem)
else:
    raise AssertionError
try:
    specx.load("model.gguf", telepathy=True)
except specx.SpecxError as problem:
    assert "telepathy" in problem.message
    assert "texts" in problem.hint
else:
    raise AssertionError
"""


def run(script):
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_names_are_there_and_cost_nothing_until_they_are_used():
    run(LIGHT)


def test_the_example_of_the_documentation(smollm2):
    source = re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[1]
    told = run(f"from pathlib import Path\nMODEL = Path({str(smollm2)!r})\n{source}")
    assert "Paris" in told
    answers = ast.literal_eval(told.strip().splitlines()[-1])
    assert len(answers) == 10
    assert all(answers)
