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


ERRORS = """
import specx, pytest
for wrong in ({{"texts": 0}}, {{"n_ctx": -5}}, {{"n_ctx": "many"}}, {{"n_batch": None}}, {{"draft_max": -1}}):
    with pytest.raises(specx.SpecxError, match="must be . or more"):
        specx.load({model!r}, **wrong)
for wrong in ({{"threads": 0}}, {{"threads_batch": 1000}}):
    with pytest.raises(specx.SpecxError, match="must be 1 to 512"):
        specx.load({model!r}, **wrong)
for wrong in ({{"kernels": "fast"}}, {{"type_k": "f17"}}, {{"flash_attn": True}}, {{"draft": "small.gguf"}}):
    with pytest.raises(specx.SpecxError, match=" is ") as caught:
        specx.load({model!r}, **wrong)
    assert caught.value.hint
greedy = specx.SamplingSettings(temperature=0)
with specx.load({model!r}, store=False, measure=False, n_ctx=0) as model:
    assert model.n_ctx == 8192
    with pytest.raises(specx.SpecxError, match="surrogate"):
        model.generate("\\ud800", greedy)
    with pytest.raises(specx.SpecxError, match="stop string is empty"):
        model.generate("a", greedy, stop=["x", ""])
    with pytest.raises(specx.SpecxError, match="none of the 49152"):
        model.generate([1, 1 << 40], greedy)
    texts = []
    for seed in (-5, 2**64 - 5):
        texts.append(model.generate("One", specx.SamplingSettings(seed=seed), n_predict=4))
        list(texts[-1])
    assert texts[0].result.tokens == texts[1].result.tokens
    waiting = model.generate("One", greedy, n_predict=4)
for late in (
    lambda: model.generate("a", greedy),
    lambda: model.generate([1], greedy),
    lambda: model.prompt_of([{{"role": "user", "content": "x"}}]),
    lambda: model.tokenize("a", add_special=True, parse_special=True),
    lambda: model.vocab.piece(40001),
    lambda: list(waiting),
):
    with pytest.raises(specx.SpecxError, match="was closed"):
        late()
model.close()
"""


def test_what_cannot_be_done_is_said_in_a_sentence(smollm2):
    run(ERRORS.format(model=str(smollm2)))
