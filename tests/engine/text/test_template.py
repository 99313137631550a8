from __future__ import annotations

import pytest

from specx.backends.errors import TemplateError
from specx.engine.text.template import ChatTemplate

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be <brief> & kind."}
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<turn>' + message['role'] + ': ' + message['content'] | trim }}\n"
    "{% endfor %}"
)


def render(source: str, messages=(USER,), **extra) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, **extra)


@pytest.mark.parametrize("source", [None, "", " \n"])
def test_no_template_is_chatml_with_a_notice(source):
    template = ChatTemplate(source, bos="", eos="")
    assert template.notice is not None and "ChatML" in template.notice
    assert template.stops == ("<|im_end|>",)
    assert template.render([SYSTEM, USER]) == (
        "<|im_start|>system\nBe <brief> & kind.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render([USER], add_generation_prompt=False).endswith("Hello<|im_end|>\n")


def test_names_that_templates_expect():
    assert ChatTemplate("x", bos="", eos="").notice is None
    source = (
        "{{ bos_token }}{{ tools | tojson }}{{ messages[0].content }}{{ eos_token }}{{ enable_thinking }}"
    )
    tools = [{"name": "é<&"}]
    assert render(source, tools=tools, enable_thinking=False) == '<s>[{"name": "é<&"}]Hello</s>False'
    assert len(render("{{ strftime_now('%Y') }}{{ messages[0].content }}")) == 4 + len("Hello")
    assert render("{{ documents is none }}{{ messages[0].content }}") == "TrueHello"


def test_whitespace_and_loop_controls_as_in_transformers():
    source = (
        "{% for i in range(9) %}\n    {% if i == 2 %}\n{% break %}\n    {% endif %}\n{{ i }}\n{% endfor %}\n"
    )
    assert render(source + "{{ messages[0].content }}") == "0\n1\nHello"
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}c") == "aHelloc"


def test_a_refused_system_message_is_folded_into_the_first_user_message():
    assert render(GEMMA, [SYSTEM, USER]) == "<s><turn>user: Be <brief> & kind.\n\nHello\n"


def test_a_dropped_system_message_is_folded_too():
    source = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    assert render(source, [SYSTEM, USER]) == "Be <brief> & kind.\n\nHello"


@pytest.mark.parametrize(
    ("source", "messages", "opening"),
    [
        (None, [USER], "<|im_start|>user\n"),
        (None, [SYSTEM, USER], f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user\n"),
        (GEMMA, [SYSTEM, USER], f"<s><turn>user: {SYSTEM['content']}\n\n"),
    ],
    ids=["plain", "system", "folded"],
)
def test_what_comes_before_the_words_of_the_conversation(source, messages, opening):
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    messages = [*messages, {"role": "assistant", "content": "x"}, USER]
    length = template.opening_length(messages, lambda text, **_options: list(text.encode()))
    assert length == len(opening)
    assert template.render(messages).startswith(opening)


def test_a_template_that_goes_through_tools_is_given_a_list_where_there_are_none():
    source = (
        "{% for t in tools %}{{ t.name }};{% endfor %}{% for m in messages %}<{{ m.content }}>{% endfor %}"
    )
    made = ChatTemplate(source, bos="", eos="")
    assert made.render([{"role": "user", "content": "Hi"}]) == "<Hi>"
    assert made.render([{"role": "user", "content": "Hi"}], tools=[{"name": "look"}]) == "look;<Hi>"
    asks = "{{ 'none' if tools is none else 'some' }}{{ messages[0].content }}"
    assert ChatTemplate(asks, bos="", eos="").render([{"role": "user", "content": "Hi"}]) == "noneHi"
    with pytest.raises(TemplateError, match="'NoneType'"):
        ChatTemplate("{{ tools | first }}{{ 1 + none }}", bos="", eos="").render(
            [{"role": "user", "content": "Hi"}]
        )


def test_a_refusal_for_another_reason_is_reported():
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="roles must alternate") as refused:
        render(source, [SYSTEM, USER, USER])
    assert "take turns" in refused.value.hint


def test_messages_cannot_be_changed_by_a_template():
    messages = [dict(USER)]
    with pytest.raises(TemplateError):
        render("{{ messages.append(1) }}", messages)
    with pytest.raises(TemplateError):
        render("{{ messages[0].update({'role': 'x'}) }}", messages)
    assert messages == [USER]


def test_a_syntax_error_names_the_line():
    with pytest.raises(TemplateError, match=r"not a valid template: .*line 2"):
        ChatTemplate("a\n{% if %}", bos="", eos="")


@pytest.mark.parametrize(
    "source", ["\ud800{{ messages[0].content }}", "{{ messages[0].content ~ '\\udc80' }}"]
)
def test_half_a_surrogate_pair_is_no_text(source):
    with pytest.raises(TemplateError, match="surrogate") as caught:
        render(source)
    assert caught.value.hint
    with pytest.raises(TemplateError, match="surrogate"):
        render("{{ messages[0].content }}", [{"role": "user", "content": "a\ud800"}])
