"""Energy counters of a machine that is not this one."""

from __future__ import annotations

import pytest

from specx.backends.machine.energy import EnergyMeter
from specx.backends.machine.peak_memory import peak_memory


def package(root, number, microjoules, *, name="package-0", most=1_000_000):
    folder = root / "sys/class/powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    package(tmp_path, 0, 100)
    package(tmp_path, 1, 200, name="package-1")
    package(tmp_path, "0:0", 50, name="core")
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    package(tmp_path, 0, 500_100)
    package(tmp_path, 1, 250_200, name="package-1")
    package(tmp_path, "0:0", 400_000, name="core")
    assert meter.joules(before, meter.read()) == pytest.approx(0.75)


def test_a_counter_that_starts_again_is_followed(tmp_path):
    package(tmp_path, 0, 900_000)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    package(tmp_path, 0, 100_000)
    assert meter.joules(before, meter.read()) == pytest.approx(0.2)


def test_what_cannot_be_read_is_unknown(tmp_path):
    assert EnergyMeter(tmp_path).read() is None
    package(tmp_path, 0, "not a number")
    meter = EnergyMeter(tmp_path)
    assert meter.read() is None and meter.joules(meter.read(), meter.read()) is None
    package(tmp_path, 0, 5)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert before is not None and meter.joules(before, meter.read()) is None


def test_the_peak_of_memory_never_falls():
    before = peak_memory()
    block = bytearray(b"x") * (32 << 20)
    after = peak_memory()
    del block
    if before is not None:
        assert after >= before > 1 << 20 and peak_memory() >= after - (1 << 20)
    assert peak_memory(2**22 + 1) is None  # there is no such process
