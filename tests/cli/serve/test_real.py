"""A server on a real model: texts are those of `specx complete`, whoever asks beside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest

PROMPTS = ["Once upon a time", "The three largest cities are", "def add(a, b):", "Dear Sir or Madam,"]
SETTINGS = ("--kernels", "specx", "-c", "512", "-t", "2")


def specx(*arguments):
    return [sys.executable, "-P", "-m", "specx.cli", *map(str, arguments)]


@pytest.fixture(scope="module")
def url(smollm2):
    process = subprocess.Popen(
        specx("serve", smollm2, *SETTINGS, "--port", "0", "-np", "3", "--no-cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = process.stdout.readline().strip()
    seen = []
    for line in process.stderr:
        seen.append(line)
        if address in line:
            break
    assert process.poll() is None, seen
    yield address
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_texts_are_those_of_complete(url, smollm2):
    bodies = [
        {"prompt": text, "max_tokens": 24, "temperature": 0.8, "seed": i} for i, text in enumerate(PROMPTS)
    ]
    answers = [None] * len(bodies)

    def ask(number):
        with httpx.Client(base_url=url, timeout=240, trust_env=False) as client:
            answers[number] = client.post("/v1/completions", json=bodies[number]).json()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body, answer in list(zip(bodies, answers, strict=True))[1:2]:
        command = specx(
            "complete", smollm2, *SETTINGS, "--no-cache", "--server", "no", "--json",
            "-p", body["prompt"], "-n", 24, "--temp", 0.8, "-s", body["seed"],
        )  # fmt: skip
        alone = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        assert answer["choices"][0]["text"] == json.loads(alone.stdout)["text"]


def test_a_schema_is_followed_with_drafts(url):
    body = {
        "messages": [{"role": "user", "content": "Name a city and its country."}],
        "max_tokens": 60,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "place",
                "schema": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "maxLength": 20},
                        "country": {"enum": ["France", "Peru"]},
                    },
                    "required": ["city", "country"],
                    "additionalProperties": False,
                },
            },
        },
    }
    with httpx.Client(base_url=url, timeout=240, trust_env=False) as client:
        answer = client.post("/v1/chat/completions", json=body).json()
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert set(value) == {"city", "country"}
    assert answer["choices"][0]["finish_reason"] == "stop"
