"""What a step costs that several texts take together, and how many it is best to have."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.scripted_vocab import ScriptedVocab
from specx.engine.cost.company import CompanyCosts
from specx.engine.cost.staircase import Staircase

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)


def costs_of(cost=lambda n, depth: 10.0 + n / 4 + n * depth / 1000):
    staircase = Staircase(64)
    staircase.load_json({str(d): {str(n): cost(n, d) for n in WIDTHS} for d in (0, 1000)})
    return CompanyCosts(staircase)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 500, 1000], [700] * 16])
def test_a_step_costs_its_rows_and_what_attention_adds_for_each_text(lengths):
    company = costs_of()
    n = len(lengths)
    for width in (1, 2, 4):
        expected = 10.0 + n * width / 4 + width * sum(lengths) / 1000
        assert company.cost([width] * n, lengths) == pytest.approx(expected)
        assert company.costs_by_width(lengths, 4)[width] == pytest.approx(expected)
        assert company.costs_by_rows(lengths, 64)[n * width] == pytest.approx(expected)
    uneven = [1 + i % 3 for i in range(n)]
    attention = sum(width * length / 1000 for width, length in zip(uneven, lengths, strict=True))
    assert company.cost(uneven, lengths) == pytest.approx(10.0 + sum(uneven) / 4 + attention)
    assert np.isinf(company.costs_by_width(lengths, 4)[0])
    assert np.isinf(company.costs_by_rows(lengths, 64)[:n]).all()


@pytest.mark.parametrize("lengths", [[0], [0, 250, 999, 1000, 1001, 4000], [700] * 16])
def test_costs_of_several_lengths_are_the_sum_of_theirs(lengths):
    staircase = Staircase(64)
    assert staircase.total_costs(lengths) == pytest.approx(sum(map(staircase.all_costs, lengths)))
    staircase.load_json(
        {str(d): {str(n): 10.0 + n / 4 + n * d / 1000 for n in WIDTHS} for d in (0, 300, 1000)}
    )
    for n, length in ((1, 100), (8, 800), (8, 900)):
        staircase.observe(n, length, 1.3 * staircase.cost(n, length))
    assert staircase.total_costs(lengths) == pytest.approx(sum(map(staircase.all_costs, lengths)))


def test_more_rows_than_one_text_can_have_cost_in_proportion():
    assert costs_of().cost([4] * 32, [0] * 32) == pytest.approx(2 * (10.0 + 64 / 4))


def test_real_steps_correct_it_and_what_was_seen_of_other_numbers_fades():
    company = costs_of()
    thought = company.cost([1] * 8, [0] * 8)
    for _ in range(50):
        company.observe([1] * 8, [0] * 8, 1.5 * thought)
    assert company.cost([1] * 8, [0] * 8) == pytest.approx(1.5 * thought, rel=0.01)
    # The machine is as fast again as it was, while fewer are written.
    other = costs_of().cost([1] * 4, [0] * 4)
    for _ in range(2000):
        company.observe([1] * 4, [0] * 4, other)
    assert company.cost([1] * 8, [0] * 8) == pytest.approx(thought, rel=0.05)


def test_the_best_number_of_texts():
    flat = costs_of(lambda n, _depth: 10.0)
    assert [flat.best_count(most, 0) for most in (1, 7, 64)] == [1, 7, 64]
    assert costs_of(lambda n, _depth: 10.0 * n).best_count(64, 0) == 1
    # Deep in a context attention is most of it, and nothing is shared of that.
    assert costs_of().best_count(64, 0) > costs_of().best_count(64, 50_000)
    assert costs_of().best_count(64, 0, host_ms=500.0) == 1
    assert CompanyCosts(Staircase(64)).best_count(16, 0) == 16
    assert CompanyCosts(Staircase(64)).rates(16, 0) == {}
    assert list(flat.rates(7, 0)) == list(range(1, 8))
    assert flat.rates(7, 0)[7] == pytest.approx(7 * flat.rates(1, 0)[1])


def test_what_was_measured_beside_other_work_decides_no_number():
    staircase = Staircase(8, watch=lambda: lambda: True)

    class Odd:
        n_ctx, room, length, max_width = 100, 100, 0, 8
        model = type("M", (), {"facts": type("F", (), {"settles": 1}), "vocab": ScriptedVocab(8)})

        def forward(self, tokens, parents):
            times.append(len(tokens))

        def keep(self, rows):
            pass

        rewind = keep

        def mark(self):
            return True

    times = []
    ticks = iter(np.cumsum(np.full(10_000, 0.01)).tolist())
    staircase.measure(Odd(), clock=lambda: next(ticks))
    assert staircase.disturbed and times
    assert CompanyCosts(staircase).best_count(8, 0) == 8
