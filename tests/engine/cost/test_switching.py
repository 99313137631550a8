"""What changing the width takes, how it is learned, and which width is kept."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.engine.cost.switching import KEPT, RATE, Keeping, Switching

USUAL = 10.0  # milliseconds of every step in a row


def switching(settles, *steps):
    made = Switching()
    made.begin(settles)
    for n, excess_ms in steps:
        made.observe(n, USUAL + excess_ms, USUAL)
    return made


def test_on_a_cpu_the_first_single_token_after_a_wider_step_tells_what_it_takes_longer():
    made = switching(1, (1, 9.0), (4, 9.0), (1, 0.5))
    assert made.change_ms == pytest.approx(0.5 * RATE) and made.excess_ms(1) == 0  # in a row
    made.observe(1, USUAL + 9.0, USUAL)
    assert made.change_ms == pytest.approx(0.5 * RATE * 0.99)
    assert switching(1, *[(4, 0.0), (1, 0.5)] * 100).change_ms == pytest.approx(0.5, rel=0.01)


def test_on_a_gpu_two_steps_of_any_row_tell_it_each_for_itself():
    made = switching(3, (1, 1.5), (1, 6.4), *[(1, 0.0)] * 200)
    assert made.change_ms == pytest.approx(7.9)  # however long the text is
    assert (made.excess_ms(1), made.excess_ms(8)) == (0.0, pytest.approx(1.5))
    made.observe(8, USUAL + 1.2, USUAL)
    assert made.excess_ms(8) == pytest.approx(6.4) and made.excess_ms(1) == pytest.approx(
        1.2
    )  # of two the lower
    made.observe(8, USUAL + 6.6, USUAL)
    assert made.excess_ms(8) == 0 and made.change_ms == pytest.approx(1.2 + 6.4)
    for _ in range(3):
        for n in (1, 1, 2, 2):
            made.observe(n, USUAL + 2.0, USUAL)
    assert made.change_ms == pytest.approx(2.0 + 2.0)  # the median of the latest


def test_on_a_gpu_it_is_known_when_both_steps_were_seen():
    assert switching(1).known and not switching(3).known
    made = switching(3, (1, 1.0), (8, 1.0))
    assert not made.known and made.change_ms == 1.0
    made.observe(8, USUAL, USUAL)
    assert made.known and made.change_ms == 1.0
    made.begin(3)
    assert made.known


def test_what_is_settled_and_what_is_not_takes_longer():
    made = switching(3, (1, 1.0), (1, 3.0), (4, 1.0))
    assert not made.settled(4) and not made.settled(1)
    assert (made.beyond_ms(4), made.beyond_ms(1)) == (3.0, 1.0)
    made.observe(4, USUAL + 3.0, USUAL)
    assert made.settled(4) and made.beyond_ms(4) == 0 and made.beyond_ms(1) == 1.0
    made.observe(1, USUAL + 1.0, USUAL)
    assert not made.settled(1)
    made.observe(1, USUAL + 3.0, USUAL)
    assert made.settled(1)


def test_on_a_cpu_a_wide_step_that_keeps_its_width_is_thought_to_save_as_much():
    made = switching(1, (4, 0.0), (1, 0.5), (4, 0.0))
    assert (made.beyond_ms(4), made.beyond_ms(5), made.beyond_ms(1)) == (-0.5 * RATE, 0.0, 0.5 * RATE)


def test_a_step_that_was_held_up_says_little():
    assert switching(1, (4, 0.0), (1, 9e9)).change_ms == USUAL * RATE
    made = switching(3, (2, 0.5), (2, 0.3), (2, 0.0), (1, 9e9), (1, 0.4))
    assert made.change_ms == pytest.approx(0.5 + 0.3)


def test_what_is_left_of_a_change_and_the_way_back():
    made = switching(3, (1, 1.0), (1, 3.0), (1, 0.0))
    assert (made.left_ms(1), made.left_ms(8)) == (0.0, 8.0)
    made.observe(8, USUAL + 1.0, USUAL)
    assert (made.left_ms(8), made.left_ms(4), made.left_ms(1)) == (3.0, 8.0, 4.0)
    assert made.all_left_ms(9)[1:].tolist() == [made.left_ms(n) for n in range(1, 10)]
    assert made.all_left_ms(2)[1:].tolist() == [4.0, 8.0]
    made.observe(8, USUAL + 3.0, USUAL)
    assert made.left_ms(8) == 0.0


def test_a_single_token_that_is_faster_than_thought_costs_nothing():
    assert switching(1, (2, 0.0), (1, -3.0)).change_ms == 0


def test_a_budget_pays_for_wide_steps_and_the_way_back_and_not_for_a_prompt():
    made = switching(3)
    assert not made.for_drafts(1) and made.for_drafts(2)
    made.observe(4, USUAL + 1.0, USUAL)
    for _ in range(2):
        assert made.for_drafts(1)
        made.observe(1, USUAL + 1.0, USUAL)
    assert not made.for_drafts(1)


def test_steps_of_others_change_the_width_and_nothing_else():
    made = switching(3, (1, 1.0), (1, 1.0), (1, 0.0))
    before = made.change_ms
    made.after(16)
    assert made.change_ms == before and not made.settled(1) and not made.for_drafts(1)


def test_a_text_that_begins_has_nothing_to_pay_of_the_last_one():
    made = switching(1, (4, 0.0))
    made.begin(1)
    assert made.settled(1) and not made.for_drafts(1)


STEPS = np.array([np.inf, *(1.0 + 0.1 * n for n in range(64))])  # milliseconds: 1.0, 1.1, ...


def kept(draws, change_ms, steps=STEPS):
    """The widths of the steps of a text in which `draws` says what drafts promise, and what comes true."""
    keeping, widths = Keeping(), []
    for gains, tokens in draws:
        widths.append(keeping.choose(steps, gains, change_ms))
        keeping.observe(widths[-1], min(tokens, widths[-1]))
    return widths


def test_where_a_change_costs_nothing_the_step_at_hand_decides():
    assert kept([([1.0], 1), ([1.0, 1.9, 2.7, 3.4], 4), ([1.0], 1), ([1.0, 1.9], 2)], 0.0) == [1, 4, 1, 2]


def test_a_width_is_kept_until_the_change_is_paid_for():
    good, nothing = ([1.0 + 0.8 * n for n in range(8)], 6), ([1.0], 1)
    widths = kept([nothing] + [good] * 12 + [nothing] * 3 + [good] * 5 + [nothing] * 30, 4.0)
    assert widths[1] == 1 and widths[12] == 8  # not at the first sign
    assert set(widths[12:21]) == {8}  # nor is it left for a few steps
    assert widths[-1] == 1
    assert sum(a != b for a, b in pairwise(widths)) <= 3


def test_a_text_begins_with_the_width_that_promises_much_and_not_with_one_that_promises_little():
    assert kept([([1.0 + 0.8 * n for n in range(8)], 6)], 3.0) == [8]
    assert kept([([1.0, 1.2], 1)], 3.0) == [1]


def test_what_a_width_saves():
    keeping = Keeping()
    keeping.choose(STEPS, [1.0, 1.5], 1.0)
    assert keeping.saved_ms(2) == np.inf  # no row has begun
    keeping.observe(1, 1)
    keeping.choose(STEPS, [1.0, 1.5], 1.0)
    assert keeping.saved_ms(2) == pytest.approx(STEPS[1] - STEPS[2] / 1.5)
    assert keeping.saved_ms(1) == 0
    keeping.observe(5, 1)  # as a draft model has it
    keeping.choose(STEPS, [1.0, 1.5], 1.0)
    assert keeping.saved_ms(2) == np.inf


def test_a_width_that_there_is_no_room_for_is_left():
    draws = ([1.0 + 0.9 * n for n in range(32)], 20)
    keeping = Keeping()
    for _ in range(10):
        width = keeping.choose(STEPS, draws[0], 1.0)
        keeping.observe(width, draws[1])
    assert width > 4
    assert keeping.choose(STEPS[:5], draws[0], 1.0) <= 4


@settings(max_examples=60)
@given(
    phases=st.lists(st.tuples(st.integers(1, 30), st.floats(0.0, 0.95)), min_size=1, max_size=8),
    change_ms=st.floats(0.0, 10.0),
)
def test_it_costs_at_most_a_few_times_what_the_best_width_would_have(phases, change_ms):
    # Promises that come true on average; everything by expectation, a token at a time.
    each = []
    for length, prob in phases:
        gains = (1 + np.cumsum(prob ** np.arange(1, 64))).tolist()
        each += [[1.0, *gains]] * length
    keeping, took, width = Keeping(), 0.0, 0
    for gains in each:
        now = keeping.choose(STEPS, gains, change_ms)
        took += STEPS[now] / gains[now - 1] + change_ms * (width not in (0, now))
        width = now
        keeping.observe(now, 1)
    best = min(sum(STEPS[n] / gains[n - 1] for gains in each) for n in KEPT)
    assert took <= 3 * best + 2 * change_ms
