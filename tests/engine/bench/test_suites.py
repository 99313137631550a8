"""The built-in prompts, every format of a file of prompts, and what is said of files that are none."""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.errors import FileError, UsageError
from specx.engine.bench import suites
from specx.engine.bench.suites import Prompt, Workload, load_suite, parse_synthetic, sample, suite_names

LENGTHS = {  # characters of a whole prompt: shortest and longest
    "agentic": (1_500, 6_000),
    "chat": (100, 2_500),
    "code": (200, 1_000),
    "code_edit": (1_500, 4_500),
    "extraction": (900, 3_000),
    "long_context": (6_000, 16_000),
    "math": (150, 700),
    "rag": (1_800, 4_500),
    "summarization": (2_500, 4_500),
    "translation": (600, 2_000),
}


@pytest.fixture(scope="module")
def builtin():
    return load_suite("default")


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text(
            "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write


def said(prompt):
    return "\n".join(message["content"] for message in prompt.messages)


def by_id(*prompts):
    return {prompt.id for prompt in prompts}


def user(*texts):
    return [{"role": "user", "content": text} for text in texts]


# --- the built-in prompts -----------------------------------------------------------------------------------


def test_there_are_ten_of_each_category_and_each_is_a_suite(builtin):
    assert Counter(prompt.category for prompt in builtin) == dict.fromkeys(LENGTHS, 10)
    assert suite_names() == ["default", *sorted(LENGTHS)]
    for category in LENGTHS:
        assert load_suite(category) == [prompt for prompt in builtin if prompt.category == category]


def test_their_ids_are_unique_and_say_the_category(builtin):
    assert len(by_id(*builtin)) == len(builtin)
    assert all(re.fullmatch(rf"{prompt.category}-[a-z0-9-]+", prompt.id) for prompt in builtin)


def test_every_template_can_render_them(builtin):
    for prompt in builtin:
        roles = [message["role"] for message in prompt.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == (["user", "assistant"] * len(turns))[: len(turns)] and len(turns) % 2 == 1, prompt.id
        assert all(message.keys() == {"role", "content"} for message in prompt.messages)
        assert all(message["content"] == message["content"].strip("\n") != "" for message in prompt.messages)
        assert (prompt.n_turns, prompt.text, prompt.tools) == (1, "", ())


def test_their_lengths_are_those_of_their_kind(builtin):
    for prompt in builtin:
        shortest, longest = LENGTHS[prompt.category]
        assert shortest <= len(said(prompt)) <= longest, (prompt.id, len(said(prompt)))


def test_they_hold_what_their_kind_needs(builtin):
    kinds = {category: [p for p in builtin if p.category == category] for category in LENGTHS}
    for prompt in kinds["code_edit"]:
        code = re.search(r"```\w+\n(.*?)```", said(prompt), re.DOTALL)
        assert code is not None and 30 <= code[1].count("\n") <= 120, prompt.id
    for prompt in kinds["summarization"]:
        assert 300 <= len(said(prompt).split()) <= 700, prompt.id
    for prompt in kinds["rag"]:
        passages = [text for text in re.split(r"\n\n|\n(?=<doc)", said(prompt)) if len(text.split()) >= 80]
        assert 3 <= len(passages) <= 6 and all(len(text.split()) <= 150 for text in passages), prompt.id
    assert all("JSON" in said(prompt) or "json" in said(prompt) for prompt in kinds["extraction"])
    assert all(len(prompt.messages) >= 4 for prompt in kinds["agentic"])
    assert sum(len(prompt.messages) > 1 for prompt in kinds["chat"]) >= 3


def test_no_two_are_alike(builtin):
    """Few of the runs of five words of one prompt are in another, or in itself again."""

    def shingles(prompt):
        words = re.findall(r"\w+", said(prompt).lower())
        return [tuple(words[i : i + 5]) for i in range(len(words) - 4)]

    runs = {prompt.id: shingles(prompt) for prompt in builtin}
    sets = {name: set(found) for name, found in runs.items()}
    for a, b in combinations(sets, 2):
        assert len(sets[a] & sets[b]) < 0.1 * min(len(sets[a]), len(sets[b])), (a, b)
    machine_made = {"long_context-access-log", "long_context-tea-orders", "long_context-household-ledger"}
    for name, found in runs.items():
        assert len(sets[name]) > (0.5 if name in machine_made else 0.8) * len(found), name


def test_they_are_small(builtin):
    assert sum(len(said(prompt).encode()) for prompt in builtin) < 600_000


# --- choosing -----------------------------------------------------------------------------------------------


def test_a_limit_is_even_repeatable_and_grows(builtin):
    few, more = load_suite("default", limit=2, seed=1), load_suite("default", limit=5, seed=1)
    assert Counter(prompt.category for prompt in few) == dict.fromkeys(LENGTHS, 2)
    assert by_id(*few) < by_id(*more)
    assert few == load_suite("default", limit=2, seed=1)
    assert by_id(*few) != by_id(*load_suite("default", limit=2, seed=2))
    assert [p for p in builtin if p in few] == few
    assert by_id(*sample(builtin[::-1], 2, seed=1)) == by_id(*few)
    assert sample(builtin, None, seed=1) == builtin


def test_categories_are_chosen_by_name():
    chosen = load_suite("default", categories=["math", "code"], limit=3)
    assert Counter(prompt.category for prompt in chosen) == {"code": 3, "math": 3}
    with pytest.raises(UsageError, match="no category poetry") as caught:
        load_suite("default", categories=["code", "poetry"])
    assert "agentic, chat, code" in caught.value.hint


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(limit):
    with pytest.raises(UsageError, match=f"a limit of {limit}"):
        load_suite("math", limit=limit)


# --- files --------------------------------------------------------------------------------------------------


def test_rows_of_every_format(write):
    rows = [
        {"id": "own", "category": "talk", "messages": user("hi"), "tools": [{"name": "look"}]},
        {"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": []},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "not for us"}]},
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass"},
        {"prompt": user("hi")},
        {"question": "Why?", "answer": "42"},
        {"text": "Once upon a time"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
            ]
        },
    ]
    own, bench, sharegpt, raw, chat, question, text, parts = load_suite(write(*rows))
    assert own == Prompt("own", "talk", ({"role": "user", "content": "hi"},), tools=({"name": "look"},))
    assert (bench.id, bench.category, bench.n_turns) == ("81", "writing", 2)
    assert (sharegpt.id, sharegpt.category, list(sharegpt.messages)) == ("mine:3", "mine", user("hi"))
    assert (raw.id, raw.text, raw.messages) == ("HumanEval/0", "def f():\n", ())
    assert list(chat.messages) == user("hi")
    assert list(question.messages) == user("Why?")
    assert (text.text, text.n_turns, text.conversation()) == ("Once upon a time", 1, [])
    assert list(parts.messages) == user("ab")


def test_a_row_of_speed_bench_before_and_after_it_was_prepared(write):
    about = {"question_id": "6e5a", "category": "coding", "sub_category": "x", "source": "s", "src_id": "1"}
    about |= {"difficulty": "None", "multiturn": True}
    (raw,) = load_suite(write({**about, "turns": ["one", "two", "three"]}))
    (prepared,) = load_suite(write({**about, "messages": user("one", "two", "three")}))
    assert raw == prepared
    assert (raw.id, raw.n_turns) == ("6e5a", 3)
    left_out = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
    with pytest.raises(UsageError, match=r"line 2 of .*left its text out"):
        load_suite(write({**about, "turns": ["one"]}, {**about, "question_id": "b", "turns": [left_out]}))


def test_the_model_answers_between_the_turns_of_a_user():
    prompt = Prompt("p", "talk", ({"role": "system", "content": "Be brief"}, *user("one", "two", "three")))
    assert prompt.n_turns == 3
    assert [m["content"] for m in prompt.conversation()] == ["Be brief", "one"]
    assert [m["content"] for m in prompt.conversation(["a"])] == ["Be brief", "one", "a", "two"]
    assert [m["role"] for m in prompt.conversation(["a", "b"])][-3:] == ["user", "assistant", "user"]
    history = (*user("one"), {"role": "assistant", "content": "a"}, *user("two"))
    assert Prompt("p", "talk", history).conversation() == list(history)


def test_calls_and_results_of_tools_are_kept(write):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "look"}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "a cat"}
    (prompt,) = load_suite(write({"messages": [*user("look"), call, result]}))
    assert list(prompt.messages) == [*user("look"), {**call, "content": ""}, result]


def test_plain_text_is_a_message_a_line(write, monkeypatch):
    text = "What is a bog?\r\n\n  [a] or [b]?  \n{braces} are no JSON here\n"
    prompts = load_suite(write(text, name="mine.txt"))
    assert [said(prompt) for prompt in prompts] == [
        "What is a bog?",
        "[a] or [b]?",
        "{braces} are no JSON here",
    ]
    assert [prompt.id for prompt in prompts] == ["mine:1", "mine:3", "mine:4"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"[INST] hi\n\xc3\xa9\n")))
    assert [(p.category, said(p)) for p in load_suite("-")] == [("stdin", "[INST] hi"), ("stdin", "é")]


def test_json_is_known_by_its_beginning_or_its_name(write, tmp_path):
    rows = [{"turns": ["one"]}, "two"]
    expected = [user("one"), user("two")]
    for name in ("a.json", "a.jsonl", "a", "a.data"):
        path = write(json.dumps(rows, indent=2), name=name)
        assert [list(p.messages) for p in load_suite(path)] == expected
    assert [said(p) for p in load_suite(write(*rows[:1], json.dumps("two"), name="lines.json"))] == [
        "one",
        "two",
    ]
    assert said(load_suite(write(json.dumps({"turns": ["a"]}, indent=2), name="one.json"))[0]) == "a"
    (tmp_path / "bom").write_bytes(b'\xef\xbb\xbf{"turns": ["a"]}\r\n')
    assert said(load_suite(tmp_path / "bom")[0]) == "a"


def test_only_line_feeds_end_a_line_of_json(write):
    row = json.dumps({"turns": ["a\u2028b\x85c"]}, ensure_ascii=False)
    assert said(load_suite(write(row + "\n", row.replace("a", "d")))[1]) == "d\u2028b\x85c"


def test_a_file_may_have_the_name_of_a_suite(write, monkeypatch):
    path = write({"turns": ["mine"]}, name="code")
    monkeypatch.chdir(path.parent)
    assert len(load_suite("code")) == 10
    assert said(load_suite("./code")[0]) == "mine"
    assert said(load_suite(path.relative_to(path.parent))[0]) == "mine"


# --- what cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "neither an object nor a string"),
        ({"id": "a"}, 'none of "messages"'),
        ({"question": None}, 'none of "messages"'),
        ({"prompt": " \n"}, "its prompt is empty"),
        ({"messages": []}, "its messages hold nothing to answer"),
        ({"turns": [""]}, "its turns hold nothing to answer"),
        ({"turns": ["one", 2]}, "number 2 of its turns has no role or no text"),
        ({"messages": ["hi"]}, "number 1 of its messages is no object"),
        ({"messages": [{"content": "hi"}]}, "number 1 of its messages has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "has no role or no text"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "nothing to answer"),
        ({"turns": ["one"], "tools": "look"}, "tools are not a list of objects"),
        ({"turns": ["\ud83d"]}, "surrogates not allowed"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line_and_reason(write, row, reason):
    path = write({"id": "fine", "turns": ["one"]}, row)
    with pytest.raises(UsageError, match=r"line 2 of .*mine\.jsonl is no prompt: ") as caught:
        load_suite(path)
    assert reason in caught.value.message
    assert '{"turns": ["..."]}' in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ("[]", "holds no prompts"),
        ('{"turns": ["a"]}\nplain\n', "line 2 of .* is not JSON"),
        ('{"turns": ["a"]}\n{"turns": \n', "line 2 of .* is not JSON"),
        ('[\n{"turns": ["a"]},\n{"turns" "b"}\n]', "line 3 of .* is not JSON"),
        ("[" * 100_000, "line 1 of .* is not JSON"),
        ('{"question": ' + "9" * 5_000 + "}", "line 1 of .* is not JSON"),
        ('["a", 7]', "entry 2 of .* is no prompt"),
        ('{"id": "a", "turns": ["a"]}\n{"id": "a", "turns": ["b"]}', "line 2 of .*the id a occurs twice"),
    ],
)
def test_files_that_cannot_be_used(write, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_suite(write(text))
    assert caught.value.hint


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("fine\nnaïve\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"line 2 of .* is not valid UTF-8: byte 0xef") as caught:
        load_suite(path)
    assert "iconv" in caught.value.hint
    path.write_bytes(b"PAR1\x15\x04\xff")
    with pytest.raises(UsageError, match="is a Parquet file"):
        load_suite(path)


def test_names_that_are_nothing_show_what_there_is(tmp_path):
    with pytest.raises(FileError, match="no suite and no file cod") as caught:
        load_suite("cod")
    assert "default, agentic, chat, code, code_edit" in caught.value.hint
    for bad in (tmp_path, "a\0b"):
        with pytest.raises(FileError, match="cannot read"):
            load_suite(bad)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_file_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(suites, "MOST_BYTES", 99)
    with pytest.raises(FileError, match="has more than 99 bytes"):
        load_suite("/dev/zero")


# --- synthetic workloads ------------------------------------------------------------------------------------


def test_workloads_are_those_of_llama_bench():
    assert parse_synthetic("pp512, tg128,pp2048+tg64,tg128") == [
        Workload("pp512", 512, 0),
        Workload("tg128", 0, 128),
        Workload("pp2048+tg64", 2048, 64),
    ]


@pytest.mark.parametrize(
    "text", ["", " , ", "512", "pp", "pp0", "tg-1", "pp5tg6", "pp5+", "+tg5", "tg5+pp5", "pp٣"]
)
def test_what_is_no_workload(text):
    with pytest.raises(UsageError, match="workload") as caught:
        parse_synthetic(text)
    assert "pp512+tg128" in caught.value.hint
