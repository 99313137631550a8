"""What other processes do: read from the kernel's counts, and seen of a real process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from specx.backends.machine.machine import this_cpu
from specx.backends.machine.other_work import OtherWork


def stat(*busy):
    """/proc/stat of CPUs that have been busy for so many seconds, in ticks of a hundredth."""
    rows = [f"cpu{i} {100 * s} 0 0 5000 70 0 0 0 9 9" for i, s in enumerate(busy)]
    return "\n".join(("cpu 1 2 3", *rows, "intr 1 2 3", "cpufreq 9"))


class Machine:
    """Files that say what is written into them, and clocks that are set."""

    def __init__(self, root):
        self.root, self.own, self.now = root, 0.0, 0.0
        self.write("stat", stat(0, 0, 0))

    def write(self, name, text):
        path = self.root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def waited(self, thread, seconds):
        self.write(f"self/task/{thread}/schedstat", f"77 {round(seconds * 1e9)} 5")

    def watch(self):
        return OtherWork((0, 1), self.root, own=lambda: self.own, clock=lambda: self.now, ticks=100)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_work_of_others_is_what_this_process_did_not_do(machine):
    machine.own, machine.now = 3.0, 5.0
    machine.write("stat", stat(10, 20, 30))
    others = machine.watch()
    machine.own, machine.now = 9.0, 15.0
    machine.write("stat", stat(18, 22, 99))  # the third belongs to strangers
    work = others.so_far()
    assert work.others_s == pytest.approx(8 + 2 - 6)
    assert (work.seconds, work.cpus) == (10.0, 2)
    assert 0.01 <= work.tick_s < 0.02
    machine.own = 20.0  # counted in ticks, others may seem to have had less than nothing
    assert others.so_far().others_s == 0.0


def test_what_a_quota_held_up_counts_from_the_beginning(machine):
    machine.write("self/mountinfo", "30 1 0:26 / /groups rw,nosuid - cgroup2 cgroup2 rw")
    machine.write("self/cgroup", "0::/")
    counts = machine.root / "groups/cpu.stat"
    counts.parent.mkdir()
    counts.write_text("throttled_usec 5000000")
    others = machine.watch()
    assert others.so_far().throttled_s == 0.0
    counts.write_text("throttled_usec 5250000")
    assert others.so_far().throttled_s == pytest.approx(0.25)


def test_what_each_thread_waited_is_summed(machine):
    machine.waited(11, 5.0)
    machine.waited(12, 1.0)
    machine.waited(13, 1.0)
    others = machine.watch()
    machine.waited(11, 5.5)
    machine.waited(14, 0.25)  # it has begun meanwhile
    (machine.root / "proc/self/task/13/schedstat").unlink()  # and this one has ended
    assert others.so_far().waited_s == pytest.approx(0.75)


@pytest.mark.parametrize("text", ["nothing", "", "cpu0 1 2 3 4 5 6 7 8"])
def test_what_cannot_be_read_is_unknown(machine, text):
    others = machine.watch()
    machine.write("stat", text)
    assert (others.so_far().others_s, others.so_far().waited_s) == (None, None)


def test_without_the_files_nothing_is_known(tmp_path):
    work = OtherWork((0,), tmp_path).so_far()
    assert (work.others_s, work.waited_s) == (None, None)


def busy_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is read")
def test_real_work_of_another_process_is_seen_and_own_work_is_not():
    cpus = this_cpu().allowed
    code = "import time; end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    others = OtherWork(cpus)
    subprocess.run([sys.executable, "-c", code], check=True)
    beside = others.so_far()
    assert beside.others_s > 0.3  # however much others did besides
    own = OtherWork(cpus)
    start = time.process_time()
    thread = threading.Thread(target=busy_for, args=(0.3,))
    thread.start()
    busy_for(0.3)
    thread.join()
    alone = own.so_far()
    used = time.process_time() - start
    assert alone.others_s <= alone.seconds * len(cpus) - used + 5 * alone.tick_s  # what is left, at most
    assert alone.waited_s >= 0
