"""Nonsense, and clients that leave, beside others: the short form of benchmarks/serve_faults.py."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

from specx.cli.serve import wire

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "serve_faults.py"


@pytest.fixture
def faults():
    spec = importlib.util.spec_from_file_location("serve_faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_nonsense_and_leaving_cost_nobody_anything(serve, faults, monkeypatch):
    monkeypatch.setattr(wire, "HEAD_S", 2.0)
    server = serve(texts=3, slow_ms=1.0)
    report = faults.Abuse(server.url, 1).run(malformed=80, disconnects=40)
    assert report.wrong == []
    assert report.honest > 0
    assert report.left + sum(report.statuses.values()) >= 120
    assert report.statuses[400] > 20
    server.quiet()
    assert server.service.failure is None


def test_what_is_wrong_would_be_seen(serve, faults):
    server = serve(texts=3)
    abuse = faults.Abuse(server.url, 1)
    answers = itertools.count()
    abuse._ask = lambda _number: next(answers)
    report = abuse.run(malformed=5, disconnects=0)
    assert any("differently" in text for text in report.wrong)
