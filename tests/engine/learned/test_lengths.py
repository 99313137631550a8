"""How long answers are, as it is remembered, and what that says of time that is spent once."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.store import Store
from specx.engine.learned.lengths import EDGES, RANGES, Lengths, LifeTable, Outlook

GAIN = 1.0  # millisecond for each further token


def remembered(lengths, *, ended=True):
    table = LifeTable()
    for length in lengths:
        table.add(length, ended=ended)
    return table


def made_at(outlook, price, most, gain=GAIN):
    """The token before which the time is spent; None for never."""
    for written in range(most):
        outlook.written = written
        if outlook.worth(gain, price):
            return written
    return None


def test_where_nothing_is_known_laplaces_rule_holds():
    reached = [1.0, *itertools.accumulate(LifeTable().goes_on(), lambda a, b: a * b)]
    assert reached == pytest.approx([1 / (edge + 1) for edge in EDGES])
    assert LifeTable().another(0) == pytest.approx(1 / 2)
    assert LifeTable().another(2) == pytest.approx(3 / 4)


def test_a_table_learns_what_came_and_forgets_it():
    table = remembered([19] * 200)
    assert Outlook(table.goes_on(), most=4096).remaining == pytest.approx(19, rel=0.1)
    for _ in range(400):
        table.add(300, ended=True)
    assert Outlook(table.goes_on(), most=4096).remaining == pytest.approx(300, rel=0.1)


def test_what_was_cut_off_says_nothing_of_what_would_have_followed():
    cut, known = remembered([128] * 50, ended=False), LifeTable()
    at = EDGES.index(128)
    assert min(cut.goes_on()[:at]) > 0.98
    assert cut.goes_on()[at:] == known.goes_on()[at:]
    assert remembered([128] * 50).goes_on()[at] < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.floats(1, 5000))
def test_unknown_lengths_cost_at_most_about_twice_what_hindsight_does(length, price):
    made = made_at(Outlook(), price, min(length, 2000))
    if made is None:
        assert min(length, 2000) <= 1.5 * price
        return
    # It is made when what was missed is about its price (ranges are half an octave wide).
    assert price / 1.5 - 1 <= made <= 1.5 * price + 1
    assert made + price <= 2.5 * min(length, price) + 2 or length < 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.floats(1, 3000))
def test_of_an_answer_of_known_length_it_is_made_at_once_or_never(most, price):
    outlook = Outlook([1.0] * RANGES, most=most)
    assert outlook.remaining == pytest.approx(most)
    assert made_at(outlook, price, most) == (0 if most > price else None)


def best_policy(lengths, price, most):
    """The cost of the best fixed token to spend the time at, in hindsight over all `lengths`."""
    tokens = [*range(0, most, 5), None]
    return min(sum(cost(length, at, price) for length in lengths) for at in tokens)


def cost(length, at, price):
    """What is missed and spent if the time is spent before token `at`."""
    return length if at is None or at >= length else at + price


@pytest.mark.parametrize("price", [10, 40, 150, 600])
@pytest.mark.parametrize("kind", ["short", "long", "geometric", "bimodal"])
def test_with_remembered_lengths_it_costs_what_the_best_fixed_rule_does(kind, price):
    choice = random.Random(3)
    draw = {
        "short": lambda: 19,
        "long": lambda: 400,
        "geometric": lambda: 1 + int(choice.expovariate(1 / 100)),
        "bimodal": lambda: choice.choice([12, 12, 12, 12, 400]),
    }[kind]
    table, lengths = remembered(draw() for _ in range(200)), [draw() for _ in range(300)]
    outlook = Outlook(table.goes_on(), most=2000)
    at = made_at(outlook, price, 2000)
    total = sum(cost(length, at, price) for length in lengths)
    assert total <= 1.1 * best_policy(lengths, price, 500)


def test_answers_that_follow_and_answers_beside_count_for_what_serves_all():
    known = remembered([20] * 60).goes_on()
    alone, going_on = Outlook(known, most=500), Outlook(known, most=500, another=0.95)
    assert not alone.worth(GAIN, 200.0) and going_on.worth(GAIN, 200.0)
    assert not going_on.worth(GAIN, 0.0, 200.0)  # of the present text only
    assert not going_on.worth(GAIN, 200.0, 19.0)  # each has to be read, which takes nearly what it gains
    assert alone.worth(GAIN, 100.0, 0.0, [Outlook(known, most=500) for _ in range(7)])
    assert not alone.worth(GAIN, 0.0, 100.0, [Outlook(known, most=500) for _ in range(7)])


def test_it_can_wait_for_a_later_answer():
    # Most end at once; a long one will come, and is time enough.
    table = remembered([10, 10, 10, 10, 500] * 30)
    outlook = Outlook(table.goes_on(), most=1000, another=0.5)
    made = made_at(outlook, 150.0, 1000)
    assert made is not None and 10 <= made <= 23


def test_nothing_is_worth_its_price_at_the_end_or_without_a_gain():
    outlook = Outlook([1.0] * RANGES, most=50)
    assert not outlook.worth(0.0, 10.0)
    outlook.written = 50
    assert outlook.remaining == 0 and not outlook.worth(100.0, 1.0)
    outlook.written = 51  # the last step gave more than was wanted
    assert outlook.remaining == 0 and not outlook.worth(100.0, 1.0)


def test_lengths_are_kept_and_added_to_by_several_processes(tmp_path):
    store = Store(tmp_path)
    first, second = Lengths(store, "model"), Lengths(store, "model")
    for lengths in (first, second):
        for _ in range(30):
            lengths.begin(100, answers=1)
            lengths.add(19, ended=True)
        lengths.save(whole=False)
    later = Lengths(store, "model")
    assert later.begin(100, answers=1).remaining == pytest.approx(19, rel=0.1)
    assert Lengths(store, "other").begin(1000).remaining < 10
    assert not Lengths(store, "model").begin(100, endless=True).remaining < 100


def test_how_many_answers_a_process_writes_is_remembered_where_it_is_not_known(tmp_path):
    def process(answers, known=None):
        lengths, ahead = Lengths(Store(tmp_path), "model"), []
        for _ in range(answers):
            ahead.append(lengths.begin(100, answers=known).worth(GAIN, 30.0))
            lengths.add(10, ended=True)
        lengths.save(whole=known is None)
        return ahead

    assert process(1) == [False]
    for _ in range(20):
        process(12)
    assert process(12)[0]  # more will come
    for _ in range(200):
        process(1, known=1)  # these say nothing of the others
    assert process(3, known=3) == [False] * 3 and process(12)[0]
    for _ in range(100):
        process(1)
    assert not process(1)[0]


def test_a_damaged_entry_is_set_aside(tmp_path):
    told = []
    for content in ('{"version": 1}', '{"version": 1, "answers": {"ended": [1], "passed": [1]}}', "{"):
        (tmp_path / "lengths").mkdir(exist_ok=True)
        (tmp_path / "lengths" / "model.json").write_text(content)
        lengths = Lengths(Store(tmp_path, told.append), "model")
        assert lengths.begin(100).remaining == Outlook(most=100).remaining
    assert len(told) == 3 and all("set aside" in text for text in told)
