"""What measures the machine does without threads that the system does not give."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Stacks of so many threads do not fit into the memory that the process may have.
SCRIPT = """
import resource
from pathlib import Path
from specx.kernels._native import integer_peak, read_bandwidth

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), used + (32 << 20)))
assert {call} > 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count stacks")
@pytest.mark.parametrize("call", ["read_bandwidth(1 << 20, 40, 1)", 'integer_peak("generic", 40, 1)'])
def test_fewer_threads_than_asked_for_are_no_end(call):
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT.format(call=call)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
