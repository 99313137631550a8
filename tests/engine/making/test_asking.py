"""Forms of prompts: all of them can be filled, with what is there and with nothing."""

import random

import pytest

from specx.engine.making.asking import FORMS, GAP, Forms

PROGRAM = "def area(width, height):\n    return width * height"
ANSWER = f"The garden is small. It is behind the house.\n```python\n{PROGRAM}\n```\nSo it is."
WRITTEN = {"passage", "sentence", "code", "question"}


def asked(answers, questions, count=3000, seed=1):
    forms, chance = Forms(), random.Random(seed)
    return [forms.ask(answers, questions, chance) for _ in range(count)]


def test_every_gap_has_words():
    lines = [line for line in FORMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    words = {line.split(" = ")[0] for line in lines if " = " in line.split(": ")[0]}
    gaps = {gap for line in lines for gap in GAP.findall(line)}
    assert gaps == words | WRITTEN
    assert len(lines) - len(words) > 80


def test_nothing_stays_open():
    for text in asked([ANSWER], ["Why is the sea salt?"]):
        assert "{" not in text.replace("{2}", "")
        assert "\\n" not in text
        assert 5 < len(text) < 6000


def test_what_was_written_comes_back():
    texts = asked([ANSWER], ["Why is the sea salt?"])
    assert any(f"```\n{PROGRAM}\n```" in text for text in texts)
    assert any("Why is the sea salt?" in text for text in texts)
    assert any('"It is behind the house."' in text for text in texts)
    assert any("The garden is small. It is behind the house." in text for text in texts)


@pytest.mark.parametrize("answers", [[], ["no"], ["``` \n```"], [""]])
def test_with_little_to_fill_in(answers):
    texts = asked(answers, [], 500)
    assert len(set(texts)) > 350
    assert not any(PROGRAM in text for text in texts)


def test_the_seed_decides():
    assert asked([ANSWER], [], 50) == asked([ANSWER], [], 50)
    assert asked([ANSWER], [], 50) != asked([ANSWER], [], 50, seed=2)
