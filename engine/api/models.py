"""What a server says of the model it runs."""

from __future__ import annotations

from typing import Any

from specx.engine.session import Session

__all__ = ["count_tokens", "model_body", "models_body", "props_body"]


def models_body(session: Session, name: str, created: int) -> dict[str, Any]:
    """The body of /v1/models: the one model there is.

    Args:
        session: the model.
        name: what it is called; clients send it back.
        created: when it was loaded, in seconds since 1970.
    """
    return {"object": "list", "data": [model_body(session, name, created)]}


def model_body(session: Session, name: str, created: int) -> dict[str, Any]:
    """The body of /v1/models/NAME. Clients look for the context under several names."""
    facts, vocab = session.model.facts, session.vocab
    meta: dict[str, Any] = {
        "n_vocab": vocab.size,
        "n_ctx": session.n_ctx,
        "n_ctx_train": facts.n_ctx_train or session.n_ctx,
    }
    if session.setup is not None:
        info = session.setup.info
        meta |= {"n_embd": info.embedding_length, "n_params": info.parameters, "size": info.size}
        meta |= {"architecture": info.architecture, "quantization": info.file_type}
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "specx",
        "context_length": session.n_ctx,
        "max_model_len": session.n_ctx,
        "meta": meta,
    }


def props_body(session: Session, name: str, texts: int) -> dict[str, Any]:
    """The body of /props, by the names of llama.cpp's server.

    Args:
        session: the model.
        name: what it is called.
        texts: how many are written at once.
    """
    path = session.setup.info.path if session.setup is not None else session.asked.model
    return {
        "default_generation_settings": {"n_ctx": session.n_ctx, "params": {}},
        "total_slots": texts,
        "model_alias": name,
        "model_path": str(path),
        "modalities": {"vision": False, "audio": False},
        "chat_template": session.chat_template or "",
        "bos_token": session.bos_text,
        "eos_token": session.eos_text,
        "drafter": session.drafter_label,
        "summary": session.summary(),
    }


def count_tokens(session: Session, text: str) -> int:
    """How many tokens a text is for the model, without what is added before it."""
    return len(session.tokenize(text, add_special=False, parse_special=False))
