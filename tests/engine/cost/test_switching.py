"""A row of steps of one width pays for its beginning: what is added to which width, and how it is learned."""

import pytest

from specx.engine.cost.switching import RATE, ROW, Switching


def switching(settles, *steps):
    made = Switching()
    made.begin(settles)
    for n, excess_ms in steps:
        made.observe(n, excess_ms)
    return made


def test_at_first_nothing_is_paid():
    assert switching(1).prices() == switching(3).prices() == (0, 0, 0)


def test_on_a_cpu_the_first_single_token_after_a_wider_step_tells_what_it_takes_longer():
    made = switching(1, (1, 9.0), (4, 9.0), (1, 0.5))
    assert made.excess_ms == 0.5  # of the first single token nothing was learned: the one before was one, too
    assert made.prices() == (0.5, pytest.approx(0.5 / (ROW + RATE * (1 - ROW))), 0.5 / ROW)


def test_on_a_gpu_single_tokens_settle_after_two():
    made = switching(3, (1, 1.5), (1, 1.4), (1, 0.0))
    assert made.excess_ms == pytest.approx(1.4 * 0.99)  # the least of the first ones; it fades
    saved_ms, wide_ms, single_ms = made.prices()
    assert wide_ms == single_ms == pytest.approx(2 * saved_ms / ROW)


def test_what_is_settled():
    made = switching(3, (4, 1.0))
    assert not made.settled(4) and not made.settled(1)
    made.observe(4, 1.0)
    assert made.settled(4) and not made.settled(1)
    made.observe(1, 1.0)
    assert not made.settled(1)
    made.observe(1, 1.0)
    assert made.settled(1)


def test_one_outlier_at_first_is_forgotten():
    made = switching(1, (2, 0.0), (1, 50.0))
    assert made.excess_ms == 50.0
    made.observe(2, 0.0)
    made.observe(1, 0.25)
    assert made.excess_ms == 0.25


def test_a_single_token_that_is_faster_than_thought_costs_nothing():
    assert switching(1, (2, 0.0), (1, -3.0)).excess_ms == 0


def test_long_rows_share_their_beginning_among_more_steps():
    long = switching(1, *[(4, 0.0)] * 30, (1, 1.0), (4, 0.0))
    short = switching(1, *[(4, 0.0), (5, 0.0)] * 15, (1, 1.0), (4, 0.0))
    assert long.excess_ms == short.excess_ms == 1.0
    assert long.prices().wide_ms < 1 / ROW < short.prices().wide_ms
    assert long.prices().single_ms == short.prices().single_ms == pytest.approx(1 / (ROW + RATE * (1 - ROW)))


def test_a_budget_pays_for_wide_steps_and_the_way_back_and_not_for_a_prompt():
    made = switching(3)
    assert not made.for_drafts(1) and made.for_drafts(2)
    made.observe(4, 1.0)
    for _ in range(2):
        assert made.for_drafts(1)
        made.observe(1, 1.0)
    assert not made.for_drafts(1)


def test_steps_of_others_change_the_width_and_nothing_else():
    made = switching(3, (1, 1.0), (1, 1.0), (1, 0.0))
    before = made.prices()
    made.after(16)
    assert made.prices() == before and not made.settled(1) and not made.for_drafts(1)


def test_a_text_that_begins_has_nothing_to_pay_of_the_last_one():
    made = switching(1, (4, 0.0))
    made.begin(1)
    assert made.settled(1) and not made.for_drafts(1)
