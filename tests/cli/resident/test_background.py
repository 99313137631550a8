"""What is kept of how a server was started."""

from __future__ import annotations

import sys

from specx.cli.resident.background import command_line


def test_keys_are_not_kept(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["specx", "serve", "--api-key", "one two", "m.gguf", "--api-key=three", "--port", "0"]
    )
    assert command_line() == "serve --api-key ... m.gguf --api-key=... --port 0"
