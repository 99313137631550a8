"""The number of threads follows what others leave of the machine, within a few steps."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from specx.engine.cost.governor import AGAIN_S, POLL_S, Governor, OthersLoad


class Machine:
    """CPUs that other processes share: a thread that has to wait for its core holds all others up."""

    def __init__(self, cpus, busy=0.0):
        self.cpus, self.busy, self.now, self.applied, self.steps = cpus, busy, 0.0, [], []
        self.governor = Governor(cpus, self.applied.append, lambda: self.busy, lambda: self.now)

    def ms(self, threads):
        free = max(1, self.cpus - round(self.busy))
        return 6.0 / threads * (12.0 if threads > free else 1.0)

    def run(self, steps):
        """The numbers of threads of so many steps."""
        for _ in range(steps):
            threads = self.governor.threads
            ms = self.ms(threads)
            self.steps.append(threads)
            self.now += ms / 1e3
            self.governor.observe(ms / self.ms_alone)
        return self.steps[-steps:]

    @property
    def ms_alone(self):
        return 6.0 / self.cpus


def test_alone_nothing_is_tried():
    machine = Machine(4)
    assert set(machine.run(2000)) == {4} and machine.applied == []


def test_little_work_of_others_changes_nothing():
    assert set(Machine(4, busy=0.2).run(2000)) == {4}


@pytest.mark.parametrize(
    ("cpus", "busy", "best"), [(2, 1.0, 1), (4, 1.0, 3), (4, 2.0, 2), (8, 3.0, 5), (2, 4.0, 1)]
)
def test_beside_others_it_is_the_number_of_free_cpus_within_a_few_steps(cpus, busy, best):
    machine = Machine(cpus)
    machine.run(1000)
    machine.busy = busy
    before = machine.now
    while machine.governor.threads != best:
        machine.run(1)
        assert machine.now - before < POLL_S + 6 * machine.ms(cpus) / 1e3
    steps = machine.run(4000)
    assert steps.count(best) > 0.95 * len(steps)  # what is worse is tried less and less often
    machine.busy = 0.0
    machine.run(round(POLL_S / (machine.ms(best) / 1e3)) + 2)
    assert set(machine.run(1000)) == {cpus}


def test_what_others_do_does_not_matter_where_more_threads_are_faster_all_the_same():
    machine = Machine(2, busy=1.0)  # a process that gives way: of low priority
    machine.ms = lambda threads: 6.6 / threads
    steps = machine.run(4000)
    assert steps.count(2) > 0.95 * len(steps)


def test_what_lost_is_tried_again():
    machine = Machine(2, busy=1.0)
    machine.run(300)
    assert machine.governor.threads == 1
    machine.ms = lambda threads: 6.0 / threads  # as if the other one were bound to the second core no more
    before = machine.now
    while machine.governor.threads == 1 and machine.now - before < 3 * AGAIN_S:
        machine.run(1)
    steps = machine.run(1000)
    assert steps.count(2) > 0.9 * len(steps)


def test_a_single_slow_step_decides_nothing():
    machine = Machine(2, busy=1.0)
    machine.run(300)
    machine.governor.observe(100.0)
    assert machine.governor.threads == 1
    assert machine.run(200).count(1) > 190


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is read")
def test_a_real_process_is_seen():
    load = OthersLoad()
    end = time.monotonic() + 0.3
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(max(0.0, end - time.monotonic()))
        seen = load()
    finally:
        loop.kill()
        loop.wait()
    assert seen is None or seen > 0.3
