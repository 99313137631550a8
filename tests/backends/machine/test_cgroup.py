"""Limits of control groups: both versions, nested, in containers, and a real one where that is permitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specx.backends.machine.cgroup import MemoryGroup, cpu_quota, memory_groups, throttled_s

V2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "31 1 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "32 1 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
CPU1, MEMORY1, TOP = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory", "sys/fs/cgroup"
NO_LIMIT1 = str(9223372036854771712)


@pytest.fixture
def tree(tmp_path):
    def write(mounts, groups, files):
        everything = {
            "proc/self/mountinfo": "\n".join(mounts),
            "proc/self/cgroup": "\n".join(groups),
            **files,
        }
        for name, text in everything.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("inner", "middle", "outer", "quota"),
    [
        ("max 100000", "max 100000", "max 100000", None),
        ("150000 100000", "max 100000", "max 100000", 1.5),
        ("800000 100000", "50000 200000", "400000 100000", 0.25),  # the tightest counts, wherever it is
        ("max 100000", "max 100000", "300000 100000", 3.0),
        ("max", "", "nonsense", None),
        ("0 100000", "100000 0", "max 100000", None),
    ],
)
def test_the_whole_chain_of_version_2_is_read(tree, inner, middle, outer, quota):
    root = tree(
        [V2],
        ["0::/user.slice/a b/run.scope"],
        {
            f"{TOP}/user.slice/a b/run.scope/cpu.max": inner,
            f"{TOP}/user.slice/a b/cpu.max": middle,
            f"{TOP}/user.slice/cpu.max": outer,
        },
    )
    assert cpu_quota(root) == quota


def test_version_1_has_a_hierarchy_for_each_controller(tree):
    root = tree(
        [V1_CPU.format(root="/"), V1_MEMORY.format(root="/")],
        ["4:memory:/jobs/7", "2:cpu,cpuacct:/jobs", "1:name=systemd:/elsewhere", "0::/"],
        {
            f"{CPU1}/jobs/cpu.cfs_quota_us": "-1",
            f"{CPU1}/jobs/cpu.cfs_period_us": "100000",
            f"{CPU1}/cpu.cfs_quota_us": "250000",
            f"{CPU1}/cpu.cfs_period_us": "100000",
            f"{MEMORY1}/jobs/7/memory.limit_in_bytes": NO_LIMIT1,
            f"{MEMORY1}/jobs/7/memory.usage_in_bytes": "100",
            f"{MEMORY1}/jobs/memory.limit_in_bytes": "5000",
            f"{MEMORY1}/jobs/memory.usage_in_bytes": "3000",
            f"{MEMORY1}/jobs/memory.stat": "inactive_file 7\ntotal_inactive_file 900\ntotal_active_file 100",
            f"{MEMORY1}/memory.limit_in_bytes": NO_LIMIT1,
        },
    )
    assert cpu_quota(root) == 2.5
    assert memory_groups(root) == [MemoryGroup(5000, 2000)]


def test_memory_of_version_2_is_listed_from_the_inside_out(tree):
    root = tree(
        [V2],
        ["0::/a/b/c"],
        {
            f"{TOP}/a/b/c/memory.max": "9000",
            f"{TOP}/a/b/c/memory.high": "8000",
            f"{TOP}/a/b/c/memory.current": "1000",
            f"{TOP}/a/b/memory.max": "max",
            f"{TOP}/a/b/memory.current": "7000",
            f"{TOP}/a/memory.max": "9500",
            f"{TOP}/a/memory.current": "9400",
            f"{TOP}/a/memory.stat": "anon 5000\nactive_file 300\ninactive_file 100\nslab_reclaimable 50\nx y",
        },
    )
    groups = memory_groups(root)
    assert groups == [MemoryGroup(8000, 1000), MemoryGroup(9500, 8950)]
    assert [group.available for group in groups] == [7000, 550]
    assert MemoryGroup(100, 300).available == 0


@pytest.mark.parametrize(
    ("mounted", "group", "found"),
    [
        ("/docker/7", "/docker/7", 2.0),  # a container that sees its path from outside
        ("/docker/7", "/docker/7/inner", 1.0),
        ("/docker/7", "/elsewhere", 2.0),  # only the mount point is left to look at
        ("/", "/../../outside", 2.0),  # of another namespace
        ("/", "/", 2.0),
        ("/", "/gone", 2.0),
    ],
)
def test_in_a_container_the_chain_ends_at_the_mount_point(tree, mounted, group, found):
    files = {
        f"{CPU1}/cpu.cfs_quota_us": "200000",
        f"{CPU1}/cpu.cfs_period_us": "100000",
        f"{CPU1}/inner/cpu.cfs_quota_us": "100000",
        f"{CPU1}/inner/cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "1",  # above the mount point, and not a group at all
        "cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(tree([V1_CPU.format(root=mounted)], [f"2:cpu,cpuacct:{group}"], files)) == found


def test_blanks_in_a_mount_point(tree):
    mount = r"30 1 0:26 / /sys/my\040groups rw - cgroup2 cgroup2 rw"
    assert cpu_quota(tree([mount], ["0::/x"], {"sys/my groups/x/cpu.max": "70000 100000"})) == 0.7


@pytest.mark.parametrize("mounts", [[], ["not a mount", "1 2 3 - ", V2]])
def test_where_nothing_can_be_read_there_is_no_limit(tree, mounts):
    root = tree(mounts, ["::", "what"], {})
    assert cpu_quota(root) is None and memory_groups(root) == []
    assert cpu_quota(root / "nowhere") is None


@pytest.mark.parametrize(
    ("mount", "group", "name", "text", "seconds"),
    [
        (V2, "0::/a/b", f"{TOP}/a/cpu.stat", "usage_usec 9\nthrottled_usec 2500000", 2.5),
        (
            V1_CPU.format(root="/"),
            "2:cpu:/a",
            f"{CPU1}/a/cpu.stat",
            "nr_throttled 4\nthrottled_time 75000",
            75e-6,
        ),
        (V2, "0::/a", f"{TOP}/a/cpu.stat", "throttled_usec many", 0.0),
        (V2, "0::/a", f"{TOP}/a/cpu.max", "max 100000", 0.0),
    ],
)
def test_how_long_a_quota_held_a_group_up(tree, mount, group, name, text, seconds):
    assert throttled_s(tree([mount], [group], {name: text})) == pytest.approx(seconds)


SAY = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
from specx.backends.machine.cgroup import cpu_quota
from specx.backends.machine.machine import this_cpu
print(cpu_quota(), this_cpu().usable_threads)
"""


def _make_cpu_group() -> tuple[Path, dict[str, str]]:
    """A new group below the one this process is in, and what limits it to one and a half CPUs."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = {controller: path for _, controllers, path in lines for controller in controllers.split(",")}
    name = f"specx-test-{os.getpid()}"
    for top, path, files in (
        (
            "/sys/fs/cgroup/cpu",
            paths.get("cpu"),
            {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"},
        ),
        ("/sys/fs/cgroup", paths.get(""), {"cpu.max": "150000 100000"}),
    ):
        folder = Path(f"{top}/{path}/{name}")
        if path is None or not (folder.parent / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        if all((folder / file).exists() for file in files):
            return folder, files
        folder.rmdir()
    pytest.skip("no control group can be made here")


def test_a_real_group_limits_a_real_process():
    before = cpu_quota()
    if before is not None and before < 1.5:
        pytest.skip("this process has less than that")
    folder, files = _make_cpu_group()
    try:
        try:
            for name, text in files.items():
                (folder / name).write_text(text)
        except OSError as error:
            pytest.skip(f"limits cannot be set here: {error}")
        command = [sys.executable, "-P", "-c", SAY, str(folder / "cgroup.procs")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        quota, threads = done.stdout.split()
        assert float(quota) == 1.5
        assert int(threads) == min(2, len(os.sched_getaffinity(0)))
    finally:
        folder.rmdir()
    assert cpu_quota() == before
