"""Metrics are in the format of Prometheus, and count what was done."""

from __future__ import annotations

import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-z_]+="[^"\\\n]*",?)*\})? (\S+)')

LLAMA_CPP = {
    "prompt_tokens_total": "counter",
    "prompt_tokens_cached_total": "counter",
    "prompt_seconds_total": "counter",
    "tokens_predicted_total": "counter",
    "tokens_predicted_seconds_total": "counter",
    "n_decode_total": "counter",
    "n_tokens_max": "counter",
    "spec_decode_num_draft_tokens_total": "counter",
    "spec_decode_num_accepted_tokens_total": "counter",
    "spec_decode_num_drafts_total": "counter",
    "spec_decode_num_accepted_tokens_per_pos_total": "counter",
    "prompt_tokens_seconds": "gauge",
    "predicted_tokens_seconds": "gauge",
    "requests_processing": "gauge",
    "requests_deferred": "gauge",
    "n_busy_slots_per_decode": "gauge",
}
"""What llama.cpp's server has."""


def scrape(server):
    """Kinds by metric and values by sample. Every line is checked."""
    response = server.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text.endswith("\n")
    kinds, values, described = {}, {}, set()
    for line in response.text.splitlines():
        if line.startswith("# HELP "):
            name, text = line.removeprefix("# HELP ").split(" ", 1)
            assert NAME.fullmatch(name) and text and name not in described
            described.add(name)
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name in described and name not in kinds
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            family = next(reversed(kinds))  # samples follow the lines that describe them
            assert re.sub("_(bucket|sum|count)$", "", match[1]) == family or match[1] == family
            assert line not in values
            values[match[1] + (match[2] or "")] = float(match[3])
    assert described == set(kinds)
    return kinds, values


def test_the_names_are_those_of_llama_cpp(serve):
    server = serve()
    server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 40, "ignore_eos": True})
    kinds, _ = scrape(server)
    assert {name: kinds[f"llamacpp:{name}"] for name in LLAMA_CPP} == LLAMA_CPP


def test_what_was_done_is_what_the_answers_said(serve):
    server = serve()
    scrape(server)
    answers = [
        server.post("/v1/completions", {"prompt": "the cat", "max_tokens": n, "ignore_eos": True}).json()
        for n in (40, 20, 1)
    ]
    timings = [answer["timings"] for answer in answers]
    _, values = scrape(server)

    def total(name):
        return sum(each[name] for each in timings)

    assert values["llamacpp:tokens_predicted_total"] == total("predicted_n") == 61
    assert values["llamacpp:prompt_tokens_total"] == total("prompt_n")
    assert values["llamacpp:prompt_tokens_cached_total"] == total("cache_n")
    assert values["llamacpp:spec_decode_num_draft_tokens_total"] == total("draft_n")
    accepted = values["llamacpp:spec_decode_num_accepted_tokens_total"]
    assert accepted == total("draft_n_accepted") > 0
    by_position = [value for name, value in values.items() if "per_pos_total" in name]
    assert sum(by_position) == accepted
    assert by_position == sorted(by_position, reverse=True)
    assert values['specx:texts_total{finish_reason="length"}'] == 3
    assert values['specx:time_to_first_token_seconds_bucket{le="+Inf"}'] == 3
    assert values["specx:time_to_first_token_seconds_count"] == 3
    assert values["llamacpp:requests_processing"] == values["llamacpp:requests_deferred"] == 0
    assert values["llamacpp:n_busy_slots_per_decode"] == 1


def test_what_is_written_and_what_waits(serve):
    server = serve(texts=1, slow_ms=5.0)
    body = {"prompt": "the cat", "max_tokens": 3000, "temperature": 1, "n": 3, "stream": True}
    body |= {"ignore_eos": True}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        _, values = scrape(server)
        assert (values["llamacpp:requests_processing"], values["llamacpp:requests_deferred"]) == (1, 2)
    server.quiet()
