from __future__ import annotations

from specx.engine.api.models import model_body, props_body


def test_a_model_tells_the_length_of_its_context_under_the_names_that_clients_know(api, real):
    for session in (api.open(n_ctx=512), real):
        entry = model_body(session, "small", 5)
        assert (entry["id"], entry["object"], entry["created"]) == ("small", "model", 5)
        assert entry["context_length"] == entry["max_model_len"] == entry["meta"]["n_ctx"] == session.n_ctx
    assert entry["meta"]["n_ctx_train"] == 8192 and entry["meta"]["n_params"] > 130_000_000


def test_properties_have_llama_cpp_s_names(api, real):
    props = props_body(real, api.GREEDY)
    assert props["default_generation_settings"]["n_ctx"] == real.n_ctx
    assert props["default_generation_settings"]["params"]["n_predict"] == api.GREEDY.n_predict
    assert props["total_slots"] == real.at_once
    assert "im_start" in props["chat_template"] and props["eos_token"] == "<|im_end|>"
