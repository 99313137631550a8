"""`--parallel`."""

from __future__ import annotations

import pytest

from specx.backends.errors import UsageError
from specx.cli.options.parallel import read_texts


@pytest.mark.parametrize(("typed", "texts"), [("auto", None), ("-1", None), ("1", 1), ("256", 256)])
def test_a_number_or_what_is_best(typed, texts):
    assert read_texts(typed) == texts


@pytest.mark.parametrize("typed", ["0", "257", "-2", "", "four", "1.5", "\u0664", "9" * 5000])
def test_anything_else_is_refused(typed):
    with pytest.raises(UsageError, match="parallel"):
        read_texts(typed)
