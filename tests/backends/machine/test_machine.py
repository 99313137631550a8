"""What the machine is, read from the files of machines that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from specx.backends.machine.machine import (
    CPU,
    OWN_SPACE,
    Conditions,
    Memory,
    available_memory,
    bytes_to_read,
    cpu_of_sysctl,
    instruction_sets,
    machine_fingerprint,
    memory_of_vm_stat,
    read_conditions,
    read_cpu,
    read_memory,
    this_cpu,
)

CPUS = "sys/devices/system/cpu"
MEMINFO = (
    "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 9000000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB"
)
V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


@pytest.fixture
def tree(tmp_path):
    def write(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return write


def processors(count, *, siblings=str, allowed=None, **each):
    """Files of a machine with `count` logical CPUs; `each` has the text of a file by CPU."""
    files = {
        f"{CPUS}/online": f"0-{count - 1}",
        "proc/cpuinfo": "processor : 0\nmodel name : Made  Up CPU\n\nprocessor : 1\nmodel name : Other",
        "proc/self/status": f"Name: x\nCpus_allowed_list:\t{allowed or f'0-{count - 1}'}",
    }
    for cpu in range(count):
        files[f"{CPUS}/cpu{cpu}/topology/core_cpus_list"] = siblings(cpu)
        for name, text in each.items():
            files[f"{CPUS}/cpu{cpu}/{name.replace('__', '/')}"] = text(cpu)
    return files


def test_threads_that_share_a_core_count_once(tree):
    cpu = read_cpu(tree(**processors(8, siblings=lambda cpu: f"{cpu % 4},{cpu % 4 + 4}")))
    assert cpu.name == "Made Up CPU"
    assert cpu.cores == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert (cpu.usable_threads, cpu.usable_cores, cpu.default_threads) == (8, 4, 4)
    assert cpu.efficiency == ()
    facts = cpu.to_json()
    assert (facts["logical"], facts["physical"], facts["threads_per_core"]) == (8, 4, 2)
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("allowed", "threads", "cores"),
    [("0-7", 8, 4), ("0,4", 2, 1), ("0-3", 4, 4), ("1", 1, 1), ("2-3,6", 3, 2), ("0-127", 8, 4), ("", 8, 4)],
)
def test_the_mask_decides_what_can_be_used(tree, allowed, threads, cores):
    files = processors(8, siblings=lambda cpu: f"{cpu % 4},{cpu % 4 + 4}")
    cpu = read_cpu(tree(**files | {"proc/self/status": f"Cpus_allowed_list:\t{allowed}"}))
    assert (cpu.usable_threads, cpu.usable_cores) == (threads, cores)


@pytest.mark.parametrize(
    ("quota", "threads"), [("max 100000", 8), ("100000 100000", 1), ("210000 100000", 3), ("5000 100000", 1)]
)
def test_a_quota_is_rounded_up(tree, quota, threads):
    groups = {"proc/self/mountinfo": V2, "proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": quota}
    cpu = read_cpu(tree(**processors(8), **groups))
    assert (cpu.usable_threads, cpu.usable_cores, cpu.default_threads) == (threads,) * 3


HYBRID = {
    "intel": {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"},
    "arm": {f"{CPUS}/cpu{i}/cpu_capacity": str(c) for i, c in enumerate((1024, 1024, 870, 870, *[280] * 4))},
    "clock": {
        f"{CPUS}/cpu{i}/cpufreq/cpuinfo_max_freq": str(khz)
        for i, khz in enumerate((5_600_000, 5_700_000, 5_500_000, 5_500_000, *[3_900_000] * 4))
    },
}


@pytest.mark.parametrize("kind", HYBRID)
def test_slower_cores_are_left_out_until_something_is_measured(tree, kind):
    cpu = read_cpu(tree(**processors(8), **HYBRID[kind]))
    assert cpu.efficiency == (4, 5, 6, 7)
    assert (cpu.usable_threads, cpu.usable_cores, cpu.default_threads) == (8, 8, 4)
    assert cpu.to_json()["performance"] == [0, 1, 2, 3]


def test_a_process_that_has_only_slower_cores_uses_them(tree):
    cpu = read_cpu(tree(**processors(8, allowed="5-7"), **HYBRID["intel"]))
    assert (cpu.usable_cores, cpu.default_threads) == (3, 3)


def test_cores_that_differ_by_a_little_are_alike(tree):
    clocks = lambda cpu: str(5_000_000 + 100_000 * cpu)  # noqa: E731
    assert read_cpu(tree(**processors(4, cpufreq__cpuinfo_max_freq=clocks))).efficiency == ()
    one_missing = {f"{CPUS}/cpu0/cpu_capacity": "1024"}
    assert read_cpu(tree(**processors(4), **one_missing)).efficiency == ()


def test_without_any_file_there_is_at_least_one_thread(tmp_path):
    cpu = read_cpu(tmp_path)
    assert cpu.name is None and cpu.cores is None
    assert cpu.usable_threads == len(cpu.online) == os.cpu_count()
    assert cpu.to_json()["physical"] is None
    assert read_memory(tmp_path) == Memory() and available_memory(tmp_path) is None
    assert read_conditions(tmp_path) == Conditions()


def test_a_missing_topology_is_not_guessed(tree):
    files = processors(4)
    del files[f"{CPUS}/cpu2/topology/core_cpus_list"]
    cpu = read_cpu(tree(**files))
    assert cpu.cores is None and cpu.usable_cores == 4


def test_older_kernels_call_siblings_otherwise(tree):
    files = {name.replace("core_cpus", "thread_siblings"): text for name, text in processors(4).items()}
    assert read_cpu(tree(**files)).cores == ((0,), (1,), (2,), (3,))


def test_a_board_that_names_only_parts(tree):
    board = {"proc/cpuinfo": "processor : 0\nCPU part : 0xd0b", "proc/device-tree/model": "Small Board 5\0"}
    assert read_cpu(tree(**processors(4) | board)).name == "Small Board 5"


def test_the_memory_that_is_left_is_the_least_of_all_limits(tree):
    root = tree(**{"proc/meminfo": MEMINFO})
    assert read_memory(root) == Memory(16000000 << 10, 9000000 << 10, None, None, 2 << 20, 1 << 20)
    groups = {
        "proc/self/mountinfo": V2,
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/b/memory.max": str(4 << 30),
        "sys/fs/cgroup/a/b/memory.current": str(1 << 30),
        "sys/fs/cgroup/a/memory.max": str(8 << 30),
        "sys/fs/cgroup/a/memory.current": str(7 << 30),
    }
    memory = read_memory(tree(**groups))
    assert (memory.limit, memory.used, memory.available) == (8 << 30, 7 << 30, 1 << 30)
    wide = read_memory(
        tree(**{"sys/fs/cgroup/a/memory.max": str(1 << 40), "sys/fs/cgroup/a/b/memory.max": "max"})
    )
    assert wide.available == 9000000 << 10 == available_memory(root)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_what_a_process_may_use_is_a_limit_as_well(tree, monkeypatch):
    import resource

    status = "VmPeak:\t 900000 kB\nVmSize:\t 200000 kB\nVmData:\t 100000 kB\n"
    root = tree(**{"proc/meminfo": MEMINFO, "proc/self/status": status})
    allowed = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_DATA: 2 << 30}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed[kind], resource.RLIM_INFINITY))
    memory = read_memory(root)
    assert (memory.limit, memory.used) == (1 << 30, (200000 << 10) + OWN_SPACE)
    assert memory.available == memory.limit - memory.used
    allowed[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert read_memory(root).available == (2 << 30) - (100000 << 10)
    allowed[resource.RLIMIT_DATA] = 1 << 20
    assert read_memory(root).available == 0


@pytest.mark.parametrize("text", ["", "MemTotal:", "MemTotal: many kB", "nonsense"])
def test_damaged_meminfo(tree, text):
    assert read_memory(tree(**{"proc/meminfo": text})) == Memory()


def test_conditions(tree):
    zones = {
        f"sys/class/thermal/thermal_zone{i}/temp": t for i, t in enumerate(("41000", "67500", "-40000", "?"))
    }
    files = {
        **zones,
        f"{CPUS}/cpu0/cpufreq/scaling_governor": "powersave",
        f"{CPUS}/cpu1/cpufreq/scaling_governor": "powersave",
        "proc/loadavg": "1.50 0.75 0.25 2/345 678",
        "sys/class/power_supply/BAT0/type": "Battery",
        "sys/class/power_supply/BAT0/status": "Discharging",
    }
    assert read_conditions(tree(**files)) == Conditions("battery", ("powersave",), 67.5, (1.5, 0.75, 0.25))


SUPPLIES = [
    ({"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, "AC"),
    ({"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, "battery"),
    ({"BAT0/type": "Battery", "BAT0/status": "Not charging"}, "AC"),
    ({"mouse/type": "Battery", "mouse/scope": "Device", "mouse/status": "Discharging"}, None),
    ({"BAT0/type": "Battery", "BAT0/status": "Unknown"}, None),
]


@pytest.mark.parametrize(("supplies", "power"), SUPPLIES)
def test_where_the_power_comes_from(tree, supplies, power):
    files = {f"sys/class/power_supply/{name}": text for name, text in supplies.items()}
    assert read_conditions(tree(**files)).power == power


def test_instruction_sets_are_those_that_are_on():
    line = "CUDA : ARCHS = 890 | CPU : SSE3 = 1 | AVX = 1 | AMX_INT8 = 0 | REPACK = 1 | "
    assert instruction_sets(line) == ["ARCHS", "SSE3", "AVX", "REPACK"]
    assert instruction_sets("") == []


def test_a_mac():
    values = {
        "hw.logicalcpu": "10",
        "hw.physicalcpu": "10",
        "hw.perflevel0.logicalcpu": "8",
        "hw.perflevel1.logicalcpu": "2",
        "machdep.cpu.brand_string": "Made Up M9",
    }
    cpu = cpu_of_sysctl(values)
    assert (cpu.name, cpu.efficiency, cpu.usable_cores, cpu.default_threads) == ("Made Up M9", (8, 9), 10, 8)
    shared = cpu_of_sysctl({"hw.logicalcpu": "8", "hw.physicalcpu": "4"})
    assert (shared.usable_threads, shared.default_threads) == (8, 4)
    assert cpu_of_sysctl({}).usable_threads == os.cpu_count()
    said = "Statistics: (page size of 16384 bytes)\nPages free: 10.\nPages inactive: 5.\nx: y"
    assert memory_of_vm_stat("1000000", said) == Memory(1000000, 15 * 16384)
    assert memory_of_vm_stat(None, None) == Memory()


def test_this_machine_has_what_python_says():
    assert this_cpu().usable_threads <= len(os.sched_getaffinity(0))
    memory = read_memory()
    assert 0 < memory.available <= memory.total


SAY = """
from specx.backends.machine.machine import machine_fingerprint, this_cpu
import os, sys
os.sched_setaffinity(0, [int(cpu) for cpu in sys.argv[1:]])
print(this_cpu().usable_threads, this_cpu().default_threads, machine_fingerprint())
"""


def test_a_real_mask_is_respected_and_makes_another_machine():
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("there is only one processor")
    said = []
    for cpus in (allowed[:1], allowed[1:2], allowed):
        command = [sys.executable, "-P", "-c", SAY, *map(str, cpus)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said[0][:2] == said[1][:2] == ["1", "1"]
    assert int(said[2][0]) == this_cpu().usable_threads
    assert said[0][2] != said[2][2] == machine_fingerprint()


@pytest.mark.parametrize("cores", [None, ()])
def test_cores_that_are_not_known_are_one_for_each_thread(cores):
    cpu = CPU("x", (0, 1, 2), (0, 2), cores)
    assert cpu.usable_cores == 2 and cpu.to_json()["usable_threads"] == 2


def test_the_speed_of_reading_is_measured_on_a_part_of_what_is_available():
    assert bytes_to_read(Memory()) == 1 << 30
    assert bytes_to_read(Memory(available=64 << 30)) == 1 << 30
    assert bytes_to_read(Memory(available=800 << 20)) == 100 << 20
    assert bytes_to_read(Memory(available=64 << 30), 1 << 28) == 1 << 28
    assert bytes_to_read(Memory(available=0)) == 1 << 20
