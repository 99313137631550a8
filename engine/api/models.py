"""What a server says of the model it runs."""

from __future__ import annotations

from typing import Any

from specx.engine.api.asks import Defaults
from specx.engine.session import Session

__all__ = ["model_body", "props_body"]


def model_body(session: Session, name: str, created: int) -> dict[str, Any]:
    """An entry of /v1/models. Clients look for the length of a context under several names.

    Args:
        session: the model.
        name: what it is called; clients send it back.
        created: when it was loaded, in seconds since 1970.
    """
    facts, vocab = session.model.facts, session.vocab
    meta: dict[str, Any] = {
        "n_vocab": vocab.size,
        "n_ctx": session.n_ctx,
        "n_ctx_train": facts.n_ctx_train or session.n_ctx,
    }
    if session.setup is not None:
        info = session.setup.info
        meta |= {"n_embd": info.embedding_length, "n_params": info.parameters, "size": info.size}
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "specx",
        "context_length": session.n_ctx,
        "max_model_len": session.n_ctx,
        "meta": meta,
    }


def props_body(session: Session, defaults: Defaults) -> dict[str, Any]:
    """The body of /props, by the names of llama.cpp's server.

    Args:
        session: the model.
        defaults: what holds where a request says nothing.
    """
    from specx import __version__

    sampling = defaults.sampling
    settings = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "n_predict": -1 if defaults.n_predict is None else defaults.n_predict,
        "stop": list(defaults.stop),
    }
    return {
        "default_generation_settings": {"params": settings, "n_ctx": session.n_ctx},
        "total_slots": session.at_once,
        "model_alias": defaults.model,
        "model_path": session.asked.model.name,
        "modalities": {"vision": False, "audio": False, "video": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": session.chat_template or "",
        "bos_token": session.bos_text,
        "eos_token": session.eos_text,
        "build_info": f"specx {__version__}",
        "is_sleeping": False,
        "summary": session.summary(),
    }
