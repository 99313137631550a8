"""`specx bench` on a real model: what it measures is there, and drafts change nothing."""

from __future__ import annotations

import json

from specx.cli.app import run


def test_a_real_model_is_measured_and_says_the_same(smollm2, tmp_path, capfd):
    suite = tmp_path / "suite.jsonl"
    rows = [
        {"id": "count", "category": "chat", "turns": ["Count from 1 to 20.", "Once more, please."]},
        {"id": "raw", "category": "text", "text": "one two three one two three one two three one two"},
    ]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--suite", str(suite), "-n", "24", "-r", "1", "-c", "1024", "--kernels", "specx,stock")
    code = run(["bench", str(smollm2), *options, "--drafter", "suffix", "-o", "json", "--no-cache"])
    out, err = capfd.readouterr()
    assert code == 0, err
    data = json.loads(out)
    assert [arm["name"] for arm in data["arms"]] == [
        "none@specx", "suffix@specx", "none@stock", "suffix@stock"
    ]  # fmt: skip
    for arm in data["arms"]:
        said = (arm["setup"]["kernels"]["value"], arm["setup"]["threads"]["value"])
        assert said == (arm["kernels"], arm["threads"])
        assert arm["setup"]["context"] == {"value": 1024, "why": "as asked"}
    assert len(data["answers"]) == 3 * 4
    assert all(parting["arm"].endswith("@stock") for parting in data["partings"])  # near-ties, if any
    answer = next(a for a in data["answers"] if a["arm"] == "suffix@specx")
    assert sum(answer["step_tokens"]) == len(answer["tokens"]) == len(answer["sources"])
    assert answer["prompt_ms"] > 0 and answer["first_token_ms"] > answer["prompt_ms"]
    row = data["report"]["rows"]["suffix@specx"][-1]
    assert row["identical"] == row["compared"] == 3 and row["gb_per_s"] > 0
    assert data["staircases"]["none@specx"]["0"]["1"] > 0
    assert data["model"]["fingerprint"] and data["machine"]["fingerprint"]
