"""Texts as token ids and back, as llama.cpp's server and vLLM's have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specx.engine.api.errors import RequestError

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = ["detokenize", "tokenize", "tokenizer_body"]

MOST = 1_000_000  # token ids that are turned into text at once

LLAMA_CPP = {"add_special": False, "parse_special": True, "with_pieces": False}
VLLM = {"add_special_tokens": True}
"""What may be said about tokenizing beside the text, and what holds otherwise."""


def tokenize(session: Session, body: Any) -> dict[str, Any]:
    """The token ids of `content`, in the form of llama.cpp's server, or of `prompt`, in that of vLLM's.

    Raises:
        RequestError: there is no text, or something about it makes no sense.
    """
    fields = body if isinstance(body, dict) else {}
    name = "prompt" if "prompt" in fields and "content" not in fields else "content"
    flags = _flags(fields, VLLM if name == "prompt" else LLAMA_CPP)
    text = fields.get(name)
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string", name)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not valid Unicode", name) from None
    vocab = session.vocab
    if name == "prompt":
        ids = vocab.tokenize(data, add_special=flags["add_special_tokens"], parse_special=True)
        return {"tokens": ids, "count": len(ids), "max_model_len": session.n_ctx}
    ids = vocab.tokenize(data, add_special=flags["add_special"], parse_special=flags["parse_special"])
    if not flags["with_pieces"]:
        return {"tokens": ids}
    return {"tokens": [{"id": token, "piece": _piece(vocab.piece(token))} for token in ids]}


def _flags(fields: Mapping[str, Any], known: Mapping[str, bool]) -> dict[str, bool]:
    flags = {name: fields.get(name, default) for name, default in known.items()}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false", name)
    return flags


def detokenize(session: Session, body: Any) -> dict[str, Any]:
    """The text of `tokens`: `content` for clients of llama.cpp's server, `prompt` for those of vLLM's.

    Raises:
        RequestError: they are no ids of this model's tokens.
    """
    tokens, size = body.get("tokens") if isinstance(body, dict) else None, session.vocab.size
    if not isinstance(tokens, list) or len(tokens) > MOST:
        raise RequestError("tokens must be a list of token ids", "tokens")
    if not all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size for token in tokens
    ):
        raise RequestError(f"tokens must be ids from 0 to {size - 1}", "tokens")
    text = b"".join(session.vocab.piece(token, special=True) for token in tokens).decode("utf-8", "replace")
    return {"content": text, "prompt": text}


def tokenizer_body(session: Session) -> dict[str, Any]:
    """What clients that tokenize through the server must know, by vLLM's names."""
    return {
        "bos_token": session.bos_text or None,
        "eos_token": session.eos_text or None,
        "chat_template": session.chat_template,
        "model_max_length": session.n_ctx,
    }


def _piece(piece: bytes) -> str | list[int]:
    """As text, or as bytes if it is only part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
