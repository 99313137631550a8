"""The endpoints that requests are made to, of a server and in the lines of a batch."""

from __future__ import annotations

__all__ = ["CHAT", "COMPLETIONS"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
