"""Looking through an input: how much context its items need."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from specx.backends.errors import UsageError
from specx.backends.llama.vocab import load_vocabulary
from specx.engine.batch.items import Reader, Reading
from specx.engine.batch.source import read_lines
from specx.engine.batch.survey import DEFAULT_LIMIT, context_for, survey


def looked(*values, limit=DEFAULT_LIMIT):
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    return survey(Reader(Reading("jsonl"), read_lines(io.BytesIO(data), "in")), None, limit)


def test_short_items_need_no_vocabulary():
    found = looked({"prompt": "a", "max_tokens": 5}, {"prompt": "b"})
    assert (found.items, found.answered) == (2, 0)
    assert context_for(found.largest, Path("nowhere"), 100) == 512
    assert context_for(found.largest, Path("nowhere"), 1000) == 1280


def test_the_largest_is_found_among_many():
    values = [{"prompt": "x" * (i % 50)} for i in range(500)]
    values[321] = {"messages": [{"role": "user", "content": "y" * 500}]}
    values[400] = {"prompt": "z", "max_tokens": 700}
    largest = looked(*values, limit=10).largest
    assert len(largest) == 8 and [item.line for item in largest[:2]] == [401, 322]


def test_tokens_are_counted(smollm2):
    text = "The weather is nice today. " * 400
    found = looked({"messages": [{"role": "user", "content": text}], "max_tokens": 100})
    with load_vocabulary(smollm2) as vocab:
        tokens = len(vocab.tokenize(text.encode(), add_special=False, parse_special=True))
    assert tokens + 100 < context_for(found.largest, smollm2, 1024) < tokens + 100 + 700 < len(text)
    assert context_for(looked({"prompt": [1] * 5000, "max_tokens": 1}).largest, smollm2, 1) in range(
        5001, 5600
    )


def test_two_items_of_one_name_end_it():
    with pytest.raises(UsageError, match='"x" is on line 1 and again on line 2'):
        looked({"custom_id": "x", "prompt": "a"}, {"custom_id": "x", "prompt": "b"})


def test_what_is_no_request_needs_nothing():
    found = looked(
        3, {"prompt": {"a": 1}}, {"messages": 4}, {"prompt": [True, "x", [1, 2]], "max_tokens": "many"}
    )
    assert found.items == 4
    assert context_for(found.largest, Path("nowhere"), 0) == 512
