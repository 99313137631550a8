"""Checks of others' clients against a running `specx serve`; clients_check.sh installs them and calls this.

    clients.py openai URL
    clients.py litellm URL
    clients.py lm-eval URL SCORES           writes what each continuation scored
    clients.py transformers SCORES MODEL    computes the same scores on the same weights
    clients.py speed-bench URL PROGRAM      llama.cpp's speed_bench.py, on prompts of the built-in suite

Each prints one line at its end, and ends with a traceback if something is not as it has to be.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

SUITE = Path(__file__).resolve().parents[1] / "engine" / "bench" / "suite"

MESSAGES = [{"role": "user", "content": "Say hello in one short sentence."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ONE_CALL = {"max_tokens": 60, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}

QUESTIONS = [
    ("The capital of France is", ["Paris", "a banana", "seven"], 0),
    ("Two plus two is", ["four", "a river", "purple"], 0),
    ("Water freezes at zero degrees", ["Celsius", "bananas", "Paris"], 0),
    ("The sun rises in the", ["east", "refrigerator", "alphabet"], 0),
    ("A week has seven", ["days", "moons", "kitchens"], 0),
    ("Birds can", ["read newspapers", "fly", "melt"], 1),
    ("The opposite of hot is", ["cold", "table", "quickly"], 0),
    ("Cats like to drink", ["stones", "milk", "music"], 1),
    ("In winter it often", ["snows", "argues", "bakes"], 0),
    ("Books are made of", ["paper", "thunder", "soup"], 0),
    ("The first month of the year is", ["January", "October", "Tuesday"], 0),
    ("Fish live in", ["water", "telephones", "sentences"], 0),
]
TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""

MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 0.1, 0.5
"""Most by which the log-probability of a token may differ, on average and at all.

The weights are the same, but ggml multiplies them with activations of 8 bits, and transformers of 32."""


def with_openai(url: str) -> str:
    """Models, whole answers, streams, tools, logprobs and errors through OpenAI's own client."""
    openai: Any = import_module("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    asked: dict[str, Any] = {"model": model.id, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    told = "".join(token.token for token in whole.choices[0].logprobs.content)
    assert text and told.startswith(text), (told, text)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    call = client.chat.completions.create(**{**asked, **ONE_CALL})
    (made,) = call.choices[0].message.tool_calls
    assert made.function.name == "get_weather" and "city" in json.loads(made.function.arguments)
    asked = {"model": model.id, "prompt": "Once upon", "max_tokens": 0, "echo": True, "logprobs": 1}
    echoed = client.completions.create(**asked)
    assert echoed.choices[0].text == "Once upon" and echoed.choices[0].logprobs.tokens
    try:
        client.completions.create(**{**asked, "temperature": -5})
    except openai.BadRequestError as problem:
        assert problem.param == "temperature"
    else:
        raise AssertionError("a wrong temperature was accepted")
    return f"openai said {text!r}, whole and streamed, called a tool, and told probabilities"


def with_litellm(url: str) -> str:
    """Whole answers, streams, tools and errors through LiteLLM."""
    litellm: Any = import_module("litellm")
    asked: dict[str, Any] = {
        "model": "openai/any",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "messages": MESSAGES,
        "max_tokens": 24,
        "seed": 1,
        "temperature": 0,
    }
    whole = litellm.completion(**asked)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == text, (streamed, text)
    assert any(getattr(chunk, "usage", None) for chunk in chunks)
    call = litellm.completion(**{**asked, **ONE_CALL})
    (made,) = call.choices[0].message.tool_calls
    assert made.function.name == "get_weather" and "city" in json.loads(made.function.arguments)
    deltas = list(litellm.completion(**{**asked, **ONE_CALL}, stream=True))
    rebuilt = litellm.stream_chunk_builder(deltas)
    assert rebuilt.choices[0].message.tool_calls[0].function.arguments == made.function.arguments
    schema = {"name": "place", "schema": TOOL["function"]["parameters"]}  # type: ignore[index]
    answer = litellm.completion(
        **{**asked, "max_tokens": 60}, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}
    text_only = litellm.text_completion(
        model="text-completion-openai/any",
        api_base=asked["api_base"],
        api_key="none",
        prompt="Once",
        max_tokens=5,
    )
    assert text_only.choices[0].text
    try:
        litellm.completion(**{**asked, "temperature": -5})
    except litellm.BadRequestError as problem:
        assert "temperature" in str(problem)
    else:
        raise AssertionError("a wrong temperature was accepted")
    return f"LiteLLM said {text!r}, whole and streamed, called a tool and followed a schema"


def with_lm_eval(url: str, scores: str) -> str:
    """A small task of multiple choices by loglikelihood, and one request that is written."""
    lm_eval: Any = import_module("lm_eval")
    tasks: Any = import_module("lm_eval.tasks")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "questions.jsonl")
        rows = [
            {"question": q, "choices": [f" {c}" for c in choices], "label": label}
            for q, choices, label in QUESTIONS
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path(folder, "tiny.yaml").write_text(TASK.format(data=data))
        result = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "base_url": f"{url}/v1/completions",
                "model": "any",
                "tokenizer_backend": "remote",
                "num_concurrent": 4,
                "max_retries": 1,
            },
            tasks=["tiny_choices"],
            task_manager=tasks.TaskManager(include_path=folder),
            log_samples=True,
            bootstrap_iters=0,
        )
    found = [
        {"context": context, "continuation": continuation, "score": response[0][0], "greedy": response[0][1]}
        for sample in result["samples"]["tiny_choices"]
        for (context, continuation), response in zip(sample["arguments"], sample["resps"], strict=True)
    ]
    assert len(found) == sum(len(choices) for _, choices, _ in QUESTIONS)
    assert all(each["score"] < 0 for each in found)
    accuracy = result["results"]["tiny_choices"]["acc,none"]
    assert accuracy > 0.5, accuracy
    Path(scores).write_text(json.dumps({"acc": accuracy, "scores": found}))
    return (
        f"lm-eval: accuracy {accuracy:.2f} over {len(QUESTIONS)} questions, {len(found)} continuations scored"
    )


def against_transformers(scores: str, model: str) -> str:
    """The same continuations on the same weights in 32 bits."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    file = Path(model).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    known = json.loads(Path(scores).read_text())["scores"]
    differences = []
    greedy = 0
    for each in known:
        context = tokenizer(each["context"], add_special_tokens=False).input_ids
        whole = tokenizer(each["context"] + each["continuation"], add_special_tokens=False).input_ids
        assert whole[: len(context)] == context
        with torch.no_grad():
            rows = network(torch.tensor([whole])).logits[0].log_softmax(-1)
        following = whole[len(context) :]
        at = range(len(context) - 1, len(whole) - 1)
        score = sum(float(rows[row, token]) for row, token in zip(at, following, strict=True))
        differences.append(abs(score - each["score"]) / len(following))
        best = all(int(rows[row].argmax()) == token for row, token in zip(at, following, strict=True))
        greedy += best == each["greedy"]
    mean, largest = sum(differences) / len(differences), max(differences)
    assert mean < MEAN_DIFFERENCE and largest < LARGEST_DIFFERENCE, (mean, largest)
    return (
        f"transformers: {len(known)} scores differ by {mean:.3f} a token on average, at most {largest:.3f}; "
        f"{greedy} agree on whether it is what would have been written"
    )


def with_speed_bench(url: str, program: str) -> str:
    """llama.cpp's own client, as it is but for where its prompts come from."""
    spec = spec_from_file_location("speed_bench", program)
    assert spec is not None and spec.loader is not None
    client: Any = module_from_spec(spec)
    sys.modules["speed_bench"] = client
    spec.loader.exec_module(client)
    rows = []
    for file in sorted(set(SUITE.glob("*.jsonl")) - {SUITE / "long_context.jsonl"}):  # longer than 4096
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()[:2]):
            turns = _turns(json.loads(line))
            if turns:
                rows.append({"category": file.stem, "question_id": f"{file.stem}-{number}", "turns": turns})
    client.get_dataset_config_names = lambda _name: ["qualitative"]
    client.load_dataset = lambda *_args, **_named: import_module("datasets").Dataset.from_list(rows)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        code = client.main(
            ["--url", url, "--osl", "32", "--concurrency", "4", "--limit", "1", "--output", str(output)]
        )
        result = json.loads(output.read_text())
    failures = {each["error"] for each in result["results"] if not each["ok"]}
    assert code == 0 and not failures, failures
    overall = next(row for row in result["summary"] if row["category"] == "overall")
    assert overall["avg_pred_t_s"] > 0 and overall["draft_n"] > 0
    return (
        f"speed_bench.py: {overall['requests']} samples, {overall['avg_pred_t_s']:.0f} tokens/s of a text, "
        f"{overall['accept_rate']:.0%} of drafts accepted"
    )


def _turns(row: dict[str, Any]) -> list[str]:
    """What a user says in a prompt of the suite."""
    if isinstance(row.get("prompt"), str):
        return [row["prompt"]]
    said = row.get("turns") or [m["content"] for m in row.get("messages", []) if m.get("role") == "user"]
    return [turn for turn in said if isinstance(turn, str)]


CHECKS = {
    "openai": with_openai,
    "litellm": with_litellm,
    "lm-eval": with_lm_eval,
    "transformers": against_transformers,
    "speed-bench": with_speed_bench,
}

if __name__ == "__main__":
    check: Any = CHECKS[sys.argv[1]]
    print(check(*sys.argv[2:]))
