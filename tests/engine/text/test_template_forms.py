"""What a person said reaches the prompt, whatever form the template wants it in."""

from __future__ import annotations

import pytest

from specx.backends.errors import TemplateError
from specx.engine.text.template import ChatTemplate

TYPED = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"  # noqa: E501
    "{% endfor %}<assistant>"
)
USER_TYPED = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content + '' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REWRITES = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('\n', ' ') | upper }}{% endfor %}"
SYSTEM_LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} / {% endif %}{{ m.content }}"  # noqa: E501
    "{% elif m.role == 'assistant' %}<assistant>{{ m.content }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] if m.role == 'assistant' "
    "else m.content }}{% endfor %}"
)
LAST_ONLY = "{{ messages[-1].content }}"


def conversation(*turns: str) -> list[dict[str, str]]:
    """Messages from "role: text"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>")


TALK = conversation("system: Hi", "user: Hi there", "assistant: Hello", "user: Hi there")


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        (TYPED, "<system>Hi<user>Hi there<assistant>Hello<user>Hi there<assistant>"),
        (USER_TYPED, "<system>Hi<user>Hi there<assistant>Hello<user>Hi there"),
        (NO_SYSTEM, "<user>Hi\n\nHi there<assistant>Hello<user>Hi there"),
        (REWRITES, "<system>HI<user>HI THERE<assistant>HELLO<user>HI THERE"),
        (SYSTEM_LAST, "<user>Hi there<assistant>Hello<user>Hi / Hi there"),
        (THINKING, "<system>Hi<user>Hi there<assistant>Hello<user>Hi there"),
        (None, None),
    ],
    ids=["typed", "typed user", "no system", "rewrites", "system last", "thinking", "chatml"],
)
def test_every_message_reaches_the_prompt_in_its_turn(source, prompt):
    if source is None:
        turns = ((m["role"], m["content"]) for m in TALK)
        prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        prompt += "<|im_start|>assistant\n"
    made = template(source)
    assert made.render(TALK) == prompt
    assert source is None or made.notice is None


def test_a_system_text_that_is_rewritten_stays_in_its_own_turn():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('\n', ' ') }}{% endfor %}"
    messages = conversation("system: Be\nbrief.", "user: Hi")
    assert template(source).render(messages) == "<system>Be brief.<user>Hi"


def test_a_dropped_system_text_is_not_taken_for_the_same_words_of_the_user():
    assert template(NO_SYSTEM).render(conversation("system: Hi", "user: Hi there")) == "<user>Hi\n\nHi there"


def test_a_system_message_in_the_middle_goes_to_the_next_user_message():
    source = (
        "{% for m in messages %}{% if m.role != 'system' or loop.first %}<{{ m.role }}>{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    messages = conversation("user: a", "assistant: b", "system: now in French", "user: c")
    assert template(source).render(messages) == "<user>a<assistant>b<user>now in French\n\nc"


def test_reasoning_may_be_left_out_of_earlier_answers():
    messages = conversation("user: a?", "assistant: <think>hm</think>b", "user: c?")
    made = template(THINKING)
    assert made.render(messages) == "<user>a?<assistant>b<user>c?"
    assert made.notice is None


def test_a_template_that_forgets_earlier_messages_says_so():
    made = template(LAST_ONLY)
    assert made.notice == "the model's chat template leaves out earlier messages (assistant and user)"
    assert made.render(conversation("user: a?", "assistant: b", "user: c?")) == "c?"


def test_messages_that_are_forgotten_only_in_long_conversations():
    made = template("{% for m in messages[-4:] %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    talk = conversation(
        *["user: first question", "assistant: b"], *["user: c", "assistant: d"] * 2, "user: e"
    )
    made.render(talk[:3])
    assert made.notice is None
    made.render(talk)
    assert made.notice is not None and "earlier messages" in made.notice


@pytest.mark.parametrize("source", ["the same always", "{{ messages[0].text }}", "{{ messages | length }}"])
def test_a_question_that_cannot_be_passed_on_is_an_error(source):
    with pytest.raises(TemplateError, match="does not pass on messages of the role user") as caught:
        template(source).render(conversation("user: What is it?"))
    assert "specx complete" in caught.value.hint


def test_a_role_that_the_template_ignores_is_an_error():
    source = (
        "{% for m in messages if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    talk = conversation("user: a", "assistant: b", "tool: 42 degrees", "user: c")
    with pytest.raises(TemplateError, match="the role tool"):
        template(source).render(talk)
    assert template(source.replace("'user',", "'user', 'tool',")).render(talk).count("42 degrees") == 1


def test_a_call_that_the_template_ignores_is_an_error():
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "x"}}}
    messages = [*conversation("user: a"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages += conversation("tool: x is y")
    shows = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    )
    assert template(shows).render(messages) == (
        '<user>a<assistant>{"name": "look_up", "arguments": {"word": "x"}}<tool>x is y'
    )
    made = template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    made.render(messages)
    assert made.notice is not None and "(assistant)" in made.notice


def test_content_in_parts_is_given_as_the_template_wants_it():
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}").render(messages) == (
        "<user>Hi"
    )
    assert template(TYPED).render(messages) == "<user>Hi<assistant>"


def test_a_form_may_depend_on_the_tools():
    source = (
        "{% for m in messages %}{% if not (tools and m.role == 'system') %}<{{ m.role }}>{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    messages = conversation("system: Hi", "user: Hi there")
    made = template(source)
    assert made.render(messages) == "<system>Hi<user>Hi there"
    assert made.render(messages, tools=[{"name": "x"}]) == "<user>Hi\n\nHi there"


def test_messages_are_left_as_they_were():
    messages = conversation("system: Hi", "user: Hi there")
    before = [dict(message) for message in messages]
    for source in (TYPED, NO_SYSTEM):
        template(source).render(messages)
    assert messages == before
