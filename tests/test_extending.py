"""A drafter of somebody else's package, registered by its entry point, as docs/extending.md shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
TOGETHER = """
import sys
from pathlib import Path
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.session import Session

def written(drafter, texts):
    asked = Asked(Path(sys.argv[1]), n_ctx=512, texts=texts, drafter=drafter, store=False)
    with Session.open(asked) as session:
        # What steps take on this machine must not decide what is tested.
        session.staircase.load_json({"0": {str(n): 10 + n / 10 for n in (1, 8, 64)}})
        generations = [
            session.generate(
                session.tokenize(f"{i} green bottles, " * 4, add_special=True, parse_special=False),
                SamplingSettings(seed=i, temperature=0.0),
                n_predict=12,
                ignore_eos=True,
            )
            for i in range(8)
        ]
        sources = {source for _, chunk in session.together(generations) for source in chunk.sources}
        return [generation.result.tokens for generation in generations], sources

plain, _ = written("none", 1)
echoed, sources = written("echo", 8)
assert echoed == plain, (echoed, plain)
assert "echo" in sources, sources
print("the same")
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python with the package of the documentation installed, and gives its standard output."""
    source = re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "your_package.py").write_text(source)
    info = tmp_path / "your_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: your-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specx.drafters]\necho = your_package:Echo\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments, code=0):
        command = [sys.executable, "-P", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


PROMPT = "one two three four one two three four one two three four one two"


def test_it_drafts_in_complete(run, smollm2):
    asked = [
        "-m",
        "specx.cli",
        "complete",
        smollm2,
        "-p",
        PROMPT,
        "-n",
        12,
        "--temp",
        0,
        "--json",
        "--kernels",
        "stock",
    ]
    echoed, plain = (json.loads(run(*asked, "--drafter", name)) for name in ("echo", "none"))
    assert echoed["drafter"] == "echo"
    assert echoed["tokens"] == plain["tokens"]


def test_it_drafts_in_bench(run, smollm2, tmp_path):
    suite = tmp_path / "suite.jsonl"
    suite.write_text(json.dumps({"category": "numbers", "prompt": PROMPT}) + "\n")
    asked = [
        "--suite",
        suite,
        "-n",
        12,
        "--drafter",
        "echo,none",
        "-r",
        1,
        "-o",
        "json",
        "--kernels",
        "stock",
    ]
    done = json.loads(run("-m", "specx.cli", "bench", smollm2, *asked))
    assert {"echo", "none"} <= {arm["drafter"] for arm in done["arms"]}


def test_it_drafts_for_eight_texts_at_once(run, smollm2):
    assert run("-c", TOGETHER, smollm2) == "the same\n"


def test_a_drafter_that_nobody_registered(run, smollm2):
    told = run("-m", "specx.cli", "complete", smollm2, "-p", "hi", "--drafter", "telepathy", code=2)
    assert "telepathy" in told
    assert "echo" in told  # among those there are
