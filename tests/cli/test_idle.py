"""What a model measures while a person types ends with the line, and is told after it."""

from __future__ import annotations

import threading
import time

import pytest

from specx.backends.errors import ModelError
from specx.cli.idle import idle
from specx.engine.session import Session


class Measuring(Session):
    """A session of nothing but its measurements."""

    def __init__(self, problem=None):
        self.told, self.problem, self.began = [], problem, threading.Event()
        self.notice, self.setup = self.told.append, None
        self.ended, self.staircase = False, None

    def measure_staircase(self, cache=None, *, stopped):
        self.notice("measured")
        self.began.set()
        while not stopped():
            time.sleep(0.001)
        if self.problem:
            raise self.problem
        self.ended = True


def test_it_ends_with_the_line_and_is_told_then():
    session = Measuring()
    with idle(session):
        assert session.began.wait(10)
        assert session.told == [] and not session.ended
    assert session.ended and session.told == ["measured"]
    session.notice("later")
    assert session.told == ["measured", "later"]
    assert all(thread.name != "idle" for thread in threading.enumerate())


def test_what_goes_wrong_is_told_and_ends_nothing():
    session = Measuring(ModelError("no memory", "none"))
    with idle(session):
        assert session.began.wait(10)
    assert session.told == ["measured", "no memory"]


def test_a_ctrl_c_waits_until_nobody_else_uses_the_model():
    """However often: the model would be freed, or asked by two threads."""
    session = Measuring()
    join, joined = threading.Thread.join, []

    def interrupted(thread, timeout=None):
        if thread.name == "idle" and len(joined) < 3:
            joined.append(thread)
            raise KeyboardInterrupt
        join(thread, timeout)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "join", interrupted)
        with idle(session):
            assert session.began.wait(10)
    assert len(joined) == 3 and session.ended
    session.notice("later")
    assert session.told == ["measured", "later"]


def test_a_fault_is_told_in_a_line(capsys):
    session = Measuring(ZeroDivisionError("none"))
    with idle(session):
        assert session.began.wait(10)
    assert session.told == ["measured", "unexpected ZeroDivisionError: none"]
    assert capsys.readouterr() == ("", "")


def test_in_a_server_there_is_nothing_to_measure():
    with idle(object()):
        assert all(thread.name != "idle" for thread in threading.enumerate())
