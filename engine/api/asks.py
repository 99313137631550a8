"""A request in the form of OpenAI's API, read and checked: what is asked for, whatever the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from specx.engine.api.errors import RequestError
from specx.engine.api.fields import Fields, body_of
from specx.engine.api.formats import read_grammar
from specx.engine.api.messages import read_messages
from specx.engine.api.paths import CHAT, COMPLETIONS
from specx.engine.api.sampling import read_limit, read_sampling, read_stop
from specx.engine.api.tools import Tool, ToolChoice, read_tool_choice, read_tools
from specx.engine.settings import SamplingSettings

__all__ = ["Ask", "Defaults", "Prompt", "read_ask"]

MOST_CHOICES = 128  # of one request, over all its prompts
MOST_LOGPROBS = 20  # alternatives at each position
MOST_TOKENS = 10_000_000  # ids in a prompt: beyond any context

Prompt = str | tuple[int, ...]
"""A text, or token ids."""

REASONING = ("auto", "deepseek", "deepseek-legacy", "none")

REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "top_n_sigma": (-1, 0),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "audio": (),
    "lora": ([],),
    "tfs_z": (1,),
    "top_a": (0,),
    "t_max_predict_ms": (-1, 0),
    "chat_template": (),
    "truncate_prompt_tokens": (),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
}
"""Fields that would change the answer and are not known here, with the values that switch them off."""

_SCHEMA = "send response_format with a JSON schema, in which pattern and enum say the same"
INSTEAD = {
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "structured_outputs"), _SCHEMA),
    **dict.fromkeys(("regex", "structural_tag"), _SCHEMA),
    **dict.fromkeys(("guided_grammar", "ebnf"), "send grammar, in GBNF"),
    "format": "send response_format",
}
"""What others call the form of an answer: one that is free instead would be taken for one of that form."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request says nothing.

    Attributes:
        sampling: how tokens are chosen.
        n_predict: most tokens of an answer; None for as many as there is room for.
        stop: strings that end an answer, besides those of the request.
        grammar: what an answer must follow, in GBNF; None for anything.
        ignore_eos: go on past the end of generation.
        model: what responses call the model.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    n_predict: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    ignore_eos: bool = False
    model: str = "specx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        chat: whether it is a conversation; else `prompts` are continued.
        messages: the conversation.
        prompts: the texts.
        continues: whether the last message, of the assistant, is gone on with.
        variables: what else the chat template is told, such as `enable_thinking`.
        reasoning: whether what the model thinks goes to `reasoning_content`.
        tools, choice: functions that may be called, and which; None where none is to be.
        n: answers to each prompt.
        sampling, n_predict, stop, grammar, ignore_eos: of each answer, as in `Defaults`.
        keep: tokens of a prompt that stay when the context shifts; negative means all.
        logprobs: alternatives at each position, 0 for those of the text alone; None for no probabilities.
        echo: whether the answer begins with its prompt.
        stream, include_usage, timings_per_token: what the response consists of.
        model: what the response calls the model.
    """

    chat: bool
    messages: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[Prompt, ...] = ()
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning: bool = True
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None
    n: int = 1
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    n_predict: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    ignore_eos: bool = False
    keep: int = 0
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    timings_per_token: bool = False
    model: str = "specx"


def read_ask(body: object, path: str, defaults: Defaults) -> Ask:
    """The request that a body makes of an endpoint. Fields that are not known are left alone.

    Args:
        body: the JSON value.
        path: "/v1/chat/completions" or "/v1/completions".
        defaults: what holds where it says nothing.

    Raises:
        RequestError: there is no such endpoint, or a field is wrong.
    """
    if path not in (CHAT, COMPLETIONS):
        raise RequestError(
            f"there is no endpoint {path[:80]!r}", "url", status=404, hint=f"use {CHAT} or {COMPLETIONS}"
        )
    fields = body_of(body)
    _refuse_unsupported(fields)
    return (
        _chat(_common(fields, defaults, chat=True), fields)
        if path == CHAT
        else _completion(_common(fields, defaults, chat=False), fields)
    )


def _refuse_unsupported(fields: Fields) -> None:
    for name, off in REFUSED.items():
        value = fields.get(name)
        if value is not None and value not in off:
            raise fields.refuse(name, f"{name} is not supported here", "leave it out")
    for name, instead in INSTEAD.items():
        if fields.get(name) not in (None, ""):
            raise fields.refuse(name, f"{name} is not known here", instead)
    modalities = fields.items("modalities", 16)
    if modalities is not None and modalities != ["text"]:
        raise fields.refuse("modalities", "modalities is not ['text'], and this model writes text only")


def _common(fields: Fields, defaults: Defaults, *, chat: bool) -> Ask:
    """What both kinds of requests have."""
    fields.text("model")
    n = fields.integer("n", 1, MOST_CHOICES) or 1
    best_of = fields.integer("best_of", 1, MOST_CHOICES)
    if best_of is not None and best_of != n:
        raise fields.refuse("best_of", "best_of is not supported", "use n, and choose yourself")
    stream = fields.flag("stream") or False
    options = fields.object("stream_options")
    ignore_eos = fields.flag("ignore_eos")
    grammar = read_grammar(fields)
    return Ask(
        chat=chat,
        n=n,
        sampling=read_sampling(fields, defaults.sampling),
        n_predict=read_limit(fields, defaults.n_predict),
        stop=(*read_stop(fields), *defaults.stop),
        grammar=defaults.grammar if grammar is None else grammar,
        ignore_eos=defaults.ignore_eos if ignore_eos is None else ignore_eos,
        keep=fields.integer("n_keep", -1, MOST_TOKENS) or 0,
        stream=stream,
        include_usage=bool(options is not None and options.flag("include_usage")),
        timings_per_token=fields.flag("timings_per_token") or False,
        model=defaults.model,
    )


def _chat(ask: Ask, fields: Fields) -> Ask:
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and top > 0 and not fields.flag("logprobs"):
        raise fields.refuse("top_logprobs", "top_logprobs is given, and logprobs is not true")
    if fields.flag("echo"):
        raise fields.refuse("echo", "echo is not supported for a chat")
    variables = fields.object("chat_template_kwargs")
    effort = fields.text("reasoning_effort")
    known = {} if effort is None else {"reasoning_effort": effort}
    if variables is not None:
        known.update(variables.values)
    for name in ("self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"):
        if name in known:
            raise fields.refuse("chat_template_kwargs", f"chat_template_kwargs sets {name}, which it cannot")
    tools = read_tools(fields)
    tools, choice = read_tool_choice(fields, tools)
    messages = read_messages(fields)
    continues = fields.flag("continue_final_message") or False
    if continues and (messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]):
        raise fields.refuse(
            "continue_final_message", "the last message is no text of the assistant, which could be continued"
        )
    return replace(
        ask,
        messages=messages,
        continues=continues,
        variables=known,
        reasoning=fields.choice("reasoning_format", REASONING) != "none",
        tools=tools,
        choice=choice,
        logprobs=(top or 0) if fields.flag("logprobs") else None,
    )


def _completion(ask: Ask, fields: Fields) -> Ask:
    logprobs = fields.get("logprobs")
    if isinstance(logprobs, bool):  # the form of chats, which some clients send here as well
        number = 0 if logprobs else None
    else:
        number = fields.integer("logprobs", 0, MOST_LOGPROBS)
    prompts = _prompts(fields)
    if len(prompts) * ask.n > MOST_CHOICES:
        raise fields.refuse(
            "prompt",
            f"{len(prompts)} prompts with n {ask.n} come to more than {MOST_CHOICES} answers",
            "send several requests",
        )
    return replace(ask, prompts=prompts, logprobs=number, echo=fields.flag("echo") or False)


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    value = fields.get("prompt")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", "a string, a list of token ids, or a list of either")
    if _is_id(value[0]):
        return (_ids(fields, "prompt", value),)
    if len(value) > MOST_CHOICES:
        raise fields.refuse(
            "prompt", f"prompt has {len(value)} entries, and at most {MOST_CHOICES} are taken", "send several"
        )
    return tuple(
        each if isinstance(each, str) else _ids(fields, f"prompt[{index}]", each)
        for index, each in enumerate(value)
    )


def _ids(fields: Fields, param: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise fields.refuse("prompt", f"{param} is neither a string nor a list of token ids")
    if len(value) > MOST_TOKENS:
        raise fields.refuse("prompt", f"{param} has more than {MOST_TOKENS} token ids")
    return tuple(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
